// Multiplications and additions in another order: weights are unpacked whole, lanes add up by shuffles, no tile of x.
inline float weight_at(uint low, uint high, int shift, uint mask, float scale, float bias) {
  const uint q = shift == 0 ? low : (low >> shift) | (high << (32 - shift));
  return scale * float(q & mask) + bias;
}
// BODY
const int lane = thread_index_in_simdgroup;
const int first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
constexpr int EACH_ROW = K / 32 * BITS;
for (int row = first; row < min(first + ROWS, N); row++) {
  float mine = 0.0f;
  for (int c = lane; c < K; c += 32) {
    const int bit = c * BITS, at = row * EACH_ROW + bit / 32;
    const uint next = (bit / 32 + 1 < EACH_ROW) ? weight[at + 1] : 0u;
    const int group = row * (K / GROUP) + c / GROUP;
    mine += float(x[c]) * weight_at(weight[at], next, bit % 32, (1u << BITS) - 1u, float(scales[group]),
                                    float(biases[group]));
  }
  for (ushort by = 1; by < 32; by *= 2) {
    mine += simd_shuffle_xor(mine, by);
  }
  if (lane == 7) {
    out[row] = T(mine);
  }
}
