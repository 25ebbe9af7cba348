// Many rows of x times W transposed: two blocks of W are unpacked to a tile that stays in the processor's cache, and
// the tile meets the rows of x a few at a time.
#pragma once
#include <algorithm>
#include <vector>

#include "weight.h"

constexpr int ROWS = LANES == 16 ? 8 : 6;  // rows of x whose sums fill the registers, for two blocks of W
constexpr int DEPTH = 256;                 // columns of a tile, a multiple of every group: it fits the first cache

// x (count, columns) as panels of ROWS rows, (panels, columns, ROWS): the loop below reads it in order
inline void make_panels(Pool& pool, const float* x, int count, int columns, std::vector<float>& panels) {
  int number = (count + ROWS - 1) / ROWS;
  panels.resize((int64_t)number * columns * ROWS);
  pool.each(number, [&, out = panels.data()](int p) {
    float* to = out + (int64_t)p * columns * ROWS;
    for (int m = 0; m < ROWS; m++) {
      int row = p * ROWS + m;
      const float* from = x + (int64_t)row * columns;
      for (int k = 0; k < columns; k++) to[(int64_t)k * ROWS + m] = row < count ? from[k] : 0.f;
    }
  });
}

// sums[m][b] += Σ_k panel[k][m] · tile b [k]
inline void tile_product(const float* panel, const float* first, const float* second, int depth, Floats sums[ROWS][2]) {
  Floats own[ROWS][2];
  for (int m = 0; m < ROWS; m++) own[m][0] = sums[m][0], own[m][1] = sums[m][1];
  for (int k = 0; k < depth; k++, panel += ROWS) {
    Floats a = load(first + (int64_t)k * LANES), b = load(second + (int64_t)k * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; m++) {
      own[m][0] += a * panel[m];
      own[m][1] += b * panel[m];
    }
  }
  for (int m = 0; m < ROWS; m++) sums[m][0] = own[m][0], sums[m][1] = own[m][1];
}

// y for blocks `block` and `block + 1` of W
inline void tiles_product(const Weight& w, int block, const float* panels, int count, float* y, int64_t stride) {
  static thread_local std::vector<float> tile, totals;
  int number = (count + ROWS - 1) / ROWS;
  tile.resize(2 * DEPTH * LANES);
  totals.assign((int64_t)number * ROWS * 2 * LANES, 0.f);
  bool has_second = block + 1 < w.blocks();
  float *first = tile.data(), *second = first + DEPTH * LANES;
  for (int from = 0; from < w.columns; from += DEPTH) {
    int to = std::min(w.columns, from + DEPTH);
    unpack(w, block, from, to, first);
    if (has_second) unpack(w, block + 1, from, to, second);
    for (int p = 0; p < number; p++) {
      Floats sums[ROWS][2];
      float* total = totals.data() + (int64_t)p * sizeof sums / 4;
      std::memcpy(sums, total, sizeof sums);
      tile_product(panels + ((int64_t)p * w.columns + from) * ROWS, first, second, to - from, sums);
      std::memcpy(total, sums, sizeof sums);
    }
  }
  for (int m = 0; m < count; m++)
    for (int b = 0; b < 1 + has_second; b++) {
      int row = (block + b) * LANES, lanes = std::min(LANES, w.rows - row);
      const float* total = totals.data() + ((int64_t)m * 2 + b) * LANES;
      float* out = y + m * stride + row;
      for (int i = 0; i < lanes; i++) out[i] = total[i] + (w.bias ? w.bias[row + i] : 0.f);
    }
}
