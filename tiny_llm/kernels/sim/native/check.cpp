// Check mode. The compiler calls a hook at each access of an instrumented kernel (-fsanitize=thread, our own hooks in
// the place of its library). Each element, a cell, remembers its last write and its reads since; a later access by
// another thread must be separated from them by a barrier that orders this kind of memory.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "runtime.h"

namespace sim {
enum Space { DEVICE = 0, THREADGROUP = 1 };  // the bits of mem_flags, in this order
enum Scope : u8 { NOBODY = 0, ONE_THREAD, ONE_SIMDGROUP, ONE_GROUP, SEVERAL_GROUPS, HOST };

struct Mark {  // who accessed a cell: a thread, or all that did since the last barrier
  u32 thread, group, epoch;
  u32 pc;
  Scope scope;
  bool atomic;
};
struct Cell {
  Mark write, read;
  bool was_read;
};

static std::vector<std::vector<Cell>> buffer_cells;
static std::vector<Cell> arena_cells;  // one for each byte; a cell of 4 bytes uses the first
static u32 epoch;                      // grows with each barrier
struct Barriers {                      // the epochs that the last barriers began
  u32 ordered[2], any;                 // by the kind of memory they order; of whatever flags
};
static Barriers group_barriers, simd_barriers[MAX_SIMDGROUPS];

void begin_check() {
  begin_private();
  epoch = 1;
  buffer_cells.assign(launched->buffer_count, {});
  for (u32 i = 0; i < launched->buffer_count; i++) {
    Buffer& b = launched->buffers[i];
    b.read = b.written = b.unique_read = b.unique_written = 0;
    if (b.role == METADATA) continue;
    Cell cell;
    memset(&cell, 0, sizeof cell);
    cell.write.scope = b.role == OUTPUT ? NOBODY : HOST;
    buffer_cells[i].assign(b.size / b.item + 1, cell);
  }
  arena_cells.resize(ARENA);
}
void begin_group_check() {
  epoch++;
  group_barriers = {{epoch, epoch}, epoch};
  memset(simd_barriers, 0, sizeof simd_barriers);
  for (const Variable& v : variables) forget_variable(v);
}
void forget_variable(const Variable& v) {
  if (launched->check) memset(arena_cells.data() + v.offset, 0, v.size * sizeof(Cell));
}
void barrier_passed(bool whole_group, u32 simdgroup, int flags) {
  if (!launched->check) return;
  Barriers& barriers = whole_group ? group_barriers : simd_barriers[simdgroup];
  barriers.any = ++epoch;
  for (int space : {DEVICE, THREADGROUP})
    if (flags >> space & 1) barriers.ordered[space] = epoch;
}

// Whether all that `mark` stands for is ordered before what this thread does now.
static bool ordered(const Mark& mark, const Fiber& self, Space space) {
  if (mark.scope == NOBODY || mark.scope == HOST) return true;
  if (mark.scope == SEVERAL_GROUPS || mark.group != group_index) return false;
  if (mark.scope == ONE_THREAD && mark.thread == self.index) return true;
  if (mark.epoch < group_barriers.ordered[space]) return true;
  u32 simdgroup = self.index / LANES;
  return mark.scope <= ONE_SIMDGROUP && mark.thread / LANES == simdgroup &&
         mark.epoch < simd_barriers[simdgroup].ordered[space];
}
static Cause cause_of(const Mark& mark, const Fiber& self) {
  if (mark.scope == SEVERAL_GROUPS || mark.group != group_index) return OTHER_GROUP;
  if (mark.epoch < group_barriers.any) return WRONG_FLAG;
  u32 simdgroup = self.index / LANES;
  if (mark.epoch >= simd_barriers[simdgroup].any) return NO_BARRIER;
  return mark.thread / LANES == simdgroup && mark.scope <= ONE_SIMDGROUP ? WRONG_FLAG : SIMDGROUP_BARRIER;
}
// This thread joins those that `mark` stands for, or takes their place where they are ordered before it.
static void join(Mark& mark, const Fiber& self, Space space, u32 pc, bool atomic) {
  if (ordered(mark, self, space)) {
    mark = {self.index, group_index, epoch, pc, ONE_THREAD, atomic};
    return;
  }
  Scope scope = mark.group != group_index                      ? SEVERAL_GROUPS
                : mark.thread / LANES != self.index / LANES ? ONE_GROUP
                                                               : ONE_SIMDGROUP;
  mark.scope = std::max(mark.scope, scope);
  mark.epoch = epoch;
}

struct Access {
  u8* address;
  u64 size;
  bool write, atomic;
  void* pc;
};
static Finding finding_at(const Access& a, Kind kind) {
  Finding f = finding_by(fibers[current], kind);
  f.pc = library_offset(a.pc);
  f.write = a.write;
  f.size = i64(a.size);
  return f;
}
struct Location {  // of a cell, for a finding
  int buffer;
  const Variable* variable;
  i64 index;
};
static Finding finding_in(const Access& a, Kind kind, const Location& where) {
  Finding f = finding_at(a, kind);
  f.buffer = where.buffer;
  f.index = where.index;
  if (where.variable) {
    f.limit = where.variable->size / where.variable->item;
    snprintf(f.name, sizeof f.name, "%s", where.variable->name);
  } else {
    f.limit = i64(launched->buffers[where.buffer].size / launched->buffers[where.buffer].item);
  }
  return f;
}
static void note_race(const Access& a, const Mark& other, bool other_writes, const Location& where) {
  Finding f = finding_in(a, RACE, where);
  f.cause = cause_of(other, fibers[current]);
  f.other_write = other_writes;
  f.other_pc = other.pc;
  f.other_thread = other.scope == ONE_THREAD ? i64(other.thread) : -1;
  f.other_group = other.scope == SEVERAL_GROUPS ? -1 : i64(other.group);
  f.same_value = a.write && other_writes && !a.atomic && !other.atomic;
  int place = note(f);
  if (place < 0 || !launched->findings[place].same_value) return;
  if (f.same_value)
    expect_equal(place, a.address, a.size);
  else
    launched->findings[place].same_value = 0;
}

static void touch(Cell& cell, const Access& a, Space space, const Location& where) {
  const Fiber& self = fibers[current];
  u32 pc = u32(library_offset(a.pc));
  bool reads = !a.write || a.atomic;
  if (reads && cell.write.scope == NOBODY) note(finding_in(a, UNINITIALISED, where));
  if (!(a.atomic && cell.write.atomic) && !ordered(cell.write, self, space)) note_race(a, cell.write, true, where);
  if (a.write && !ordered(cell.read, self, space)) note_race(a, cell.read, false, where);
  if (reads) cell.was_read = true;
  if (!a.write) {
    if (!a.atomic) join(cell.read, self, space, pc, false);
  } else if (a.atomic) {
    join(cell.write, self, space, pc, true);
  } else {
    cell.write = {self.index, group_index, epoch, pc, ONE_THREAD, false};
  }
}

static void access_threadgroup(const Access& a) {
  size_t offset = a.address - arena;
  const Variable* v = variable_at(offset, a.size);
  if (!v) {  // name the variable that it misses by little
    Finding f = finding_at(a, OUT_OF_BOUNDS);
    for (const Variable& near : variables)
      if (offset + GAP >= near.offset && offset < near.offset + near.size + GAP) {
        i64 byte = i64(offset) - i64(near.offset), item = near.item;
        f.index = (byte < 0 ? byte - item + 1 : byte) / item;
        f.limit = near.size / near.item;
        snprintf(f.name, sizeof f.name, "%s", near.name);
        if (offset >= near.offset) break;
      }
    fail(f);
  }
  Counters& counters = launched->counters;
  (a.write ? counters.threadgroup_written : counters.threadgroup_read) += a.size;
  if (launched->trace) log_access(current, library_offset(a.pc), -1, offset, u32(a.size), a.write);
  size_t last = offset + a.size - 1;
  for (size_t c = offset - (offset - v->offset) % v->granularity; c <= last; c += v->granularity)
    touch(arena_cells[c], a, THREADGROUP, {-1, v, i64((c - v->offset) / v->item)});
}

static void access_buffer(const Access& a, u32 index) {
  Buffer& b = launched->buffers[index];
  if (b.role == METADATA && !a.write) return;
  u64 offset = a.address - static_cast<u8*>(b.data);
  Location where = {int(index), nullptr, i64(offset / b.item)};
  if (a.write && (b.role == INPUT || b.role == METADATA)) fail(finding_in(a, WRITE_TO_INPUT, where));
  if (a.write) b.written += a.size;
  if (!a.write || a.atomic) b.read += a.size;
  if (launched->trace) log_access(current, library_offset(a.pc), int(index), offset, u32(a.size), a.write);
  for (u64 c = offset / b.item; c <= (offset + a.size - 1) / b.item; c++) {
    where.index = i64(c);
    touch(buffer_cells[index][c], a, DEVICE, where);
  }
}

[[noreturn]] static void fail_outside(const Access& a) {
  Finding f = finding_at(a, OUT_OF_BOUNDS);
  for (u32 i = 0; i < launched->buffer_count; i++) {
    const Buffer& b = launched->buffers[i];
    u8* low = static_cast<u8*>(b.data);
    if (a.address + RED_ZONE < low || a.address >= low + b.size + RED_ZONE) continue;
    i64 offset = a.address - low, item = b.item;
    f.buffer = int32_t(i);
    f.index = (offset < 0 ? offset - item + 1 : offset) / item;
    f.limit = i64(b.size / b.item);
  }
  fail(f);
}

static void access_private(const Access& a) {
  Unwritten unwritten;
  if (a.write) {
    write_private(a.address, a.size);
  } else if (read_private(a.address, a.size, unwritten)) {
    Finding f = finding_at(a, UNINITIALISED);
    f.is_private = 1;
    f.index = unwritten.index;
    f.limit = unwritten.count;
    snprintf(f.name, sizeof f.name, "%s", unwritten.name);
    note(f);
    write_private(a.address, a.size);  // told once, not for each thread that goes on with it
  }
}

static void access(void* address, u64 size, bool write, void* pc, bool atomic = false, u64 alignment = 1) {
  if (!launched || !launched->check) return;
  Access a = {static_cast<u8*>(address), size, write, atomic, pc};
  const Fiber& self = fibers[current];
  if (write) settle_equal();
  if (a.address >= self.stack_low && a.address < self.stack_high) return access_private(a);
  if (reinterpret_cast<u64>(address) % alignment) fail(finding_at(a, MISALIGNED));
  if (a.address >= arena && a.address + size <= arena + ARENA) return access_threadgroup(a);
  static u32 last = 0;
  for (u32 k = 0; k < launched->buffer_count; k++) {
    u32 i = (last + k) % launched->buffer_count;
    u8* low = static_cast<u8*>(launched->buffers[i].data);
    if (a.address < low || a.address + size > low + launched->buffers[i].size) continue;
    last = i;
    return access_buffer(a, i);
  }
  if (in_library(address) && !write) return;  // a table of constants
  fail_outside(a);
}

void end_check(bool completed) {
  for (u32 i = 0; i < launched->buffer_count; i++) {
    Buffer& b = launched->buffers[i];
    if (b.role == METADATA) continue;
    u64 unwritten = 0, first = 0;
    for (u64 c = b.size / b.item; c-- > 0;) {
      const Cell& cell = buffer_cells[i][c];
      if (cell.was_read) b.unique_read += b.item;
      if (cell.write.scope != NOBODY && cell.write.scope != HOST) b.unique_written += b.item;
      if (cell.write.scope == NOBODY) unwritten++, first = c;
    }
    if (!completed || !unwritten) continue;
    Finding f = finding_by(fibers[0], UNWRITTEN);
    f.buffer = int32_t(i);
    f.index = i64(first);
    f.size = i64(unwritten);
    f.limit = i64(b.size / b.item);
    note(f);
  }
}
}  // namespace sim

