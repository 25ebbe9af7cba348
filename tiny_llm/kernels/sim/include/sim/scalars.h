// Words, scalar types and constants of the Metal Shading Language.
#pragma once
#define __METAL__ 1
#define __METAL_VERSION__ 320
#define __HAVE_BFLOAT__ 1

// Address spaces are one on a CPU. Variables that `threadgroup` allocates were rewritten before (sim/rewrite.py).
#define device
#define constant
#define thread
#define threadgroup
#define threadgroup_imageblock
#define kernel
#define METAL_FUNC inline

// What runs as part of the simulator, not of the kernel, is not instrumented in check mode.
#ifdef SIM_CHECK
#define SIM_INTERNAL __attribute__((no_sanitize("thread"))) inline
#else
#define SIM_INTERNAL inline
#endif

typedef __INT8_TYPE__ int8_t;
typedef __UINT8_TYPE__ uint8_t;
typedef __INT16_TYPE__ int16_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __INT32_TYPE__ int32_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef __INTPTR_TYPE__ intptr_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
#if !defined(__aarch64__) && (defined(__clang__) ? __clang_major__ < 15 : __GNUC__ < 12)
#error "half precision needs g++ 12 or clang++ 15: install one of them, or name it with CXX"
#endif
#if defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
typedef __fp16 half;  // rounds where it is stored, not at each operation
#else
typedef _Float16 half;
#endif

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX ((half)65504.0f)
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_1_PI_F 0.318309886183790671538f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
#define M_LN10_F 2.30258509299404568402f
#define M_LOG10E_F 0.434294481903251827651f
#define M_PI_4_F 0.785398163397448309616f
#define M_2_PI_F 0.636619772367581343076f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define MAXFLOAT FLT_MAX
#define is_function_constant_defined(constant_) false  // a kernel of mx.fast.metal_kernel has no way to set one
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u

namespace sim {
template <bool Condition, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <class T> struct same_type { typedef T type; };  // in a parameter: take T from the others

template <class T> constexpr bool is_native = false;  // the types whose arithmetic the compiler knows
template <class T> constexpr bool is_float = false;
#define SIM_NATIVE(T) template <> constexpr bool is_native<T> = true;
SIM_NATIVE(bool) SIM_NATIVE(char) SIM_NATIVE(int8_t) SIM_NATIVE(uint8_t) SIM_NATIVE(short) SIM_NATIVE(ushort)
SIM_NATIVE(int) SIM_NATIVE(uint) SIM_NATIVE(long) SIM_NATIVE(ulong) SIM_NATIVE(long long)
SIM_NATIVE(unsigned long long) SIM_NATIVE(float) SIM_NATIVE(half) SIM_NATIVE(double)
#undef SIM_NATIVE
template <> constexpr bool is_float<float> = true;
template <> constexpr bool is_float<half> = true;
template <> constexpr bool is_float<double> = true;  // what an unsuffixed literal is to clang
template <class T> constexpr bool is_scalar = is_native<T>;
}  // namespace sim
#define SIM_IF(condition) class = typename sim::enable_if<(condition)>::type
