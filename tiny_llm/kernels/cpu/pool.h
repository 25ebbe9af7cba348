// The threads that all products share. A job is cut into pieces. Each thread that is running takes the next piece, and
// the caller waits only for pieces that a thread has taken. So a job does not wait for threads that the system has put
// to sleep.
#pragma once
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
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
  // Start `threads` - 1 threads, or as many as the system grants; the caller of `each` is one more.
  explicit Pool(int threads) {
    try {
      for (; threads_ < threads; threads_++) std::thread([this] { help(); }).detach();
    } catch (const std::system_error&) {  // a limit of threads
    }
  }

  // Call f(0) … f(pieces - 1), in any order and on any thread. Throws the first exception that a call threw; the pieces
  // that were left then are not called.
  void each(int pieces, const std::function<void(int)>& f) {
    if (threads_ == 1 || pieces == 1) {
      for (int i = 0; i < pieces; i++) f(i);
      return;
    }
    std::lock_guard<std::mutex> one_job_at_a_time(mutex_);
    done_ = 0;
    job_ = &f;
    has_failed_ = false;
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
    if (has_failed_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  int threads() const { return threads_; }

 private:
  static constexpr int SPINS = 20000;  // before a thread without work goes to sleep
  static constexpr int SPINS_OF_CALLER = 4000;

  // The life of a thread: take pieces while there are some, then wait for the next job.
  void help() {
    for (;;) {
      uint64_t now = open_.load();
      for (int i = 0; (uint32_t)now == 0; i++) {
        if (i < SPINS)
          pause_core();
        else
          open_.wait(now);
        now = open_.load();
      }
      take();
    }
  }

  // Take pieces until none is left.
  void take() {
    uint64_t now = open_.load();
    while ((uint32_t)now != 0) {
      if (!open_.compare_exchange_weak(now, now - 1)) continue;
      run((uint32_t)now - 1);  // the job can't end before this piece is done
      done_.fetch_add(1, std::memory_order_release);
      now = open_.load();
    }
  }

  // Call the job for a piece, unless an earlier piece has thrown.
  void run(int piece) {
    if (has_failed_) return;
    try {
      (*job_)(piece);
    } catch (...) {
      if (!has_failed_.exchange(true)) failure_ = std::current_exception();
    }
  }

  int threads_ = 1;
  std::mutex mutex_;
  std::atomic<bool> has_failed_{false};
  std::exception_ptr failure_;
  alignas(64) std::atomic<uint64_t> open_{0};  // the job's number << 32 | pieces that no thread has taken
  alignas(64) std::atomic<int> done_{0};
  alignas(64) const std::function<void(int)>* job_ = nullptr;
};

// Return where part i begins when 0 … n - 1 is cut into `parts` parts of about the same size.
inline int part(int n, int i, int parts) { return (int)((int64_t)n * i / parts); }
