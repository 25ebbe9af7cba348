// Attention of queries to keys: a piece is some queries of one K/V head and a stretch of its keys or, for many queries,
// all of its keys, stretch by stretch. The softmax carries its maximum and its sum along (FlashAttention,
// FlashDecoding).
#pragma once
#include <algorithm>
#include <vector>

#include "lanes.h"
#include "many_rows.h"
#include "pool.h"

constexpr int STRETCH = 256;        // keys that are looked at together
constexpr int FEW_QUERIES = 4;      // up to so many, pieces are stretches of keys
constexpr int QUERY_TOKENS = 64;    // tokens of a piece with many queries
constexpr int NUMBERS_AHEAD = 512;  // of a key or value, that are fetched ahead
constexpr float LOWEST = -1e30f;

// Keys or values in floats (kv_heads, slots, dim); `head_stride` numbers from one head to the next.
struct FloatRows {
  const float* numbers;
  int64_t head_stride;

  const float* row(int head, int64_t slot, int dim, float*) const { return numbers + head * head_stride + slot * dim; }
};

// The next LANES codes, each in a lane of its own.
template <int BITS>
inline Words spread_codes(const uint32_t* words) {
  Words found, places;
  for (int i = 0; i < LANES; i++) {
    found[i] = words[i * BITS / 32];
    places[i] = i * BITS % 32;
  }
  return found >> places & ((1u << BITS) - 1);
}

// The same in codes of 4 or 8 bits, with a scale and a bias for each group along dim.
struct PackedRows {
  const uint32_t* codes;
  const float *scales, *biases;
  int64_t codes_stride, scales_stride, biases_stride;
  int bits, group;

  // unpacked into `out`
  const float* row(int head, int64_t slot, int dim, float* out) const {
    int groups = dim / group;
    const uint32_t* words = codes + head * codes_stride + slot * (dim * bits / 32);
    const float* scale = scales + head * scales_stride + slot * groups;
    const float* bias = biases + head * biases_stride + slot * groups;
    for (int g = 0; g < groups; g++)
      for (int i = g * group; i < (g + 1) * group; i += LANES) {
        Words spread = bits == 4 ? spread_codes<4>(words + i / 8) : spread_codes<8>(words + i / 4);
        store(out + i, to_floats(spread) * scale[g] + bias[g]);
      }
    return out;
  }
};

// The slot of each key: in a row, or in blocks that a table names.
struct Slots {
  const int32_t* table;  // null: in a row
  int block;

  int64_t at(int key) const { return table ? (int64_t)table[key / block] * block + key % block : key; }
};

struct Heads {
  int heads, kv_heads, dim, window;  // window 0: all keys
  float scale;

  int group() const { return heads / kv_heads; }  // query heads that share a K/V head
};

// `count` tokens of one sequence, the last ones before `end`.
struct Queries {
  const float* q;  // (count, heads, dim)
  float* out;      // the same
  int count, end;
  Slots slots;
  const bool* mask;  // (count, end) instead of the causal one, or null

  int position(int token) const { return end - count + token; }
  // the first key that a token may see, and the one behind the last
  int first(int token, int window) const { return mask || !window ? 0 : std::max(0, position(token) + 1 - window); }
  int last(int token) const { return mask ? end : position(token) + 1; }
};

// A softmax on its way: the sum of e^(score - top), and of the values with these weights.
struct Mixture {
  float top = LOWEST, total = 0;
};

inline float dot(const float* a, const float* b, int size) {
  Floats products = {};
  int i = 0;
  for (; i + LANES <= size; i += LANES) products += load(a + i) * load(b + i);
  float total = sum(products);
  for (; i < size; i++) total += a[i] * b[i];
  return total;
}

// scores[i] = q · keys[i], LANES keys at a time
inline void score_keys(const float* q, const float* const* keys, int length, int dim, float* scores) {
  int i = 0;
  for (; i + LANES <= length && dim % LANES == 0; i += LANES) {
    Floats products[LANES] = {};
    for (int d = 0; d < dim; d += LANES) {
      Floats of_q = load(q + d);
      for (int n = 0; n < LANES; n++) {
        __builtin_prefetch(keys[i + n] + d + NUMBERS_AHEAD);
        products[n] += of_q * load(keys[i + n] + d);
      }
    }
    store(scores + i, sums(products));
  }
  for (; i < length; i++) scores[i] = dot(q, keys[i], dim);
}

