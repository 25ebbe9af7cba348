// out = x / sqrt(mean(x²) + eps) weight over each row. A threadgroup takes `rows_each` rows, one after the other.
// x, out (rows, D) of T; weight (D,) of T; eps float; rows and rows_each int.
// Each thread keeps its EACH elements of a row and of the weight in registers, so that memory is read once.

// The sum of `value` over the whole threadgroup, for each of its threads. `parts` has a place for each simdgroup.
template <int SIMDGROUPS>
inline float sum_of_group(float value, threadgroup float* parts, uint simdgroup, uint lane) {
  // YOUR CODE (w2.2.2): from the lanes of a simdgroup to the whole threadgroup
#error "NotDone: w2.2.2"
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
  // YOUR CODE (w2.2.3): one row: read, sum the squares, write
#error "NotDone: w2.2.3"
}
