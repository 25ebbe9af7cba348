// A thread for each head and dimension, with a running maximum.
// BODY
const int split = threadgroup_position_in_grid.x, kv_head = threadgroup_position_in_grid.y;
const int sequence = threadgroup_position_in_grid.z, head = (sequence * KV_HEADS + kv_head) * HEADS;
const int length = lengths[sequence], first = window > 0 ? max(length - window, 0) : 0;
const int begin = first + split * CHUNK, end = min(begin + CHUNK, length);
const ulong rows = ulong(sequence * KV_HEADS + kv_head) * S;
for (int i = thread_index_in_threadgroup; i < HEADS * D; i += SIMDGROUPS * 32) {
  const int h = i / D, c = i % D, part = (head + h) * SPLITS + split;
  float top = -INFINITY, sum = 0.0f, mix = 0.0f;
  for (int position = begin; position < end; position++) {
    float score = 0.0f;
    for (int d = 0; d < D; d++) {
      score += scale * float(q[(head + h) * D + d]) * float(k[(rows + position) * D + d]);
    }
    if (score > top) {
      sum *= metal::exp(top - score);
      mix *= metal::exp(top - score);
      top = score;
    }
    sum += metal::exp(score - top);
    mix += metal::exp(score - top) * float(v[(rows + position) * D + c]);
  }
  parts[part * D + c] = mix;
  if (c == 0) {
    tops[part] = top;
    sums[part] = sum;
  }
}
