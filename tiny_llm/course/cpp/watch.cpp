// Run an exercise in C++ on one block of a matrix, and watch its reads.
//
// stdin has a Job, then the words, the scalings, x and its sums; stdout gets the floats. A fault is a line on stderr, see
// `fail`. The exercise is compiled with -fsanitize=thread, which calls a function at each access to memory; these functions
// stand here, in the place of that tool's own.
#include "watch.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__linux__)
#include <ucontext.h>
extern "C" char __executable_start;  // the linker's name for where the program lies
#endif

namespace {

enum { WORDS, SCALINGS, X, SUMS, ARRAYS };

struct Array {
  const char* name;
  long item, count, spare;  // bytes of a number; numbers; bytes behind them
  char *start, *low, *high; // `low` to `high` has a page without access on each side
};

Array arrays[ARRAYS];
long first_byte, last_byte;  // of the block's words: from the first to before the last
unsigned char* was_read;     // for each byte of the words
bool is_watching;
void* last_access;  // where in the exercise: the address behind a call of ours

// An instruction's place in the file, for addr2line.
unsigned long offset(void* pc) {
#if defined(__linux__)
  return (char*)pc - &__executable_start;
#else
  return 0;
#endif
}

// `kind` is known to native.py. Tells where the exercise is, and where it last touched memory.
[[noreturn]] void fail(const char* kind, const char* name, long index, long count, void* pc) {
  dprintf(2, "%s %s %ld %ld %lx %lx\n", kind, name, index, count, offset(pc), offset(last_access));
  _exit(3);
}

void receive(void* to, long size) {
  for (char* at = (char*)to; size > 0;) {
    long got = read(0, at, size);
    if (got <= 0) _exit(2);
    at += got;
    size -= got;
  }
}

// The array ends `spare` bytes before a page without access. What lies around it are ones: as floats, NaN.
void make(Array& array, const char* name, long item, long count, long spare) {
  long page = sysconf(_SC_PAGESIZE), size = item * count;
  long room = (size + spare + page - 1) / page * page;
  char* low = (char*)mmap(nullptr, room + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (low == MAP_FAILED) _exit(2);
  char* end = low + page + room;
  array = {name, item, count, spare, end - spare - size, low, end + page};
  memset(low + page, 0xff, room);
  receive(array.start, size);
  mprotect(low, room + 2 * page, PROT_NONE);
  mprotect(low + page, room, PROT_READ);
}

// The instruction at which a signal came, as if it were a return address.
void* place_of(void* context) {
#if defined(__linux__) && defined(__x86_64__)
  return (char*)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP] + 1;
#elif defined(__linux__) && defined(__aarch64__)
  return (char*)((ucontext_t*)context)->uc_mcontext.pc + 1;
#else
  return nullptr;
#endif
}

void on_signal(int number, siginfo_t* info, void* context) {
  void* pc = place_of(context);
  if (number == SIGALRM) fail("time", "-", 0, 0, pc);
  char* address = (char*)info->si_addr;
  for (const Array& a : arrays) {
    if (address < a.low || address >= a.high) continue;
    long offset = address - a.start;
    bool is_inside = offset >= 0 && offset < a.item * a.count + a.spare;
    fail(is_inside ? "write" : "outside", a.name, (offset + (offset < 0 ? 1 : 0)) / a.item - (offset < 0), a.count, pc);
  }
  fail("crash", "-", number, 0, pc);
}

void on_read(const void* p, long size, void* pc) {
  const Array& words = arrays[WORDS];
  last_access = pc;
  if (!is_watching || p < words.low || p >= words.start + words.item * words.count) return;
  long from = (const char*)p - words.start, index = from / words.item;
  if (from < first_byte) fail("before", words.name, index, first_byte / words.item, pc);
  if (from + size > last_byte) fail("behind", words.name, index, last_byte / words.item, pc);
  long again = 0;
  for (long i = from; i < from + size; i++) again += was_read[i]++ > 0;
  if (again) fail(again == size ? "again" : "overlap", words.name, index, 0, pc);
}

}  // namespace

#define CALLER __builtin_return_address(0)
#define HOOKS(n)                                                             \
  void __tsan_read##n(void* p) { on_read(p, n, CALLER); }                    \
  void __tsan_unaligned_read##n(void* p) { on_read(p, n, CALLER); }          \
  void __tsan_volatile_read##n(void* p) { on_read(p, n, CALLER); }           \
  void __tsan_unaligned_volatile_read##n(void* p) { on_read(p, n, CALLER); } \
  void __tsan_write##n(void*) { last_access = CALLER; }                      \
  void __tsan_unaligned_write##n(void*) { last_access = CALLER; }            \
  void __tsan_volatile_write##n(void*) { last_access = CALLER; }             \
  void __tsan_unaligned_volatile_write##n(void*) { last_access = CALLER; }
extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* p, unsigned long n) { on_read(p, n, CALLER); }
void __tsan_write_range(void*, unsigned long) { last_access = CALLER; }
void* __tsan_memset(void* to, int value, unsigned long n) { return memset(to, value, n); }
void* __tsan_memcpy(void* to, const void* from, unsigned long n) {
  on_read(from, n, CALLER);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, unsigned long n) {
  on_read(from, n, CALLER);
  return memmove(to, from, n);
}
}

int main() {
  Job job;
  receive(&job, sizeof job);
  if (job.lanes != lanes_of_exercise) _exit(4);  // a compiler that does not heed its options
  long blocks = (job.rows + job.lanes - 1) / job.lanes;
  long words = (long)job.columns * job.bits / 32 * job.lanes;
  long groups = job.columns / job.group;
  long of_scaling = job.scaling == 2 ? 4 : 2;
  make(arrays[WORDS], "numbers", 4, blocks * words, 0);
  make(arrays[SCALINGS], "scalings", of_scaling, blocks * groups * 2 * job.lanes, 0);
  make(arrays[X], "x", 4, job.columns, 48);  // at no more than a multiple of 16 bytes, as in the engine
  make(arrays[SUMS], "sums", 4, groups, 48);
  first_byte = job.block * words * 4;
  last_byte = first_byte + words * 4;
  was_read = (unsigned char*)calloc(blocks * words, 4);

  static char stack_of_signals[1 << 16];
  stack_t stack = {};
  stack.ss_sp = stack_of_signals;
  stack.ss_size = sizeof stack_of_signals;
  sigaltstack(&stack, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int number : (int[]){SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGALRM}) sigaction(number, &action, nullptr);
  alarm(job.seconds);

  float out[16];
  is_watching = true;
  run_block(job, arrays[WORDS].start, arrays[SCALINGS].start, (float*)arrays[X].start, (float*)arrays[SUMS].start, out);
  is_watching = false;
  return fwrite(out, 4, job.lanes, stdout) != (size_t)job.lanes;
}
