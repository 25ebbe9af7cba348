// A matrix W (rows, columns) in the layout that the products read. LANES rows are interleaved: a vector has the same
// column of LANES rows, so that no number moves between lanes.
//
//   codes of 4 or 8 bits   words (rows/LANES, columns·bits/32, LANES), scalings (rows/LANES, groups, 2, LANES)
//   floats                 numbers (rows/LANES, columns, LANES)
//
// Rows that the last block lacks are zeros. w = scale · code + bias, with a scale and a bias for each `group` columns.
#pragma once
#include <vector>

#include "lanes.h"

enum class Format : int { Codes4, Codes8, Float32, Float16, BFloat16 };

inline int bytes_of(Format format) { return format == Format::Float32 ? 4 : 2; }

struct Weight {
  Format format;
  Format scaling;  // of the scales and biases
  int rows, columns, group;
  const void* numbers;
  const void* scalings;  // a scale and a bias for each group of codes; null for floats
  const float* bias;     // added to the product, or null

  int blocks() const { return (rows + LANES - 1) / LANES; }
  int groups() const { return columns / group; }
  int bits() const { return format == Format::Codes4 ? 4 : 8; }
  int64_t numbers_nbytes() const {
    int64_t count = (int64_t)blocks() * LANES * columns;
    return is_packed() ? count * bits() / 8 : count * bytes_of(format);
  }
  int64_t scalings_nbytes() const {
    return is_packed() ? (int64_t)blocks() * LANES * groups() * 2 * bytes_of(scaling) : 0;
  }
  bool is_packed() const { return format == Format::Codes4 || format == Format::Codes8; }
};

// ANCHOR: ahead
constexpr int AHEAD = 32;  // vectors, the distance of prefetching: memory works while the processor computes

template <class Number>
inline void fetch_ahead(const Number* p) { __builtin_prefetch(p + AHEAD * LANES); }
// ANCHOR_END: ahead

[[gnu::always_inline]] inline Floats load_number(const void* p, int64_t at, Format format) {
  if (format == Format::Float32) return load((const float*)p + at);
  if (format == Format::Float16) return load((const float16*)p + at);
  return load((const bfloat16*)p + at);
}

struct Scaling {
  Floats scale, bias;
};

[[gnu::always_inline]] inline Scaling scaling_of(const Weight& w, int block, int group) {
  int64_t at = ((int64_t)block * w.groups() + group) * 2 * LANES;
  return {load_number(w.scalings, at, w.scaling), load_number(w.scalings, at + LANES, w.scaling)};
}

// ---- conversion to floats ----

// Write columns `from` … `to` - 1 of a block as floats, (to - from, LANES).
template <int BITS>
inline void unpack_codes(const Weight& w, int block, int from, int to, float* out) {
  constexpr int CODES = 32 / BITS;
  const uint32_t* words = (const uint32_t*)w.numbers + (int64_t)block * (w.columns / CODES) * LANES;
  for (int k = from; k < to; k += w.group) {
    Scaling s = scaling_of(w, block, k / w.group);
    for (int i = k; i < k + w.group; i += CODES) {
      Words v = load_as<Words>(words + (int64_t)(i / CODES) * LANES);
      for (int n = 0; n < CODES; n++, out += LANES) {
        Words code = v >> (BITS * n) & ((1u << BITS) - 1);
        store(out, s.scale * to_floats(code) + s.bias);
      }
    }
  }
}

// Write columns `from` … `to` - 1 of a block as floats, (to - from, LANES). Both are multiples of the group.
inline void unpack(const Weight& w, int block, int from, int to, float* out) {
  if (w.format == Format::Codes4) return unpack_codes<4>(w, block, from, to, out);
  if (w.format == Format::Codes8) return unpack_codes<8>(w, block, from, to, out);
  int64_t begin = (int64_t)block * w.columns;
  for (int k = from; k < to; k++, out += LANES) store(out, load_number(w.numbers, (begin + k) * LANES, w.format));
}

// Write a row of W as floats.
inline void take_row(const Weight& w, int row, float* out) {
  static thread_local std::vector<float> block;
  block.resize((size_t)w.columns * LANES);
  unpack(w, row / LANES, 0, w.columns, block.data());
  for (int k = 0; k < w.columns; k++) out[k] = block[(size_t)k * LANES + row % LANES];
}
