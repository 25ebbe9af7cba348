// Metal's names in CUDA, in front of a kernel that was written for Metal (cuda.py).
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef unsigned long ulong;
typedef __half half;
typedef __half float16_t;
typedef __nv_bfloat16 bfloat;
typedef __nv_bfloat16 bfloat16_t;

#define thread_position_in_threadgroup (make_uint3(threadIdx.x, threadIdx.y, threadIdx.z))
#define threadgroup_position_in_grid (make_uint3(blockIdx.x, blockIdx.y, blockIdx.z))
#define thread_position_in_grid                                                                                     \
  (make_uint3(blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y,                         \
              blockIdx.z * blockDim.z + threadIdx.z))
#define threads_per_threadgroup (make_uint3(blockDim.x, blockDim.y, blockDim.z))
#define threadgroups_per_grid (make_uint3(gridDim.x, gridDim.y, gridDim.z))
#define thread_index_in_threadgroup (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z))
#define thread_index_in_simdgroup (thread_index_in_threadgroup & 31u)
#define simdgroup_index_in_threadgroup (thread_index_in_threadgroup >> 5)
#define simdgroups_per_threadgroup ((blockDim.x * blockDim.y * blockDim.z + 31u) >> 5)
#define threads_per_simdgroup 32u
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

enum class mem_flags : int { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
__device__ inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
__device__ inline void threadgroup_barrier(mem_flags) { __syncthreads(); }
__device__ inline void simdgroup_barrier(mem_flags) { __syncwarp(); }

#define ALL_LANES 0xffffffffu
template <class T> __device__ inline T simd_shuffle(T v, ushort lane) { return __shfl_sync(ALL_LANES, v, lane); }
template <class T> __device__ inline T simd_broadcast(T v, ushort lane) { return __shfl_sync(ALL_LANES, v, lane); }
template <class T> __device__ inline T simd_shuffle_xor(T v, ushort mask) { return __shfl_xor_sync(ALL_LANES, v, mask); }
template <class T> __device__ inline T simd_shuffle_down(T v, ushort by) { return __shfl_down_sync(ALL_LANES, v, by); }
template <class T> __device__ inline T simd_shuffle_up(T v, ushort by) { return __shfl_up_sync(ALL_LANES, v, by); }
#define SIMD_REDUCTION(name, combined)                                                                              \
  template <class T> __device__ inline T simd_##name(T a) {                                                         \
    for (int by = 16; by; by >>= 1) {                                                                               \
      T b = __shfl_xor_sync(ALL_LANES, a, by);                                                                      \
      a = combined;                                                                                                 \
    }                                                                                                               \
    return a;                                                                                                       \
  }
SIMD_REDUCTION(sum, a + b)
SIMD_REDUCTION(max, b > a ? b : a)
SIMD_REDUCTION(min, b < a ? b : a)
__device__ inline bool simd_all(bool v) { return __all_sync(ALL_LANES, v); }
__device__ inline bool simd_any(bool v) { return __any_sync(ALL_LANES, v); }

// Metal makes a vector by calling its type
__device__ inline float2 make_vector(float x, float y) { return make_float2(x, y); }
#define float2(...) make_vector(__VA_ARGS__)
#define ulong2(...) make_ulong2(__VA_ARGS__)

// simdgroup_matrix by shuffles: lane l holds columns 2 (l % 4) and the next of row l / 4. No tensor cores.
template <class T, int Rows, int Columns> struct simdgroup_matrix { T held[2]; };
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
template <class T, int R, int C> __device__ inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  return {{value, value}};
}
#define MATRIX_PLACE(k)                                                                                             \
  (transposed ? (origin.x + column + k) * stride + origin.y + row : (origin.y + row) * stride + origin.x + column + k)
#define MATRIX_LANE                                                                                                 \
  const ulong row = thread_index_in_simdgroup / 4, column = thread_index_in_simdgroup % 4 * 2;
template <class T>
__device__ inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, const T* from, ulong stride = 8,
                                      ulong2 origin = make_ulong2(0, 0), bool transposed = false) {
  MATRIX_LANE
  for (int k = 0; k < 2; k++) m.held[k] = from[MATRIX_PLACE(k)];
}
template <class T>
__device__ inline void simdgroup_store(const simdgroup_matrix<T, 8, 8>& m, T* to, ulong stride = 8,
                                       ulong2 origin = make_ulong2(0, 0), bool transposed = false) {
  MATRIX_LANE
  for (int k = 0; k < 2; k++) to[MATRIX_PLACE(k)] = m.held[k];
}
template <class T>
__device__ inline void simdgroup_multiply_accumulate(simdgroup_matrix<T, 8, 8>& d, const simdgroup_matrix<T, 8, 8>& a,
                                                     const simdgroup_matrix<T, 8, 8>& b,
                                                     const simdgroup_matrix<T, 8, 8>& c) {
  const int lane = thread_index_in_simdgroup;
  T x = c.held[0], y = c.held[1];
#pragma unroll
  for (int j = 0; j < 8; j++) {
    T left = __shfl_sync(ALL_LANES, a.held[j % 2], lane / 4 * 4 + j / 2);
    x += left * __shfl_sync(ALL_LANES, b.held[0], j * 4 + lane % 4);
    y += left * __shfl_sync(ALL_LANES, b.held[1], j * 4 + lane % 4);
  }
  d.held[0] = x;
  d.held[1] = y;
}
template <class T>
__device__ inline void simdgroup_multiply(simdgroup_matrix<T, 8, 8>& d, const simdgroup_matrix<T, 8, 8>& a,
                                          const simdgroup_matrix<T, 8, 8>& b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<T, 8, 8>(T(0)));
}

#define METAL_MATH(name, f) __device__ inline float name(float x) { return f(x); }
namespace metal {
METAL_MATH(rsqrt, ::rsqrtf) METAL_MATH(sqrt, ::sqrtf) METAL_MATH(exp, ::expf) METAL_MATH(exp2, ::exp2f)
METAL_MATH(log, ::logf) METAL_MATH(sin, ::sinf) METAL_MATH(cos, ::cosf) METAL_MATH(tanh, ::tanhf)
namespace precise {
METAL_MATH(rsqrt, ::rsqrtf) METAL_MATH(sqrt, ::sqrtf) METAL_MATH(exp, ::expf) METAL_MATH(log, ::logf)
METAL_MATH(sin, ::sinf) METAL_MATH(cos, ::cosf)
}
namespace fast {
METAL_MATH(exp, __expf) METAL_MATH(exp2, ::exp2f) METAL_MATH(rsqrt, ::rsqrtf) METAL_MATH(log, __logf)
}
}  // namespace metal
namespace precise = metal::precise;
namespace fast = metal::fast;
