// What the two parts of a check share: the exercise, which is compiled with a call at each access, and the watcher.
#pragma once
#include <stdint.h>

struct Job {
  int32_t bits, scaling, rows, columns, group, block, lanes, version, seconds;
};

extern "C" const int lanes_of_exercise;

// Write LANES floats to `out`.
extern "C" void run_block(const Job& job, const void* numbers, const void* scalings, const float* x, const float* sums, float* out);
