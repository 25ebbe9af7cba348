// bfloat: the upper half of a float, rounded to nearest even at each operation.
#pragma once

struct bfloat {
  uint16_t bits_;
  bfloat() = default;
  template <class T, SIM_IF(sim::is_native<T>)> constexpr bfloat(T value) : bits_(rounded(float(value))) {}
  constexpr operator float() const { return __builtin_bit_cast(float, uint32_t(bits_) << 16); }
  static constexpr uint16_t rounded(float value) {
    uint32_t bits = __builtin_bit_cast(uint32_t, value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);  // a NaN stays one
    return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
  }
};

namespace sim {
template <> constexpr bool is_float<bfloat> = true;
template <> constexpr bool is_scalar<bfloat> = true;
template <class T> struct with_bfloat { typedef bfloat type; };  // the type of bfloat op T
template <> struct with_bfloat<float> { typedef float type; };
template <> struct with_bfloat<double> { typedef double type; };
}  // namespace sim

#define SIM_BFLOAT_OPERATOR(op)                                                              \
  constexpr bfloat operator op(bfloat a, bfloat b) { return bfloat(float(a) op float(b)); }  \
  template <class T, SIM_IF(sim::is_native<T>)>                                              \
  constexpr typename sim::with_bfloat<T>::type operator op(bfloat a, T b) {                  \
    typedef typename sim::with_bfloat<T>::type R;                                            \
    return R(float(a) op float(R(b)));                                                       \
  }                                                                                          \
  template <class T, SIM_IF(sim::is_native<T>)>                                              \
  constexpr typename sim::with_bfloat<T>::type operator op(T a, bfloat b) {                  \
    typedef typename sim::with_bfloat<T>::type R;                                            \
    return R(float(R(a)) op float(b));                                                       \
  }                                                                                          \
  template <class T> constexpr bfloat& operator op##=(bfloat& a, T b) {                      \
    a = bfloat(float(a) op float(b));                                                        \
    return a;                                                                                \
  }
SIM_BFLOAT_OPERATOR(+) SIM_BFLOAT_OPERATOR(-) SIM_BFLOAT_OPERATOR(*) SIM_BFLOAT_OPERATOR(/)
#undef SIM_BFLOAT_OPERATOR

#define SIM_BFLOAT_COMPARE(op)                                                               \
  constexpr bool operator op(bfloat a, bfloat b) { return float(a) op float(b); }            \
  template <class T, SIM_IF(sim::is_native<T>)>                                              \
  constexpr bool operator op(bfloat a, T b) { return float(a) op float(b); }                 \
  template <class T, SIM_IF(sim::is_native<T>)>                                              \
  constexpr bool operator op(T a, bfloat b) { return float(a) op float(b); }
SIM_BFLOAT_COMPARE(<) SIM_BFLOAT_COMPARE(>) SIM_BFLOAT_COMPARE(<=) SIM_BFLOAT_COMPARE(>=)
SIM_BFLOAT_COMPARE(==) SIM_BFLOAT_COMPARE(!=)
#undef SIM_BFLOAT_COMPARE

constexpr bfloat operator-(bfloat a) { return bfloat(-float(a)); }
constexpr bfloat operator+(bfloat a) { return a; }
constexpr bfloat operator""bf(long double value) { return bfloat(float(value)); }
constexpr half operator""h(long double value) { return half(value); }
constexpr half operator""H(long double value) { return half(value); }
