// The threads of all products. A job is cut into pieces: whoever is awake takes the next one, and the caller waits only
// for pieces that were taken. So a thread that the system has put to sleep stops nobody.
#pragma once
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

inline void pause_core() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int i = 1; i < threads; i++) std::thread([this] { help(); }).detach();
  }

  // f(0) … f(pieces - 1), in any order and on any thread
  void each(int pieces, const std::function<void(int)>& f) {
    if (threads_ == 1 || pieces == 1) {
      for (int i = 0; i < pieces; i++) f(i);
      return;
    }
    std::lock_guard<std::mutex> one_job_at_a_time(mutex_);
    done_ = 0;
    job_ = &f;
    uint64_t number = (open_.load() >> 32) + 1;
    open_ = number << 32 | (uint32_t)pieces;
    open_.notify_all();
    take();
    for (int i = 0; done_.load(std::memory_order_acquire) < pieces; i++) {
      if (i < SPINS_OF_CALLER)
        pause_core();
      else
        sched_yield();
    }
  }

  int threads() const { return threads_; }

 private:
  static constexpr int SPINS = 20000, SPINS_OF_CALLER = 4000;

  void help() {
    for (;;) {
      uint64_t now = open_.load();
      for (int i = 0; (uint32_t)now == 0; now = open_.load()) {
        if (i++ < SPINS)
          pause_core();
        else
          open_.wait(now);
      }
      take();
    }
  }

  void take() {
    uint64_t now = open_.load();
    while ((uint32_t)now != 0) {
      if (!open_.compare_exchange_weak(now, now - 1)) continue;
      (*job_)((uint32_t)now - 1);  // the job can't end before this piece is done
      done_.fetch_add(1, std::memory_order_release);
      now = open_.load();
    }
  }

  const int threads_;
  std::mutex mutex_;
  alignas(64) std::atomic<uint64_t> open_{0};  // the job's number << 32 | pieces that nobody has taken
  alignas(64) std::atomic<int> done_{0};
  alignas(64) const std::function<void(int)>* job_ = nullptr;
};

// the begin of part i of `parts` equal ones of n
inline int part(int n, int i, int parts) { return (int)((int64_t)n * i / parts); }