#define CALLER __builtin_return_address(0)
#define HOOKS(n)                                                                                              \
  void __tsan_read##n(void* p) { sim::access(p, n, false, CALLER, false, n < 8 ? n : 8); }                   \
  void __tsan_write##n(void* p) { sim::access(p, n, true, CALLER, false, n < 8 ? n : 8); }                   \
  void __tsan_unaligned_read##n(void* p) { sim::access(p, n, false, CALLER); }                               \
  void __tsan_unaligned_write##n(void* p) { sim::access(p, n, true, CALLER); }                               \
  void __tsan_volatile_read##n(void* p) { sim::access(p, n, false, CALLER); }                                \
  void __tsan_volatile_write##n(void* p) { sim::access(p, n, true, CALLER); }                                \
  void __tsan_unaligned_volatile_read##n(void* p) { sim::access(p, n, false, CALLER); }                      \
  void __tsan_unaligned_volatile_write##n(void* p) { sim::access(p, n, true, CALLER); }
extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, unsigned long n) { sim::access(p, n, false, CALLER); }
void __tsan_write_range(void* p, unsigned long n) { sim::access(p, n, true, CALLER); }
void* __tsan_memset(void* to, int value, unsigned long n) {  // clang's, for memory intrinsics
  sim::access(to, n, true, CALLER);
  return memset(to, value, n);
}
void* __tsan_memcpy(void* to, const void* from, unsigned long n) {
  sim::access(const_cast<void*>(from), n, false, CALLER);
  sim::access(to, n, true, CALLER);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, unsigned long n) {
  sim::access(const_cast<void*>(from), n, false, CALLER);
  sim::access(to, n, true, CALLER);
  return memmove(to, from, n);
}
// -fsanitize=alignment: a pointer to something wider than where it points allows
struct TypeMismatch {
  struct { const char* file; sim::u32 line, column; } place;
  const void* type;
  unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(const TypeMismatch* found, void* address) {
  if (!address) return;  // a null pointer faults by itself
  sim::Access a = {static_cast<sim::u8*>(address), sim::u64(1) << found->log_alignment, found->kind == 1, false, CALLER};
  sim::Finding f = sim::finding_at(a, sim::MISALIGNED);
  f.line = int32_t(found->place.line);
  sim::fail(f);
}
void __ubsan_handle_type_mismatch_v1_abort(const TypeMismatch* found, void* address) {
  __ubsan_handle_type_mismatch_v1(found, address);
}
void sim_atomic(const void* address, unsigned size, int writes) {
  sim::access(const_cast<void*>(address), size, writes, CALLER, true, size);
}
}
