// A thread's own variable that is declared without a value: in check mode sim/rewrite_private.py makes each a Private.
// Its reads and writes go through an address that the compiler knows nothing of, so that each is looked at where it
// stands in the source, and none is moved in front of a condition.
#pragma once
#ifdef SIM_CHECK
extern "C" void sim_private_begin(void* data, unsigned long size, unsigned long item, const char* name);
extern "C" void sim_private_end(void* data, unsigned long size);
namespace sim {
template <class T, bool HasNoValue = __is_trivially_constructible(T)> class Private {
 public:
  SIM_INTERNAL explicit Private(const char* name) : where_(&value_) {
    asm volatile("" : "+r"(where_));
    sim_private_begin((void*)where_, sizeof(T), item_size<T>(), name);
  }
  SIM_INTERNAL ~Private() { sim_private_end((void*)where_, sizeof(T)); }
  SIM_INTERNAL T& get() { return *where_; }

 private:
  T value_;
  T* where_;
};
template <class T> class Private<T, false> {  // a constructor gives it a value
 public:
  explicit Private(const char*) {}
  T& get() { return value_; }

 private:
  T value_;
};
}  // namespace sim
#endif
