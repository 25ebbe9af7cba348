// One launch: places of the threads, groups in order, and how it ends when something goes wrong.
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#if defined(__linux__)
#include <link.h>
#include <ucontext.h>
#endif

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <numeric>
#include <thread>

#include "runtime.h"

namespace sim {
volatile int Busy::count;
static sigjmp_buf way_out;
static volatile sig_atomic_t running;
static const u8 *library_low, *library_high, *library_base;

Finding finding_by(const Fiber& fiber, Kind kind) {
  Finding f;
  memset(&f, 0, sizeof f);
  f.kind = kind;
  f.pc = f.other_pc = f.other_thread = f.other_group = f.buffer = -1;
  const Context<Triple>& place = fiber.place;
  const Triple &t = place.thread_position_in_threadgroup, &g = place.threadgroup_position_in_grid;
  f.thread[0] = t.x, f.thread[1] = t.y, f.thread[2] = t.z;
  f.group[0] = g.x, f.group[1] = g.y, f.group[2] = g.z;
  return f;
}
int note(const Finding& finding) {  // once for each pair of lines
  for (u32 i = 0; i < launched->finding_count; i++) {
    const Finding& f = launched->findings[i];
    if (f.kind == finding.kind && f.pc == finding.pc && (f.kind != UNWRITTEN || f.buffer == finding.buffer)) return int(i);
  }
  if (launched->finding_count == launched->finding_capacity) return -1;
  launched->findings[launched->finding_count] = finding;
  return int(launched->finding_count++);
}
void fail(const Finding& finding) {
  settle_equal();
  note(finding);
  Busy::count = 0;
  siglongjmp(way_out, 1);
}

i64 library_offset(const void* address) { return static_cast<const u8*>(address) - library_base; }
bool in_library(const void* address) { return address >= library_low && address < library_high; }
static void find_library(const void* inside) {
  Dl_info info;
  dladdr(inside, &info);
  library_base = library_low = static_cast<const u8*>(info.dli_fbase);
  library_high = library_low + (1 << 20);
#if defined(__linux__)  // the exact extent
  dl_iterate_phdr([](dl_phdr_info* object, size_t, void*) {
    if (reinterpret_cast<const u8*>(object->dlpi_addr) != library_base) return 0;
    library_high = library_base;
    for (int i = 0; i < object->dlpi_phnum; i++)
      if (object->dlpi_phdr[i].p_type == PT_LOAD)
        library_high = std::max(library_high, library_base + object->dlpi_phdr[i].p_vaddr + object->dlpi_phdr[i].p_memsz);
    return 1;
  }, nullptr);
#endif
}

// ---- faults and the time limit arrive as signals on a stack of their own
static u8 signal_stack[64 * 1024];
static struct sigaction old_segv, old_bus, old_stop;

static void on_stop(int, siginfo_t*, void*) {
  if (!running || Busy::count) return;  // the watchdog asks again
  Finding finding = finding_by(fibers[current], TIME_LIMIT);
  finding.limit = i64(launched->seconds * 1000);
  fail(finding);
}
static void on_fault(int signal, siginfo_t* info, void* context) {
  if (!running) {
    sigaction(signal, signal == SIGBUS ? &old_bus : &old_segv, nullptr);
    return;  // not the kernel's: the instruction faults again, now for whoever handled it before
  }
  const u8* address = static_cast<const u8*>(info->si_addr);
  const Fiber& self = fibers[current];
  Finding finding = finding_by(self, MEMORY_FAULT);
#if defined(__linux__) && defined(__x86_64__)
  finding.pc = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP] - i64(library_base) + 1;
#elif defined(__linux__) && defined(__aarch64__)
  finding.pc = i64(static_cast<ucontext_t*>(context)->uc_mcontext.pc) - i64(library_base) + 1;
#endif
  (void)context;
  if (address < self.stack_low && address + PAGE >= self.stack_low) finding.kind = STACK_OVERFLOW;
  u64 nearest = RED_ZONE;
  for (u32 i = 0; i < launched->buffer_count; i++) {
    const Buffer& b = launched->buffers[i];
    const u8 *low = static_cast<const u8*>(b.data), *high = low + b.size;
    bool inside = address >= low && address < high;
    u64 distance = address < low ? low - address : inside ? 0 : address - high;
    if (distance >= nearest) continue;
    nearest = distance;
    finding.kind = !inside ? OUT_OF_BOUNDS : b.role == INPUT ? WRITE_TO_INPUT : MEMORY_FAULT;
    finding.buffer = int32_t(i);
    finding.index = address >= low ? (address - low) / b.item : -i64((low - address + b.item - 1) / b.item);
    finding.limit = i64(b.size / b.item);
  }
  fail(finding);
}
static void install(int signal, void (*handler)(int, siginfo_t*, void*), struct sigaction* old) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(signal, &action, old);
}

