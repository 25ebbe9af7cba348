// LANES rows of a packed matrix times one row of x: the loop in which a token's time goes.
#pragma once
#include "weight.h"

// A row of x for codes that stay at their place in a word. Code n of a word counts 2^(BITS · n) times there, so its x is
// divided by that. Only the last code of a word is shifted down, and its x is as it was.
struct Ready {
  const float* x;     // (columns)
  const float* sums;  // (groups), Σ x of each group before the division
};

// Compute Σ_k w[row, k] · x[k] for the LANES rows of a block; lane i of the result is row block · LANES + i.
//
// w.numbers has words of codes (blocks, columns / CODES, LANES), the first code in a word's lowest bits; BITS is 4 or 8.
// w.group columns share a scale and a bias, which `scaling_of` reads: w = scale · code + bias. Reads each word once.
template <int BITS>
inline Floats row_product(const Weight& w, int block, const Ready& x) {
  constexpr int CODES = 32 / BITS;             // in a word
  constexpr uint32_t CODE = (1u << BITS) - 1;  // the bits of the first
  // YOUR CODE (w2.11.1): for each group, the sum over its codes, then scale and bias
#error "NotDone: w2.11.1"
}
