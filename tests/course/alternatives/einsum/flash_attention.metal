// A thread for each query: the maximum in a first pass over the keys, weights and values in a second.
// BODY
const int t = thread_index_in_threadgroup, tile = threadgroup_position_in_grid.x, head = threadgroup_position_in_grid.y;
const int first = tiles[tile * 4], count = tiles[tile * 4 + 1], position = tiles[tile * 4 + 3] + t;
const ulong start = ulong(head / HEADS) * S + ulong(tiles[tile * 4 + 2]);
if (t < count) {
  const int from = window > 0 ? max(position - window + 1, 0) : 0, row = ((first + t) * H + head) * D;
  float top = -INFINITY, sum = 0.0f, mix[D] = {0.0f};
  for (int pass = 0; pass < 2; pass++) {
    for (int key = from; key <= position; key++) {
      float score = 0.0f;
      for (int c = 0; c < D; c++) {
        score += float(q[row + c]) * scale * float(k[(start + key) * D + c]);
      }
      if (pass == 0) {
        top = max(top, score);
        continue;
      }
      const float p = metal::exp(score - top);
      sum += p;
      for (int c = 0; c < D; c++) {
        mix[c] += p * float(v[(start + key) * D + c]);
      }
    }
  }
  for (int c = 0; c < D; c++) {
    out[row + c] = T(mix[c] / sum);
  }
}
