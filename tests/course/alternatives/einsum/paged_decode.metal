// A simdgroup for each query head in turn; its lanes share the dimensions of one key at a time.
// BODY
constexpr int EACH = (D + 31) / 32;
const int lane = thread_index_in_simdgroup, split = threadgroup_position_in_grid.x;
const int kv_head = threadgroup_position_in_grid.y, sequence = threadgroup_position_in_grid.z;
const int length = lengths[sequence], first = window > 0 ? max(length - window, 0) : 0;
const int begin = first + split * CHUNK, end = min(begin + CHUNK, length);
for (int h = simdgroup_index_in_threadgroup; h < HEADS; h += SIMDGROUPS) {
  const int head = (sequence * KV_HEADS + kv_head) * HEADS + h, part = head * SPLITS + split;
  float mix[EACH] = {0.0f}, top = -INFINITY, sum = 0.0f;
  int slot = begin % BLOCK, entry = begin / BLOCK;
  for (int position = begin; position < end; position++) {
    const device T* key = keys + ((kv_head * N + tables[sequence * M + entry]) * BLOCK + slot) * D;
    const device T* value = values + (key - keys);
    float score = 0.0f;
    for (int c = lane; c < D; c += 32) {
      score += float(q[head * D + c]) * float(key[c]);
    }
    score = simd_sum(score) * scale;
    const float higher = max(top, score), kept = metal::exp(top - higher), p = metal::exp(score - higher);
    for (int j = 0; j < EACH; j++) {
      const int c = lane + 32 * j;
      mix[j] = mix[j] * kept + (c < D ? p * float(value[c]) : 0.0f);
    }
    sum = sum * kept + p;
    top = higher;
    slot++;
    if (slot == BLOCK) {
      slot = 0;
      entry++;
    }
  }
  for (int j = 0; j < EACH; j++) {
    if (lane + 32 * j < D) {
      parts[part * D + lane + 32 * j] = mix[j];
    }
  }
  if (lane == 0) {
    tops[part] = top;
    sums[part] = sum;
  }
}
