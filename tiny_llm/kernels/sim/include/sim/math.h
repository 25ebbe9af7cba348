// Mathematical functions: computed in float, rounded to the argument's type. fast:: and precise:: are alike here.
#pragma once
namespace metal {
#define SIM_MATH1(name, result)                                                                          \
  inline float name(float x) { return result; }                                                          \
  inline half name(half x_) { float x = x_; return half(result); }                                       \
  inline bfloat name(bfloat x_) { float x = x_; return bfloat(result); }                                 \
  template <class T, SIM_IF(sim::is_native<T> && !sim::is_float<T>)>                                     \
  inline float name(T x_) { float x = x_; return result; }                                               \
  template <class T, int N> inline vec<T, N> name(const vec<T, N>& v) {                                  \
    vec<T, N> r;                                                                                         \
    for (int i = 0; i < N; i++) r.of[i] = name(v.of[i]);                                                 \
    return r;                                                                                            \
  }
#define SIM_MATH2(name, result)                                                                          \
  inline float name(float x, float y) { return result; }                                                 \
  inline half name(half x_, half y_) { float x = x_, y = y_; return half(result); }                      \
  inline bfloat name(bfloat x_, bfloat y_) { float x = x_, y = y_; return bfloat(result); }              \
  template <class T, int N> inline vec<T, N> name(const vec<T, N>& a, const vec<T, N>& b) {              \
    vec<T, N> r;                                                                                         \
    for (int i = 0; i < N; i++) r.of[i] = name(a.of[i], b.of[i]);                                        \
    return r;                                                                                            \
  }
#define SIM_MATH                                                                                         \
  SIM_MATH1(exp, __builtin_expf(x)) SIM_MATH1(exp2, __builtin_exp2f(x)) SIM_MATH1(exp10, __builtin_powf(10.0f, x)) \
  SIM_MATH1(log, __builtin_logf(x)) SIM_MATH1(log2, __builtin_log2f(x)) SIM_MATH1(log10, __builtin_log10f(x))      \
  SIM_MATH1(sqrt, __builtin_sqrtf(x)) SIM_MATH1(rsqrt, 1.0f / __builtin_sqrtf(x))                        \
  SIM_MATH1(sin, __builtin_sinf(x)) SIM_MATH1(cos, __builtin_cosf(x)) SIM_MATH1(tan, __builtin_tanf(x))  \
  SIM_MATH1(asin, __builtin_asinf(x)) SIM_MATH1(acos, __builtin_acosf(x)) SIM_MATH1(atan, __builtin_atanf(x))      \
  SIM_MATH1(sinh, __builtin_sinhf(x)) SIM_MATH1(cosh, __builtin_coshf(x)) SIM_MATH1(tanh, __builtin_tanhf(x))      \
  SIM_MATH1(asinh, __builtin_asinhf(x)) SIM_MATH1(acosh, __builtin_acoshf(x)) SIM_MATH1(atanh, __builtin_atanhf(x)) \
  SIM_MATH1(sinpi, __builtin_sinf(M_PI_F * x)) SIM_MATH1(cospi, __builtin_cosf(M_PI_F * x))              \
  SIM_MATH1(floor, __builtin_floorf(x)) SIM_MATH1(ceil, __builtin_ceilf(x)) SIM_MATH1(trunc, __builtin_truncf(x))  \
  SIM_MATH1(round, __builtin_roundf(x)) SIM_MATH1(rint, __builtin_rintf(x)) SIM_MATH1(fabs, __builtin_fabsf(x))    \
  SIM_MATH1(fract, x - __builtin_floorf(x)) SIM_MATH1(sign, (x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f))       \
  SIM_MATH2(pow, __builtin_powf(x, y)) SIM_MATH2(powr, __builtin_powf(x, y)) SIM_MATH2(fmod, __builtin_fmodf(x, y)) \
  SIM_MATH2(atan2, __builtin_atan2f(x, y)) SIM_MATH2(fmax, __builtin_fmaxf(x, y)) SIM_MATH2(fmin, __builtin_fminf(x, y)) \
  SIM_MATH2(copysign, __builtin_copysignf(x, y)) SIM_MATH2(step, (y < x ? 0.0f : 1.0f)) SIM_MATH2(fdim, __builtin_fdimf(x, y)) \
  SIM_MATH2(divide, x / y)
SIM_MATH
namespace precise { using metal::vec; SIM_MATH }
namespace fast { using metal::vec; SIM_MATH }

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return half(__builtin_fmaf(a, b, c)); }
inline bfloat fma(bfloat a, bfloat b, bfloat c) { return bfloat(__builtin_fmaf(a, b, c)); }

// of a number and a NaN they return the number
template <class T, SIM_IF(sim::is_scalar<T>)> inline constexpr T max(T a, T b) { return a != a || a < b ? b : a; }
template <class T, SIM_IF(sim::is_scalar<T>)> inline constexpr T min(T a, T b) { return a != a || b < a ? b : a; }
template <class T, SIM_IF(sim::is_scalar<T>)> inline T abs(T a) { return a < T(0) ? T(-a) : a; }
template <class T, SIM_IF(sim::is_float<T>)> inline T saturate(T a) { return min(max(a, T(0)), T(1)); }

