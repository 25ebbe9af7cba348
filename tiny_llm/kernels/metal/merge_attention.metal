// The parts of an attention that was split over its keys become one: softmax's own rule for two parts, over all.
// parts (R, SPLITS, D), tops, sums (R, SPLITS) float: Σ exp(s - top) v, top = max s, Σ exp(s - top); out (R, D) of T.
// out = Σ exp(top_i - top) parts_i / Σ exp(top_i - top) sums_i. One simdgroup for each row.
// BODY
constexpr int EACH = (D + 31) / 32;
const int row = threadgroup_position_in_grid.x, lane = thread_index_in_simdgroup;
float top = -INFINITY, sum = 0.0f, mix[EACH] = {0.0f};
// TASK w2.10.2: the highest maximum, and what each part weighs
for (int s = lane; s < SPLITS; s += 32) {
  top = max(top, tops[row * SPLITS + s]);
}
top = simd_max(top);
for (int begin = 0; begin < SPLITS; begin += 32) {
  const int s = begin + lane;  // this lane's part, whose factor all lanes need
  const float factor = s < SPLITS ? metal::exp(tops[row * SPLITS + s] - top) : 0.0f;
  sum += simd_sum(s < SPLITS ? factor * sums[row * SPLITS + s] : 0.0f);
  for (int i = 0; i < min(32, SPLITS - begin); i++) {
    const float f = simd_shuffle(factor, ushort(i));
    for (int j = 0; j < EACH; j++) {
      const int c = lane + j * 32;
      mix[j] += c < D ? f * parts[(row * SPLITS + begin + i) * D + c] : 0.0f;
    }
  }
}
// END TASK
for (int j = 0; j < EACH; j++) {
  if (lane + j * 32 < D) {
    out[row * D + lane + j * 32] = T(mix[j] / sum);
  }
}
