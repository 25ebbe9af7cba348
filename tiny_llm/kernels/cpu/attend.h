// Attention as a lazy operation.
#pragma once
#include <optional>

#include "attention.h"
#include "checks.h"
#include "native.h"

// Return the keys or values in an array of floats (kv_heads, slots, dim) whose slots are in row order.
inline FloatSlots float_slots(const View* of) { return {(float*)of->data, of->strides[0]}; }

// Return the keys or values in three arrays: codes, scales and biases.
inline PackedSlots packed_slots(const View* of, int dim) {
  int group = dim / of[1].shape.back();
  int bits = 32 * of[0].shape.back() / dim;
  uint32_t* codes = (uint32_t*)of[0].data;
  float* scales = (float*)of[1].data;
  float* biases = (float*)of[2].data;
  return {codes, scales, biases, of[0].strides[0], of[1].strides[0], of[2].strides[0], bits, group};
}

// Attend to the keys and values in `cache`: an array each, or codes, scales and biases each.
inline void attend_views(const Heads& h, bool is_packed, const View* cache, const std::vector<Queries>& sequences) {
  if (is_packed) {
    attend(*pool, h, packed_slots(cache, h.dim), packed_slots(cache + 3, h.dim), sequences);
  } else {
    attend(*pool, h, float_slots(cache), float_slots(cache + 1), sequences);
  }
}

// Check the arrays of keys and values, two of floats or six of codes, scales and biases, and append them to `inputs`.
inline void add_cache(const std::vector<mx::array>& cache, bool is_packed, std::vector<mx::array>& inputs) {
  for (size_t i = 0; i < cache.size(); i++) {
    expect_slots(cache[i], is_packed && i % 3 == 0);
    inputs.push_back(cache[i]);
  }
}

inline Heads heads_of(const mx::array& q, const std::vector<mx::array>& cache, float scale, int window) {
  expect("q", q, mx::float32, 3, {});
  bool fits = cache.size() == 2 || cache.size() == 6;
  if (!fits) throw std::invalid_argument("cache: expected 2 or 6 arrays, found " + std::to_string(cache.size()));
  return {q.shape(1), cache[0].shape(0), q.shape(2), window, scale};
}

// Return the queries of sequences with `count` tokens each, without q and out. Sequence i has ends[i] keys, in the
// blocks of row i of `tables` (sequences, width), or in slots 0, 1 … if `tables` is null.
inline std::vector<Queries> queries_of(int sequences, int count, const int32_t* ends, const int32_t* tables, int width,
                                       int block, const bool* mask) {
  std::vector<Queries> found;
  for (int i = 0; i < sequences; i++) {
    const int32_t* table = tables ? tables + (int64_t)i * width : nullptr;
    found.push_back({nullptr, nullptr, count, ends[i], {table, block}, mask});
  }
  return found;
}

// Attend from q (T, heads, dim), the last T tokens of a sequence, to a cache (kv_heads, slots, …).
//
// `mask` (T, slots) is used in place of the causal mask and of the window.
inline mx::array attention(const mx::array& q, const std::vector<mx::array>& cache, float scale, int window,
                           const std::optional<mx::array>& mask) {
  Heads heads = heads_of(q, cache, scale, window);
  int count = q.shape(0);
  bool is_packed = cache.size() == 6;
  bool is_masked = mask.has_value();
  std::vector<mx::array> inputs = {q};
  add_cache(cache, is_packed, inputs);
  int slots = cache[0].shape(1);
  if (is_masked) {
    expect("mask", *mask, mx::bool_, 2, {count, slots});
    inputs.insert(inputs.begin() + 1, *mask);
  }
  auto work = [=](const Inputs& in, const Outputs& out) {
    const bool* mask = is_masked ? in[1].as<bool>() : nullptr;
    std::vector<Queries> all = {{in[0].floats(), out[0], count, slots, {nullptr, 1}, mask}};
    attend_views(heads, is_packed, in.data() + 1 + is_masked, all);
  };
  return lazy("Attention", {q.shape()}, inputs, 1 + is_masked, work)[0];
}

// Attend from q (R, heads, dim), one token of each of R sequences, to a pool of blocks (kv_heads, blocks, block, …).
//
// `tables` (R, width) has the blocks of each sequence, `ends` (R,) its number of keys.
inline mx::array paged_attention(const mx::array& q, const std::vector<mx::array>& cache, const mx::array& tables,
                                 const mx::array& ends, float scale, int window) {
  Heads heads = heads_of(q, cache, scale, window);
  int rows = q.shape(0);
  expect("tables", tables, mx::int32, 2, {});
  int width = tables.shape(1);
  expect("tables", tables, mx::int32, 2, {rows, width});
  expect("ends", ends, mx::int32, 1, {rows});
  bool is_packed = cache.size() == 6;
  std::vector<mx::array> inputs = {q, tables, ends};
  add_cache(cache, is_packed, inputs);
  int block = cache[0].shape(2);
  auto work = [=](const Inputs& in, const Outputs& out) {
    const int32_t* blocks = in[1].as<int32_t>();
    std::vector<Queries> all = queries_of(rows, 1, in[2].as<int32_t>(), blocks, width, block, nullptr);
    int64_t row = (int64_t)heads.heads * heads.dim;
    for (int r = 0; r < rows; r++) {
      all[r].q = in[0].floats() + r * row;
      all[r].out = out[0] + r * row;
    }
    attend_views(heads, is_packed, in.data() + 3, all);
  };
  return lazy("PagedAttention", {q.shape()}, inputs, 3, work)[0];
}
