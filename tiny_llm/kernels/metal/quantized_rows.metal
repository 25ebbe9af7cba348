// out = x Wᵀ for M rows of x, with one pass over the quantized W: w = scale q + bias (see quantized_matvec.metal).
// x (M, K), scales, biases (N, K / GROUP), out (M, N) of T; weight (N, K BITS / 32) uint: q of BITS bits, lowest first.
// What a lane has unpacked, VALUES columns of ROWS rows of W, it multiplies with every row of x before it goes on.
template <int BITS, int WORDS>
inline void dequantize(thread const uint* word, float scale, float bias, thread float* w) {
  for (int i = 0; i < WORDS * 32 / BITS; i++) {
    const int at = i * BITS / 32, shift = i * BITS % 32;
    uint q = word[at] >> shift;
    if (shift + BITS > 32) {  // 3 and 6 bits do not divide a word
      q |= word[at + 1] << (32 - shift);
    }
    w[i] = scale * float(q & ((1u << BITS) - 1u)) + bias;
  }
}
// BODY
constexpr int WORDS = 32 % BITS ? BITS : 1, VALUES = WORDS * 32 / BITS, STEP = 32 * VALUES;
threadgroup float tile[M][VALUES][TILE / VALUES];
const int t = thread_index_in_threadgroup, lane = thread_index_in_simdgroup;
const int first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
float sum[M][ROWS] = {{0.0f}};
for (int begin = 0; begin < K; begin += TILE) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // before the tile is written again
  for (int i = t; i < M * TILE; i += SIMDGROUPS * 32) {
    const int m = i / TILE, c = i % TILE;
    tile[m][c % VALUES][c / VALUES] = begin + c < K ? float(x[m * K + begin + c]) : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int step = begin; step < min(begin + TILE, K); step += STEP) {
    const int column = step + lane * VALUES, group = step / GROUP + lane;
    float w[ROWS][VALUES] = {{0.0f}};
    for (int r = 0; r < ROWS; r++) {
      const int row = min(first + r, N - 1);
      const bool loads = lane < STEP / GROUP && group < K / GROUP;  // one lane reads a scale, for all that need it
      float scale = loads ? float(scales[row * (K / GROUP) + group]) : 0.0f;
      float bias = loads ? float(biases[row * (K / GROUP) + group]) : 0.0f;
      scale = simd_shuffle(scale, ushort(lane * VALUES / GROUP));
      bias = simd_shuffle(bias, ushort(lane * VALUES / GROUP));
      if (column < K) {
        uint word[WORDS + 1] = {0};
        for (int i = 0; i < WORDS; i++) {
          word[i] = weight[row * (K / 32 * BITS) + column * BITS / 32 + i];
        }
        dequantize<BITS, WORDS>(word, scale, bias, w[r]);
      }
    }
    // TASK w2.8.1: multiply what is unpacked with every row of x
    for (int m = 0; m < M; m++) {
      for (int i = 0; i < VALUES; i++) {
        const float value = tile[m][i][(column - begin) / VALUES];
        for (int r = 0; r < ROWS; r++) {
          sum[m][r] += w[r][i] * value;
        }
      }  // of one place
    }
    // END TASK
  }
}
for (int m = 0; m < M; m++) {
  for (int r = 0; r < ROWS; r++) {
    const float total = simd_sum(sum[m][r]);
    if (lane == 0 && first + r < N) {
      out[m * N + first + r] = T(total);
    }
  }
}