inline void add_scaled(const float* x, float factor, int size, float* y) {
  int i = 0;
  for (; i + LANES <= size; i += LANES) store(y + i, load(y + i) + load(x + i) * factor);
  for (; i < size; i++) y[i] += x[i] * factor;
}

inline void scale_by(float factor, int size, float* y) {
  for (int i = 0; i < size; i++) y[i] *= factor;
}

inline int padded(int n, int to) { return (n + to - 1) / to * to; }

// Scores of keys begin … end - 1, `room` of them with padding, become e^(score - top), those that the token can't see
// 0. Returns the factor by which what was summed up before shrinks.
inline float soften(const Queries& mine, int token, int window, int begin, int end, float scale, float* scores,
                    int room, Mixture& mixture) {
  int first = std::max(begin, mine.first(token, window)) - begin, last = std::min(end, mine.last(token)) - begin;
  for (int i = 0; i < first; i++) scores[i] = LOWEST;
  for (int i = std::max(last, 0); i < room; i++) scores[i] = LOWEST;
  if (mine.mask)
    for (int i = 0; i < last; i++)
      if (!mine.mask[(int64_t)token * mine.end + begin + i]) scores[i] = LOWEST;
  Floats tops = all(LOWEST), totals = {};
  for (int i = 0; i < room; i += LANES) {
    Floats s = load(scores + i);
    s = s == all(LOWEST) ? s : s * scale;
    store(scores + i, s);
    tops = max(tops, s);
  }
  float top = std::max(mixture.top, largest(tops));
  for (int i = 0; i < room; i += LANES) {
    Floats s = load(scores + i);
    Floats e = s == all(LOWEST) ? Floats{} : exp(s - top);
    store(scores + i, e);
    totals += e;
  }
  float shrink = std::exp(mixture.top - top);
  mixture = {top, mixture.total * shrink + sum(totals)};
  return shrink;
}

// mixed += Σ weights[i] · values[i], in registers for VECTORS vectors
template <int VECTORS>
inline void mix_in_registers(const float* const* values, const float* weights, int length, float* mixed) {
  Floats sums[VECTORS];
  for (int v = 0; v < VECTORS; v++) sums[v] = load(mixed + v * LANES);
  for (int i = 0; i < length; i++) {
    if (weights[i] == 0) continue;  // a slot that is not seen may hold anything, NaN too
    for (int v = 0; v < VECTORS; v++) {
      __builtin_prefetch(values[i] + v * LANES + NUMBERS_AHEAD);
      sums[v] += load(values[i] + v * LANES) * weights[i];
    }
  }
  for (int v = 0; v < VECTORS; v++) store(mixed + v * LANES, sums[v]);
}

inline void mix(const float* const* values, const float* weights, int length, int dim, float* mixed) {
  if (dim == 4 * LANES) return mix_in_registers<4>(values, weights, length, mixed);
  if (dim == 8 * LANES) return mix_in_registers<8>(values, weights, length, mixed);
  for (int i = 0; i < length; i++)
    if (weights[i] != 0) add_scaled(values[i], weights[i], dim, mixed);
}

struct Buffers {
  std::vector<float> scores, unpacked_keys, unpacked_values, turned, mixed;
  const float *keys[STRETCH], *values[STRETCH];
};

inline Buffers& buffers() {
  static thread_local Buffers own;
  return own;
}

// where the keys begin … end - 1 of a head lie, unpacked if need be
template <class Rows>
inline void find_rows(const Rows& rows, const Slots& slots, int head, int dim, int begin, int end,
                      std::vector<float>& unpacked, const float** found) {
  unpacked.resize((size_t)STRETCH * dim);
  for (int i = 0; i < end - begin; i++)
    found[i] = rows.row(head, slots.at(begin + i), dim, unpacked.data() + (int64_t)i * dim);
}

// ---- few queries: a piece is one stretch, its mixtures are merged with the other pieces' ----

