// simdgroup_matrix: 8 × 8, of which each lane holds two neighbours of one row, as Apple's hardware places them.
#pragma once
extern "C" void sim_multiply8x8(const float* mine, float* result, int line);
namespace metal {
template <class T, int Rows, int Columns> struct simdgroup_matrix {
  vec<T, 2> held;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    unsigned lane = sim_lane();
    for (unsigned k = 0; k < 2; k++) held[k] = row(lane) == column(lane) + k ? diagonal : T(0);
  }
  vec<T, 2>& thread_elements() { return held; }
  const vec<T, 2>& thread_elements() const { return held; }
  static constexpr unsigned row(unsigned lane) { return (lane / 4 & 4) + lane / 2 % 4; }
  static constexpr unsigned column(unsigned lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int R, int C = R> inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> m;
  m.held = vec<T, 2>(value);
  return m;
}
template <class T, class P>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, const P* from, ulong stride = 8, ulong2 origin = ulong2(0, 0),
                           bool transposed = false, SIM_LINE) {
  sim::exchange(false, sim::MATRIX, line);
  unsigned lane = sim_lane(), r = m.row(lane), c = m.column(lane);
  for (unsigned k = 0; k < 2; k++)
    m.held[k] = T(transposed ? from[(origin.x + c + k) * stride + origin.y + r]
                             : from[(origin.y + r) * stride + origin.x + c + k]);
}
template <class T, class P>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8>& m, P* to, ulong stride = 8, ulong2 origin = ulong2(0, 0),
                            bool transposed = false, SIM_LINE) {
  sim::exchange(false, sim::MATRIX, line);
  unsigned lane = sim_lane(), r = m.row(lane), c = m.column(lane);
  for (unsigned k = 0; k < 2; k++)
    (transposed ? to[(origin.x + c + k) * stride + origin.y + r] : to[(origin.y + r) * stride + origin.x + c + k]) =
        P(m.held[k]);
}
// Always inline, so that check mode finds the kernel's line of a matrix that has no value yet.
#define SIM_MATRIX __attribute__((always_inline)) inline
template <class D, class A, class B, class C>
SIM_MATRIX void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                                const simdgroup_matrix<B, 8, 8>& b,
                                                const simdgroup_matrix<C, 8, 8>& c, SIM_LINE) {
  float mine[4] = {float(a.held[0]), float(a.held[1]), float(b.held[0]), float(b.held[1])};
  float result[2] = {float(c.held[0]), float(c.held[1])};
  sim_multiply8x8(mine, result, line);
  d.held = vec<D, 2>(D(result[0]), D(result[1]));
}
template <class D, class A, class B>
SIM_MATRIX void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                     const simdgroup_matrix<B, 8, 8>& b, SIM_LINE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f), line);
}
template <class T>
inline simdgroup_matrix<T, 8, 8> operator*(const simdgroup_matrix<T, 8, 8>& a, const simdgroup_matrix<T, 8, 8>& b) {
  simdgroup_matrix<T, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}
}  // namespace metal
