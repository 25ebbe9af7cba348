// Memory for a model's matrices, in the order in which a step reads them. Where the system has pages of two megabytes,
// it uses them instead of those of four kilobytes, so that the processor looks up fewer addresses of pages.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  ~Arena() {
    for (auto [start, size] : chunks_) munmap(start, size);
    all_taken -= taken_;
  }

  // Return the address of `bytes` bytes, which are zeros.
  void* take(size_t bytes) {
    bytes = (bytes + LINE - 1) / LINE * LINE;
    if (bytes > left_) add_chunk(std::max(bytes, CHUNK));
    char* start = next_;
    next_ += bytes;
    left_ -= bytes;
    taken_ += bytes;
    all_taken += bytes;
    return start;
  }

  // Return the bytes that are taken from all arenas of this process.
  static size_t held_bytes() { return all_taken; }

 private:
  static constexpr size_t LINE = 64;         // of the processor's cache
  static constexpr size_t PAGE = 2 << 20;    // of the system's memory
  static constexpr size_t CHUNK = 64 << 20;  // taken from the system at once

  void add_chunk(size_t bytes) {
    size_t size = bytes + PAGE;
    void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    chunks_.push_back({start, size});
    next_ = (char*)(((uintptr_t)start + PAGE - 1) / PAGE * PAGE);
    left_ = bytes;
#ifdef MADV_HUGEPAGE
    madvise(next_, bytes, MADV_HUGEPAGE);
#endif
  }

  struct Chunk {
    void* start;
    size_t size;
  };
  std::vector<Chunk> chunks_;
  char* next_ = nullptr;
  size_t left_ = 0;
  size_t taken_ = 0;
  static inline std::atomic<size_t> all_taken = 0;
};
