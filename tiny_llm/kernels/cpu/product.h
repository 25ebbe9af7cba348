// Products y (T, rows) = x (T, columns) times W transposed, plus the bias. Row m of y begins at y + m · stride.
#pragma once
#include "few_rows.h"
#include "int8_rows.h"
#include "many_rows.h"
#include "pool.h"

constexpr int INT8_ROWS = 32;  // rows of x at most in products with 8-bit activations

// Store the first lanes of `total`, plus the bias, as the numbers of a block of W.
inline void store_block(const Weight& w, int block, Floats total, float* y) {
  int row = block * LANES;
  int lanes = std::min(LANES, w.rows - row);
  for (int i = 0; i < lanes; i++) y[row + i] = total[i] + (w.bias ? w.bias[row + i] : 0.f);
}

constexpr int64_t WEIGHTS_OF_A_PART = 1 << 20;  // at least, so that handing out parts costs little

// Call f(begin, end) for parts of W's blocks. Where W is large, each thread gets several parts, because the system may
// suspend a thread.
template <class F>
inline void each_blocks(Pool& pool, const Weight& w, const F& f) {
  int64_t weights = (int64_t)w.rows * w.columns;
  int of_a_thread = (int)std::clamp<int64_t>(weights / WEIGHTS_OF_A_PART / pool.threads(), 1, 16);
  int parts = std::min(w.blocks(), pool.threads() * of_a_thread);
  pool.each(parts, [&](int i) { f(part(w.blocks(), i, parts), part(w.blocks(), i + 1, parts)); });
}

inline void few_rows(Pool& pool, const Weight& w, const float* x, int count, float* y, int64_t stride) {
  static thread_local ReadyRows ready;
  ready.prepare(w, x, count);
  const Ready* rows = ready.rows;
  each_blocks(pool, w, [&](int begin, int end) {
    for (int block = begin; block < end; block++) {
      Floats total[FEW] = {};
      block_product(w, block, rows, count, total);
      for (int m = 0; m < count; m++) store_block(w, block, total[m], y + m * stride);
    }
  });
}

inline void many_rows(Pool& pool, const Weight& w, const float* x, int count, float* y, int64_t stride) {
  int pairs = (w.blocks() + 1) / 2;
  pool.each(pairs, [&](int pair) { tiles_product(w, 2 * pair, x, count, y, stride); });
}

inline void int8_rows(Pool& pool, const Weight& w, const float* x, int count, float* y, int64_t stride) {
  static thread_local Int8Rows ready;
  ready.prepare(w, x, count);
  const Int8Row* rows = ready.rows.data();
  each_blocks(pool, w, [&](int begin, int end) {
    for (int block = begin; block < end; block++)
      for (int m = 0; m < count; m++) {
        Floats total = w.format == Format::Codes4 ? int8_row_product<4>(w, block, rows[m])
                                                  : int8_row_product<8>(w, block, rows[m]);
        store_block(w, block, total, y + m * stride);
      }
  });
}

// Matrices with the same x, whose outputs follow each other; most often one.
struct Joined {
  std::vector<Weight> parts;
  int rows, columns;
};

// Compute the outputs of all matrices; `int8` rounds x to 8 bits in products with packed weights.
inline void product(Pool& pool, const Joined& joined, bool int8, const float* x, int count, float* y) {
  if (count == 0) return;
  for (const Weight& w : joined.parts) {
    if (int8 && w.is_packed() && count <= INT8_ROWS)
      int8_rows(pool, w, x, count, y, joined.rows);
    else if (count <= FEW)
      few_rows(pool, w, x, count, y, joined.rows);
    else
      many_rows(pool, w, x, count, y, joined.rows);
    y += w.rows;
  }
}
