// The simulator's runtime: each thread of a threadgroup is a fiber on one thread of the CPU.
//
//   launch.cpp     one launch: groups in order, faults and the time limit
//   scheduler.cpp  fibers, barriers, exchange of values between lanes
//   switch.cpp     the context switch
//   memory.cpp     threadgroup memory and guard pages
//   check.cpp      check mode: who touched which element last, and whether a barrier lies between
//   private.cpp    check mode: which bytes of a thread's own variables were written
//   equal.cpp      check mode: whether the writes of a race left the same value
//   trace.cpp      counters by line: requests, sectors, bank conflicts
//
// What is found is a Finding: facts only. sim/report.py has the words.
#pragma once
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../include/sim/context.h"

namespace sim {
typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;

struct alignas(16) Triple { u32 x, y, z, padding; };
typedef void (*Entry)(void* const* arguments, const Context<Triple>* thread);

constexpr u32 MAX_THREADS = 1024, LANES = 32, MAX_SIMDGROUPS = MAX_THREADS / LANES, SLOT = 64;
const size_t PAGE = size_t(sysconf(_SC_PAGESIZE));  // 16 KB on Apple's, 4 to 64 KB on other machines
constexpr size_t STACK = 64 * 1024, RED_ZONE = 64 * 1024;

// ---- shared with Python (sim/runtime.py mirrors the layout and the order)
enum Kind : int32_t {
  OUT_OF_BOUNDS = 1, MISALIGNED, WRITE_TO_INPUT, RACE, UNINITIALISED, UNWRITTEN, BARRIER_DIVERGENCE,
  COLLECTIVE_DIVERGENCE, THREADGROUP_MEMORY, MEMORY_FAULT, TIME_LIMIT, STACK_OVERFLOW
};
enum Cause : int32_t { NO_BARRIER = 0, WRONG_FLAG, SIMDGROUP_BARRIER, OTHER_GROUP };
enum Role : int32_t { INPUT = 0, OUTPUT, METADATA, INITIALISED_OUTPUT };

struct Finding {
  Kind kind;
  Cause cause;
  i64 pc, other_pc;        // offsets in the kernel's library, -1 where there is none
  int32_t line, other_line;  // of barriers and collectives, which pass their line
  int32_t buffer;          // index in Launch::buffers, -1 for threadgroup memory
  int32_t write, other_write;
  int32_t same_value;      // of a race: each write left the bytes that stood there
  int32_t is_private;      // a thread's own variable, of which `name` is the name
  i64 index, size;         // element of the buffer or variable; bytes of the access or a count
  i64 limit;               // elements of the buffer or variable
  u32 thread[3], group[3];
  i64 other_thread, other_group;  // linear, -1 for several or the host
  char name[48];           // of the threadgroup variable or operation
  char other_name[48];
};

struct Buffer {
  void* data;
  u64 size;
  u32 item;
  Role role;
  u64 read, written, unique_read, unique_written;  // bytes, filled in check mode
};

struct Site {  // one line's accesses to one buffer
  i64 pc;
  int32_t buffer, write;
  u64 requests, bytes, sectors;  // a request is one access of a simdgroup; threadgroup memory: cycles for sectors
  u32 lanes, size;               // of the first request, whose byte offsets are
  i64 offsets[LANES];
};

struct Counters {
  u64 group_barriers, simd_barriers, collectives, threadgroup_read, threadgroup_written, threadgroup_bytes;
  u64 groups, threads;
};

struct Launch {
  Entry entry;
  u32 grid[3], threadgroup[3];
  Buffer* buffers;
  u32 buffer_count;
  void* const* arguments;
  int32_t check, trace;
  u64 seed;  // 0: threads run in their order
  u32 threadgroup_limit;
  double seconds;
  Counters counters;
  Finding* findings;
  u32 finding_capacity, finding_count;
  Site* sites;
  u32 site_capacity, site_count;
};

// ---- the machine's state during a launch
enum State : u8 { RUNNABLE, AT_GROUP_BARRIER, AT_SIMD_BARRIER, AT_COLLECTIVE, RETURNED };
struct Fiber {
  void* stack_pointer;
  u8 *stack_low, *stack_high;
  State state;
  int operation, line;  // what it waits in
  u32 index;            // within its group
  Context<Triple> place;
};
struct Simdgroup {
  alignas(SLOT) u8 slots[2][LANES * SLOT];  // a fast lane may fill the next round while others read the last
  alignas(SLOT) u8 combined[2][SLOT];
  bool is_combined[2];
  u32 active;
  int round;
};

extern Fiber fibers[MAX_THREADS];
extern Simdgroup simdgroups[MAX_SIMDGROUPS];
extern u32 current, thread_count, simdgroup_count, group_index;
extern Launch* launched;
extern u64 random_state;
u32 random_below(u32 n);
u32 lanes_of(u32 simdgroup);

// switch.cpp
extern "C" void sim_switch(void** save, void* resume);
void* prepare_stack(u8* top, void (*start)());

// scheduler.cpp
void start_fiber(Fiber& fiber);
void run_group();

// launch.cpp: end the launch with this finding, or note it and go on
[[noreturn]] void fail(const Finding& finding);
int note(const Finding& finding);  // its place among the launch's findings, -1 where there is no room
Finding finding_by(const Fiber& fiber, Kind kind);
struct Busy {  // while one lives the time limit waits: memory is being allocated, which can't be left half done
  static volatile int count;
  Busy() { count = count + 1; }
  ~Busy() { count = count - 1; }
};
i64 library_offset(const void* address);
bool in_library(const void* address);

// memory.cpp
struct Variable { void* tag; u32 offset, size, granularity, item; const char* name; };
extern std::vector<Variable> variables;
extern u8* arena;
constexpr size_t ARENA = 160 * 1024, GAP = 64;  // the gap catches an index that is off by a little
void prepare_arena();
void begin_group_memory();
const Variable* variable_at(size_t offset, size_t size);
size_t threadgroup_bytes();

// check.cpp
void begin_check();
void begin_group_check();
void forget_variable(const Variable& variable);
void barrier_passed(bool whole_group, u32 simdgroup, int flags);
void end_check(bool completed);

// private.cpp
struct Unwritten { const char* name; i64 index, count; };  // element `index` of the `count` of a thread's variable
void begin_private();
void forget_private(Fiber& fiber);
void write_private(const u8* address, size_t size);
bool read_private(const u8* address, size_t size, Unwritten& found);

// equal.cpp
void expect_equal(int finding, const u8* address, size_t size);
void settle_equal();

// trace.cpp
void begin_trace();
void log_access(u32 fiber, i64 pc, int buffer, u64 offset, u32 size, bool write);
void flush_trace(u32 simdgroup);
void end_trace();
}  // namespace sim
