// Products with 8-bit activations, an option. Each run of 32 numbers of x is rounded to int8 with a factor of its own,
// and products of codes and int8 are exact in integers. This takes fewer instructions for each byte of W, and the
// rounding changes a product by about 0.5 %.
#pragma once
#include <vector>

#include "weight.h"

constexpr int SPAN = 32;  // numbers of x that share a factor

struct Int8Row {
  const int8_t* x;       // in the order in which `int8_row_product` reads the codes
  const float* factors;  // (spans)
  const float* sums;     // (spans), Σ of the rounded x of each span
};

// Rows of x, rounded.
class Int8Rows {
 public:
  void prepare(const Weight& w, const float* x, int count) {
    int spans = w.columns / SPAN;
    x_.resize((int64_t)count * w.columns);
    factors_.resize((int64_t)count * spans);
    sums_.resize((int64_t)count * spans);
    rows.resize(count);
    for (int m = 0; m < count; m++) {
      int64_t at = (int64_t)m * spans;
      for (int s = 0; s < spans; s++)
        round(x + (at + s) * SPAN, w.bits(), x_.data() + (at + s) * SPAN, factors_[at + s], sums_[at + s]);
      rows[m] = {x_.data() + at * SPAN, factors_.data() + at, sums_.data() + at};
    }
  }

  std::vector<Int8Row> rows;

 private:
  // Round a span of x. For codes of 4 bits, reorder each 8 numbers: those at even places, then those at odd places.
  static void round(const float* x, int bits, int8_t* to, float& factor, float& total) {
    float top = 0;
    for (int i = 0; i < SPAN; i++) top = std::fmax(top, std::fabs(x[i]));
    factor = top / 127;
    float inverse = top ? 127 / top : 0;
    int whole = 0;
    for (int i = 0; i < SPAN; i++) {
      int value = (int)std::nearbyint(x[i] * inverse);
      int place = bits == 4 ? (i & ~7) + (i & 1) * 4 + (i & 7) / 2 : i;
      to[place] = (int8_t)value;
      whole += value;
    }
    total = factor * whole;
  }

  std::vector<int8_t> x_;
  std::vector<float> factors_, sums_;
};

// Add, in each lane, Σ of 4 codes (the unsigned bytes of `codes`) times 4 numbers of x.
inline Ints dot4(Ints total, Words codes, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)codes, _mm512_set1_epi32(four));
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)total, (__m256i)codes, _mm256_set1_epi32(four));
#else
  for (int n = 0; n < 4; n++) total += (Ints)(codes >> (8 * n) & 255) * (int)x[n];
  return total;
#endif
}

// Compute the product of a block of W with one row of x.
template <int BITS>
inline Floats int8_row_product(const Weight& w, int block, const Int8Row& x) {
  constexpr int CODES = 32 / BITS;
  const uint32_t* words = (const uint32_t*)w.numbers + (int64_t)block * (w.columns / CODES) * LANES;
  Floats total = {};
  for (int group = 0; group < w.groups(); group++) {
    Floats of_codes = {};
    float of_x = 0;
    for (int span = group * w.group / SPAN; span < (group + 1) * w.group / SPAN; span++) {
      Ints sum = {};
      for (int k = span * SPAN; k < (span + 1) * SPAN; k += CODES, words += LANES) {
        fetch_ahead(words);
        Words v = load_as<Words>(words);
        if (BITS == 8) {
          sum = dot4(sum, v, x.x + k);
        } else {
          sum = dot4(sum, v & 0x0f0f0f0f, x.x + k);
          sum = dot4(sum, v >> 4 & 0x0f0f0f0f, x.x + k + 4);
        }
      }
      of_codes += __builtin_convertvector(sum, Floats) * x.factors[span];
      of_x += x.sums[span];
    }
    Scaling s = scaling_of(w, block, group);
    total += s.scale * of_codes + s.bias * of_x;
  }
  return total;
}
