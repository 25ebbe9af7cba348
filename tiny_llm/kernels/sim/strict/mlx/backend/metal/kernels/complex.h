// In the place of MLX's file: clang has no constructors and methods of an address space.
#pragma once
#include <metal_stdlib>
#include "mlx/backend/metal/kernels/bf16.h"
template <class T> struct complex_t {
  using value_type = T;
  T real, imag;
  constexpr complex_t() : real(0), imag(0) {}
  constexpr complex_t(T real, T imag) : real(real), imag(imag) {}
  template <class U, class = metal::enable_if_t<__is_convertible(U, T)>> constexpr complex_t(U x)
      : real(static_cast<T>(x)), imag(0) {}
  constexpr complex_t conj() const { return complex_t(real, -imag); }
};
typedef complex_t<float> complex64_t;
template <class T> static constexpr bool is_complex_v = false;
template <class T> static constexpr bool is_complex_v<complex_t<T>> = true;
constexpr complex64_t operator-(complex64_t x);
constexpr complex64_t operator+(complex64_t a, complex64_t b);
constexpr complex64_t operator-(complex64_t a, complex64_t b);
constexpr complex64_t operator*(complex64_t a, complex64_t b);
constexpr complex64_t operator/(complex64_t a, complex64_t b);
constexpr complex64_t operator%(complex64_t a, complex64_t b);
constexpr bool operator==(complex64_t a, complex64_t b);
constexpr bool operator!=(complex64_t a, complex64_t b) { return !(a == b); }
constexpr bool operator<(complex64_t a, complex64_t b);
constexpr bool operator>(complex64_t a, complex64_t b);
constexpr bool operator<=(complex64_t a, complex64_t b);
constexpr bool operator>=(complex64_t a, complex64_t b);
