// Checks of the arrays that Python hands over. nanobind raises std::invalid_argument as ValueError.
#pragma once
#include <mlx/array.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "weight.h"

namespace mx = mlx::core;

// Return an array's shape and type in words.
inline std::string words(const mx::array& x) {
  std::string shape;
  for (int n : x.shape()) shape += (shape.empty() ? "" : ", ") + std::to_string(n);
  std::string kind = x.dtype() == mx::float32    ? "float32"
                     : x.dtype() == mx::float16  ? "float16"
                     : x.dtype() == mx::bfloat16 ? "bfloat16"
                                                 : "another type";
  return "(" + shape + ") of " + kind;
}

// Raise ValueError unless `x` has this type, this number of axes and these last axes.
inline void expect(const char* name, const mx::array& x, mx::Dtype dtype, size_t axes, const std::vector<int>& last) {
  bool fits = x.dtype() == dtype && x.ndim() == axes && last.size() <= axes;
  for (size_t i = 0; fits && i < last.size(); i++) fits = x.shape()[axes - last.size() + i] == last[i];
  if (fits) return;
  std::string wanted;
  for (int n : last) wanted += ", " + std::to_string(n);
  throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(axes) + " axes, the last " +
                              wanted.substr(wanted.size() > 1 ? 2 : 0) + ", found " + words(x));
}

// Return the format of floats. Raises ValueError for other types.
inline Format format_of(const mx::array& x) {
  if (x.dtype() == mx::float32) return Format::Float32;
  if (x.dtype() == mx::float16) return Format::Float16;
  if (x.dtype() == mx::bfloat16) return Format::BFloat16;
  throw std::invalid_argument("expected float32, float16 or bfloat16, found " + words(x));
}

// Raise ValueError unless `x` is a cache's array: float32, or uint32 for codes.
inline void expect_slots(const mx::array& x, bool are_codes) {
  bool fits = x.dtype() == (are_codes ? mx::uint32 : mx::float32) && x.ndim() >= 3;
  if (!fits)
    throw std::invalid_argument("cache: expected keys and values in float32, found " + words(x));
}
