// Convert a matrix from MLX's layout, row after row, to the layout in weight.h.
#pragma once
#include <cstdint>
#include <vector>

#include "lanes.h"
#include "pool.h"

// Write rows (rows, columns) as blocks (blocks, columns, LANES). The vectors of `to` are `stride` vectors apart.
template <class Number>
inline void interleave(Pool& pool, const Number* from, Number* to, int rows, int columns, int stride = 1) {
  int blocks = (rows + LANES - 1) / LANES;
  pool.each(blocks, [&](int block) {
    Number* out = to + (int64_t)block * columns * stride * LANES;
    for (int lane = 0; lane < LANES; lane++) {
      int row = block * LANES + lane;
      const Number* in = from + (int64_t)row * columns;
      for (int k = 0; k < columns; k++) out[(int64_t)k * stride * LANES + lane] = row < rows ? in[k] : Number{};
    }
  });
}

// Write codes of `bits` bits, which MLX packs as one string of bits, as blocks of codes of `wide` bits (4 or 8).
inline void interleave_codes(Pool& pool, const uint32_t* from, uint32_t* to, int rows, int columns, int bits,
                             int wide) {
  if (bits == wide) return interleave(pool, from, to, rows, columns * bits / 32);
  int words = columns * bits / 32;
  int wide_words = columns * wide / 32;
  int per_word = 32 / wide;
  std::vector<uint32_t> widened((int64_t)rows * wide_words);
  pool.each(rows, [&](int row) {
    const uint32_t* in = from + (int64_t)row * words;
    for (int k = 0; k < columns; k++) {
      int64_t place = (int64_t)k * bits;
      uint64_t pair = in[place / 32];
      if (place / 32 + 1 < words) pair |= (uint64_t)in[place / 32 + 1] << 32;
      uint32_t code = (uint32_t)(pair >> (place % 32)) & ((1u << bits) - 1);
      widened[(int64_t)row * wide_words + k / per_word] |= code << (k % per_word * wide);
    }
  });
  interleave(pool, widened.data(), to, rows, wide_words);
}
