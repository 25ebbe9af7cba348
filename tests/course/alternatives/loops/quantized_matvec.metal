// One lane of each simdgroup does all the work, group by group, bit by bit: slow, and right.
// BODY
const int first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
if (thread_index_in_simdgroup == 0) {
  for (int row = first; row < first + ROWS && row < N; row++) {
    float total = 0.0f;
    for (int group = 0; group < K / GROUP; group++) {
      float with_codes = 0.0f, alone = 0.0f;
      for (int c = group * GROUP; c < (group + 1) * GROUP; c++) {
        uint q = 0u;
        for (int b = 0; b < BITS; b++) {
          const int bit = c * BITS + b;
          q |= ((weight[row * (K / 32 * BITS) + bit / 32] >> (bit % 32)) & 1u) << b;
        }
        with_codes += float(q) * float(x[c]);
        alone += float(x[c]);
      }
      total += float(scales[row * (K / GROUP) + group]) * with_codes + float(biases[row * (K / GROUP) + group]) * alone;
    }
    out[row] = T(total);
  }
}
