// A tree in threadgroup memory, without simdgroup operations; x is read twice.
template <int THREADS_>
inline float tree(float value, threadgroup float* all, uint t) {
  all[t] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint width = 512; width > 0; width /= 2) {
    if (t < width && t + width < THREADS_) {
      all[t] += all[t + width];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  const float total = all[0];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return total;
}
// BODY
threadgroup float all[THREADS];
const uint me = thread_position_in_threadgroup.x, first = threadgroup_position_in_grid.x * rows_each;
for (uint row = first; row < first + rows_each && row < uint(rows); row++) {
  float mine = 0.0f;
  for (uint c = me; c < D; c += THREADS) {
    const float value = float(x[row * D + c]);
    mine = fma(value, value, mine);
  }
  const float mean = tree<THREADS>(mine, all, me) / D;
  for (uint c = me; c < D; c += THREADS) {
    out[row * D + c] = T(float(x[row * D + c]) / metal::precise::sqrt(mean + eps)) * weight[c];
  }
}
