// All layers of a step in a row, for caches whose buffers it writes and reads itself: nothing between two layers has to
// be handed over, which takes as long as a small layer's products.
#pragma once
#include <vector>

#include "attention.h"
#include "layer.h"

// A layer's keys or values, to write and to read; `head_stride` numbers from one head to the next.
struct FloatSlots {
  float* numbers;
  int64_t head_stride;

  void put(int head, int64_t slot, const float* row, int dim) const {
    std::memcpy(numbers + head * head_stride + slot * dim, row, 4 * dim);
  }
  FloatRows rows() const { return {numbers, head_stride}; }
};

// The same in codes of 4 or 8 bits.
struct PackedSlots {
  uint32_t* codes;
  float *scales, *biases;
  int64_t codes_stride, scales_stride, biases_stride;
  int bits, group;

  // As `mx.quantize` packs: one end of a group's range is met exactly, and zero stays zero.
  void put(int head, int64_t slot, const float* row, int dim) const {
    int groups = dim / group, codes_each = 32 / bits, most = (1 << bits) - 1;
    uint32_t* words = codes + head * codes_stride + slot * (dim / codes_each);
    for (int g = 0; g < groups; g++) {
      const float* x = row + g * group;
      float low = x[0], high = x[0];
      for (int i = 1; i < group; i++) low = std::min(low, x[i]), high = std::max(high, x[i]);
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
  PackedRows rows() const { return {codes, scales, biases, codes_stride, scales_stride, biases_stride, bits, group}; }
};

// The tokens of a step: `slots` (T,) says where each token's K and V go; `sequences` who sees what (q and out are set
// here).
struct Step {
  int tokens;
  const int32_t* slots;
  std::vector<Queries> sequences;
};

// x (T, hidden) -> y (T, hidden), the last layer's output
template <class Slots>
inline void run_layers(Pool& pool, const std::vector<const Layer*>& layers, const std::vector<int>& windows,
                       float scale, const std::vector<Slots>& keys, const std::vector<Slots>& values, const float* cos,
                       const float* sin, Step& step, const float* x, float* y) {
  const Shape& s = layers[0]->shape;
  int tokens = step.tokens, wide = s.heads * s.dim, narrow = s.kv_heads * s.dim;
  std::vector<float> own((size_t)tokens * (2 * wide + 2 * narrow + s.hidden));
  float *q = own.data(), *attended = q + (int64_t)tokens * wide, *k = attended + (int64_t)tokens * wide;
  float *v = k + (int64_t)tokens * narrow, *other = v + (int64_t)tokens * narrow;
  const float* from = x;
  for (size_t i = 0; i < layers.size(); i++) {
    float* to = (layers.size() - i) % 2 ? y : other;  // the last layer writes y
    project(pool, *layers[i], from, cos, sin, tokens, q, k, v);
    for (int token = 0; token < tokens; token++)
      for (int head = 0; head < s.kv_heads; head++) {
        int64_t at = ((int64_t)token * s.kv_heads + head) * s.dim;
        keys[i].put(head, step.slots[token], k + at, s.dim);
        values[i].put(head, step.slots[token], v + at, s.dim);
      }
    int64_t row = 0;
    for (Queries& mine : step.sequences) {
      mine.q = q + row * wide;
      mine.out = attended + row * wide;
      row += mine.count;
    }
    Heads heads = {s.heads, s.kv_heads, s.dim, windows[i], scale};
    attend(pool, heads, keys[i].rows(), values[i].rows(), step.sequences);
    finish(pool, *layers[i], from, attended, tokens, to);
    from = to;
  }
}
