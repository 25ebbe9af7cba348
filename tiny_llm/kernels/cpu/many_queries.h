// Attention of many queries of one sequence. A piece of work is some tokens and one K/V head; it processes all keys,
// stretch by stretch, with products of tiles.
#pragma once
#include "many_rows.h"
#include "pool.h"
#include "softmax.h"

constexpr int QUERY_TOKENS = 64;  // tokens of a piece

// Write keys as tiles (dim, LANES): vector d of a tile has number d of LANES keys.
inline void turn(const float* const* keys, int length, int dim, float* tiles) {
  for (int i = 0; i < length; i++) {
    float* tile = tiles + (int64_t)(i / LANES) * dim * LANES + i % LANES;
    for (int d = 0; d < dim; d++) tile[d * LANES] = keys[i][d];
  }
}

// Attend from tokens begin … end - 1 of a sequence, and the query heads of one K/V head.
template <class Rows>
inline void attend_tokens(const Heads& h, const Rows& keys, const Rows& values, const Queries& mine, int kv, int begin,
                          int end) {
  Buffers& own = buffers();
  int rows = (end - begin) * h.group();
  int width = padded(h.dim, 2 * LANES);
  std::vector<Mixture> mixtures(rows);
  own.mixed.assign((size_t)rows * width, 0.f);
  own.scores.resize(ROWS * STRETCH);
  own.turned.resize((size_t)STRETCH * (h.dim + width));
  float* tiles = own.turned.data();
  float* wide = tiles + (int64_t)STRETCH * h.dim;  // values with padding, (STRETCH, width)
  auto token_of = [&](int row) { return begin + row / h.group(); };
  auto offset_of = [&](int row) {
    return ((int64_t)token_of(row) * h.heads + kv * h.group() + row % h.group()) * h.dim;
  };
  int last = mine.last(end - 1);
  for (int from = mine.first(begin, h.window); from < last; from += STRETCH) {
    int to = std::min(last, from + STRETCH);
    int length = to - from;
    int room = padded(length, 2 * LANES);
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

// Attend from all queries of a sequence.
template <class Rows>
inline void attend_many(Pool& pool, const Heads& h, const Rows& keys, const Rows& values, const Queries& mine) {
  int parts = (mine.count + QUERY_TOKENS - 1) / QUERY_TOKENS;
  pool.each(parts * h.kv_heads, [&](int i) {
    int begin = i / h.kv_heads * QUERY_TOKENS;
    attend_tokens(h, keys, values, mine, i % h.kv_heads, begin, std::min(mine.count, begin + QUERY_TOKENS));
  });
}
