// decode_attention.metal over packed keys and values: x = scale q + bias, one scale and bias for GROUP dimensions.
// q (B, H, D), their scales and biases (B, H / HEADS, S, D / GROUP) of T; k, v (B, H / HEADS, S, D BITS / 32) uint;
// lengths (B,) int; scale float; window (0: none), S, SPLITS int.
// parts (B, H, SPLITS, D), tops, sums (B, H, SPLITS) float: Σ exp(s - top) v, top = max s, Σ exp(s - top).
// A lane unpacks EACH words of a key once for all HEADS; WIDTH lanes make up a key, so a simdgroup takes 32 / WIDTH.
template <int BITS>
inline float unpacked(uint word, int i, float scale, float bias) {
  return scale * float((word >> (i * BITS)) & ((1u << BITS) - 1u)) + bias;
}
// BODY
constexpr int VALUES = 32 / BITS, WORDS = D / VALUES, GROUPS = D / GROUP, KEYS = 32 / WIDTH;
constexpr int EACH = (WORDS + WIDTH - 1) / WIDTH, PARTS = SIMDGROUPS * KEYS;
threadgroup float queries[HEADS][D], mixes[PARTS][D], part_tops[PARTS], part_sums[PARTS];
const int t = thread_index_in_threadgroup, lane = thread_index_in_simdgroup, w = lane % WIDTH;
const int mine = simdgroup_index_in_threadgroup * KEYS + lane / WIDTH;  // which of the PARTS is this lane's
const int split = threadgroup_position_in_grid.x, kv_head = threadgroup_position_in_grid.y;
const int sequence = threadgroup_position_in_grid.z, head = (sequence * KV_HEADS + kv_head) * HEADS;
const int length = lengths[sequence], first = window > 0 ? max(length - window, 0) : 0;
const int begin = first + split * CHUNK, end = min(begin + CHUNK, length);
const ulong rows = ulong(sequence * KV_HEADS + kv_head) * S;
for (int i = t; i < HEADS * D; i += SIMDGROUPS * 32) {
  queries[i / D][i % D] = float(q[head * D + i]) * scale;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
float query[HEADS][EACH * VALUES], mix[HEADS][EACH * VALUES], top[HEADS], sum[HEADS];
for (int h = 0; h < HEADS; h++) {
  top[h] = -INFINITY;
  sum[h] = 0.0f;
  for (int j = 0; j < EACH * VALUES; j++) {
    const int c = (w + j / VALUES * WIDTH) * VALUES + j % VALUES;
    query[h][j] = c < D ? queries[h][c] : 0.0f;
    mix[h][j] = 0.0f;
  }
}
for (int step = begin; step < end; step += PARTS) {
  const int position = step + mine;
  const bool inside = position < end, loads = inside && w < GROUPS;  // one lane reads a scale, for all that need it
  const ulong at = rows + position;
  const float ks = loads ? float(k_scales[at * GROUPS + w]) : 0.0f, kb = loads ? float(k_biases[at * GROUPS + w]) : 0.0f;
  const float vs = loads ? float(v_scales[at * GROUPS + w]) : 0.0f, vb = loads ? float(v_biases[at * GROUPS + w]) : 0.0f;
  float key[EACH * VALUES], value[EACH * VALUES];
  for (int e = 0; e < EACH; e++) {
    const int word = w + e * WIDTH;
    const ushort from = ushort(lane - w + min(word, WORDS - 1) * VALUES / GROUP);
    const float key_scale = simd_shuffle(ks, from), key_bias = simd_shuffle(kb, from);
    const float value_scale = simd_shuffle(vs, from), value_bias = simd_shuffle(vb, from);
    const bool here = inside && word < WORDS;
    const uint key_word = here ? k[at * WORDS + word] : 0u, value_word = here ? v[at * WORDS + word] : 0u;
    for (int i = 0; i < VALUES; i++) {
      key[e * VALUES + i] = unpacked<BITS>(key_word, i, key_scale, key_bias);
      value[e * VALUES + i] = unpacked<BITS>(value_word, i, value_scale, value_bias);
    }
  }
  for (int h = 0; h < HEADS; h++) {
    float score = 0.0f;
    for (int j = 0; j < EACH * VALUES; j++) {
      score += query[h][j] * key[j];
    }
    for (ushort by = WIDTH / 2; by > 0; by /= 2) {
      score += simd_shuffle_xor(score, by);
    }
    if (inside) {
      const float higher = max(top[h], score), kept = metal::exp(top[h] - higher), p = metal::exp(score - higher);
      top[h] = higher;
      sum[h] = sum[h] * kept + p;
      for (int j = 0; j < EACH * VALUES; j++) {
        mix[h][j] = mix[h][j] * kept + p * value[j];
      }
    }
  }
}
#pragma unroll
for (int h = 0; h < HEADS; h++) {  // the parts of one head become one
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the last head's have been read
  if (w == 0) {
    part_tops[mine] = top[h];
    part_sums[mine] = sum[h];
  }
  for (int j = 0; j < EACH * VALUES; j++) {
    const int c = (w + j / VALUES * WIDTH) * VALUES + j % VALUES;
    if (c < D) {
      mixes[mine][c] = mix[h][j];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int part = (head + h) * SPLITS + split;
  float highest = -INFINITY, total = 0.0f;
  for (int i = 0; i < PARTS; i++) {
    highest = max(highest, part_tops[i]);
  }
  const float reference = highest == -INFINITY ? 0.0f : highest;  // of a chunk without keys
  for (int i = 0; i < PARTS; i++) {
    total += metal::exp(part_tops[i] - reference) * part_sums[i];
  }
  for (int c = t; c < D; c += SIMDGROUPS * 32) {
    float mixed = 0.0f;
    for (int i = 0; i < PARTS; i++) {
      mixed += metal::exp(part_tops[i] - reference) * mixes[i][c];
    }
    parts[part * D + c] = mixed;
  }
  if (t == 0) {
    tops[part] = highest;
    sums[part] = total;
  }
}
