// As flash_attention.metal, over keys and values that lie in blocks of a pool, wherever a sequence's table says.
// q, out (T, H, D), keys, values (H / HEADS, N, BLOCK, D) of T; tables (R, M) int; scale float; window (0: none), M int.
// tiles (n, 4) int, of each tile: its first query's row, the number of its queries, its sequence, its first query's
// position there. A prompt's chunk, the proof of a draft and one token of decoding are the same but for their lengths.
// With TREE, bit d of near[t], (T) ulong, says whether query t sees the slot d before its own; beyond 63 it sees all.
// BODY
constexpr int DB = (D + 7) / 8, DP = DB * 8;  // blocks of 8 dimensions; with zeros behind the last
threadgroup float held_keys[BK][DP], held_values[BK][DP], scores[SIMDGROUPS][8][BK], diagonal[SIMDGROUPS][8][8];
const int t = thread_index_in_threadgroup, lane = thread_index_in_simdgroup, g = simdgroup_index_in_threadgroup;
const int tile = threadgroup_position_in_grid.x, head = threadgroup_position_in_grid.y;
const int first = tiles[tile * 4], count = tiles[tile * 4 + 1], position = tiles[tile * 4 + 3];
const int sequence = tiles[tile * 4 + 2], kv_head = head / HEADS;
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
const ulong word = TREE && g * 8 + row < count ? near[first + g * 8 + row] : ~0ul;
float top = -INFINITY, sum = 0.0f;
for (int begin = window > 0 ? max(position - window + 1, 0) : 0; begin <= last; begin += BK) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // before keys and values are written again
  for (int i = t; i < BK * DP; i += SIMDGROUPS * 32) {
    const int r = i / DP, c = i % DP;
    const bool inside = begin + r <= last && c < D;
    float key = 0.0f, value = 0.0f;
    // YOUR CODE (w3.4.2): number c of the key and of the value at position begin + r
#error "NotDone: w3.4.2"
    held_keys[r][c] = key;
    held_values[r][c] = value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int j = 0; j < BK; j += 8) {  // S = Q Kᵀ
    simdgroup_float8x8 score = make_filled_simdgroup_matrix<float, 8, 8>(0.0f), key;
    for (int b = 0; b < DB; b++) {
      simdgroup_load(key, &held_keys[j][b * 8], DP, ulong2(0, 0), true);
      simdgroup_multiply_accumulate(score, query[b], key, score);
    }
    simdgroup_store(score, &scores[g][0][j], BK);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  float highest = top, total = 0.0f;
  for (int c = lane % 4; c < BK; c += 4) {
    const int before = seen - begin - c;  // how far the key is before the query
    const bool inside = before >= 0 && (window == 0 || before < window);
    const bool visible = inside && (!TREE || before > 63 || (word >> ulong(before) & 1) == 1);
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
  const float kept = metal::exp(top - reference);
  top = highest;
  sum = sum * kept + total;
  if (lane % 4 == 0) {
    diagonal[g][row][row] = kept;
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 rescale, p, value;
  simdgroup_load(rescale, &diagonal[g][0][0], 8);
  for (int b = 0; b < DB; b++) {  // O = diag(kept) O + P V
    simdgroup_multiply(mix[b], rescale, mix[b]);
  }
  for (int j = 0; j < BK; j += 8) {
    simdgroup_load(p, &scores[g][0][j], BK);
    for (int b = 0; b < DB; b++) {
      simdgroup_load(value, &held_values[j][b * 8], DP);
      simdgroup_multiply_accumulate(mix[b], p, value, mix[b]);
    }
  }
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
