// Weight matrices of MLX's arrays, and their products as lazy operations.
#pragma once
#include <optional>

#include "arena.h"
#include "checks.h"
#include "interleave.h"
#include "native.h"
#include "product.h"

// Lazy work runs on MLX's threads. It refers to its data by `std::shared_ptr`s that are made here, because those that
// nanobind makes take Python's lock when they are dropped.
struct SharedArena {
  std::shared_ptr<Arena> arena = std::make_shared<Arena>();
};

// Matrices in the products' layout, and the arena that their numbers are in.
struct Laid {
  std::shared_ptr<Arena> arena;
  Joined joined;
};

// A weight matrix, or several whose outputs follow each other.
class Matrix {
 public:
  // Take floats (rows, columns), evaluated and in row order.
  Matrix(const SharedArena& arena, const mx::array& numbers, const std::optional<mx::array>& bias)
      : laid_(std::make_shared<Laid>(Laid{arena.arena, {}})) {
    Weight w = sized(numbers.shape(0), numbers.shape(1), format_of(numbers));
    int64_t size = (int64_t)w.blocks() * LANES * w.columns;
    void* to = laid_->arena->take(size * bytes_of(w.format));
    interleave_floats(numbers, to, w.rows, w.columns, 1);
    w.numbers = to;
    add(w, bias);
  }

  // Take codes as MLX packs them: (rows, columns · bits / 32) uint32, scales and biases (rows, groups).
  Matrix(const SharedArena& arena, const mx::array& codes, const mx::array& scales, const mx::array& biases,
         const std::optional<mx::array>& bias, int columns, int bits)
      : laid_(std::make_shared<Laid>(Laid{arena.arena, {}})) {
    if (biases.dtype() != scales.dtype())
      throw std::invalid_argument("biases: expected the scales' type, found " + words(biases));
    int wide = bits <= 4 ? 4 : 8;
    Weight w = sized(codes.shape(0), columns, wide == 4 ? Format::Codes4 : Format::Codes8);
    w.group = columns / scales.shape(1);
    int64_t rows = (int64_t)w.blocks() * LANES;
    uint32_t* to = (uint32_t*)laid_->arena->take(rows * columns * wide / 8);
    interleave_codes(*pool, codes.data<uint32_t>(), to, w.rows, columns, bits, wide);
    w.numbers = to;
    w.scaling = format_of(scales);
    char* scalings = (char*)laid_->arena->take(rows * w.groups() * 2 * bytes_of(w.scaling));
    interleave_floats(scales, scalings, w.rows, w.groups(), 2);
    interleave_floats(biases, scalings + LANES * bytes_of(w.scaling), w.rows, w.groups(), 2);
    w.scalings = scalings;
    add(w, bias);
  }

  // Append the outputs of `other`.
  void join(const Matrix& other) {
    const Joined& theirs = other.joined();
    laid_->joined.parts.insert(laid_->joined.parts.end(), theirs.parts.begin(), theirs.parts.end());
    laid_->joined.rows += theirs.rows;
  }

  const Joined& joined() const { return laid_->joined; }

  int64_t nbytes() const {
    int64_t total = 0;
    for (const Weight& w : joined().parts) total += w.numbers_nbytes() + w.scalings_nbytes();
    return total;
  }

  // Multiply x (T, columns) by W transposed: (T, rows).
  mx::array product(const mx::array& x, bool int8) const {
    expect("product", x, mx::float32, 2, {joined().columns});
    int rows = x.shape(0);
    auto work = [laid = laid_, int8, rows](const Inputs& in, const Outputs& out) {
      ::product(*pool, laid->joined, int8, in[0].floats(), rows, out[0]);
    };
    return lazy("Product", {{rows, joined().rows}}, {x}, 1, work)[0];
  }

  // Return rows `tokens` (T,) int32 of W as floats, (T, columns). A token below 0 counts from the end. The row of a
  // token that W lacks is NaN.
  mx::array rows(const mx::array& tokens) const {
    expect("rows", tokens, mx::int32, 1, {});
    int count = tokens.shape(0);
    auto work = [laid = laid_, count](const Inputs& in, const Outputs& out) {
      const Weight& w = laid->joined.parts[0];
      for (int i = 0; i < count; i++) {
        int row = in[0].as<int32_t>()[i];
        if (row < 0) row += w.rows;
        float* to = out[0] + (int64_t)i * w.columns;
        if (row >= 0 && row < w.rows)
          take_row(w, row, to);
        else
          std::fill_n(to, w.columns, NAN);
      }
    };
    return lazy("Rows", {{count, joined().columns}}, {tokens}, 1, work)[0];
  }

 private:
  static Weight sized(int rows, int columns, Format format) {
    Weight w = {};
    w.format = format;
    w.rows = rows;
    w.columns = w.group = columns;
    return w;
  }

  // Write floats (rows, columns) as blocks whose vectors are `stride` vectors apart.
  static void interleave_floats(const mx::array& x, void* to, int rows, int columns, int stride) {
    if (x.itemsize() == 4)
      interleave(*pool, x.data<float>(), (float*)to, rows, columns, stride);
    else
      interleave(*pool, x.data<uint16_t>(), (uint16_t*)to, rows, columns, stride);
  }

  // Let the matrix be `w`, with a copy of the bias.
  void add(Weight w, const std::optional<mx::array>& bias) {
    if (bias) {
      expect("bias", *bias, mx::float32, 1, {w.rows});
      w.bias = (float*)std::memcpy(laid_->arena->take(w.rows * 4), bias->data<float>(), w.rows * 4);
    }
    laid_->joined = {{w}, w.rows, w.columns};
  }

  std::shared_ptr<Laid> laid_;
};
