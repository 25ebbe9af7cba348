// numeric_limits and the type traits.
#pragma once
namespace metal {
template <class T> struct numeric_limits {};
#define SIM_INTEGER_LIMITS(T, low, high)                                                                 \
  template <> struct numeric_limits<T> {                                                                 \
    static constexpr T max() { return T(high); }                                                         \
    static constexpr T min() { return T(low); }                                                          \
    static constexpr T lowest() { return T(low); }                                                       \
    static constexpr bool is_integer = true;                                                             \
  };
SIM_INTEGER_LIMITS(bool, 0, 1) SIM_INTEGER_LIMITS(int8_t, -128, 127) SIM_INTEGER_LIMITS(uint8_t, 0, 255)
SIM_INTEGER_LIMITS(short, -32768, 32767) SIM_INTEGER_LIMITS(ushort, 0, 65535)
SIM_INTEGER_LIMITS(int, INT_MIN, INT_MAX) SIM_INTEGER_LIMITS(uint, 0, UINT_MAX)
SIM_INTEGER_LIMITS(long, -9223372036854775807l - 1, 9223372036854775807l)
SIM_INTEGER_LIMITS(ulong, 0, 18446744073709551615ul)
#if defined(__APPLE__)  // there int64_t is long long
SIM_INTEGER_LIMITS(int64_t, -9223372036854775807ll - 1, 9223372036854775807ll)
SIM_INTEGER_LIMITS(uint64_t, 0, 18446744073709551615ull)
#endif
#define SIM_FLOAT_LIMITS(T, largest, smallest, step)                                                     \
  template <> struct numeric_limits<T> {                                                                 \
    static constexpr T max() { return T(largest); }                                                      \
    static constexpr T min() { return T(smallest); }                                                     \
    static constexpr T lowest() { return T(-(largest)); }                                                \
    static constexpr T infinity() { return T(__builtin_inff()); }                                        \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }                                     \
    static constexpr T epsilon() { return T(step); }                                                     \
    static constexpr bool is_integer = false;                                                            \
  };
SIM_FLOAT_LIMITS(float, FLT_MAX, FLT_MIN, FLT_EPSILON)
SIM_FLOAT_LIMITS(half, 65504.0f, 6.103515625e-05f, 0.0009765625f)
SIM_FLOAT_LIMITS(bfloat, 3.38953139e38f, FLT_MIN, 0.0078125f)

template <class T, T V> struct integral_constant {
  static constexpr T value = V;
  typedef T value_type;
  typedef integral_constant type;
  constexpr operator T() const { return V; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;
template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <bool B, class T = void> using enable_if = sim::enable_if<B, T>;
template <bool B, class T = void> using enable_if_t = typename sim::enable_if<B, T>::type;
template <bool B, class T, class F> struct conditional { typedef T type; };
template <class T, class F> struct conditional<false, T, F> { typedef F type; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;
template <class T> struct remove_cv { typedef T type; };
template <class T> struct remove_cv<const T> { typedef T type; };
template <class T> struct remove_cv<volatile T> { typedef T type; };
template <class T> using remove_cv_t = typename remove_cv<T>::type;
template <class T> struct remove_reference { typedef T type; };
template <class T> struct remove_reference<T&> { typedef T type; };
template <class T> using remove_reference_t = typename remove_reference<T>::type;
template <class T> using remove_addrspace_t = remove_cv_t<T>;
template <class T> T&& declval();
template <class T> using uniform = T;  // a hint that all threads hold one value
template <class T> constexpr T make_uniform(T value) { return value; }
template <class... B> struct _disjunction : bool_constant<(B::value || ...)> {};
template <class... B> struct _conjunction : bool_constant<(B::value && ...)> {};
template <class T, size_t N> struct array {
  T of[N];
  T& operator[](size_t i) { return of[i]; }
  const T& operator[](size_t i) const { return of[i]; }
  static constexpr size_t size() { return N; }
};
template <class T> constexpr bool is_floating_point_v = sim::is_float<T>;
template <class T> struct is_floating_point : bool_constant<sim::is_float<T>> {};
template <class T> constexpr bool is_integral_v = sim::is_native<T> && !sim::is_float<T>;
template <class T> struct is_integral : bool_constant<is_integral_v<T>> {};
template <class T> constexpr bool is_arithmetic_v = sim::is_scalar<T>;
template <class T> constexpr bool is_signed_v = T(-1) < T(0);
template <class T> struct is_signed : bool_constant<is_signed_v<T>> {};
template <class T> constexpr bool is_unsigned_v = !is_signed_v<T>;
template <class T> struct is_unsigned : bool_constant<is_unsigned_v<T>> {};
template <class From, class To> constexpr bool is_convertible_v = __is_constructible(To, From);
template <class From, class To> struct is_convertible : bool_constant<__is_constructible(To, From)> {};
}  // namespace metal
