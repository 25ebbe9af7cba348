// A simdgroup for each query of the tile in turn; its lanes share the dimensions of one key at a time.
// BODY
constexpr int EACH = (D + 31) / 32;
const int lane = thread_index_in_simdgroup, tile = threadgroup_position_in_grid.x;
const int head = threadgroup_position_in_grid.y, kv_head = head / HEADS, sequence = tiles[tile * 4 + 2];
for (int row = simdgroup_index_in_threadgroup; row < tiles[tile * 4 + 1]; row += SIMDGROUPS) {
  const int seen = tiles[tile * 4 + 3] + row, at = ((tiles[tile * 4] + row) * H + head) * D;
  float mix[EACH] = {0.0f}, top = -INFINITY, sum = 0.0f;
  for (int position = window > 0 ? max(seen - window + 1, 0) : 0; position <= seen; position++) {
    const int entry = position / BLOCK, slot = position - entry * BLOCK;
    const int from = ((kv_head * N + tables[sequence * M + entry]) * BLOCK + slot) * D;
    float score = 0.0f;
    for (int c = lane; c < D; c += 32) {
      score += float(q[at + c]) * float(keys[from + c]);
    }
    score = simd_sum(score) * scale;
    const float higher = max(top, score), kept = metal::exp(top - higher), p = metal::exp(score - higher);
    for (int j = 0; j < EACH; j++) {
      const int c = lane + 32 * j;
      mix[j] = mix[j] * kept + (c < D ? p * float(values[from + c]) : 0.0f);
    }
    sum = sum * kept + p;
    top = higher;
  }
  for (int j = 0; j < EACH; j++) {
    if (lane + 32 * j < D) {
      out[at + lane + 32 * j] = T(mix[j] / sum);
    }
  }
}
