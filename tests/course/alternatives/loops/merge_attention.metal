// One part after the other, as the online softmax takes one key after the other.
// BODY
const int row = threadgroup_position_in_grid.x;
for (int c = thread_index_in_simdgroup; c < D; c += 32) {
  float top = -1e30f, sum = 0.0f, mix = 0.0f;
  for (int at = row * SPLITS; at < (row + 1) * SPLITS; at++) {
    const float higher = max(top, tops[at]), kept = metal::exp(top - higher), p = metal::exp(tops[at] - higher);
    sum = sum * kept + p * sums[at];
    mix = mix * kept + p * parts[at * D + c];
    top = higher;
  }
  out[row * D + c] = T(mix / sum);
}
