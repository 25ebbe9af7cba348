// LANES rows of a packed matrix times one row of x: the loop in which a token's time goes.
#pragma once
#include "weight.h"

// x made ready for codes that stay at their place in the word: x[k] is divided by 2^(BITS · n) for place n of a word,
// so that a code needs no shift. `sums` has the sum of x over each group.
struct Ready {
  const float* x;
  const float* sums;
};

// ANCHOR: row
// Σ_k w[row, k] · x[k] for the LANES rows of a block. Within a group w = scale · code + bias, so that the group's sum is
// scale · Σ code · x + bias · Σ x.
template <int BITS>
inline Floats row_product(const Weight& w, int block, const Ready& x) {
  // TASK w2.11.1: for each group, the sum over its codes, then scale and bias
  constexpr int CODES = 32 / BITS;
  constexpr uint32_t CODE = (1u << BITS) - 1;
  const uint32_t* words = (const uint32_t*)w.numbers + (int64_t)block * (w.columns / CODES) * LANES;
  Floats total = {};
  for (int group = 0; group < w.groups(); group++) {
    Floats sums[4] = {};  // four chains: an addition must wait for the one before it in its chain
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
// ANCHOR_END: row
