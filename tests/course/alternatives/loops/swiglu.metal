// Row and column by a loop, the sigmoid by tanh.
// BODY
const int me = int(thread_position_in_grid.x);
if (me < n) {
  int column = me, at = 0;
  while (column >= width) {
    column -= width;
    at += 2 * width;
  }
  const float gate = float(gate_up[at + column]);
  out[me] = T(float(gate_up[at + column + width]) * gate * (0.5f + 0.5f * metal::precise::tanh(0.5f * gate)));
}
