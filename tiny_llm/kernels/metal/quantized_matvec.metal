// out = W x, where W is quantized: w = scale q + bias, with one scale and one bias for each GROUP columns of a row.
// x (1, K), scales, biases (N, K / GROUP), out (1, N) of T; weight (N, K BITS / 32) uint: q of BITS bits, lowest first.
// A threadgroup takes SIMDGROUPS ROWS rows and keeps a TILE of x for all of them. In a step each lane of a simdgroup
// takes the next VALUES columns of its ROWS rows: scale Σ q x + bias Σ x.

// Σ q x over the codes that `word` holds: the first in its lowest BITS bits. One word more than WORDS is there, a 0.
template <int BITS, int WORDS>
inline float quantized_dot(thread const uint* word, thread const float* x) {
  // TASK w2.7.1: unpack the codes of a lane and multiply them with x
  float sum = 0.0f;
  for (int i = 0; i < WORDS * 32 / BITS; i++) {
    const int at = i * BITS / 32, shift = i * BITS % 32;
    uint q = word[at] >> shift;
    if (shift + BITS > 32) {  // 3 and 6 bits do not divide a word
      q |= word[at + 1] << (32 - shift);
    }
    sum += float(q & ((1u << BITS) - 1u)) * x[i];
  }
  return sum;
  // END TASK
}
// BODY
constexpr int WORDS = 32 % BITS ? BITS : 1, VALUES = WORDS * 32 / BITS, STEP = 32 * VALUES;
threadgroup float tile[VALUES][TILE / VALUES];
const int t = thread_index_in_threadgroup, lane = thread_index_in_simdgroup;
const int first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
float sum[ROWS] = {0.0f};
for (int begin = 0; begin < K; begin += TILE) {
  // ANCHOR: tile
  threadgroup_barrier(mem_flags::mem_threadgroup);  // before the tile is written again
  for (int c = t; c < TILE; c += SIMDGROUPS * 32) {
    tile[c % VALUES][c / VALUES] = begin + c < K ? float(x[begin + c]) : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // ANCHOR_END: tile
  // ANCHOR: mine
  for (int step = begin; step < min(begin + TILE, K); step += STEP) {
    const int column = step + lane * VALUES, group = step / GROUP + lane;
    float mine[VALUES], total = 0.0f;
    for (int i = 0; i < VALUES; i++) {
      mine[i] = tile[i][(column - begin) / VALUES];
      total += mine[i];
    }
    // ANCHOR_END: mine
    for (int r = 0; r < ROWS; r++) {
      // TASK w2.7.2: what this step adds to row first + r
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
        sum[r] += scale * quantized_dot<BITS, WORDS>(word, mine) + bias * total;
      }
      // END TASK
    }
  }
}
for (int r = 0; r < ROWS; r++) {
  sum[r] = simd_sum(sum[r]);
  if (lane == 0 && first + r < N) {
    out[first + r] = T(sum[r]);
  }
}
