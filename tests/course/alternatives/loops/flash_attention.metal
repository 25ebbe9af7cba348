// Four threads to a query, a running maximum, each fourth dimension of the output to one of them.
// BODY
const int t = thread_index_in_threadgroup, tile = threadgroup_position_in_grid.x, head = threadgroup_position_in_grid.y;
const int first = tiles[tile * 4], count = tiles[tile * 4 + 1], position = tiles[tile * 4 + 3] + t / 4;
const ulong start = ulong(head / HEADS) * S + ulong(tiles[tile * 4 + 2]);
const int row = ((first + t / 4) * H + head) * D;
for (int c = t % 4; c < D && t / 4 < count; c += 4) {
  float top = -1e30f, sum = 0.0f, mix = 0.0f;
  for (int key = 0; key <= position; key++) {
    if (window > 0 && key + window <= position) {
      continue;
    }
    float score = 0.0f;
    for (int d = 0; d < D; d++) {
      score += float(q[row + d]) * float(k[(start + key) * D + d]);
    }
    score *= scale;
    const float higher = max(top, score);
    mix = mix * metal::exp(top - higher) + metal::exp(score - higher) * float(v[(start + key) * D + c]);
    sum = sum * metal::exp(top - higher) + metal::exp(score - higher);
    top = higher;
  }
  out[row + c] = T(mix / sum);
}
