// A thread for each query of the tile, key by key.
// BODY
const int row = thread_index_in_threadgroup, tile = threadgroup_position_in_grid.x;
const int head = threadgroup_position_in_grid.y, kv_head = head / HEADS;
if (row < tiles[tile * 4 + 1]) {
  const int sequence = tiles[tile * 4 + 2], seen = tiles[tile * 4 + 3] + row;
  const int at = ((tiles[tile * 4] + row) * H + head) * D;
  float mix[D] = {0.0f}, top = -INFINITY, sum = 0.0f;
  for (int position = window > 0 ? max(seen - window + 1, 0) : 0; position <= seen; position++) {
    const int block = tables[sequence * M + position / BLOCK];
    const int from = ((kv_head * N + block) * BLOCK + position % BLOCK) * D;
    float score = 0.0f;
    for (int c = 0; c < D; c++) {
      score += float(q[at + c]) * scale * float(keys[from + c]);
    }
    const float higher = max(top, score), kept = metal::exp(top - higher), p = metal::exp(score - higher);
    for (int c = 0; c < D; c++) {
      mix[c] = mix[c] * kept + p * float(values[from + c]);
    }
    sum = sum * kept + p;
    top = higher;
  }
  for (int c = 0; c < D; c++) {
    out[at + c] = T(mix[c] / sum);
  }
}
