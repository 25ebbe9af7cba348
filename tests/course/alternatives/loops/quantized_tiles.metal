// The same without anything shared: a thread has a column of eight rows.
// BODY
const int t = thread_index_in_threadgroup, split = threadgroup_position_in_grid.z;
const int n0 = threadgroup_position_in_grid.x * 32, m0 = threadgroup_position_in_grid.y * 32;
for (int i = 0; i < 8; i++) {
  const int m = m0 + t / 32 * 8 + i, n = n0 + t % 32;
  if (m >= M || n >= N) {
    continue;
  }
  float total = 0.0f;
  for (int k = split * DEPTH; k < K && k < (split + 1) * DEPTH; k++) {
    const int bit = k * BITS, at = n * (K / 32 * BITS) + bit / 32, shift = bit % 32, group = n * (K / GROUP) + k / GROUP;
    uint q = weight[at] >> shift;
    if (shift + BITS > 32) {
      q |= weight[at + 1] << (32 - shift);
    }
    total += (float(scales[group]) * float(q & ((1u << BITS) - 1u)) + float(biases[group])) * float(x[m * K + k]);
  }
  out[(split * M + m) * N + n] = O(total);
}
