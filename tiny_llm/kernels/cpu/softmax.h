// Attention of a token to a stretch of keys. The softmax carries its maximum and its sum from stretch to stretch
// (FlashAttention, Dao et al. 2022; FlashDecoding).
#pragma once
#include <algorithm>
#include <vector>

#include "slots.h"

constexpr int STRETCH = 256;        // keys that are processed together
constexpr int NUMBERS_AHEAD = 512;  // distance of prefetching in a key or value
constexpr float LOWEST = -1e30f;    // the score of a key that a token does not see

struct Heads {
  int heads, kv_heads, dim;
  int window;  // the last keys that a token sees; 0 for all
  float scale;

  int group() const { return heads / kv_heads; }  // query heads that share a K/V head
};

// The queries of the `count` tokens of a sequence whose positions end before `end`.
struct Queries {
  const float* q;  // (count, heads, dim)
  float* out;      // (count, heads, dim)
  int count;
  int end;
  Slots slots;
  const bool* mask;  // (count, end) in place of the causal mask, or null

  int position(int token) const { return end - count + token; }
  // A token sees keys `first` … `last` - 1 at most.
  int first(int token, int window) const { return mask || !window ? 0 : std::max(0, position(token) + 1 - window); }
  int last(int token) const { return mask ? end : position(token) + 1; }
};

// The state of a softmax over the keys so far.
struct Mixture {
  float top = LOWEST;  // the largest score
  float total = 0;     // the sum of e^(score - top)
};

inline float dot(const float* a, const float* b, int size) {
  Floats products = {};
  int i = 0;
  for (; i + LANES <= size; i += LANES) products += load(a + i) * load(b + i);
  float total = sum(products);
  for (; i < size; i++) total += a[i] * b[i];
  return total;
}

// Compute scores[i] = q · keys[i], LANES keys at a time.
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

// Add x · factor to y.
inline void add_scaled(const float* x, float factor, int size, float* y) {
  int i = 0;
  for (; i + LANES <= size; i += LANES) store(y + i, load(y + i) + load(x + i) * factor);
  for (; i < size; i++) y[i] += x[i] * factor;
}

inline void scale_by(float factor, int size, float* y) {
  for (int i = 0; i < size; i++) y[i] *= factor;
}

// Round n up to a multiple of `to`.
inline int padded(int n, int to) { return (n + to - 1) / to * to; }

// Replace the scores of keys begin … end - 1 by e^(score - top), and by 0 for keys that the token does not see.
//
// `scores` has `room` numbers, a multiple of LANES; those behind the keys become 0. Returns the factor by which the
// sums of earlier stretches must be multiplied, because `top` may have grown.
inline float soften(const Queries& mine, int token, int window, int begin, int end, float scale, float* scores,
                    int room, Mixture& mixture) {
  int first = std::max(begin, mine.first(token, window)) - begin;
  int last = std::min(end, mine.last(token)) - begin;
  for (int i = 0; i < first; i++) scores[i] = LOWEST;
  for (int i = std::max(last, 0); i < room; i++) scores[i] = LOWEST;
  if (mine.mask)
    for (int i = 0; i < last; i++)
      if (!mine.mask[(int64_t)token * mine.end + begin + i]) scores[i] = LOWEST;
  Floats tops = all(LOWEST);
  for (int i = 0; i < room; i += LANES) {
    Floats s = load(scores + i);
    s = s == all(LOWEST) ? s : s * scale;
    store(scores + i, s);
    tops = max(tops, s);
  }
  float top = std::max(mixture.top, largest(tops));
  Floats totals = {};
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

// Add Σ weights[i] · values[i] to `mixed`, which has VECTORS vectors and stays in registers.
template <int VECTORS>
inline void mix_in_registers(const float* const* values, const float* weights, int length, float* mixed) {
  Floats sums[VECTORS];
  for (int v = 0; v < VECTORS; v++) sums[v] = load(mixed + v * LANES);
  for (int i = 0; i < length; i++) {
    if (weights[i] == 0) continue;  // a slot that the token does not see may hold NaN
    for (int v = 0; v < VECTORS; v++) {
      __builtin_prefetch(values[i] + v * LANES + NUMBERS_AHEAD);
      sums[v] += load(values[i] + v * LANES) * weights[i];
    }
  }
  for (int v = 0; v < VECTORS; v++) store(mixed + v * LANES, sums[v]);
}

// Add Σ weights[i] · values[i] to `mixed` (dim,).
inline void mix(const float* const* values, const float* weights, int length, int dim, float* mixed) {
  if (dim == 4 * LANES) return mix_in_registers<4>(values, weights, length, mixed);
  if (dim == 8 * LANES) return mix_in_registers<8>(values, weights, length, mixed);
  for (int i = 0; i < length; i++)
    if (weights[i] != 0) add_scaled(values[i], weights[i], dim, mixed);
}

// Memory of one thread for a stretch.
struct Buffers {
  std::vector<float> scores, unpacked_keys, unpacked_values, turned, mixed;
  const float *keys[STRETCH], *values[STRETCH];
};

inline Buffers& buffers() {
  static thread_local Buffers own;
  return own;
}

// Set `found` to the addresses of rows begin … end - 1 of a head; packed rows are unpacked into `unpacked`.
template <class Rows>
inline void find_rows(const Rows& rows, const Slots& slots, int head, int dim, int begin, int end,
                      std::vector<float>& unpacked, const float** found) {
  unpacked.resize((size_t)STRETCH * dim);
  for (int i = 0; i < end - begin; i++)
    found[i] = rows.row(head, slots.at(begin + i), dim, unpacked.data() + (int64_t)i * dim);
}