#define SIM_BY_COMPONENT2(name)                                                                          \
  template <class T, int N> inline vec<T, N> name(const vec<T, N>& a, const vec<T, N>& b) {              \
    vec<T, N> r;                                                                                         \
    for (int i = 0; i < N; i++) r.of[i] = name(a.of[i], b.of[i]);                                        \
    return r;                                                                                            \
  }
SIM_BY_COMPONENT2(max) SIM_BY_COMPONENT2(min)
template <class T, int N> inline vec<T, N> abs(const vec<T, N>& a) { return max(a, -a); }
template <class T, int N> inline vec<T, N> fma(const vec<T, N>& a, const vec<T, N>& b, const vec<T, N>& c) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r.of[i] = fma(a.of[i], b.of[i], c.of[i]);
  return r;
}
template <class T> inline T clamp(T x, typename sim::same_type<T>::type low, typename sim::same_type<T>::type high) {
  return min(max(x, low), high);
}
template <class T> inline T max3(T a, T b, T c) { return max(a, max(b, c)); }
template <class T> inline T min3(T a, T b, T c) { return min(a, min(b, c)); }
template <class T> inline T median3(T a, T b, T c) { return max(min(a, b), min(max(a, b), c)); }
template <class T> inline T mix(T a, T b, T t) { return a + (b - a) * t; }
template <class T> inline T select(T a, T b, bool c) { return c ? b : a; }
template <class T, int N> inline vec<T, N> select(const vec<T, N>& a, const vec<T, N>& b, const vec<bool, N>& c) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r.of[i] = c.of[i] ? b.of[i] : a.of[i];
  return r;
}
template <int N> inline bool any(const vec<bool, N>& a) {
  for (int i = 0; i < N; i++) if (a.of[i]) return true;
  return false;
}
template <int N> inline bool all(const vec<bool, N>& a) {
  for (int i = 0; i < N; i++) if (!a.of[i]) return false;
  return true;
}
template <class T, int N> inline T dot(const vec<T, N>& a, const vec<T, N>& b) {
  T sum = a.of[0] * b.of[0];
  for (int i = 1; i < N; i++) sum = sum + a.of[i] * b.of[i];
  return sum;
}
// a swizzle is no vec to a template's deduction
#define SIM_OF_SWIZZLES(name)                                                                            \
  template <class T, int N, int... I, class V> inline auto name(const Swizzle<T, N, I...>& a, const V& b) { \
    return name(vec<T, N>(a), vec<T, N>(b));                                                             \
  }                                                                                                      \
  template <class T, int N, int... I> inline auto name(const vec<T, N>& a, const Swizzle<T, N, I...>& b) { \
    return name(a, vec<T, N>(b));                                                                        \
  }
SIM_OF_SWIZZLES(dot) SIM_OF_SWIZZLES(max) SIM_OF_SWIZZLES(min)
template <class T, int N> inline T length_squared(const vec<T, N>& a) { return dot(a, a); }
template <class T, int N> inline T length(const vec<T, N>& a) { return sqrt(dot(a, a)); }
template <class T, int N> inline vec<T, N> normalize(const vec<T, N>& a) { return a * rsqrt(dot(a, a)); }

inline bool isnan(float x) { return x != x; }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline bool signbit(float x) { return __builtin_signbit(x); }
inline float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
inline float frexp(float x, int& exponent) {  // by way of a variable: what the C library writes, check mode does not see
  int e;
  float significand = __builtin_frexpf(x, &e);
  exponent = e;
  return significand;
}
inline float modf(float x, float& whole) {
  float w, fraction = __builtin_modff(x, &w);
  whole = w;
  return fraction;
}
inline float sincos(float x, float& c) { c = __builtin_cosf(x); return __builtin_sinf(x); }

inline uint popcount(uint x) { return __builtin_popcount(x); }
inline int popcount(int x) { return __builtin_popcount(x); }
inline uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
inline uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
inline uint mulhi(uint a, uint b) { return uint((uint64_t(a) * b) >> 32); }
inline uint mul24(uint a, uint b) { return (a & 0xffffffu) * (b & 0xffffffu); }
inline uint reverse_bits(uint x) {
  uint r = 0;
  for (int i = 0; i < 32; i++) r |= (x >> i & 1u) << (31 - i);
  return r;
}
template <class T> inline T rotate(T v, T s) {
  constexpr int n = sizeof(T) * 8;
  return s % n ? T((v << (s % n)) | (v >> (n - s % n))) : v;
}
template <class T> inline T extract_bits(T x, uint offset, uint bits) {
  return bits == 0 ? T(0) : bits >= sizeof(T) * 8 ? x : T((x >> offset) & ((T(1) << bits) - 1));
}

namespace fast {
using metal::abs; using metal::clamp; using metal::dot; using metal::fma; using metal::max; using metal::min;
}
namespace precise {
using metal::abs; using metal::clamp; using metal::dot; using metal::fma; using metal::max; using metal::min;
}
}  // namespace metal
