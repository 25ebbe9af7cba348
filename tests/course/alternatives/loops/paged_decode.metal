// A thread for each query head: its scores twice, for the top and for the sum.
// BODY
const int h = thread_index_in_threadgroup, split = threadgroup_position_in_grid.x;
const int kv_head = threadgroup_position_in_grid.y, sequence = threadgroup_position_in_grid.z;
const int length = lengths[sequence], first = window > 0 ? max(length - window, 0) : 0;
if (h < HEADS) {
  const int head = (sequence * KV_HEADS + kv_head) * HEADS + h, part = head * SPLITS + split;
  float mix[D] = {0.0f}, top = -INFINITY, sum = 0.0f;
  for (int pass = 0; pass < 2; pass++) {
    for (int i = 0; i < CHUNK && first + split * CHUNK + i < length; i++) {
      const int at = first + split * CHUNK + i, block = tables[sequence * M + at / BLOCK];
      const int row = (kv_head * N + block) * BLOCK + at % BLOCK;
      float score = 0.0f;
      for (int c = 0; c < D; c++) {
        score += float(q[head * D + c]) * scale * float(keys[row * D + c]);
      }
      if (pass == 0) {
        top = max(top, score);
      } else {
        const float p = metal::exp(score - top);
        sum += p;
        for (int c = 0; c < D; c++) {
          mix[c] += p * float(values[row * D + c]);
        }
      }
    }
  }
  for (int c = 0; c < D; c++) {
    parts[part * D + c] = mix[c];
  }
  tops[part] = top;
  sums[part] = sum;
}
