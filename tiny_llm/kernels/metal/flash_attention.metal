// softmax(Q Kᵀ scale) V without ever writing the scores to memory (FlashAttention), for a ragged row of sequences.
// q, out (T, H, D), k, v (H / HEADS, S, D) of T; scale float; window (0: none), S int. tiles (n, 4) int, of each:
// its first query's row, the number of its queries, its sequence's first key, its first query's position there.
// A threadgroup takes one tile of 8 SIMDGROUPS queries of one head and goes over the keys, BK at a time. A simdgroup
// owns 8 queries; 4 lanes share a row of its scores, and hold its running maximum and sum.
// BODY
constexpr int DB = (D + 7) / 8, DP = DB * 8;  // blocks of 8 dimensions; with zeros behind the last
threadgroup float keys[BK][DP], values[BK][DP], scores[SIMDGROUPS][8][BK], diagonal[SIMDGROUPS][8][8];
const int t = thread_index_in_threadgroup, lane = thread_index_in_simdgroup, g = simdgroup_index_in_threadgroup;
const int tile = threadgroup_position_in_grid.x, head = threadgroup_position_in_grid.y;
const int first = tiles[tile * 4], count = tiles[tile * 4 + 1], position = tiles[tile * 4 + 3];
const ulong start = ulong(head / HEADS) * S + ulong(tiles[tile * 4 + 2]);  // the row of the sequence's first key
simdgroup_float8x8 query[DB], mix[DB];
for (int b = 0; b < DB; b++) {
  for (int i = lane; i < 64; i += 32) {
    const int row = g * 8 + i / 8, c = b * 8 + i % 8;
    const bool inside = row < count && c < D;
    scores[g][i / 8][i % 8] = inside ? float(q[((first + row) * H + head) * D + c]) * scale : 0.0f;
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_load(query[b], &scores[g][0][0], BK);
  simdgroup_barrier(mem_flags::mem_threadgroup);  // before the next block takes its place
  mix[b] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}
for (int i = lane; i < 64; i += 32) {
  diagonal[g][i / 8][i % 8] = 0.0f;
}
const int row = lane / 4, seen = position + g * 8 + row, last = position + count - 1;
float top = -INFINITY, sum = 0.0f;
for (int begin = window > 0 ? max(position - window + 1, 0) : 0; begin <= last; begin += BK) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // before keys and values are written again
  for (int i = t; i < BK * DP; i += SIMDGROUPS * 32) {
    const int r = i / DP, c = i % DP;
    const bool inside = begin + r <= last && c < D;
    keys[r][c] = inside ? float(k[(start + begin + r) * D + c]) : 0.0f;
    values[r][c] = inside ? float(v[(start + begin + r) * D + c]) : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // ANCHOR: scores
  for (int j = 0; j < BK; j += 8) {  // S = Q Kᵀ
    simdgroup_float8x8 score = make_filled_simdgroup_matrix<float, 8, 8>(0.0f), key;
    for (int b = 0; b < DB; b++) {
      simdgroup_load(key, &keys[j][b * 8], DP, ulong2(0, 0), true);
      simdgroup_multiply_accumulate(score, query[b], key, score);
    }
    simdgroup_store(score, &scores[g][0][j], BK);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  // ANCHOR_END: scores
  float kept = 1.0f;  // by how much the sums so far shrink: exp(old maximum - new maximum)
  // TASK w2.9.1: mask, and one step of the online softmax
  float highest = top, total = 0.0f;
  for (int c = lane % 4; c < BK; c += 4) {
    const bool visible = begin + c <= seen && (window == 0 || begin + c > seen - window);
    scores[g][row][c] = visible ? scores[g][row][c] : -INFINITY;
    highest = max(highest, scores[g][row][c]);
  }
  highest = max(highest, simd_shuffle_xor(highest, ushort(1)));
  highest = max(highest, simd_shuffle_xor(highest, ushort(2)));
  const float reference = highest == -INFINITY ? 0.0f : highest;  // of a row that has seen no key yet
  for (int c = lane % 4; c < BK; c += 4) {  // P = exp(S - highest)
    const float p = metal::exp(scores[g][row][c] - reference);
    scores[g][row][c] = p;
    total += p;
  }
  total += simd_shuffle_xor(total, ushort(1));
  total += simd_shuffle_xor(total, ushort(2));
  kept = metal::exp(top - reference);
  top = highest;
  sum = sum * kept + total;
  // END TASK
  if (lane % 4 == 0) {
    diagonal[g][row][row] = kept;
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 rescale, p, value;
  // TASK w2.9.2: O = diag(kept) O + P V
  simdgroup_load(rescale, &diagonal[g][0][0], 8);
  for (int b = 0; b < DB; b++) {
    simdgroup_multiply(mix[b], rescale, mix[b]);
  }
  for (int j = 0; j < BK; j += 8) {
    simdgroup_load(p, &scores[g][0][j], BK);
    for (int b = 0; b < DB; b++) {
      simdgroup_load(value, &values[j][b * 8], DP);
      simdgroup_multiply_accumulate(mix[b], p, value, mix[b]);
    }
  }
  // END TASK
}
for (int b = 0; b < DB; b++) {
  simdgroup_barrier(mem_flags::mem_threadgroup);  // before scores are written again
  simdgroup_store(mix[b], &scores[g][0][0], BK);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = lane; i < 64; i += 32) {
    const float total = simd_shuffle(sum, ushort(i / 8 * 4));
    const int r = g * 8 + i / 8, c = b * 8 + i % 8;
    if (r < count && c < D) {
      out[((first + r) * H + head) * D + c] = T(scores[g][i / 8][i % 8] / total);
    }
  }
}
