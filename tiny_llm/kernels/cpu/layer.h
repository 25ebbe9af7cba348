// A decoder layer without its attention. `project` computes q, k and v; `finish` computes the layer's output from the
// attention's. model/qwen3.py has the same in plain operations.
#pragma once
#include <memory>
#include <vector>

#include "moe.h"

constexpr int ROWS_AT_ONCE = 256;  // rows of x whose intermediate results exist at the same time

struct Shape {
  int hidden, heads, kv_heads, dim;
  float eps;
};

struct Layer {
  Shape shape;
  Joined qkv, o;
  Mlp mlp;                                 // empty where there is a mixture
  std::shared_ptr<const ExpertSet> mixture;  // in the place of the MLP, or null
  const float *input_norm, *post_norm;  // (hidden,)
  const float *q_norm, *k_norm;         // (dim,), or null
  bool int8;
};

// Return how many rows to compute at once after row `from`. The shares have about the same size, because each reads all
// weights.
inline int rows_at_once(int rows, int from) {
  int shares = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
  return std::min(rows - from, (rows + shares - 1) / shares);
}

// Compute the RMS norm of a row. The loops without vectors are for heads whose size is not a multiple of LANES.
inline void rms_norm(const float* x, const float* weight, int size, float eps, float* y) {
  Floats squares = {};
  int i = 0;
  for (; i + LANES <= size; i += LANES) squares += load(x + i) * load(x + i);
  float total = sum(squares);
  for (int tail = i; tail < size; tail++) total += x[tail] * x[tail];
  float scale = 1 / std::sqrt(total / size + eps);
  for (i = 0; i + LANES <= size; i += LANES) store(y + i, load(x + i) * scale * load(weight + i));
  for (; i < size; i++) y[i] = x[i] * scale * weight[i];
}

// Rotate the pairs (x[i], x[i + half]) by their angles.
inline void rotate(const float* x, const float* cos, const float* sin, int half, float* y) {
  for (int i = 0; i < half; i++) {
    float left = x[i], right = x[i + half];
    y[i] = left * cos[i] - right * sin[i];
    y[i + half] = right * cos[i] + left * sin[i];
  }
}

// Add x to y.
inline void add(const float* x, int64_t size, float* y) {
  for (int64_t i = 0; i < size; i++) y[i] += x[i];
}

// A thread's memory for intermediate results.
struct Scratch {
  std::vector<float> hidden, wide;
};

inline Scratch& scratch() {
  static thread_local Scratch own;
  return own;
}

// Compute q (T, heads, dim), k and v (T, kv_heads, dim) from x (T, hidden), cos and sin (T, dim/2).
inline void project(Pool& pool, const Layer& layer, const float* x, const float* cos, const float* sin, int rows,
                    float* q, float* k, float* v) {
  const Shape& s = layer.shape;
  int all_heads = s.heads + 2 * s.kv_heads;
  int half = s.dim / 2;
  Scratch& own = scratch();
  for (int from = 0, count; from < rows; from += count) {
    count = rows_at_once(rows, from);
    own.wide.resize((size_t)count * layer.qkv.rows);
    float* qkv = own.wide.data();
    own.hidden.resize((size_t)count * s.hidden);
    float* normed = own.hidden.data();
    each_row(pool, count, [&](int i) {
      rms_norm(x + (int64_t)(from + i) * s.hidden, layer.input_norm, s.hidden, s.eps, normed + (int64_t)i * s.hidden);
    });
    product(pool, layer.qkv, layer.int8, normed, count, qkv);
    each_row(pool, count, [&](int i) {
      int64_t row = from + i;
      for (int h = 0; h < all_heads; h++) {
        float* head = qkv + ((int64_t)i * all_heads + h) * s.dim;
        bool is_q = h < s.heads;
        bool is_v = h >= s.heads + s.kv_heads;
        if (is_v) {
          std::memcpy(v + (row * s.kv_heads + h - s.heads - s.kv_heads) * s.dim, head, 4 * s.dim);
          continue;
        }
        if (layer.q_norm) rms_norm(head, is_q ? layer.q_norm : layer.k_norm, s.dim, s.eps, head);
        float* to = is_q ? q + (row * s.heads + h) * s.dim : k + (row * s.kv_heads + h - s.heads) * s.dim;
        rotate(head, cos + row * half, sin + row * half, half, to);
      }
    });
  }
}

// Compute the layer's output y (T, hidden) from its input x (T, hidden) and `attended` (T, heads · dim).
inline void finish(Pool& pool, const Layer& layer, const float* x, const float* attended, int rows, float* y) {
  const Shape& s = layer.shape;
  Scratch& own = scratch();
  for (int from = 0, count; from < rows; from += count) {
    count = rows_at_once(rows, from);
    int64_t at = (int64_t)from * s.hidden;
    int64_t size = (int64_t)count * s.hidden;
    own.wide.resize(size);
    own.hidden.resize(size);
    float* middle = own.wide.data();
    float* normed = own.hidden.data();
    product(pool, layer.o, layer.int8, attended + (int64_t)from * s.heads * s.dim, count, middle);
    add(x + at, size, middle);
    each_row(pool, count, [&](int i) {
      int64_t row = (int64_t)i * s.hidden;
      rms_norm(middle + row, layer.post_norm, s.hidden, s.eps, normed + row);
    });
    if (layer.mixture)
      mix(pool, *layer.mixture, layer.int8, normed, count, y + at);
    else
      compute_mlp(pool, layer.mlp, layer.int8, normed, count, y + at);
    add(middle, size, y + at);
  }
}
