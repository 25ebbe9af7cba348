// A decoder layer without its attention. `project` computes q, k and v; `finish` computes the layer's output from the
// attention's. model/qwen3.py has the same in plain operations.
#pragma once
#include <vector>

#include "product.h"

constexpr int ROWS_AT_ONCE = 256;  // rows of x whose intermediate results exist at the same time
constexpr int WORTH_THREADS = 8;   // from this number of rows on, several threads share work on single rows

struct Shape {
  int hidden, inner, heads, kv_heads, dim;
  float eps;
};

struct Layer {
  Shape shape;
  Joined qkv, o, gate_up, down;
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

// Call f(row) for all rows, on several threads if there are many.
template <class F>
inline void each_row(Pool& pool, int rows, const F& f) {
  int parts = rows < WORTH_THREADS ? 1 : std::min(rows, 4 * pool.threads());
  pool.each(parts, [&](int i) {
    int end = part(rows, i + 1, parts);
    for (int row = part(rows, i, parts); row < end; row++) f(row);
  });
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

// Compute silu(gate) · up of a row that has the gate (inner,), then up (inner,).
inline void swiglu(const float* gate_up, int inner, float* y) {
  int i = 0;
  for (; i + LANES <= inner; i += LANES) {
    Floats gate = load(gate_up + i);
    Floats up = load(gate_up + inner + i);
    store(y + i, gate * up / (1.f + exp(min(-gate, all(88.f)))));
  }
  for (; i < inner; i++) y[i] = gate_up[i] * gate_up[inner + i] / (1 + std::exp(-gate_up[i]));
}

// Add x to y.
inline void add(const float* x, int64_t size, float* y) {
  for (int64_t i = 0; i < size; i++) y[i] += x[i];
}

// A thread's memory for intermediate results.
struct Scratch {
  std::vector<float> hidden, wide, inner;
};

inline Scratch& scratch() {
  static thread_local Scratch own;
  return own;
}

// Compute the product of W with the RMS norm of x.
inline void normed_product(Pool& pool, const Joined& w, bool int8, const float* norm, float eps, const float* x,
                           int rows, float* y) {
  std::vector<float>& normed = scratch().hidden;
  normed.resize((size_t)rows * w.columns);
  float* to = normed.data();
  each_row(pool, rows, [&](int row) {
    int64_t at = (int64_t)row * w.columns;
    rms_norm(x + at, norm, w.columns, eps, to + at);
  });
  product(pool, w, int8, to, rows, y);
}

// Compute q (T, heads, dim), k and v (T, kv_heads, dim) from x (T, hidden), cos and sin (T, dim/2).
inline void project(Pool& pool, const Layer& layer, const float* x, const float* cos, const float* sin, int rows,
                    float* q, float* k, float* v) {
  const Shape& s = layer.shape;
  int all_heads = s.heads + 2 * s.kv_heads;
  int half = s.dim / 2;
  std::vector<float>& wide = scratch().wide;
  for (int from = 0, count; from < rows; from += count) {
    count = rows_at_once(rows, from);
    wide.resize((size_t)count * layer.qkv.rows);
    float* qkv = wide.data();
    normed_product(pool, layer.qkv, layer.int8, layer.input_norm, s.eps, x + (int64_t)from * s.hidden, count, qkv);
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
    own.wide.resize((size_t)count * (2 * s.inner + s.hidden));
    own.inner.resize((size_t)count * s.inner);
    float* gate_up = own.wide.data();
    float* middle = gate_up + (int64_t)count * 2 * s.inner;
    float* inner = own.inner.data();
    product(pool, layer.o, layer.int8, attended + (int64_t)from * s.heads * s.dim, count, middle);
    add(x + at, size, middle);
    normed_product(pool, layer.gate_up, layer.int8, layer.post_norm, s.eps, middle, count, gate_up);
    each_row(pool, count, [&](int i) {
      int64_t row = (int64_t)i * s.inner;
      swiglu(gate_up + 2 * row, s.inner, inner + row);
    });
    product(pool, layer.down, layer.int8, inner, count, y + at);
    add(middle, size, y + at);
  }
}
