// Barriers and the collectives of a simdgroup (32 lanes) and a quadgroup (4). sim/native/scheduler.cpp exchanges values.
#pragma once
extern "C" {
void sim_barrier(int whole_group, int flags, int line);
// Leave `size` bytes for the other lanes, wait for them; returns their slots and, in `active`, who came.
const unsigned char* sim_exchange(const void* value, unsigned size, unsigned* active, int operation, int line);
// The same, with `combine` called once for all lanes: what it leaves in `result` each lane gets.
void sim_combine(const void* value, unsigned size, void (*combine)(const unsigned char*, unsigned, void*), void* result,
                 int line);
void* sim_threadgroup(void* tag, unsigned long size, unsigned long granularity, unsigned long item,
                      const char* name);
unsigned sim_lane();
}
namespace sim {
enum Operation { REDUCE = 1, SHUFFLE, PREFIX, VOTE, QUAD, MATRIX };

template <class T> struct Innermost { typedef T type; };
template <class T, unsigned long N> struct Innermost<T[N]> { typedef typename Innermost<T>::type type; };
template <class T> constexpr unsigned long granularity() {  // how finely races in an array of T are told apart
  return alignof(typename Innermost<T>::type) < 4 ? alignof(typename Innermost<T>::type) : 4;
}
template <class T> constexpr unsigned long item_size() { return sizeof(typename Innermost<T>::type); }

// What every lane passed to one collective: `has` tells whether lane i came, `of<T>` what it passed.
struct Lanes {
  const unsigned char* slots;
  unsigned active;
  SIM_INTERNAL bool has(unsigned i) const { return i < 32 && (active >> i & 1u); }
  template <class T> SIM_INTERNAL T of(unsigned i) const {
    T value;
    __builtin_memcpy(&value, slots + i * 64, sizeof(T));
    return value;
  }
};
template <class T> SIM_INTERNAL Lanes exchange(const T& value, Operation operation, int line) {
  static_assert(sizeof(T) <= 64, "a collective takes scalars and vectors");
  Lanes lanes;
  lanes.slots = sim_exchange(&value, sizeof(T), &lanes.active, operation, line);
  return lanes;
}
template <class T> SIM_INTERNAL T from_lane(T value, unsigned lane, T otherwise, Operation operation, int line) {
  Lanes lanes = exchange(value, operation, line);
  return lanes.has(lane) ? lanes.of<T>(lane) : otherwise;
}
}  // namespace sim

#define SIM_LINE int line = __builtin_LINE()
namespace metal {
enum class mem_flags : int { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
SIM_INTERNAL void threadgroup_barrier(mem_flags flags, SIM_LINE) { sim_barrier(1, int(flags), line); }
SIM_INTERNAL void simdgroup_barrier(mem_flags flags, SIM_LINE) { sim_barrier(0, int(flags), line); }

// Reductions of the active lanes; sums in the order of a tree, as hardware does
template <class T> SIM_INTERNAL void sim_all_sum(const unsigned char* slots, unsigned active, void* result) {
  sim::Lanes lanes = {slots, active};
  T sum[32];
  for (unsigned i = 0; i < 32; i++) sum[i] = lanes.has(i) ? lanes.of<T>(i) : T(0);
  for (unsigned half_ = 16; half_; half_ >>= 1)
    for (unsigned i = 0; i < half_; i++) sum[i] = sum[i] + sum[i + half_];
  __builtin_memcpy(result, sum, sizeof(T));
}
#define SIM_SIMD_REDUCTION(name)                                                                         \
  template <class T> SIM_INTERNAL T simd_##name(T v, SIM_LINE) {                                         \
    sim_combine(&v, sizeof(T), sim_all_##name<T>, &v, line);                                             \
    return v;                                                                                            \
  }
#define SIM_REDUCTION(name, combined)                                                                    \
  template <class T> SIM_INTERNAL T sim_##name(const sim::Lanes& lanes, unsigned begin, unsigned end) {  \
    bool first = true;                                                                                   \
    T a = T();                                                                                           \
    for (unsigned i = begin; i < end; i++) {                                                             \
      if (!lanes.has(i)) continue;                                                                       \
      T b = lanes.of<T>(i);                                                                              \
      a = first ? b : T(combined);                                                                       \
      first = false;                                                                                     \
    }                                                                                                    \
    return a;                                                                                            \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T quad_##name(T v, SIM_LINE) {                                         \
    unsigned quad = sim_lane() & ~3u;                                                                    \
    return sim_##name<T>(sim::exchange(v, sim::QUAD, line), quad, quad + 4);                             \
  }
#define SIM_REDUCTIONS(name, combined)                                                                   \
  SIM_REDUCTION(name, combined)                                                                          \
  template <class T> SIM_INTERNAL void sim_all_##name(const unsigned char* slots, unsigned active, void* result) { \
    T a = sim_##name<T>(sim::Lanes{slots, active}, 0, 32);                                               \
    __builtin_memcpy(result, &a, sizeof(T));                                                             \
  }                                                                                                      \
  SIM_SIMD_REDUCTION(name)
