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
  // TASK w2.3.2: one row: add, write the sum, and norm what is still in the registers
  float held[EACH];
  float squares = 0.0f;
  for (int k = 0; k < EACH; k++) {
    const uint c = t + k * THREADS;
    held[k] = 0.0f;
    if (c < D) {
      const T total = x[row * D + c] + residual[row * D + c];
      sum[row * D + c] = total;
      held[k] = float(total);
    }
    squares += held[k] * held[k];
  }
  const float part = simd_sum(squares);
  if (lane == 0) parts[simdgroup] = part;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  squares = simd_sum(lane < THREADS / 32 ? parts[lane] : 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // before the next row writes parts
  const float inverse = metal::precise::rsqrt(squares / float(D) + eps);
  for (int k = 0; k < EACH; k++) {
    const uint c = t + k * THREADS;
    if (c < D) out[row * D + c] = T(held[k] * inverse) * scale[k];
  }
  // END TASK
}
