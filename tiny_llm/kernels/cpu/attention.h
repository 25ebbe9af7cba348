// Attention of few queries to many keys: a piece is a stretch of keys of one K/V head, read once for all queries that share
// it, and the pieces' mixtures are merged (FlashDecoding).
#pragma once
#include <algorithm>
#include <vector>

#include "lanes.h"
#include "pool.h"

constexpr int STRETCH = 256;  // keys of a piece
constexpr float LOWEST = -1e30f;

// Where a head's keys or values lie: `block` slots follow each other, and a table says where the next ones are.
struct Floats32 {
  const float* numbers;
  int64_t head_stride;  // numbers from one head to the next

  const float* row(int head, int64_t slot, int dim, float*) const { return numbers + head * head_stride + slot * dim; }
};

// the same in codes of 4 or 8 bits, with a scale and a bias for each group
struct Packed {
  const uint32_t* codes;
  const float *scales, *biases;
  int64_t codes_stride, scales_stride, biases_stride;  // from one head to the next
  int bits, group;

  const float* row(int head, int64_t slot, int dim, float* out) const {
    int codes_each = 32 / bits, groups = dim / group;
    const uint32_t* words = codes + head * codes_stride + slot * (dim / codes_each);
    const float* scale = scales + head * scales_stride + slot * groups;
    const float* bias = biases + head * biases_stride + slot * groups;
    uint32_t mask = (1u << bits) - 1;
    for (int g = 0; g < groups; g++)
      for (int i = g * group; i < (g + 1) * group; i += codes_each)
        for (int n = 0; n < codes_each; n++) out[i + n] = scale[g] * (float)(words[i / codes_each] >> (bits * n) & mask) + bias[g];
    return out;
  }
};

struct Slots {
  const int32_t* table;  // of blocks; null where slots are in a row
  int block;

  int64_t at(int key) const { return table ? (int64_t)table[key / block] * block + key % block : key; }
};

// Queries that see keys of one sequence: `count` of them, at the last positions before `end`.
struct Queries {
  const float* q;  // (count, heads, dim)
  float* out;      // the same
  int count, end;
  Slots slots;
  const bool* mask;  // (count, end), or null: causal
};

struct Heads {
  int heads, kv_heads, dim, window;  // window 0: all keys
  float scale;
};

inline float dot(const float* a, const float* b, int size) {
  Floats products = {};
  int i = 0;
  for (; i + LANES <= size; i += LANES) products += load(a + i) * load(b + i);
  float total = sum(products);
  for (; i < size; i++) total += a[i] * b[i];
  return total;
}

inline void add_scaled(const float* x, float factor, int size, float* y) {
  int i = 0;
  for (; i + LANES <= size; i += LANES) store(y + i, load(y + i) + load(x + i) * factor);
  for (; i < size; i++) y[i] += x[i] * factor;
}

struct Mixture {
  float top = LOWEST, total = 0;
};

