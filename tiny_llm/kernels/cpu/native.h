// A C++ function as a lazy operation of MLX.
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

#include "pool.h"

namespace mx = mlx::core;

inline Pool* pool = nullptr;  // never freed, because its threads run until the process ends

// Start the threads of all products.
inline void start(int threads) {
  if (!pool) pool = new Pool(threads);
}

// An input's memory. It is no reference to the array, because MLX writes a cache's buffer in place only while a single
// reference to it exists. MLX keeps the memory until the work is done.
struct View {
  const char* data;
  mx::Shape shape;
  mx::Strides strides;
  size_t item;

  // Whether the numbers from `axis` on lie in row order, without gaps.
  bool in_rows(size_t axis) const {
    int64_t step = 1;
    for (size_t i = shape.size(); i-- > axis;) {
      if (shape[i] != 1 && strides[i] != step) return false;
      step *= shape[i];
    }
    return true;
  }

  // Bytes of the axes from `axis` on.
  size_t nbytes(size_t axis) const {
    size_t size = item;
    for (size_t i = axis; i < shape.size(); i++) size *= shape[i];
    return size;
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
using Copies = std::vector<std::vector<char>>;
using Work = std::function<void(const Inputs&, const Outputs&)>;

// Copy axes `axis` … of a strided array into row order, starting at `to`. Returns the end of the copy.
inline char* copy_axes(const View& x, size_t axis, const char* from, char* to) {
  if (x.in_rows(axis)) {
    size_t size = x.nbytes(axis);
    if (size > 0) std::memcpy(to, from, size);
    return to + size;
  }
  int64_t step = x.strides[axis] * (int64_t)x.item;
  for (int i = 0; i < x.shape[axis]; i++) to = copy_axes(x, axis + 1, from + i * step, to);
  return to;
}

// Let a view refer to a copy of its numbers in row order.
inline void put_in_rows(View& x, std::vector<char>& copy) {
  copy.resize(x.nbytes(0));
  copy_axes(x, 0, x.data, copy.data());
  x.data = copy.data();
  int64_t step = 1;
  for (size_t i = x.shape.size(); i-- > 0;) {
    x.strides[i] = step;
    step *= x.shape[i];
  }
}

// An operation that runs on a CPU alone.
class CpuPrimitive : public mx::Primitive {
 public:
  CpuPrimitive(mx::Stream stream, const char* name) : Primitive(stream), name_(name) {}

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(std::string(name_) + ": a CPU kernel was called on a GPU");
  }

  const char* name() const override { return name_; }

 private:
  const char* name_;
};

// An operation that fills float32 outputs.
class Native : public CpuPrimitive {
 public:
  // The first `as_rows` inputs reach the work in row order; of the others only the first axis may have gaps.
  Native(mx::Stream stream, const char* name, size_t as_rows, Work work)
      : CpuPrimitive(stream, name), as_rows_(as_rows), work_(std::move(work)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    Inputs from;
    Outputs to;
    for (const mx::array& x : inputs) from.push_back(view_of(x));
    for (mx::array& y : outputs) {
      y.set_data(mx::allocator::malloc(y.nbytes()));
      to.push_back(y.data<float>());
    }
    auto task = [work = work_, as_rows = as_rows_, from = std::move(from), to = std::move(to)]() mutable {
      Copies copies(from.size());
      for (size_t i = 0; i < from.size(); i++) {
        size_t axis = i < as_rows ? 0 : 1;
        if (!from[i].in_rows(axis)) put_in_rows(from[i], copies[i]);
      }
      work(from, to);
    };
    mx::cpu::get_command_encoder(stream()).dispatch(std::move(task));
  }

 private:
  size_t as_rows_;
  Work work_;
};

// Return float32 arrays of these shapes, which `work` fills from the inputs when MLX evaluates them.
inline std::vector<mx::array> lazy(const char* name, std::vector<mx::Shape> shapes,
                                   const std::vector<mx::array>& inputs, size_t as_rows, Work work) {
  std::vector<mx::Dtype> dtypes(shapes.size(), mx::float32);
  auto stream = mx::default_stream(mx::Device::cpu);
  auto native = std::make_shared<Native>(stream, name, as_rows, std::move(work));
  return mx::array::make_arrays(std::move(shapes), dtypes, native, inputs);
}
