// Up to four rows of x times W transposed. Each code of W is read once and converted to a float once.
#pragma once
#include <vector>

#include <row.h>  // a learner may have a version of this file

constexpr int FEW = 4;  // rows of x at most, whose sums and the codes fit into the registers

// Rows of x in the form that `row_product` and `rows_product` read.
class ReadyRows {
 public:
  void prepare(const Weight& w, const float* x, int count) {
    int groups = w.is_packed() ? w.groups() : 0;
    int codes = 32 / w.bits();
    if (!w.is_packed()) {
      for (int m = 0; m < count; m++) rows[m] = {x + (int64_t)m * w.columns, nullptr};
      return;
    }
    Floats places;
    for (int i = 0; i < LANES; i++) {
      int n = i % codes;
      places[i] = n == codes - 1 ? 1.f : std::ldexp(1.f, -w.bits() * n);
    }
    x_.resize((int64_t)count * w.columns);
    sums_.resize((int64_t)count * groups);
    for (int m = 0; m < count; m++) {
      const float* from = x + (int64_t)m * w.columns;
      float* to = x_.data() + (int64_t)m * w.columns;
      float* sums = sums_.data() + (int64_t)m * groups;
      for (int g = 0; g < groups; g++, from += w.group, to += w.group) {
        Floats sum_of_lanes = {};
        for (int k = 0; k < w.group; k += LANES) sum_of_lanes += load(from + k);
        sums[g] = sum(sum_of_lanes);
        for (int k = 0; k < w.group; k += LANES) store(to + k, load(from + k) * places);
      }
      rows[m] = {x_.data() + (int64_t)m * w.columns, sums};
    }
  }

  Ready rows[FEW];

 private:
  std::vector<float> x_, sums_;
};

// Compute `row_product` for M rows of x, into `total`.
template <int BITS, int M>
inline void rows_product(const Weight& w, int block, const Ready* x, Floats* total) {
  constexpr int CODES = 32 / BITS;
  constexpr uint32_t CODE = (1u << BITS) - 1;
  constexpr int CHAINS = M == 2 ? 2 : 1;
  const uint32_t* words = (const uint32_t*)w.numbers + (int64_t)block * (w.columns / CODES) * LANES;
  for (int group = 0; group < w.groups(); group++) {
    Floats sums[CHAINS][M] = {};
    for (int k = group * w.group; k < (group + 1) * w.group; k += CODES, words += LANES) {
      fetch_ahead(words);
      Words v = load_as<Words>(words);
#pragma GCC unroll 8
      for (int n = 0; n < CODES; n++) {
        Floats code = to_floats(n == CODES - 1 ? v >> (32 - BITS) : v & (CODE << (BITS * n)));
        for (int m = 0; m < M; m++) sums[n % CHAINS][m] += code * x[m].x[k + n];
      }
    }
    Scaling s = scaling_of(w, block, group);
    for (int m = 0; m < M; m++) {
      Floats of_codes = sums[0][m];
      if (CHAINS == 2) of_codes += sums[CHAINS - 1][m];
      total[m] += s.scale * of_codes + s.bias * x[m].sums[group];
    }
  }
}

// Compute the same where W is floats.
template <class Number, int M>
inline void rows_product_of_floats(const Weight& w, int block, const Ready* x, Floats* total) {
  constexpr int CHAINS = M == 1 ? 4 : M == 2 ? 2 : 1;
  const Number* numbers = (const Number*)w.numbers + (int64_t)block * w.columns * LANES;
  Floats sums[CHAINS][M] = {};
  int k = 0;
  for (; k + CHAINS <= w.columns; k += CHAINS)
    for (int c = 0; c < CHAINS; c++, numbers += LANES) {
      fetch_ahead(numbers);
      for (int m = 0; m < M; m++) sums[c][m] += load(numbers) * x[m].x[k + c];
    }
  for (; k < w.columns; k++, numbers += LANES)
    for (int m = 0; m < M; m++) sums[0][m] += load(numbers) * x[m].x[k];
  for (int c = 0; c < CHAINS; c++)
    for (int m = 0; m < M; m++) total[m] += sums[c][m];
}

// Compute total[m] for M rows of x.
template <int M>
inline void block_product(const Weight& w, int block, const Ready* x, Floats* total) {
  if constexpr (M == 1) {
    if (w.format == Format::Codes4) return void(total[0] = row_product<4>(w, block, x[0]));
    if (w.format == Format::Codes8) return void(total[0] = row_product<8>(w, block, x[0]));
  }
  if (w.format == Format::Codes4) return rows_product<4, M>(w, block, x, total);
  if (w.format == Format::Codes8) return rows_product<8, M>(w, block, x, total);
  if (w.format == Format::Float32) return rows_product_of_floats<float, M>(w, block, x, total);
  if (w.format == Format::Float16) return rows_product_of_floats<float16, M>(w, block, x, total);
  rows_product_of_floats<bfloat16, M>(w, block, x, total);
}

// Compute total[m] for `count` rows of x, up to FEW.
inline void block_product(const Weight& w, int block, const Ready* x, int count, Floats* total) {
  if (count == 1) return block_product<1>(w, block, x, total);
  if (count == 2) return block_product<2>(w, block, x, total);
  if (count == 3) return block_product<3>(w, block, x, total);
  block_product<4>(w, block, x, total);
}