class Watchdog {  // stops the launching thread when its time is up; no lock, since that thread may be stopped anywhere
 public:
  explicit Watchdog(double seconds) : launcher_(pthread_self()) {
    if (pipe(ends_)) abort();
    thread_ = std::thread([this, seconds] {
      pollfd end = {ends_[0], POLLIN, 0};
      int milliseconds = int(seconds * 1000), found;
      while ((found = poll(&end, 1, milliseconds)) <= 0) {
        if (found < 0) continue;  // a signal that was not for this thread
        pthread_kill(launcher_, SIGUSR2);
        milliseconds = 10;
      }
    });
  }
  ~Watchdog() {
    while (write(ends_[1], "", 1) != 1) {
    }
    thread_.join();
    close(ends_[0]);
    close(ends_[1]);
  }

 private:
  pthread_t launcher_;
  int ends_[2];
  std::thread thread_;
};

// ---- the grid
static void prepare_fibers() {
  if (fibers[0].stack_low) return;
  size_t each = STACK + PAGE;
  u8* slab = static_cast<u8*>(mmap(nullptr, each * MAX_THREADS, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (u32 i = 0; i < MAX_THREADS; i++) {
    mprotect(slab + i * each, PAGE, PROT_NONE);
    fibers[i].stack_low = slab + i * each + PAGE;
    fibers[i].stack_high = fibers[i].stack_low + STACK;
    fibers[i].index = i;
  }
}
static Triple triple(const u32* v) { return {v[0], v[1], v[2], 0}; }

static void place_threads(const u32* grid, const u32* full, const u32* groups, const u32* group) {
  u32 size[3], start[3];
  for (int d = 0; d < 3; d++) {
    start[d] = group[d] * full[d];
    size[d] = std::min(full[d], grid[d] - start[d]);  // groups at the edge are smaller
  }
  thread_count = size[0] * size[1] * size[2];
  simdgroup_count = (thread_count + LANES - 1) / LANES;
  u32 full_count = full[0] * full[1] * full[2];
  for (u32 i = 0; i < thread_count; i++) {
    Context<Triple>& c = fibers[i].place;
    u32 x = i % size[0], y = i / size[0] % size[1], z = i / size[0] / size[1];
    c.thread_position_in_threadgroup = {x, y, z, 0};
    c.thread_position_in_grid = {start[0] + x, start[1] + y, start[2] + z, 0};
    c.threadgroup_position_in_grid = triple(group);
    c.threads_per_threadgroup = triple(size);
    c.dispatch_threads_per_threadgroup = triple(full);
    c.threads_per_grid = c.grid_size = triple(grid);
    c.threadgroups_per_grid = triple(groups);
    c.grid_origin = {0, 0, 0, 0};
    c.thread_index_in_threadgroup = i;
    c.thread_index_in_simdgroup = i % LANES;
    c.simdgroup_index_in_threadgroup = i / LANES;
    c.simdgroups_per_threadgroup = simdgroup_count;
    c.dispatch_simdgroups_per_threadgroup = (full_count + LANES - 1) / LANES;
    c.threads_per_simdgroup = c.thread_execution_width = LANES;
    c.thread_index_in_quadgroup = i % 4;
    c.quadgroup_index_in_threadgroup = i / 4;
    c.quadgroups_per_threadgroup = (thread_count + 3) / 4;
    c.dispatch_quadgroups_per_threadgroup = (full_count + 3) / 4;
    start_fiber(fibers[i]);
  }
}

static void run_grid() {
  u32 full[3], groups[3];
  for (int d = 0; d < 3; d++) {
    full[d] = std::min(launched->threadgroup[d], launched->grid[d]);
    groups[d] = (launched->grid[d] + full[d] - 1) / full[d];
  }
  u32 count = groups[0] * groups[1] * groups[2];
  std::vector<u32> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (launched->seed)
    for (u32 i = count; i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
  for (u32 g : order) {
    group_index = g;
    u32 group[3] = {g % groups[0], g / groups[0] % groups[1], g / groups[0] / groups[1]};
    begin_group_memory();
    if (launched->check) begin_group_check();
    place_threads(launched->grid, full, groups, group);
    launched->counters.groups++;
    launched->counters.threads += thread_count;
    run_group();
  }
}
}  // namespace sim

using namespace sim;
extern "C" int sim_launch(Launch* launch) {
  launched = launch;
  random_state = launch->seed * 0x9E3779B97F4A7C15ull | 1;
  prepare_fibers();
  prepare_arena();
  find_library(reinterpret_cast<const void*>(launch->entry));
  if (launch->check) begin_check();
  if (launch->trace) begin_trace();
  stack_t stack, old_stack;
  memset(&stack, 0, sizeof stack);
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, &old_stack);
  install(SIGSEGV, on_fault, &old_segv);
  install(SIGBUS, on_fault, &old_bus);
  install(SIGUSR2, on_stop, &old_stop);
  bool completed = false;
  {
    Watchdog watchdog(launch->seconds);
    if (!sigsetjmp(way_out, 1)) {
      running = 1;
      run_grid();
      completed = true;
    }
    running = 0;
  }
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaction(SIGUSR2, &old_stop, nullptr);
  sigaltstack(&old_stack, nullptr);
  launch->counters.threadgroup_bytes = threadgroup_bytes();
  if (launch->trace) end_trace();
  if (launch->check) end_check(completed);
  return completed ? 0 : 1;
}
