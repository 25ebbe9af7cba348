// One query for each sequence against a CHUNK of its keys: a part of softmax(q Kᵀ scale) V (flash-decoding).
// q (B, H, D), k, v (B, H / HEADS, S, D) of T; lengths (B,) int; scale float; window (0: none), S, SPLITS int.
// parts (B, H, SPLITS, D), tops, sums (B, H, SPLITS) float: Σ exp(s - top) v, top = max s, Σ exp(s - top).
// A threadgroup takes one chunk of one key-value head, so that all HEADS query heads share what it reads; its
// simdgroups take turns over the keys, with a running maximum and sum each.
// BODY
constexpr int EACH = (D + 31) / 32;  // dimensions of a lane: lane, lane + 32, …
threadgroup float queries[HEADS][D], mixes[SIMDGROUPS][D], group_tops[SIMDGROUPS], group_sums[SIMDGROUPS];
const int t = thread_index_in_threadgroup, lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int split = threadgroup_position_in_grid.x, kv_head = threadgroup_position_in_grid.y;
const int sequence = threadgroup_position_in_grid.z, head = (sequence * KV_HEADS + kv_head) * HEADS;
const int length = lengths[sequence], first = window > 0 ? max(length - window, 0) : 0;
const int begin = first + split * CHUNK, end = min(begin + CHUNK, length);
const ulong rows = ulong(sequence * KV_HEADS + kv_head) * S;
for (int i = t; i < HEADS * D; i += SIMDGROUPS * 32) {
  queries[i / D][i % D] = float(q[head * D + i]) * scale;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
float query[HEADS][EACH], mix[HEADS][EACH], top[HEADS], sum[HEADS];
for (int h = 0; h < HEADS; h++) {
  top[h] = -INFINITY;
  sum[h] = 0.0f;
  for (int j = 0; j < EACH; j++) {
    const int c = lane + j * 32;
    query[h][j] = c < D ? queries[h][c] : 0.0f;
    mix[h][j] = 0.0f;
  }
}
// ANCHOR: keys
for (int position = begin + simdgroup; position < end; position += SIMDGROUPS) {
  float key[EACH], value[EACH];
  for (int j = 0; j < EACH; j++) {
    const int c = lane + j * 32;
    key[j] = c < D ? float(k[(rows + position) * D + c]) : 0.0f;
    value[j] = c < D ? float(v[(rows + position) * D + c]) : 0.0f;
  }
  // ANCHOR_END: keys
  for (int h = 0; h < HEADS; h++) {
    // TASK w2.10.1: one key for one head, with a running maximum and sum
    float score = 0.0f;
    for (int j = 0; j < EACH; j++) {
      score += query[h][j] * key[j];
    }
    score = simd_sum(score);
    const float higher = max(top[h], score), kept = metal::exp(top[h] - higher), p = metal::exp(score - higher);
    top[h] = higher;
    sum[h] = sum[h] * kept + p;
    for (int j = 0; j < EACH; j++) {
      mix[h][j] = mix[h][j] * kept + p * value[j];
    }
    // END TASK
  }
}
#pragma unroll
for (int h = 0; h < HEADS; h++) {  // the simdgroups' results of one head become one
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the last head's have been read
  if (lane == 0) {
    group_tops[simdgroup] = top[h];
    group_sums[simdgroup] = sum[h];
  }
  for (int j = 0; j < EACH; j++) {
    if (lane + j * 32 < D) {
      mixes[simdgroup][lane + j * 32] = mix[h][j];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int part = (head + h) * SPLITS + split;
  float highest = -INFINITY, total = 0.0f;
  for (int g = 0; g < SIMDGROUPS; g++) {
    highest = max(highest, group_tops[g]);
  }
  float factor[SIMDGROUPS];
  for (int g = 0; g < SIMDGROUPS; g++) {
    factor[g] = group_tops[g] == -INFINITY ? 0.0f : metal::exp(group_tops[g] - highest);
    total += factor[g] * group_sums[g];
  }
  for (int c = t; c < D; c += SIMDGROUPS * 32) {
    float mixed = 0.0f;
    for (int g = 0; g < SIMDGROUPS; g++) {
      mixed += factor[g] * mixes[g][c];
    }
    parts[part * D + c] = mixed;
  }
  if (t == 0) {
    tops[part] = highest;
    sums[part] = total;
  }
}
