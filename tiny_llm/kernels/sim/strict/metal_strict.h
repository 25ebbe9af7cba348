// Metal as declarations with real, distinct address spaces, for clang's front end only: nothing here ever runs.
#pragma once
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
#define kernel
#define METAL_FUNC inline
#define __METAL__ 1
#define __METAL_VERSION__ 320
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define M_PI_F 3.14159265f
#define M_LOG2E_F 1.44269504f
#define M_LN2_F 0.69314718f
#define M_LN10_F 2.30258509f
#define M_LOG10E_F 0.434294482f
#define M_E_F 2.71828183f
#define M_PI_2_F 1.57079633f
#define M_PI_4_F 0.785398163f
#define M_1_PI_F 0.318309886f
#define M_2_PI_F 0.636619772f
#define M_2_SQRTPI_F 1.12837917f
#define M_SQRT2_F 1.41421356f
#define M_SQRT1_2_F 0.707106781f
#define MAXFLOAT FLT_MAX
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX 65504.0h
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define double metal_has_no_double

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;
typedef half float16_t;
typedef bfloat bfloat16_t;

namespace metal {
template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));
#define VECTORS(T)                                                                                       \
  typedef T T##2 __attribute__((ext_vector_type(2)));                                                    \
  typedef T T##3 __attribute__((ext_vector_type(3)));                                                    \
  typedef T T##4 __attribute__((ext_vector_type(4)));
VECTORS(float) VECTORS(half) VECTORS(bfloat) VECTORS(bool) VECTORS(int) VECTORS(uint) VECTORS(short)
VECTORS(ushort) VECTORS(char) VECTORS(uchar) VECTORS(long) VECTORS(ulong)
#undef VECTORS
template <class T, class... A> T made(A...);  // float4(…), a constructor in Metal

