// out = exp(x - max(x)) / sum over each row, by the online softmax (arXiv:1805.02867): maximum and sum in one pass.
// x, out (rows, width) of T; width int. One threadgroup for each row.
// Each thread keeps EACH elements in registers; EACH = 0: the row is too wide for that and is read twice.
inline float2 merged(float2 a, float2 b) {  // (maximum, sum of exp(x - maximum)) of two parts
  const float top = max(a.x, b.x);
  if (top == -INFINITY) {
    return float2(top, 0.0f);
  }
  return float2(top, a.y * metal::exp(a.x - top) + b.y * metal::exp(b.x - top));
}
inline float2 merged_over_lanes(float2 part) {
  for (ushort by = 16; by > 0; by /= 2) {
    part = merged(part, float2(simd_shuffle_xor(part.x, by), simd_shuffle_xor(part.y, by)));
  }
  return part;
}
// BODY
constexpr int HELD = EACH > 0 ? EACH : 1;
threadgroup float tops[THREADS / 32];
threadgroup float sums[THREADS / 32];
const uint t = thread_index_in_threadgroup, lane = thread_index_in_simdgroup;
const uint n = uint(width), begin = threadgroup_position_in_grid.x * n;
float held[HELD];
float2 part = float2(-INFINITY, 0.0f);
if (EACH > 0) {
  for (int k = 0; k < EACH; k++) {
    const uint c = t + k * THREADS;
    held[k] = c < n ? float(x[begin + c]) : -INFINITY;
    part = merged(part, float2(held[k], 1.0f));
  }
} else {
  for (uint c = t; c < n; c += THREADS) {
    part = merged(part, float2(float(x[begin + c]), 1.0f));
  }
}
part = merged_over_lanes(part);
if (lane == 0) {
  tops[simdgroup_index_in_threadgroup] = part.x;
  sums[simdgroup_index_in_threadgroup] = part.y;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
part = lane < THREADS / 32 ? float2(tops[lane], sums[lane]) : float2(-INFINITY, 0.0f);
part = merged_over_lanes(part);
if (EACH > 0) {
  for (int k = 0; k < EACH; k++) {
    const uint c = t + k * THREADS;
    if (c < n) {
      out[begin + c] = T(metal::exp(held[k] - part.x) / part.y);
    }
  }
} else {
  for (uint c = t; c < n; c += THREADS) {
    out[begin + c] = T(metal::exp(float(x[begin + c]) - part.x) / part.y);
  }
}
