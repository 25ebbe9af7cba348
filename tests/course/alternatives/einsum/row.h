// In vectors, with one chain: the last code first, scales applied to the whole sum of a group at once.
#pragma once
#include "weight.h"

struct Ready {
  const float* x;
  const float* sums;
};

template <int BITS>
inline Floats row_product(const Weight& w, int block, const Ready& x) {
  enum { CODES = 32 / BITS };
  const Words* vectors = (const Words*)w.numbers + (long)block * w.columns / CODES;
  Floats total = {};
  for (int column = 0; column < w.columns; column += w.group) {
    Floats sum = {};
    for (const float* at = x.x + column; at < x.x + column + w.group; at += CODES) {
      Words rest = *vectors++;
      sum += __builtin_convertvector(rest >> (32 - BITS), Floats) * at[CODES - 1];
      rest &= 0xffffffffu >> BITS;
      for (int n = CODES - 2; n >= 0; n--) {
        Words lower = rest & ((1u << BITS * n) - 1);
        sum += to_floats(rest - lower) * at[n];
        rest = lower;
      }
    }
    Scaling s = scaling_of(w, block, column / w.group);
    total = total + (sum * s.scale + all(x.sums[column / w.group]) * s.bias);
  }
  return total;
}
