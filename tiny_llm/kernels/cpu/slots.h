// A cache's keys or values: the numbers of one layer, to read and to write, and the slot of each key.
#pragma once
#include <algorithm>
#include <cstring>

#include "lanes.h"

// Keys or values in floats (kv_heads, slots, dim). Heads are `head_stride` numbers apart.
struct FloatSlots {
  float* numbers;
  int64_t head_stride;

  // Return the address of a slot (dim,) of a head.
  const float* row(int head, int64_t slot, int dim, float*) const { return numbers + head * head_stride + slot * dim; }

  // Copy a row (dim,) into a slot of a head.
  void put(int head, int64_t slot, const float* row, int dim) const {
    std::memcpy(numbers + head * head_stride + slot * dim, row, 4 * dim);
  }
};

// Return the next LANES codes, each in a lane of its own.
template <int BITS>
inline Words spread_codes(const uint32_t* words) {
  Words found = {};
  Words places = {};
  for (int i = 0; i < LANES; i++) {
    found[i] = words[i * BITS / 32];
    places[i] = i * BITS % 32;
  }
  return found >> places & ((1u << BITS) - 1);
}

// Keys or values in codes of 4 or 8 bits, with a scale and a bias for each group of numbers of a slot.
struct PackedSlots {
  uint32_t* codes;
  float* scales;
  float* biases;
  int64_t codes_stride, scales_stride, biases_stride;
  int bits, group;

  // Unpack a slot of a head into `out` (dim,), and return `out`.
  const float* row(int head, int64_t slot, int dim, float* out) const {
    int groups = dim / group;
    const uint32_t* words = codes + head * codes_stride + slot * (dim * bits / 32);
    const float* scale = scales + head * scales_stride + slot * groups;
    const float* bias = biases + head * biases_stride + slot * groups;
    for (int g = 0; g < groups; g++)
      for (int i = g * group; i < (g + 1) * group; i += LANES) {
        Words spread = bits == 4 ? spread_codes<4>(words + i / 8) : spread_codes<8>(words + i / 4);
        store(out + i, to_floats(spread) * scale[g] + bias[g]);
      }
    return out;
  }

  // Pack a row (dim,) into a slot of a head as `mx.quantize` does: the end of a group's range that is farther from 0 is
  // exact, and 0 stays 0.
  void put(int head, int64_t slot, const float* row, int dim) const {
    int groups = dim / group;
    int codes_each = 32 / bits;
    int most = (1 << bits) - 1;
    uint32_t* words = codes + head * codes_stride + slot * (dim / codes_each);
    for (int g = 0; g < groups; g++) {
      const float* x = row + g * group;
      float low = *std::min_element(x, x + group);
      float high = *std::max_element(x, x + group);
      bool from_low = std::fabs(low) > std::fabs(high);
      float scale = std::max((high - low) / most, 1e-7f) * (from_low ? 1 : -1);
      float edge = from_low ? low : high;
      float code_of_zero = std::rint(edge / scale);
      float bias = code_of_zero == 0 ? 0 : edge;
      if (code_of_zero != 0) scale = edge / code_of_zero;
      scales[head * scales_stride + slot * groups + g] = scale;
      biases[head * biases_stride + slot * groups + g] = bias;
      for (int i = 0; i < group; i += codes_each) {
        uint32_t word = 0;
        for (int n = 0; n < codes_each; n++) {
          float code = std::min(std::max(std::rint((x[i + n] - bias) / scale), 0.f), (float)most);
          word |= (uint32_t)code << (bits * n);
        }
        words[(g * group + i) / codes_each] = word;
      }
    }
  }
};

// The slot of each key: key i is in slot i, or in the block that a block table has for it.
struct Slots {
  const int32_t* table;  // block numbers, or null
  int block;             // slots of a block

  int64_t at(int key) const { return table ? (int64_t)table[key / block] * block + key % block : key; }
};
