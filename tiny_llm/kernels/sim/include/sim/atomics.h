// Atomics: one thread of the CPU runs a whole launch, so plain operations are atomic; check mode is told of them.
#pragma once
extern "C" void sim_atomic(const void* address, unsigned size, int writes);
namespace metal {
enum memory_order {
  memory_order_relaxed, memory_order_acquire, memory_order_release, memory_order_acq_rel, memory_order_seq_cst
};
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };
template <class T> struct atomic { T value; };
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

#define SIM_ATOMIC __attribute__((always_inline)) inline  // so that the address of the call leads to the kernel's line
#ifdef SIM_CHECK
#define SIM_NOTE(p, writes) sim_atomic(p, sizeof(T), writes)
#else
#define SIM_NOTE(p, writes)
#endif
template <class T> SIM_INTERNAL T sim_peek(const atomic<T>* p) { return *(const volatile T*)&p->value; }
template <class T> SIM_INTERNAL void sim_poke(atomic<T>* p, T v) { *(volatile T*)&p->value = v; }

template <class T> SIM_ATOMIC T atomic_load_explicit(const atomic<T>* p, memory_order) {
  SIM_NOTE(p, 0);
  return sim_peek(p);
}
template <class T, class S> SIM_ATOMIC void atomic_store_explicit(atomic<T>* p, S v, memory_order) {
  SIM_NOTE(p, 1);
  sim_poke(p, T(v));
}
#define SIM_FETCH(name, result)                                                                          \
  template <class T, class S> SIM_ATOMIC T name##_explicit(atomic<T>* p, S operand, memory_order) {      \
    SIM_NOTE(p, 1);                                                                                      \
    T a = sim_peek(p), b = T(operand);                                                                   \
    sim_poke(p, T(result));                                                                              \
    return a;                                                                                            \
  }
SIM_FETCH(atomic_exchange, b) SIM_FETCH(atomic_fetch_add, a + b) SIM_FETCH(atomic_fetch_sub, a - b)
SIM_FETCH(atomic_fetch_max, a < b ? b : a) SIM_FETCH(atomic_fetch_min, b < a ? b : a)
SIM_FETCH(atomic_fetch_and, a & b) SIM_FETCH(atomic_fetch_or, a | b) SIM_FETCH(atomic_fetch_xor, a ^ b)
template <class T, class S>
SIM_ATOMIC bool atomic_compare_exchange_weak_explicit(atomic<T>* p, T* expected, S desired, memory_order, memory_order) {
  SIM_NOTE(p, 1);
  T found = sim_peek(p);
  if (found == *expected) {
    sim_poke(p, T(desired));
    return true;
  }
  *expected = found;
  return false;
}
inline void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}
}  // namespace metal
