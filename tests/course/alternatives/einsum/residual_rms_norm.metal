// The sum is made twice, written once. Two sets of places take turns, so that one barrier for each row is enough.
// BODY
threadgroup float sums[2][32];
const uint t = thread_index_in_threadgroup;
uint turn = 0;
for (uint row = threadgroup_position_in_grid.x * rows_each;
     row < min((threadgroup_position_in_grid.x + 1) * rows_each, uint(rows)); row++, turn ^= 1) {
  float mine = 0.0f;
  for (uint c = t; c < D; c += THREADS) {
    const float both = float(T(float(x[row * D + c]) + float(residual[row * D + c])));
    mine += both * both;
  }
  for (ushort by = 1; by < 32; by *= 2) {
    mine += simd_shuffle_xor(mine, by);
  }
  if (thread_index_in_simdgroup == 31) {
    sums[turn][simdgroup_index_in_threadgroup] = mine;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0.0f;
  for (int s = 0; s < THREADS / 32; s++) {
    total += sums[turn][s];
  }
  const float scale = metal::precise::rsqrt(total / D + eps);
  for (uint c = t; c < D; c += THREADS) {
    const T both = T(float(x[row * D + c]) + float(residual[row * D + c]));
    sum[row * D + c] = both;
    out[row * D + c] = T(float(both) * scale) * weight[c];
  }
}
