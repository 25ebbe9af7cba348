// out = silu(gate) up, where row t of gate_up holds gate and up side by side. One thread for each element of out.
// gate_up (T, 2 I), out (T, I) of type T; width is I, n is T I.
// BODY
// TASK w2.3.1: one element of the result for each thread
uint i = thread_position_in_grid.x;
if (i >= uint(n)) {
  return;
}
uint row = i / uint(width), column = i % uint(width);
const uint at = row * 2 * uint(width) + column;
float gate = float(gate_up[at]);
float up = float(gate_up[at + uint(width)]);
out[i] = T(gate / (1.0f + metal::exp(-gate)) * up);
// END TASK
