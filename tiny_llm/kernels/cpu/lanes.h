// Vectors of LANES numbers, as a type of the compiler: `a * b + c` computes all lanes. Only conversions and sums over
// lanes use the functions of an instruction set.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;  // one vector of AVX2, two of NEON
#endif

// ANCHOR: vectors
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
// ANCHOR_END: vectors
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct float16 { uint16_t bits; };
struct bfloat16 { uint16_t bits; };

template <class Vector, class Number>
inline Vector load_as(const Number* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Floats load(const float* p) { return load_as<Floats>(p); }

inline Floats load(const bfloat16* p) {
  Words wide = __builtin_convertvector(load_as<Halves>(p), Words);
  return (Floats)(wide << 16);
}

inline Floats load(const float16* p) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(load_as<__m256i>(p));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(load_as<__m128i>(p));
#elif defined(__aarch64__)
  float32x4_t low = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p[0].bits)));
  float32x4_t high = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p[4].bits)));
  Floats v;
  std::memcpy(&v, &low, sizeof low);
  std::memcpy((char*)&v + sizeof low, &high, sizeof high);
  return v;
#else
#error "the CPU kernels need AVX2 and F16C, or NEON"
#endif
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

// Return x in all lanes.
inline Floats all(float x) { return x - Floats{}; }

// Convert integers below 2^31.
inline Floats to_floats(Words v) { return __builtin_convertvector((Ints)v, Floats); }

inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
inline Floats min(Floats a, Floats b) { return a < b ? a : b; }

// Return the sum of all lanes.
inline float sum(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float halves[LANES / 2];
  for (int i = 0; i < LANES / 2; i++) halves[i] = v[i] + v[i + LANES / 2];
  return (halves[0] + halves[2]) + (halves[1] + halves[3]);
#endif
}

// Add the two halves of each run of 2 · WIDTH lanes of a and of b. A run of the result has the sum of a's, then of b's.
template <int WIDTH>
inline Floats add_halves(Floats a, Floats b) {
  Ints low, high;
  for (int i = 0; i < LANES; i++) {
    bool of_b = i % (2 * WIDTH) >= WIDTH;
    low[i] = i / (2 * WIDTH) * 2 * WIDTH + i % WIDTH + (of_b ? LANES : 0);
    high[i] = low[i] + WIDTH;
  }
#if defined(__clang__)
  Floats first, second;
  for (int i = 0; i < LANES; i++) {
    first[i] = low[i] < LANES ? a[low[i]] : b[low[i] - LANES];
    second[i] = high[i] < LANES ? a[high[i]] : b[high[i] - LANES];
  }
  return first + second;
#else
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
#endif
}

// Return the LANES sums over v[0], v[1] …, one in each lane. Takes as long as three or four calls of `sum`.
template <int WIDTH = LANES / 2>
inline Floats sums(Floats* v) {
  for (int i = 0; i < WIDTH; i++) v[i] = add_halves<WIDTH>(v[i], v[i + WIDTH]);
  if constexpr (WIDTH > 1) return sums<WIDTH / 2>(v);
  return v[0];
}

// Return the largest lane.
inline float largest(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float top = v[0];
  for (int i = 1; i < LANES; i++) top = v[i] > top ? v[i] : top;
  return top;
#endif
}

// Compute e^x for x <= 88 as 2^n * e^r, with |r| <= ln 2 / 2 and the Taylor polynomial of e^r. Relative error 2e-7.
inline Floats exp(Floats x) {
  x = x < all(-87.f) ? all(-87.f) : x;  // NaN stays
  Floats scaled = x * 1.44269504f;
  Ints n = __builtin_convertvector(scaled + (scaled < 0.f ? all(-0.5f) : all(0.5f)), Ints);  // rounds to the nearest
  Floats whole = __builtin_convertvector(n, Floats);
  Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
  Floats p = 1.f / 120 + r * (1.f / 720);
  p = 1.f / 24 + r * p;
  p = 1.f / 6 + r * p;
  p = 0.5f + r * p;
  p = 1.f + r * p;
  p = 1.f + r * p;
  return (Floats)((Ints)p + (n << 23));
}