SIM_REDUCTION(sum, a + b) SIM_SIMD_REDUCTION(sum) SIM_REDUCTIONS(product, a * b)
SIM_REDUCTIONS(max, b > a ? b : a) SIM_REDUCTIONS(min, b < a ? b : a)
SIM_REDUCTIONS(and, a & b) SIM_REDUCTIONS(or, a | b) SIM_REDUCTIONS(xor, a ^ b)

#define SIM_PREFIX(name, start, combined)                                                                \
  template <class T> SIM_INTERNAL T sim_prefix_##name(T v, unsigned begin, unsigned end, sim::Operation o, int line) { \
    sim::Lanes lanes = sim::exchange(v, o, line);                                                        \
    T a = T(start);                                                                                      \
    for (unsigned i = begin; i < end; i++) {                                                             \
      if (!lanes.has(i)) continue;                                                                       \
      T b = lanes.of<T>(i);                                                                              \
      a = combined;                                                                                      \
    }                                                                                                    \
    return a;                                                                                            \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T simd_prefix_inclusive_##name(T v, SIM_LINE) {                        \
    return sim_prefix_##name(v, 0, sim_lane() + 1, sim::PREFIX, line);                                   \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T simd_prefix_exclusive_##name(T v, SIM_LINE) {                        \
    return sim_prefix_##name(v, 0, sim_lane(), sim::PREFIX, line);                                       \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T quad_prefix_inclusive_##name(T v, SIM_LINE) {                        \
    return sim_prefix_##name(v, sim_lane() & ~3u, sim_lane() + 1, sim::QUAD, line);                      \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T quad_prefix_exclusive_##name(T v, SIM_LINE) {                        \
    return sim_prefix_##name(v, sim_lane() & ~3u, sim_lane(), sim::QUAD, line);                          \
  }
SIM_PREFIX(sum, 0, a + b) SIM_PREFIX(product, 1, a * b)

