// Each lane goes over columns 32 apart and unpacks a code by itself; no tile of x, sums by shuffles.
// BODY
const int lane = thread_index_in_simdgroup;
const int first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
constexpr int EACH_ROW = K / 32 * BITS;
for (int row = first; row < min(first + ROWS, N); row++) {
  float mine[M] = {0.0f};
  for (int c = lane; c < K; c += 32) {
    const int bit = c * BITS, at = row * EACH_ROW + bit / 32, shift = bit % 32, group = row * (K / GROUP) + c / GROUP;
    uint q = weight[at] >> shift;
    if (shift + BITS > 32) {
      q |= weight[at + 1] << (32 - shift);
    }
    const float w = float(scales[group]) * float(q & ((1u << BITS) - 1u)) + float(biases[group]);
    for (int m = 0; m < M; m++) {
      mine[m] += w * float(x[m * K + c]);
    }
  }
  for (int m = 0; m < M; m++) {
    for (ushort by = 1; by < 32; by *= 2) {
      mine[m] += simd_shuffle_xor(mine[m], by);
    }
    if (lane == 5) {
      out[m * N + row] = T(mine[m]);
    }
  }
}
