// sum = x + residual, out = sum / sqrt(mean(sum²) + eps) weight over each row: two operations, one pass over memory.
// x, residual, sum, out (rows, D) of T; weight (D,) of T; eps float; rows and rows_each int.
// As rms_norm.metal, a threadgroup takes `rows_each` rows; what is normalised is the rounded sum, so that both agree.
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
  // YOUR CODE (w2.3.2): one row: add, write the sum, and norm what is still in the registers
#error "NotDone: w2.3.2"
}
