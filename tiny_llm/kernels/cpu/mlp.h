// A SwiGLU MLP.
#pragma once
#include <vector>

#include "product.h"
#include "rows.h"

struct Mlp {
  Joined gate_up, down;
};

// A thread's memory for an MLP's intermediate results.
struct MlpScratch {
  std::vector<float> gate_up, inner;
};

// Compute y (count, hidden) from x (count, hidden).
inline void compute_mlp(Pool& pool, const Mlp& mlp, bool int8, const float* x, int count, float* y) {
  static thread_local MlpScratch own;
  int size = mlp.down.columns;
  own.gate_up.resize((size_t)count * 2 * size);
  own.inner.resize((size_t)count * size);
  float* gate_up = own.gate_up.data();
  float* inner = own.inner.data();
  product(pool, mlp.gate_up, int8, x, count, gate_up);
  each_row(pool, count, [=](int i) { swiglu(gate_up + (int64_t)i * 2 * size, size, inner + (int64_t)i * size); });
  product(pool, mlp.down, int8, inner, count, y);
}