// Shuffles among `size` lanes (32, or 4 in a quad): where no lane stands, the lane keeps its own value
#define SIM_SHUFFLES(prefix, size, operation)                                                            \
  SIM_INTERNAL unsigned sim_##prefix##base() { return sim_lane() & ~(size - 1u); }                       \
  template <class T> SIM_INTERNAL T prefix##shuffle(T v, ushort i, SIM_LINE) {                           \
    return sim::from_lane(v, i < size ? sim_##prefix##base() + i : 99u, T(0), operation, line);          \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T prefix##broadcast(T v, ushort i, SIM_LINE) {                         \
    return sim::from_lane(v, i < size ? sim_##prefix##base() + i : 99u, T(0), operation, line);          \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T prefix##shuffle_xor(T v, ushort mask, SIM_LINE) {                    \
    return sim::from_lane(v, sim_##prefix##base() + ((sim_lane() ^ mask) & (size - 1u)), T(0), operation, line); \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T prefix##shuffle_down(T v, ushort by, SIM_LINE) {                     \
    unsigned i = (sim_lane() & (size - 1u)) + by;                                                        \
    return sim::from_lane(v, i < size ? sim_##prefix##base() + i : 99u, v, operation, line);             \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T prefix##shuffle_up(T v, ushort by, SIM_LINE) {                       \
    unsigned i = sim_lane() & (size - 1u);                                                               \
    return sim::from_lane(v, i >= by ? sim_##prefix##base() + i - by : 99u, v, operation, line);         \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T prefix##shuffle_rotate_down(T v, ushort by, SIM_LINE) {              \
    return sim::from_lane(v, sim_##prefix##base() + ((sim_lane() + by) & (size - 1u)), T(0), operation, line); \
  }                                                                                                      \
  template <class T> SIM_INTERNAL T prefix##shuffle_rotate_up(T v, ushort by, SIM_LINE) {                \
    return sim::from_lane(v, sim_##prefix##base() + ((sim_lane() - by) & (size - 1u)), T(0), operation, line); \
  }
SIM_SHUFFLES(simd_, 32u, sim::SHUFFLE)
SIM_SHUFFLES(quad_, 4u, sim::QUAD)
template <class T> SIM_INTERNAL T simd_shuffle_and_fill_down(T v, T filling, ushort by, SIM_LINE) {
  unsigned i = sim_lane() + by;
  T moved = sim::from_lane(v, i, v, sim::SHUFFLE, line), filled = sim::from_lane(filling, i & 31u, v, sim::SHUFFLE, line);
  return i > 31u ? filled : moved;
}
template <class T> SIM_INTERNAL T simd_shuffle_and_fill_up(T v, T filling, ushort by, SIM_LINE) {
  unsigned lane = sim_lane(), i = (lane - by) & 31u;
  T moved = sim::from_lane(v, i, v, sim::SHUFFLE, line), filled = sim::from_lane(filling, i, v, sim::SHUFFLE, line);
  return lane < by ? filled : moved;
}
template <class T> SIM_INTERNAL T simd_broadcast_first(T v, SIM_LINE) {
  sim::Lanes lanes = sim::exchange(v, sim::SHUFFLE, line);
  return lanes.of<T>(__builtin_ctz(lanes.active));
}

struct simd_vote {
  uint64_t votes;
  explicit operator uint64_t() const { return votes; }
  explicit operator uint() const { return uint(votes); }
  bool all() const { return votes == 0xffffffffu; }
  bool any() const { return votes != 0; }
};
SIM_INTERNAL sim::Lanes sim_ballot(bool vote, simd_vote& result, int line) {
  sim::Lanes lanes = sim::exchange(vote, sim::VOTE, line);
  result.votes = 0;
  for (unsigned i = 0; i < 32; i++) if (lanes.has(i) && lanes.of<bool>(i)) result.votes |= uint64_t(1) << i;
  return lanes;
}
SIM_INTERNAL simd_vote simd_ballot(bool vote, SIM_LINE) { simd_vote r; sim_ballot(vote, r, line); return r; }
SIM_INTERNAL simd_vote simd_active_threads_mask(SIM_LINE) { simd_vote r; sim_ballot(true, r, line); return r; }
SIM_INTERNAL bool simd_all(bool vote, SIM_LINE) { simd_vote r; return sim_ballot(vote, r, line).active == r.votes; }
SIM_INTERNAL bool simd_any(bool vote, SIM_LINE) { simd_vote r; sim_ballot(vote, r, line); return r.votes != 0; }
SIM_INTERNAL bool simd_is_first(SIM_LINE) {
  simd_vote r;
  return sim_lane() == unsigned(__builtin_ctz(sim_ballot(true, r, line).active));
}

// the same in a quad: votes and lanes count from its first
SIM_INTERNAL unsigned sim_quad_ballot(bool vote, simd_vote& result, int line) {
  sim::Lanes lanes = sim::exchange(vote, sim::QUAD, line);
  unsigned quad = sim_lane() & ~3u, active = lanes.active >> quad & 0xfu;
  result.votes = 0;
  for (unsigned i = 0; i < 4; i++) if (active >> i & 1u && lanes.of<bool>(quad + i)) result.votes |= 1u << i;
  return active;
}
SIM_INTERNAL simd_vote quad_ballot(bool vote, SIM_LINE) { simd_vote r; sim_quad_ballot(vote, r, line); return r; }
SIM_INTERNAL simd_vote quad_active_threads_mask(SIM_LINE) { simd_vote r; sim_quad_ballot(true, r, line); return r; }
SIM_INTERNAL bool quad_all(bool vote, SIM_LINE) { simd_vote r; return sim_quad_ballot(vote, r, line) == r.votes; }
SIM_INTERNAL bool quad_any(bool vote, SIM_LINE) { simd_vote r; sim_quad_ballot(vote, r, line); return r.votes != 0; }
SIM_INTERNAL bool quad_is_first(SIM_LINE) {
  simd_vote r;
  return (sim_lane() & 3u) == unsigned(__builtin_ctz(sim_quad_ballot(true, r, line)));
}
template <class T> SIM_INTERNAL T quad_broadcast_first(T v, SIM_LINE) {
  sim::Lanes lanes = sim::exchange(v, sim::QUAD, line);
  unsigned quad = sim_lane() & ~3u;
  return lanes.of<T>(quad + __builtin_ctz(lanes.active >> quad & 0xfu));
}
}  // namespace metal
