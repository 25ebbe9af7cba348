// vec<T, N> with components, swizzles and operators; packed vectors; as_type.
#pragma once
#include "sim/swizzles.h"

namespace metal {
template <class T, int N> struct vec;

// v.zx and the like: a view of the vector's components I… that shares its memory through a union.
template <class T, int N, int... I> struct Swizzle {
  T of[1];
  operator vec<T, N>() const { return vec<T, N>{*(of + I)...}; }
  Swizzle& operator=(const vec<T, N>& v) {
    T* to = of;
    int k = 0;
    ((to[I] = v[k++]), ...);
    return *this;
  }
  Swizzle& operator=(const Swizzle& other) { return *this = vec<T, N>(other); }
  template <class S> Swizzle& operator+=(const S& s) { return *this = vec<T, N>(*this) + s; }
  template <class S> Swizzle& operator-=(const S& s) { return *this = vec<T, N>(*this) - s; }
  template <class S> Swizzle& operator*=(const S& s) { return *this = vec<T, N>(*this) * s; }
  template <class S> Swizzle& operator/=(const S& s) { return *this = vec<T, N>(*this) / s; }
};

#define SIM_VECTOR_COMMON(N)                                                                             \
  vec() = default;                                                                                       \
  vec(const vec&) = default;                                                                             \
  vec& operator=(const vec& v) {                                                                         \
    for (int i = 0; i < N; i++) of[i] = v.of[i];                                                         \
    return *this;                                                                                        \
  }                                                                                                      \
  template <class S, SIM_IF(sim::is_scalar<S>)> constexpr vec(S s) {                                     \
    for (int i = 0; i < N; i++) of[i] = T(s);                                                            \
  }                                                                                                      \
  template <class S> explicit constexpr vec(const vec<S, N>& v) {                                        \
    for (int i = 0; i < N; i++) of[i] = T(v.of[i]);                                                      \
  }                                                                                                      \
  T& operator[](int i) { return of[i]; }                                                                 \
  const T& operator[](int i) const { return of[i]; }

template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
  union { T of[2]; struct { T x, y; }; struct { T r, g; }; SIM_SWIZZLES2(T) };
  SIM_VECTOR_COMMON(2)
  constexpr vec(T a, T b) : of{a, b} {}
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {  // as wide as vec<T, 4>
  union { T of[3]; struct { T x, y, z; }; struct { T r, g, b; }; SIM_SWIZZLES3(T) };
  SIM_VECTOR_COMMON(3)
  constexpr vec(T p, T q, T s) : of{p, q, s} {}
  constexpr vec(vec<T, 2> p, T q) : of{p.x, p.y, q} {}
  constexpr vec(T p, vec<T, 2> q) : of{p, q.x, q.y} {}
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
  union { T of[4]; struct { T x, y, z, w; }; struct { T r, g, b, a; }; SIM_SWIZZLES4(T) };
  SIM_VECTOR_COMMON(4)
  constexpr vec(T p, T q, T s, T t) : of{p, q, s, t} {}
  constexpr vec(vec<T, 2> p, vec<T, 2> q) : of{p.x, p.y, q.x, q.y} {}
  constexpr vec(vec<T, 2> p, T q, T s) : of{p.x, p.y, q, s} {}
  constexpr vec(T p, T q, vec<T, 2> s) : of{p, q, s.x, s.y} {}
  constexpr vec(vec<T, 3> p, T q) : of{p.x, p.y, p.z, q} {}
  constexpr vec(T p, vec<T, 3> q) : of{p, q.x, q.y, q.z} {}
};

// R is T for arithmetic, bool for comparisons
#define SIM_VECTOR_OPERATOR(op, R)                                                                       \
  template <class T, int N> inline vec<R, N> operator op(const vec<T, N>& a, const vec<T, N>& b) {       \
    vec<R, N> r;                                                                                         \
    for (int i = 0; i < N; i++) r.of[i] = a.of[i] op b.of[i];                                            \
    return r;                                                                                            \
  }                                                                                                      \
  template <class T, int N, class S, SIM_IF(sim::is_scalar<S>)>                                          \
  inline vec<R, N> operator op(const vec<T, N>& a, S b) { return a op vec<T, N>(b); }                    \
  template <class T, int N, class S, SIM_IF(sim::is_scalar<S>)>                                          \
  inline vec<R, N> operator op(S a, const vec<T, N>& b) { return vec<T, N>(a) op b; }                    \
  template <class T, int N, int... I, class S>                                                           \
  inline auto operator op(const Swizzle<T, N, I...>& a, const S& b) { return vec<T, N>(a) op b; }        \
  template <class T, int N, int... I, class S, SIM_IF(sim::is_scalar<S>)>                                \
  inline auto operator op(S a, const Swizzle<T, N, I...>& b) { return a op vec<T, N>(b); }               \
  template <class T, int N, int... I>                                                                    \
  inline auto operator op(const vec<T, N>& a, const Swizzle<T, N, I...>& b) { return a op vec<T, N>(b); }
#define SIM_VECTOR_ARITHMETIC(op)                                                                        \
  SIM_VECTOR_OPERATOR(op, T)                                                                             \
  template <class T, int N, class S> inline vec<T, N>& operator op##=(vec<T, N>& a, const S& b) {        \
    return a = a op b;                                                                                   \
  }