// One stretch of keys for the queries of one K/V head. Mixtures (count · group) and mixed (count · group, dim).
template <class Rows>
inline void attend_stretch(const Heads& h, const Rows& keys, const Rows& values, const Queries& mine, int kv, int begin, int end,
                           Mixture* mixtures, float* mixed) {
  static thread_local std::vector<float> scores, unpacked;
  int group = h.heads / h.kv_heads, queries = mine.count * group, length = end - begin;
  int padded = (length + LANES - 1) / LANES * LANES;
  scores.resize((size_t)queries * padded);
  unpacked.resize(h.dim);
  for (int i = 0; i < length; i++) {
    int key = begin + i;
    const float* row = keys.row(kv, mine.slots.at(key), h.dim, unpacked.data());
    for (int n = 0; n < queries; n++) {
      int token = n / group, position = mine.end - mine.count + token;
      bool visible = mine.mask ? mine.mask[(int64_t)token * mine.end + key] : key <= position && (!h.window || key > position - h.window);
      float& score = scores[(size_t)n * padded + i];
      score = LOWEST;
      if (!visible) continue;
      const float* q = mine.q + ((int64_t)token * h.heads + kv * group + n % group) * h.dim;
      score = dot(q, row, h.dim) * h.scale;
    }
  }
  for (int n = 0; n < queries; n++) {
    float* score = &scores[(size_t)n * padded];
    for (int i = length; i < padded; i++) score[i] = LOWEST;
    Floats tops = all(LOWEST), totals = {};
    for (int i = 0; i < padded; i += LANES) tops = max(tops, load(score + i));
    float top = largest(tops);
    for (int i = 0; i < padded; i += LANES) {
      Floats s = load(score + i), e = exp(s - top);
      e = s == all(LOWEST) ? Floats{} : e;
      store(score + i, e);
      totals += e;
    }
    mixtures[n] = {top, sum(totals)};
    std::fill_n(mixed + (int64_t)n * h.dim, h.dim, 0.f);
  }
  for (int i = 0; i < length; i++) {
    const float* row = values.row(kv, mine.slots.at(begin + i), h.dim, unpacked.data());
    for (int n = 0; n < queries; n++) {
      float weight = scores[(size_t)n * padded + i];
      if (weight == 0) continue;  // a slot that nobody sees may hold anything, even NaN
      add_scaled(row, weight, h.dim, mixed + (int64_t)n * h.dim);
    }
  }
}

struct Piece {
  int sequence, kv, begin, end;
  int64_t at;  // of its first query among all pieces' mixtures
};

template <class Rows>
inline void attend(Pool& pool, const Heads& h, const Rows& keys, const Rows& values, const std::vector<Queries>& sequences) {
  static thread_local std::vector<Piece> pieces;
  static thread_local std::vector<Mixture> mixtures;
  static thread_local std::vector<float> mixed;
  int group = h.heads / h.kv_heads;
  pieces.clear();
  int64_t at = 0;
  for (int s = 0; s < (int)sequences.size(); s++) {
    const Queries& mine = sequences[s];
    int first = h.window && !mine.mask ? std::max(0, mine.end - mine.count + 1 - h.window) : 0;
    for (int kv = 0; kv < h.kv_heads; kv++)
      for (int begin = first; begin < mine.end; begin += STRETCH, at += (int64_t)mine.count * group)
        pieces.push_back({s, kv, begin, std::min(mine.end, begin + STRETCH), at});
  }
  mixtures.resize(at);
  mixed.resize(at * h.dim);
  const Piece* all_pieces = pieces.data();
  Mixture* of = mixtures.data();
  float* sums = mixed.data();
  pool.each((int)pieces.size(), [&](int i) {
    const Piece& p = all_pieces[i];
    attend_stretch(h, keys, values, sequences[p.sequence], p.kv, p.begin, p.end, of + p.at, sums + p.at * h.dim);
  });
  for (size_t i = 0; i < pieces.size();) {
    const Piece& p = all_pieces[i];
    size_t next = i;
    while (next < pieces.size() && all_pieces[next].sequence == p.sequence && all_pieces[next].kv == p.kv) next++;
    const Queries& mine = sequences[p.sequence];
    for (int n = 0; n < mine.count * group; n++) {
      float top = LOWEST, total = 0;
      for (size_t j = i; j < next; j++) top = std::max(top, of[all_pieces[j].at + n].top);
      float* out = mine.out + ((int64_t)(n / group) * h.heads + p.kv * group + n % group) * h.dim;
      std::fill_n(out, h.dim, 0.f);
      for (size_t j = i; j < next; j++) {
        int64_t from = all_pieces[j].at + n;
        float factor = std::exp(of[from].top - top);
        total += of[from].total * factor;
        add_scaled(sums + from * h.dim, factor, h.dim, out);
      }
      for (int d = 0; d < h.dim; d++) out[d] /= total;
    }
    i = next;
  }
}