template <class Rows>
inline void attend_stretch(const Heads& h, const Rows& keys, const Rows& values, const Queries& mine, int kv, int begin,
                           int end, Mixture* mixtures, float* mixed) {
  Buffers& own = buffers();
  int length = end - begin, room = padded(length, LANES);
  own.scores.resize(room);
  float* scores = own.scores.data();
  find_rows(keys, mine.slots, kv, h.dim, begin, end, own.unpacked_keys, own.keys);
  find_rows(values, mine.slots, kv, h.dim, begin, end, own.unpacked_values, own.values);
  for (int n = 0; n < mine.count * h.group(); n++) {
    int token = n / h.group();
    const float* q = mine.q + ((int64_t)token * h.heads + kv * h.group() + n % h.group()) * h.dim;
    score_keys(q, own.keys, length, h.dim, scores);
    mixtures[n] = {};
    soften(mine, token, h.window, begin, end, h.scale, scores, room, mixtures[n]);
    float* to = mixed + (int64_t)n * h.dim;
    std::fill_n(to, h.dim, 0.f);
    mix(own.values, scores, length, h.dim, to);
  }
}

struct Piece {
  int sequence, kv, begin, end;
  int64_t at;  // of its first mixture
};

// the mixtures of pieces `from` … `to` - 1, all of one sequence and head, into its output
inline void merge(const Heads& h, const Queries& mine, const Piece* from, const Piece* to, const Mixture* mixtures,
                  const float* mixed) {
  for (int n = 0; n < mine.count * h.group(); n++) {
    Mixture all;
    for (const Piece* p = from; p < to; p++) all.top = std::max(all.top, mixtures[p->at + n].top);
    float* out = mine.out + ((int64_t)(n / h.group()) * h.heads + from->kv * h.group() + n % h.group()) * h.dim;
    std::fill_n(out, h.dim, 0.f);
    for (const Piece* p = from; p < to; p++) {
      float factor = std::exp(mixtures[p->at + n].top - all.top);
      all.total += mixtures[p->at + n].total * factor;
      add_scaled(mixed + (p->at + n) * h.dim, factor, h.dim, out);
    }
    scale_by(1 / all.total, h.dim, out);
  }
}

template <class Rows>
inline void attend_few(Pool& pool, const Heads& h, const Rows& keys, const Rows& values,
                       const std::vector<Queries>& sequences) {
  static thread_local std::vector<Piece> pieces;
  static thread_local std::vector<Mixture> mixtures;
  static thread_local std::vector<float> mixed;
  pieces.clear();
  int64_t at = 0;
  for (int s = 0; s < (int)sequences.size(); s++)
    for (int kv = 0; kv < h.kv_heads; kv++)
      for (int begin = sequences[s].first(0, h.window); begin < sequences[s].end;
           begin += STRETCH, at += (int64_t)sequences[s].count * h.group())
        pieces.push_back({s, kv, begin, std::min(sequences[s].end, begin + STRETCH), at});
  mixtures.resize(at);
  mixed.resize(at * h.dim);
  const Piece* all = pieces.data();
  Mixture* of = mixtures.data();
  float* sums = mixed.data();
  pool.each((int)pieces.size(), [&](int i) {
    const Piece& p = all[i];
    attend_stretch(h, keys, values, sequences[p.sequence], p.kv, p.begin, p.end, of + p.at, sums + p.at * h.dim);
  });
  for (size_t i = 0, next; i < pieces.size(); i = next) {
    for (next = i; next < pieces.size() && all[next].sequence == all[i].sequence && all[next].kv == all[i].kv;) next++;
    merge(h, sequences[all[i].sequence], all + i, all + next, of, sums);
  }
}

// ---- many queries: products of tiles ----

// Tiles (dim, LANES) of keys: vector d of a tile has number d of LANES keys.
inline void turn(const float* const* keys, int length, int dim, float* tiles) {
  for (int i = 0; i < length; i++) {
    float* tile = tiles + (int64_t)(i / LANES) * dim * LANES + i % LANES;
    for (int d = 0; d < dim; d++) tile[d * LANES] = keys[i][d];
  }
}