enum class mem_flags : int { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define SCALARS(M) M(float) M(half) M(bfloat) M(int) M(uint) M(short) M(ushort)
#define OF_LANES(name)                                                                                   \
  float name(float); half name(half); bfloat name(bfloat); int name(int); uint name(uint);               \
  short name(short); ushort name(ushort); template <class T, int N> vec<T, N> name(vec<T, N>);
#define BETWEEN_LANES(name)                                                                              \
  float name(float, ushort); half name(half, ushort); bfloat name(bfloat, ushort); int name(int, ushort); \
  uint name(uint, ushort); short name(short, ushort); ushort name(ushort, ushort);                       \
  template <class T, int N> vec<T, N> name(vec<T, N>, ushort);
OF_LANES(simd_sum) OF_LANES(simd_product) OF_LANES(simd_max) OF_LANES(simd_min) OF_LANES(simd_broadcast_first)
OF_LANES(simd_prefix_inclusive_sum) OF_LANES(simd_prefix_exclusive_sum) OF_LANES(simd_prefix_inclusive_product)
OF_LANES(simd_prefix_exclusive_product) OF_LANES(quad_sum) OF_LANES(quad_max) OF_LANES(quad_min)
BETWEEN_LANES(simd_shuffle) BETWEEN_LANES(simd_shuffle_xor) BETWEEN_LANES(simd_shuffle_up)
BETWEEN_LANES(simd_shuffle_down) BETWEEN_LANES(simd_broadcast) BETWEEN_LANES(simd_shuffle_rotate_down)
BETWEEN_LANES(simd_shuffle_rotate_up) BETWEEN_LANES(quad_shuffle) BETWEEN_LANES(quad_shuffle_xor)
BETWEEN_LANES(quad_broadcast) BETWEEN_LANES(quad_shuffle_up) BETWEEN_LANES(quad_shuffle_down)
OF_LANES(simd_and) OF_LANES(simd_or) OF_LANES(simd_xor) OF_LANES(quad_product) OF_LANES(quad_broadcast_first)
#define FILLED_BETWEEN_LANES(name)                                                                       \
  float name(float, float, ushort); half name(half, half, ushort); bfloat name(bfloat, bfloat, ushort);  \
  int name(int, int, ushort); uint name(uint, uint, ushort); short name(short, short, ushort);           \
  ushort name(ushort, ushort, ushort); template <class T, int N> vec<T, N> name(vec<T, N>, vec<T, N>, ushort);
FILLED_BETWEEN_LANES(simd_shuffle_and_fill_up) FILLED_BETWEEN_LANES(simd_shuffle_and_fill_down)
struct simd_vote {
  explicit operator ulong() const;
  bool all() const;
  bool any() const;
};
simd_vote simd_ballot(bool);
bool simd_all(bool);
bool simd_any(bool);
bool simd_is_first();

#define MATH1(name)                                                                                      \
  float name(float); half name(half); bfloat name(bfloat); template <class T, int N> vec<T, N> name(vec<T, N>);
#define MATH2(name)                                                                                      \
  float name(float, float); half name(half, half); bfloat name(bfloat, bfloat);                          \
  template <class T, int N> vec<T, N> name(vec<T, N>, vec<T, N>);
#define MATH                                                                                             \
  MATH1(exp) MATH1(exp2) MATH1(exp10) MATH1(log) MATH1(log2) MATH1(log10) MATH1(sqrt) MATH1(rsqrt)       \
  MATH1(sin) MATH1(cos) MATH1(tan) MATH1(asin) MATH1(acos) MATH1(atan) MATH1(sinh) MATH1(cosh) MATH1(tanh) \
  MATH1(floor) MATH1(ceil) MATH1(round) MATH1(rint) MATH1(trunc) MATH1(fabs) MATH1(fract) MATH1(sign)    \
  MATH2(pow) MATH2(powr) MATH2(fmod) MATH2(atan2) MATH2(fmax) MATH2(fmin) MATH2(copysign)
MATH
namespace fast { MATH }
namespace precise { MATH }
// no template over scalars: of two types the call must be ambiguous, as in Metal
#define NUMBERS2(name)                                                                                   \
  float name(float, float); half name(half, half); bfloat name(bfloat, bfloat); int name(int, int);      \
  uint name(uint, uint); short name(short, short); ushort name(ushort, ushort); long name(long, long);   \
  ulong name(ulong, ulong); char name(char, char); uchar name(uchar, uchar);                             \
  template <class T, int N> vec<T, N> name(vec<T, N>, vec<T, N>);
NUMBERS2(max) NUMBERS2(min)
namespace fast { NUMBERS2(max) NUMBERS2(min) }
float clamp(float, float, float);
half clamp(half, half, half);
bfloat clamp(bfloat, bfloat, bfloat);
int clamp(int, int, int);
uint clamp(uint, uint, uint);
float fma(float, float, float);
half fma(half, half, half);
float mix(float, float, float);
half mix(half, half, half);
float abs(float);
half abs(half);
int abs(int);
long abs(long);
bool isnan(float);
bool isinf(float);
bool isfinite(float);
bool signbit(float);
float ldexp(float, int);
float frexp(float, thread int&);
float modf(float, thread float&);
float sincos(float, thread float&);
uint mulhi(uint, uint);
uint mul24(uint, uint);
uint reverse_bits(uint);
template <class T> T rotate(T, T);
template <class T> T extract_bits(T, uint, uint);
template <class T> T saturate(T);
template <class T> T max3(T, T, T);
template <class T> T min3(T, T, T);
template <class T> T median3(T, T, T);
uint popcount(uint);
int popcount(int);
uint clz(uint);
uint ctz(uint);
template <class T> T select(T, T, bool);
template <class T, int N> T dot(vec<T, N>, vec<T, N>);
template <class T, int N> T length(vec<T, N>);
template <class T, int N> T length_squared(vec<T, N>);
template <class T, int N> vec<T, N> normalize(vec<T, N>);
template <class T, int N> vec<T, N> clamp(vec<T, N>, vec<T, N>, vec<T, N>);
template <class T, int N> vec<T, N> fma(vec<T, N>, vec<T, N>, vec<T, N>);
template <class T, int N> vec<T, N> mix(vec<T, N>, vec<T, N>, vec<T, N>);
template <class T, int N> vec<T, N> abs(vec<T, N>);
template <class T, int N> bool any(vec<T, N>);
template <class T, int N> bool all(vec<T, N>);
struct os_log {
  constexpr os_log(const constant char*, const constant char*) {}
  template <class... Rest> void log_debug(const constant char*, Rest...) const;
  template <class... Rest> void log_info(const constant char*, Rest...) const;
  template <class... Rest> void log(const constant char*, Rest...) const;
};

template <class T> struct numeric_limits {
  static constexpr T max() { return T(); }
  static constexpr T min() { return T(); }
  static constexpr T lowest() { return T(); }
  static constexpr T infinity() { return T(); }
  static constexpr T quiet_NaN() { return T(); }
  static constexpr T epsilon() { return T(); }
  static constexpr bool is_integer = !__is_floating_point(T);
};
template <class A, class B> constexpr bool is_same_v = __is_same(A, B);
template <class A, class B> struct is_same { static constexpr bool value = __is_same(A, B); };
template <class T> constexpr bool is_floating_point_v = __is_floating_point(T);
template <class T> constexpr bool is_integral_v = __is_integral(T);
template <class T> constexpr bool is_signed_v = __is_signed(T);
template <class T> constexpr bool is_unsigned_v = __is_unsigned(T);
template <class From, class To> constexpr bool is_convertible_v = __is_convertible(From, To);
template <class T> struct remove_cv { typedef __remove_cv(T) type; };
template <class T> using remove_cv_t = __remove_cv(T);
template <class T> using remove_reference_t = __remove_reference_t(T);
template <class T, T V> struct integral_constant { static constexpr T value = V; };
template <bool B> using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;
template <class T, size_t N> struct array { T of[N]; thread T& operator[](size_t); };
template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F> struct conditional { typedef T type; };
template <class T, class F> struct conditional<false, T, F> { typedef F type; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;

enum memory_order { memory_order_relaxed };
template <class T> struct _atomic;
#define ATOMIC(T) template <> struct _atomic<T> { T value; };
ATOMIC(int) ATOMIC(uint) ATOMIC(float) ATOMIC(bool) ATOMIC(ulong)
template <class T> using atomic = _atomic<T>;
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
template <class T> struct same { typedef T type; };
#define FETCH(name)                                                                                      \
  template <class T> T name(volatile device _atomic<T>*, typename same<T>::type, memory_order);          \
  template <class T> T name(volatile threadgroup _atomic<T>*, typename same<T>::type, memory_order);
FETCH(atomic_fetch_add_explicit) FETCH(atomic_fetch_sub_explicit) FETCH(atomic_fetch_max_explicit)
FETCH(atomic_fetch_min_explicit) FETCH(atomic_fetch_or_explicit) FETCH(atomic_fetch_and_explicit)
FETCH(atomic_fetch_xor_explicit) FETCH(atomic_exchange_explicit) FETCH(atomic_store_explicit)
template <class T> T atomic_load_explicit(const volatile device _atomic<T>*, memory_order);
template <class T> T atomic_load_explicit(const volatile threadgroup _atomic<T>*, memory_order);

template <class T, int R, int C> struct simdgroup_matrix {
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T);
  vec<T, 2>& thread_elements();
  const vec<T, 2>& thread_elements() const;
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int R, int C> simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T);
#define LOAD_STORE(space)                                                                                \
  template <class T>                                                                                     \
  void simdgroup_load(simdgroup_matrix<T, 8, 8>&, const space T*, ulong = 8, ulong2 = 0, bool = false);  \
  template <class T>                                                                                     \
  void simdgroup_store(simdgroup_matrix<T, 8, 8>, space T*, ulong = 8, ulong2 = 0, bool = false);
LOAD_STORE(device) LOAD_STORE(threadgroup)
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>, simdgroup_matrix<B, 8, 8>,
                                   simdgroup_matrix<C, 8, 8>);
template <class D, class A, class B>
void simdgroup_multiply(simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>, simdgroup_matrix<B, 8, 8>);
}  // namespace metal
template <class To, class From> To as_type(From);
using namespace metal;

#define float2(...) metal::made<metal::float2>(__VA_ARGS__)
#define float3(...) metal::made<metal::float3>(__VA_ARGS__)
#define float4(...) metal::made<metal::float4>(__VA_ARGS__)
#define half2(...) metal::made<metal::half2>(__VA_ARGS__)
#define half4(...) metal::made<metal::half4>(__VA_ARGS__)
#define bfloat4(...) metal::made<metal::bfloat4>(__VA_ARGS__)
#define uint2(...) metal::made<metal::uint2>(__VA_ARGS__)
#define uint3(...) metal::made<metal::uint3>(__VA_ARGS__)
#define uint4(...) metal::made<metal::uint4>(__VA_ARGS__)
#define int2(...) metal::made<metal::int2>(__VA_ARGS__)
#define int4(...) metal::made<metal::int4>(__VA_ARGS__)
#define ushort2(...) metal::made<metal::ushort2>(__VA_ARGS__)
#define ulong2(...) metal::made<metal::ulong2>(__VA_ARGS__)
