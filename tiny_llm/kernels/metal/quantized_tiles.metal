// x Wᵀ for many rows of x and a quantized W, tile by tile with simdgroup matrices, split over K (split-K).
// x (M, K), scales, biases (N, K / GROUP) of T; weight (N, K BITS / 32) uint: q of BITS bits; w = scale q + bias.
// out (SPLITS, M, N) of O: slice s holds the sums over its DEPTH columns; M is an int.
// A threadgroup of 4 simdgroups takes a tile of 32 × 32, BK columns at a time; each simdgroup a quarter of the tile.
template <int BITS, int WORDS>
inline uint code(thread const uint* word, int i) {
  const int at = i * BITS / 32, shift = i * BITS % 32;
  uint q = word[at] >> shift;
  if (shift + BITS > 32) {  // 3 and 6 bits do not divide a word
    q |= word[at + 1] << (32 - shift);
  }
  return q & ((1u << BITS) - 1u);
}
// BODY
constexpr int WORDS = 32 % BITS ? BITS : 1, VALUES = WORDS * 32 / BITS;
constexpr int BM = 32, BN = 32, BK = 32, LD = BK + 4;  // the gap spreads a column over the banks
threadgroup float x_tile[BM][LD], w_tile[BN][LD], sums[BM][BN];
const int t = thread_index_in_threadgroup, lane = thread_index_in_simdgroup, g = simdgroup_index_in_threadgroup;
const int n0 = threadgroup_position_in_grid.x * BN, m0 = threadgroup_position_in_grid.y * BM;
const int split = threadgroup_position_in_grid.z, row = g / 2 * 16, column = g % 2 * 16;  // of this simdgroup's quarter
simdgroup_float8x8 sum[2][2], a[2], b[2];
for (int i = 0; i < 4; i++) {
  sum[i / 2][i % 2] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}
for (int k0 = split * DEPTH; k0 < min((split + 1) * DEPTH, K); k0 += BK) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // before the tiles are written again
  for (int i = t; i < BM * BK; i += 128) {
    const int r = i / BK, c = i % BK;
    x_tile[r][c] = m0 + r < M ? float(x[(m0 + r) * K + k0 + c]) : 0.0f;
  }
  // ANCHOR: unpack
  for (int i = t; i < BN * BK / VALUES; i += 128) {
    const int r = i / (BK / VALUES), c = i % (BK / VALUES) * VALUES, n = min(n0 + r, N - 1);
    const float scale = float(scales[n * (K / GROUP) + (k0 + c) / GROUP]);
    const float bias = float(biases[n * (K / GROUP) + (k0 + c) / GROUP]);
    uint word[WORDS + 1] = {0};
    for (int j = 0; j < WORDS; j++) {
      word[j] = weight[n * (K / 32 * BITS) + (k0 + c) * BITS / 32 + j];
    }
    for (int j = 0; j < VALUES; j++) {
      w_tile[r][c + j] = scale * float(code<BITS, WORDS>(word, j)) + bias;
    }
  }
  // ANCHOR_END: unpack
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // TASK w2.8.2: the simdgroup's quarter, from the tiles
  for (int k = 0; k < BK; k += 8) {
    for (int i = 0; i < 2; i++) {
      simdgroup_load(a[i], &x_tile[row + i * 8][k], LD);
      simdgroup_load(b[i], &w_tile[column + i * 8][k], LD, ulong2(0, 0), true);  // Wᵀ
    }
    for (int i = 0; i < 4; i++) {
      simdgroup_multiply_accumulate(sum[i / 2][i % 2], a[i / 2], b[i % 2], sum[i / 2][i % 2]);
    }
  }
  // END TASK
}
for (int i = 0; i < 4; i++) {
  simdgroup_store(sum[i / 2][i % 2], &sums[row + i / 2 * 8][column + i % 2 * 8], BN);
}
simdgroup_barrier(mem_flags::mem_threadgroup);
for (int i = lane; i < 16 * 16; i += 32) {
  const int r = row + i / 16, c = column + i % 16;
  if (m0 + r < M && n0 + c < N) {
    out[(split * M + m0 + r) * N + n0 + c] = O(sums[r][c]);
  }
}
