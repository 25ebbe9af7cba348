// Functions of single rows, and of all rows on several threads.
#pragma once
#include "lanes.h"
#include "pool.h"

constexpr int WORTH_THREADS = 8;  // from this number of rows on, several threads share work on single rows

// Call f(row) for all rows, on several threads if there are many.
template <class F>
inline void each_row(Pool& pool, int rows, const F& f) {
  int parts = rows < WORTH_THREADS ? 1 : std::min(rows, 4 * pool.threads());
  pool.each(parts, [&](int i) {
    int end = part(rows, i + 1, parts);
    for (int row = part(rows, i, parts); row < end; row++) f(row);
  });
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
