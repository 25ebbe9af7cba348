// No matrices of simdgroups: each of the 128 threads adds up eight sums of the tile by itself.
// BODY
const int t = thread_index_in_threadgroup, split = threadgroup_position_in_grid.z;
const int n0 = threadgroup_position_in_grid.x * 32, m0 = threadgroup_position_in_grid.y * 32;
for (int i = t; i < 32 * 32; i += 128) {
  const int m = m0 + i / 32, n = n0 + i % 32;
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
