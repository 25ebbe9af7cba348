// out = x / sqrt(mean(x²) + eps) weight over each row. A threadgroup takes `rows_each` rows, one after the other.
// x, out (rows, D) of T; weight (D,) of T; eps float; rows and rows_each int.
// Each thread keeps its EACH elements of a row and of the weight in registers, so that memory is read once.

// The sum of `value` over the whole threadgroup, for each of its threads. `parts` has a place for each simdgroup.
template <int SIMDGROUPS>
inline float sum_of_group(float value, threadgroup float* parts, uint simdgroup, uint lane) {
  // TASK w2.2.2: from the lanes of a simdgroup to the whole threadgroup
  value = simd_sum(value);
  if (lane == 0) {
    parts[simdgroup] = value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  value = simd_sum(lane < SIMDGROUPS ? parts[lane] : 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // before the next row writes parts
  return value;
  // END TASK
}
// BODY
threadgroup float parts[THREADS / 32];
const uint t = thread_index_in_threadgroup, group = threadgroup_position_in_grid.x;
const uint simdgroup = simdgroup_index_in_threadgroup, lane = thread_index_in_simdgroup;
T scale[EACH];  // the thread's elements of the weight: columns t, t + THREADS, t + 2 THREADS, …
for (int k = 0; k < EACH; k++) {
  const uint c = t + k * THREADS;
  scale[k] = c < D ? weight[c] : T(0);
}
for (uint row = group * rows_each; row < min((group + 1) * rows_each, uint(rows)); row++) {
  // TASK w2.2.3: one row: read, sum the squares, write
  float held[EACH];
  float squares = 0.0f;
  for (int k = 0; k < EACH; k++) {
    const uint c = t + k * THREADS;
    held[k] = c < D ? float(x[row * D + c]) : 0.0f;
    squares += held[k] * held[k];
  }
  squares = sum_of_group<THREADS / 32>(squares, parts, simdgroup, lane);
  const float inverse = metal::precise::rsqrt(squares / float(D) + eps);
  for (int k = 0; k < EACH; k++) {
    const uint c = t + k * THREADS;
    if (c < D) {
      out[row * D + c] = T(held[k] * inverse) * scale[k];
    }
  }
  // END TASK
}
