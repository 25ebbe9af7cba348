// The speed of this machine's memory.
#pragma once
#include <chrono>
#include <vector>

#include "arena.h"
#include "native.h"
#include "weight.h"

// Measure how fast all threads together read memory that no cache holds, in GB/s; the best of three runs.
inline double read_speed(size_t bytes) {
  Arena arena;
  float* numbers = (float*)arena.take(bytes);
  std::memset((void*)numbers, 0, bytes);
  int64_t vectors = bytes / sizeof(Floats);
  constexpr int PARTS = 64;
  double best = 0;
  for (int run = 0; run < 3; run++) {
    std::vector<float> totals(PARTS);
    auto start = std::chrono::steady_clock::now();
    pool->each(PARTS, [&](int i) {
      Floats total = {};
      for (int64_t v = vectors * i / PARTS; v < vectors * (i + 1) / PARTS; v++) {
        fetch_ahead(numbers + v * LANES);
        total += load(numbers + v * LANES);
      }
      totals[i] = sum(total);
    });
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    for (float total : totals) bytes += total != 0;  // without a use the compiler would drop the sums
    best = std::max(best, bytes / seconds.count() / 1e9);
  }
  return best;
}
