// In the place of MLX's file, whose constructors differ in their address space only.
#pragma once
#include <metal_stdlib>
#include "mlx/backend/metal/kernels/bf16.h"
template <class T> struct complex_t {
  T real, imag;
  complex_t() = default;
  constexpr complex_t(T r, T i) : real(r), imag(i) {}
  constexpr explicit complex_t(T r) : real(r), imag(0) {}
};
typedef complex_t<float> complex64_t;
template <class T> static constexpr bool is_complex_v = false;
template <class T> static constexpr bool is_complex_v<complex_t<T>> = true;
