// LANES rows of a packed matrix times one row of x: the loop in which a token's time goes.
#pragma once
#include "weight.h"

// ANCHOR: ready
// A row of x for codes that stay at their place in a word. Code n of a word counts 2^(BITS · n) times there, so its x is
// divided by that. Only the last code of a word is shifted down, and its x is as it was.
struct Ready {
  const float* x;     // (columns)
  const float* sums;  // (groups), Σ x of each group before the division
};
// ANCHOR_END: ready

// Compute Σ_k w[row, k] · x[k] for the LANES rows of a block; lane i of the result is row block · LANES + i.
//
// w.numbers has words of codes (blocks, columns / CODES, LANES), the first code in a word's lowest bits; BITS is 4 or 8.
// w.group columns share a scale and a bias, which `scaling_of` reads: w = scale · code + bias. Reads each word once.
template <int BITS>
inline Floats row_product(const Weight& w, int block, const Ready& x) {
  constexpr int CODES = 32 / BITS;             // in a word
  constexpr uint32_t CODE = (1u << BITS) - 1;  // the bits of the first
  // TASK w2.11.1: for each group, the sum over its codes, then scale and bias
  const uint32_t* words = (const uint32_t*)w.numbers + (int64_t)block * (w.columns / CODES) * LANES;
  Floats total = {};
  for (int group = 0; group < w.groups(); group++) {
    Floats sums[4] = {};  // four chains: an addition waits only for the one before it in its chain
    for (int k = group * w.group; k < (group + 1) * w.group; k += CODES, words += LANES) {
      fetch_ahead(words);
      Words v = load_as<Words>(words);
      for (int n = 0; n < CODES - 1; n++) sums[n % 4] += to_floats(v & (CODE << (BITS * n))) * x.x[k + n];
      sums[3] += to_floats(v >> (32 - BITS)) * x.x[k + CODES - 1];  // the last would be negative where it stands
    }
    Scaling s = scaling_of(w, block, group);
    total += s.scale * ((sums[0] + sums[1]) + (sums[2] + sums[3])) + s.bias * x.sums[group];
  }
  return total;
  // END TASK
}
