// Many rows of x times W transposed. Two blocks of W are unpacked to tiles that stay in the processor's first cache,
// and the tiles are multiplied by a few rows of x at a time.
#pragma once
#include <algorithm>
#include <vector>

#include "weight.h"

constexpr int ROWS = LANES == 16 ? 8 : 6;  // rows of x whose sums fill the registers, for two tiles
constexpr int DEPTH = 256;                 // columns of a tile, a multiple of every group

// Add Σ_k x[m][k] · tile[k] to sums[m][tile]. Vector k of a tile is at `tile + k · stride`.
inline void tile_product(const float* const x[ROWS], const float* first, const float* second, int stride, int depth,
                         Floats sums[ROWS][2]) {
  Floats own[ROWS][2];
  std::copy_n(&sums[0][0], 2 * ROWS, &own[0][0]);  // in registers
  for (int k = 0; k < depth; k++) {
    Floats a = load(first);
    Floats b = load(second);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; m++) {
      own[m][0] += a * x[m][k];
      own[m][1] += b * x[m][k];
    }
    first += stride;
    second += stride;
  }
  std::copy_n(&own[0][0], 2 * ROWS, &sums[0][0]);
}

// Add the first `lanes` sums to y.
inline void add_lanes(Floats sums, int lanes, float* y) {
  if (lanes == LANES) return store(y, load(y) + sums);
  for (int i = 0; i < lanes; i++) y[i] += sums[i];
}

// Compute y for blocks `block` and `block + 1` of W. Row m of y begins at y + m · stride.
inline void tiles_product(const Weight& w, int block, const float* x, int count, float* y, int64_t stride) {
  static thread_local std::vector<float> tiles;
  tiles.resize(2 * DEPTH * LANES);
  bool has_second = block + 1 < w.blocks();
  float* first = tiles.data();
  float* second = has_second ? first + DEPTH * LANES : first;
  int row = block * LANES;
  int end = std::min(w.rows, row + 2 * LANES);
  int lanes[2] = {std::min(LANES, end - row), std::max(0, end - row - LANES)};
  for (int m = 0; m < count; m++)
    for (int i = row; i < end; i++) y[m * stride + i] = w.bias ? w.bias[i] : 0.f;
  for (int from = 0; from < w.columns; from += DEPTH) {
    int to = std::min(w.columns, from + DEPTH);
    unpack(w, block, from, to, first);
    if (has_second) unpack(w, block + 1, from, to, second);
    for (int begin = 0; begin < count; begin += ROWS) {
      const float* rows[ROWS];
      for (int m = 0; m < ROWS; m++) rows[m] = x + (int64_t)std::min(begin + m, count - 1) * w.columns + from;
      Floats sums[ROWS][2] = {};
      tile_product(rows, first, second, LANES, to - from, sums);
      for (int m = 0; m < std::min(ROWS, count - begin); m++) {
        float* out = y + (begin + m) * stride + row;
        add_lanes(sums[m][0], lanes[0], out);
        add_lanes(sums[m][1], lanes[1], out + LANES);
      }
    }
  }
}
