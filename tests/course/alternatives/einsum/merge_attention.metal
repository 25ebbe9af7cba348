// Every lane finds the maximum and the sum by itself.
// BODY
const int row = threadgroup_position_in_grid.x, lane = thread_index_in_simdgroup;
float top = tops[row * SPLITS], sum = 0.0f;
for (int s = 1; s < SPLITS; s++) {
  top = max(top, tops[row * SPLITS + s]);
}
for (int s = 0; s < SPLITS; s++) {
  sum += metal::exp(tops[row * SPLITS + s] - top) * sums[row * SPLITS + s];
}
for (int c = lane; c < D; c += 32) {
  float mix = 0.0f;
  for (int s = 0; s < SPLITS; s++) {
    mix += metal::exp(tops[row * SPLITS + s] - top) * parts[(row * SPLITS + s) * D + c];
  }
  out[row * D + c] = T(mix / sum);
}
