// All layers of a step in one call, for caches whose buffers it reads and writes itself. Handing arrays over between
// two layers would take as long as a small layer's products.
#pragma once
#include <vector>

#include "attention.h"
#include "layer.h"

// The tokens of a step. `slots` (T,) has the slot of each token's K and V. `run_layers` sets q and out of `sequences`.
struct Step {
  int tokens;
  const int32_t* slots;
  std::vector<Queries> sequences;
};

// Compute y (T, hidden), the last layer's output, from x (T, hidden), the first layer's input.
template <class Slots>
inline void run_layers(Pool& pool, const std::vector<const Layer*>& layers, const std::vector<int>& windows,
                       float scale, const Slots* keys, const Slots* values, const float* cos,
                       const float* sin, Step& step, const float* x, float* y) {
  const Shape& s = layers[0]->shape;
  int tokens = step.tokens;
  int wide = s.heads * s.dim;
  int narrow = s.kv_heads * s.dim;
  std::vector<float> own((size_t)tokens * (2 * wide + 2 * narrow + s.hidden));
  float* q = own.data();
  float* attended = q + (int64_t)tokens * wide;
  float* k = attended + (int64_t)tokens * wide;
  float* v = k + (int64_t)tokens * narrow;
  float* other = v + (int64_t)tokens * narrow;
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
    attend(pool, heads, keys[i], values[i], step.sequences);
    finish(pool, *layers[i], from, attended, tokens, to);
    from = to;
  }
}
