// One lane of each simdgroup, bit by bit.
// BODY
const int first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
if (thread_index_in_simdgroup == 0) {
  for (int i = 0; i < ROWS * M; i++) {
    const int row = first + i / M, m = i % M;
    if (row >= N) {
      break;
    }
    float total = 0.0f;
    for (int c = 0; c < K; c++) {
      float q = 0.0f;
      for (int b = BITS - 1; b >= 0; b--) {
        const int bit = c * BITS + b;
        q = 2.0f * q + float((weight[row * (K / 32 * BITS) + bit / 32] >> (bit % 32)) & 1u);
      }
      const int group = row * (K / GROUP) + c / GROUP;
      total += (float(scales[group]) * q + float(biases[group])) * float(x[m * K + c]);
    }
    out[m * N + row] = T(total);
  }
}
