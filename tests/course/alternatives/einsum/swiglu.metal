// A pointer to the row, and the division last.
// BODY
const uint place = threadgroup_position_in_grid.x * 256 + thread_index_in_threadgroup;
if (place >= uint(n)) {
  return;
}
const device T* row = gate_up + place / uint(width) * uint(2 * width);
const float gate = float(row[place % uint(width)]), up = float(row[place % uint(width) + uint(width)]);
out[place] = T(gate * up / (metal::precise::exp(-gate) + 1.0f));
