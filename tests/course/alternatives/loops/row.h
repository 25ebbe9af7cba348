// Lane by lane, in plain numbers: each word is loaded once, and its codes are shifted down one after the other.
#pragma once
#include "weight.h"

struct Ready {
  const float* x;
  const float* sums;
};

template <int BITS>
inline Floats row_product(const Weight& w, int block, const Ready& x) {
  const int codes = 32 / BITS;
  const long words_of_block = (long)(w.columns / codes) * LANES;
  const uint32_t* words = static_cast<const uint32_t*>(w.numbers) + block * words_of_block;
  Floats total;
  for (int lane = 0; lane < LANES; lane++) {
    float row = 0;
    for (int group = 0; group < w.columns / w.group; group++) {
      float sum = 0;
      for (int i = group * w.group / codes; i < (group + 1) * w.group / codes; i++) {
        uint32_t word = words[i * LANES + lane];
        float unit = 1;  // x is divided by the place of its code, but for the last
        for (int n = 0; n < codes; n++) {
          uint32_t code = word % (1 << BITS);
          word /= 1 << BITS;
          sum += (float)code * unit * x.x[i * codes + n];
          unit = n == codes - 2 ? 1 : unit * (1 << BITS);
        }
      }
      Scaling s = scaling_of(w, block, group);
      row += s.scale[lane] * sum + s.bias[lane] * x.sums[group];
    }
    total[lane] = row;
  }
  return total;
}