// Tokens begin … end - 1 of a sequence, one K/V head.
template <class Rows>
inline void attend_tokens(const Heads& h, const Rows& keys, const Rows& values, const Queries& mine, int kv, int begin,
                          int end) {
  Buffers& own = buffers();
  int rows = (end - begin) * h.group(), width = padded(h.dim, 2 * LANES);
  std::vector<Mixture> mixtures(rows);
  own.mixed.assign((size_t)rows * width, 0.f);
  own.scores.resize(ROWS * STRETCH);
  own.turned.resize((size_t)STRETCH * (h.dim + width));
  float *tiles = own.turned.data(), *wide = tiles + (int64_t)STRETCH * h.dim;
  auto token_of = [&](int row) { return begin + row / h.group(); };
  auto offset_of = [&](int row) {
    return ((int64_t)token_of(row) * h.heads + kv * h.group() + row % h.group()) * h.dim;
  };
  for (int from = mine.first(begin, h.window), last = mine.last(end - 1); from < last; from += STRETCH) {
    int to = std::min(last, from + STRETCH), length = to - from, room = padded(length, 2 * LANES);
    find_rows(keys, mine.slots, kv, h.dim, from, to, own.unpacked_keys, own.keys);
    find_rows(values, mine.slots, kv, h.dim, from, to, own.unpacked_values, own.values);
    turn(own.keys, length, h.dim, tiles);
    for (int i = 0; i < length; i++) std::copy_n(own.values[i], h.dim, wide + (int64_t)i * width);
    for (int row = 0; row < rows; row += ROWS) {
      int count = std::min(ROWS, rows - row);
      if (mine.last(token_of(row + count - 1)) <= from) continue;  // causal: all these keys come later
      const float *q[ROWS], *weights[ROWS];
      for (int m = 0; m < ROWS; m++) {
        q[m] = mine.q + offset_of(row + std::min(m, count - 1));
        weights[m] = own.scores.data() + m * STRETCH;
      }
      for (int key = 0; key < room; key += 2 * LANES) {
        const float* tile = tiles + (int64_t)key * h.dim;
        Floats sums[ROWS][2] = {};
        tile_product(q, tile, tile + h.dim * LANES, LANES, h.dim, sums);
        for (int m = 0; m < ROWS; m++)
          for (int b = 0; b < 2; b++) store(own.scores.data() + m * STRETCH + key + b * LANES, sums[m][b]);
      }
      for (int m = 0; m < count; m++) {
        float shrink = soften(mine, token_of(row + m), h.window, from, to, h.scale, own.scores.data() + m * STRETCH,
                              room, mixtures[row + m]);
        if (shrink != 1) scale_by(shrink, width, own.mixed.data() + (int64_t)(row + m) * width);
      }
      for (int d = 0; d < width; d += 2 * LANES) {
        Floats sums[ROWS][2] = {};
        tile_product(weights, wide + d, wide + d + LANES, width, length, sums);
        for (int m = 0; m < count; m++)
          for (int b = 0; b < 2; b++) {
            float* out = own.mixed.data() + (int64_t)(row + m) * width + d + b * LANES;
            store(out, load(out) + sums[m][b]);
          }
      }
    }
  }
  for (int row = 0; row < rows; row++) {
    const float* mixed = own.mixed.data() + (int64_t)row * width;
    for (int d = 0; d < h.dim; d++) mine.out[offset_of(row) + d] = mixed[d] / mixtures[row].total;
  }
}

template <class Rows>
inline void attend_many(Pool& pool, const Heads& h, const Rows& keys, const Rows& values, const Queries& mine) {
  int parts = (mine.count + QUERY_TOKENS - 1) / QUERY_TOKENS;
  pool.each(parts * h.kv_heads, [&](int i) {
    int begin = i / h.kv_heads * QUERY_TOKENS;
    attend_tokens(h, keys, values, mine, i % h.kv_heads, begin, std::min(mine.count, begin + QUERY_TOKENS));
  });
}

// all sequences with one token each, or one sequence with any number
template <class Rows>
inline void attend(Pool& pool, const Heads& h, const Rows& keys, const Rows& values,
                   const std::vector<Queries>& sequences) {
  if (sequences.size() == 1 && sequences[0].count > FEW_QUERIES)
    attend_many(pool, h, keys, values, sequences[0]);
  else
    attend_few(pool, h, keys, values, sequences);
}
