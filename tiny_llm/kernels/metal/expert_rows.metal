// out[i] = x[rows[i]] W[e]ᵀ with e the expert of choice i: each expert that was chosen is read once, whatever the number
// of its rows. Choices are sorted by expert; the s-th expert among them has choices begins[s] … begins[s + 1] - 1.
// x (X, K), out (R, N) of T; rows, experts (R,), begins (S + 1,) int; weight (E, N, K BITS / 32) uint; scales, biases
// (E, N, K / GROUP) of T. A group takes ROWS rows of one expert's W for each simdgroup, and up to M choices.
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
const int from = begins[threadgroup_position_in_grid.y], count = begins[threadgroup_position_in_grid.y + 1] - from;
if (count == 0) {  // fewer experts were chosen than there are places
  return;
}
const int top = experts[from] * N;  // the first row of this expert's W in the stack
float sum[M][ROWS] = {{0.0f}};
for (int begin = 0; begin < K; begin += TILE) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // before the tile is written again
  for (int i = t; i < count * TILE; i += SIMDGROUPS * 32) {
    const int m = i / TILE, c = i % TILE;
    tile[m][c % VALUES][c / VALUES] = begin + c < K ? float(x[rows[from + m] * K + begin + c]) : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int step = begin; step < min(begin + TILE, K); step += STEP) {
    const int column = step + lane * VALUES, group = step / GROUP + lane;
    float w[ROWS][VALUES] = {{0.0f}};
    for (int r = 0; r < ROWS; r++) {
      const int row = top + min(first + r, N - 1);
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
    for (int m = 0; m < M; m++) {
      if (m < count) {
        for (int i = 0; i < VALUES; i++) {
          const float value = tile[m][i][(column - begin) / VALUES];
          for (int r = 0; r < ROWS; r++) {
            sum[m][r] += w[r][i] * value;
          }
        }
      }
    }
  }
}
for (int m = 0; m < M; m++) {
  for (int r = 0; r < ROWS; r++) {
    const float total = simd_sum(sum[m][r]);
    if (lane == 0 && m < count && first + r < N) {
      out[(from + m) * N + first + r] = T(total);
    }
  }
}