SIM_VECTOR_ARITHMETIC(+) SIM_VECTOR_ARITHMETIC(-) SIM_VECTOR_ARITHMETIC(*) SIM_VECTOR_ARITHMETIC(/)
SIM_VECTOR_ARITHMETIC(%) SIM_VECTOR_ARITHMETIC(&) SIM_VECTOR_ARITHMETIC(|) SIM_VECTOR_ARITHMETIC(^)
SIM_VECTOR_ARITHMETIC(<<) SIM_VECTOR_ARITHMETIC(>>)
SIM_VECTOR_OPERATOR(<, bool) SIM_VECTOR_OPERATOR(>, bool) SIM_VECTOR_OPERATOR(<=, bool)
SIM_VECTOR_OPERATOR(>=, bool) SIM_VECTOR_OPERATOR(==, bool) SIM_VECTOR_OPERATOR(!=, bool)

template <class T, int N> inline vec<T, N> operator-(const vec<T, N>& a) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r.of[i] = -a.of[i];
  return r;
}

template <class T, int N> struct packed_vec {  // aligned as T, three components take three
  T of[N];
  packed_vec() = default;
  packed_vec(const vec<T, N>& v) { for (int i = 0; i < N; i++) of[i] = v.of[i]; }
  operator vec<T, N>() const {
    vec<T, N> r;
    for (int i = 0; i < N; i++) r.of[i] = of[i];
    return r;
  }
  T& operator[](int i) { return of[i]; }
};
}  // namespace metal

#define SIM_VECTOR_TYPES(T)                                                                              \
  typedef metal::vec<T, 2> T##2; typedef metal::vec<T, 3> T##3; typedef metal::vec<T, 4> T##4;           \
  typedef metal::packed_vec<T, 2> packed_##T##2; typedef metal::packed_vec<T, 3> packed_##T##3;          \
  typedef metal::packed_vec<T, 4> packed_##T##4;
SIM_VECTOR_TYPES(float) SIM_VECTOR_TYPES(half) SIM_VECTOR_TYPES(bfloat) SIM_VECTOR_TYPES(bool)
SIM_VECTOR_TYPES(int) SIM_VECTOR_TYPES(uint) SIM_VECTOR_TYPES(short) SIM_VECTOR_TYPES(ushort)
SIM_VECTOR_TYPES(char) SIM_VECTOR_TYPES(uchar) SIM_VECTOR_TYPES(long) SIM_VECTOR_TYPES(ulong)

template <class To, class From> SIM_INTERNAL To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type: both types must have one size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}
