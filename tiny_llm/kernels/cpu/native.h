// A function of pointers as a lazy MLX operation.
#pragma once
#include <mlx/allocator.h>
#include <mlx/array.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/primitives.h>
#include <mlx/utils.h>

#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace mx = mlx::core;

// An input as the work sees it. It holds no reference to the array: MLX writes a cache's buffer in place only while
// nobody else holds it, and keeps the memory until the work is done.
struct View {
  const char* data;
  mx::Shape shape;
  mx::Strides strides;
  size_t item;

  // Whether the axes from `axis` on follow each other without gaps.
  bool in_rows(size_t axis) const {
    int64_t step = 1;
    for (size_t i = shape.size(); i-- > axis;) {
      if (shape[i] != 1 && strides[i] != step) return false;
      step *= shape[i];
    }
    return true;
  }

  template <class Number>
  const Number* as() const {
    return (const Number*)data;
  }
  const float* floats() const { return as<float>(); }
};

inline View view_of(const mx::array& x) { return {x.data<char>(), x.shape(), x.strides(), x.itemsize()}; }

using Inputs = std::vector<View>;
using Outputs = std::vector<float*>;
using Work = std::function<void(const Inputs&, const Outputs&)>;

// Copy axes `axis` … of a strided array into a row; return the end of the row.
inline char* copy_axes(const View& x, size_t axis, const char* from, char* to) {
  if (axis == x.shape.size()) {
    std::memcpy(to, from, x.item);
    return to + x.item;
  }
  for (int i = 0; i < x.shape[axis]; i++) to = copy_axes(x, axis + 1, from + i * x.strides[axis] * (int64_t)x.item, to);
  return to;
}

// Let the view see a copy in row order.
inline void put_in_rows(View& x, std::vector<char>& copy) {
  size_t size = x.item;
  for (int n : x.shape) size *= n;
  copy.resize(size);
  copy_axes(x, 0, x.data, copy.data());
  x.data = copy.data();
  int64_t step = 1;
  for (size_t i = x.shape.size(); i-- > 0; step *= x.shape[i]) x.strides[i] = step;
}

class Native : public mx::Primitive {
 public:
  // The first `as_rows` inputs reach the work in row order, the others so from their second axis on.
  Native(mx::Stream stream, const char* name, size_t as_rows, Work work)
      : Primitive(stream), name_(name), as_rows_(as_rows), work_(std::move(work)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    Inputs from;
    Outputs to;
    for (const mx::array& x : inputs) from.push_back(view_of(x));
    for (mx::array& y : outputs) {
      y.set_data(mx::allocator::malloc(y.nbytes()));
      to.push_back(y.data<float>());
    }
    auto task = [work = work_, as_rows = as_rows_, from = std::move(from), to = std::move(to)]() mutable {
      std::vector<std::vector<char>> copies(from.size());
      for (size_t i = 0; i < from.size(); i++)
        if (!from[i].in_rows(i < as_rows ? 0 : 1)) put_in_rows(from[i], copies[i]);
      work(from, to);
    };
    mx::cpu::get_command_encoder(stream()).dispatch(std::move(task));
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("a CPU kernel was called on a GPU");
  }

  const char* name() const override { return name_; }

 private:
  const char* name_;
  size_t as_rows_;
  Work work_;
};

// Float32 arrays of these shapes that `work` will fill from the inputs.
inline std::vector<mx::array> lazy(const char* name, std::vector<mx::Shape> shapes,
                                   const std::vector<mx::array>& inputs, size_t as_rows, Work work) {
  std::vector<mx::Dtype> dtypes(shapes.size(), mx::float32);
  auto stream = mx::default_stream(mx::Device::cpu);
  auto native = std::make_shared<Native>(stream, name, as_rows, std::move(work));
  return mx::array::make_arrays(std::move(shapes), dtypes, native, inputs);
}

inline std::string words(const mx::array& x) {
  std::string shape;
  for (int n : x.shape()) shape += (shape.empty() ? "" : ", ") + std::to_string(n);
  std::string kind = x.dtype() == mx::float32    ? "float32"
                     : x.dtype() == mx::float16  ? "float16"
                     : x.dtype() == mx::bfloat16 ? "bfloat16"
                                                 : "another type";
  return "(" + shape + ") of " + kind;
}

// Raise ValueError unless `x` has this type and, after any leading axes, these last axes.
inline void expect(const char* name, const mx::array& x, mx::Dtype dtype, size_t axes, const std::vector<int>& last) {
  bool fits = x.dtype() == dtype && x.ndim() == axes && last.size() <= axes;
  for (size_t i = 0; fits && i < last.size(); i++) fits = x.shape()[axes - last.size() + i] == last[i];
  if (fits) return;
  std::string wanted;
  for (int n : last) wanted += ", " + std::to_string(n);
  throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(axes) + " axes, the last " +
                              wanted.substr(wanted.size() > 1 ? 2 : 0) + ", found " + words(x));
}
