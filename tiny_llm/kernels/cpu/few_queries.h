// Attention of few queries. A piece of work is one stretch of the keys of one K/V head and sequence; the results of the
// pieces are merged at the end.
#pragma once
#include "pool.h"
#include "softmax.h"

// Attend from all queries of a sequence that share K/V head `kv` to keys begin … end - 1.
//
// Query n is token n / group, head n % group of the K/V head. mixtures[n] and mixed[n] (dim,) get its softmax and its
// weighted sum of values.
template <class Rows>
inline void attend_stretch(const Heads& h, const Rows& keys, const Rows& values, const Queries& mine, int kv, int begin,
                           int end, Mixture* mixtures, float* mixed) {
  Buffers& own = buffers();
  int length = end - begin;
  int room = padded(length, LANES);
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

// A stretch of the keys of one K/V head and sequence.
struct Piece {
  int sequence, kv, begin, end;
  int64_t at;  // index of its first mixture
};

// Merge pieces `from` … `to` - 1, which are all of one sequence and K/V head, into the sequence's output.
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

// Attend from the queries of all sequences.
template <class Rows>
inline void attend_few(Pool& pool, const Heads& h, const Rows& keys, const Rows& values,
                       const std::vector<Queries>& sequences) {
  static thread_local std::vector<Piece> pieces;
  static thread_local std::vector<Mixture> mixtures;
  static thread_local std::vector<float> mixed;
  pieces.clear();
  int64_t at = 0;
  for (int s = 0; s < (int)sequences.size(); s++) {
    const Queries& mine = sequences[s];
    for (int kv = 0; kv < h.kv_heads; kv++)
      for (int begin = mine.first(0, h.window); begin < mine.end; begin += STRETCH) {
        pieces.push_back({s, kv, begin, std::min(mine.end, begin + STRETCH), at});
        at += (int64_t)mine.count * h.group();
      }
  }
  mixtures.resize(at);
  mixed.resize(at * h.dim);
  const Piece* all = pieces.data();
  Mixture* of = mixtures.data();
  float* sums = mixed.data();
  pool.each((int)pieces.size(), [&](int i) {
    const Piece& p = all[i];
    attend_stretch(h, keys, values, sequences[p.sequence], p.kv, p.begin, p.end, of + p.at, sums + p.at * h.dim);
  });
  const Piece* last = all + pieces.size();
  for (const Piece* first = all; first < last;) {
    auto is_other = [first](const Piece& p) { return p.sequence != first->sequence || p.kv != first->kv; };
    const Piece* next = std::find_if(first, last, is_other);
    merge(h, sequences[first->sequence], first, next, of, sums);
    first = next;
  }
}
