// Fibers run until they wait for others; what they wait for is released when all have come.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace sim {
Fiber fibers[MAX_THREADS];
Simdgroup simdgroups[MAX_SIMDGROUPS];
u32 current, thread_count, simdgroup_count, group_index;
Launch* launched;
u64 random_state;
static void* scheduler_stack;

u32 random_below(u32 n) {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return u32((random_state >> 11) % n);
}
static void shuffle(u32* items, u32 n) {
  for (u32 i = n; i > 1; i--) std::swap(items[i - 1], items[random_below(i)]);
}
u32 lanes_of(u32 simdgroup) { return std::min(LANES, thread_count - simdgroup * LANES); }

static void fiber_main() {
  Fiber& self = fibers[current];
  launched->entry(launched->arguments, &self.place);
  settle_equal();
  self.state = RETURNED;
  void* unused;
  sim_switch(&unused, scheduler_stack);
  abort();  // nobody resumes a fiber that has returned
}
void start_fiber(Fiber& fiber) {
  fiber.state = RUNNABLE;
  fiber.stack_pointer = prepare_stack(fiber.stack_high, fiber_main);
}
static void resume(u32 index) {
  current = index;
  sim_switch(&scheduler_stack, fibers[index].stack_pointer);
}
// In order: straight to the next lane that can run, without a detour through the scheduler.
static void wait(Fiber& self) {
  settle_equal();
  if (!launched->seed) {
    u32 end = std::min(thread_count, (self.index & ~(LANES - 1)) + LANES);
    for (u32 i = self.index + 1; i < end; i++) {
      if (fibers[i].state != RUNNABLE) continue;
      current = i;
      sim_switch(&self.stack_pointer, fibers[i].stack_pointer);
      return;
    }
  }
  sim_switch(&self.stack_pointer, scheduler_stack);
}

static const char* OPERATIONS[] = {"", "a reduction", "a shuffle", "a prefix operation", "a vote", "a quad operation",
                                   "a simdgroup_matrix operation"};
static const char* operation_name(const Fiber& f) {
  return f.state == AT_GROUP_BARRIER ? "threadgroup_barrier"
         : f.state == AT_SIMD_BARRIER ? "simdgroup_barrier"
                                      : OPERATIONS[f.operation];
}
[[noreturn]] static void fail_diverged(Kind kind, const Fiber& one, const Fiber& other) {
  Finding finding = finding_by(one, kind);
  finding.line = one.line;
  finding.other_line = other.state == RETURNED ? 0 : other.line;
  finding.other_thread = other.index;
  snprintf(finding.name, sizeof finding.name, "%s", operation_name(one));
  snprintf(finding.other_name, sizeof finding.other_name, "%s",
           other.state == RETURNED ? "returned" : operation_name(other));
  fail(finding);
}
static bool waits_with(const Fiber& a, const Fiber& b) {
  return a.state == b.state && a.line == b.line && (a.operation == b.operation || a.state != AT_COLLECTIVE);
}

// No lane of this simdgroup can run: release those in a simdgroup's operation. Lanes that returned are not waited for.
static bool release_simdgroup(u32 simdgroup) {
  Fiber* lanes = fibers + simdgroup * LANES;
  u32 count = lanes_of(simdgroup), active = 0;
  const Fiber* first = nullptr;
  if (launched->trace) flush_trace(simdgroup);
  for (u32 i = 0; i < count; i++)
    if (!first && (lanes[i].state == AT_SIMD_BARRIER || lanes[i].state == AT_COLLECTIVE)) first = &lanes[i];
  if (!first) return false;
  State state = first->state;
  int flags = first->operation;
  for (u32 i = 0; i < count; i++) {
    if (lanes[i].state == RETURNED) continue;
    if (!waits_with(*first, lanes[i])) fail_diverged(COLLECTIVE_DIVERGENCE, *first, lanes[i]);
    active |= 1u << i;
  }
  for (u32 i = 0; i < count; i++)
    if (active >> i & 1u) lanes[i].state = RUNNABLE;
  simdgroups[simdgroup].active = active;
  simdgroups[simdgroup].is_combined[simdgroups[simdgroup].round] = false;
  simdgroups[simdgroup].round ^= 1;
  if (state == AT_SIMD_BARRIER) {
    launched->counters.simd_barriers++;
    barrier_passed(false, simdgroup, flags);
  } else {
    launched->counters.collectives++;
  }
  return true;
}

static void run_simdgroup(u32 simdgroup) {
  u32 order[LANES], count = lanes_of(simdgroup);
  for (u32 i = 0; i < count; i++) order[i] = simdgroup * LANES + i;
  do {
    if (launched->seed) shuffle(order, count);
    for (u32 i = 0; i < count; i++)
      if (fibers[order[i]].state == RUNNABLE) resume(order[i]);
  } while (release_simdgroup(simdgroup));
}

// Every thread has returned or waits in a threadgroup barrier. False when all have returned.
static bool release_group() {
  const Fiber *waiting = nullptr, *returned = nullptr;
  for (u32 i = 0; i < thread_count; i++) {
    const Fiber& f = fibers[i];
    if (f.state == RETURNED) {
      returned = returned ? returned : &f;
      continue;
    }
    if (waiting && f.line != waiting->line) fail_diverged(BARRIER_DIVERGENCE, *waiting, f);
    waiting = waiting ? waiting : &f;
  }
  if (!waiting) return false;
  if (returned) fail_diverged(BARRIER_DIVERGENCE, *waiting, *returned);
  launched->counters.group_barriers++;
  barrier_passed(true, 0, waiting->operation);
  for (u32 i = 0; i < thread_count; i++) fibers[i].state = RUNNABLE;
  return true;
}

void run_group() {
  u32 order[MAX_SIMDGROUPS];
  for (u32 i = 0; i < simdgroup_count; i++) {
    order[i] = i;
    simdgroups[i].round = 0;
  }
  do {
    if (launched->seed) shuffle(order, simdgroup_count);
    for (u32 i = 0; i < simdgroup_count; i++) run_simdgroup(order[i]);
  } while (release_group());
}
}  // namespace sim

using namespace sim;
extern "C" {
unsigned sim_lane() { return fibers[current].index % LANES; }

void sim_barrier(int whole_group, int flags, int line) {
  Fiber& self = fibers[current];
  self.line = line;
  self.operation = flags;
  self.state = whole_group ? AT_GROUP_BARRIER : AT_SIMD_BARRIER;
  wait(self);
}

const u8* sim_exchange(const void* value, unsigned size, unsigned* active, int operation, int line) {
  Fiber& self = fibers[current];
  Simdgroup& group = simdgroups[self.index / LANES];
  u8* slots = group.slots[group.round];
  memcpy(slots + self.index % LANES * SLOT, value, size);
  self.line = line;
  self.operation = operation;
  self.state = AT_COLLECTIVE;
  wait(self);
  *active = group.active;
  return slots;
}

void sim_combine(const void* value, unsigned size, void (*combine)(const u8*, unsigned, void*), void* result, int line) {
  unsigned active;
  const u8* slots = sim_exchange(value, size, &active, 1, line);
  Simdgroup& group = simdgroups[fibers[current].index / LANES];
  int round = slots == group.slots[1];
  if (!group.is_combined[round]) combine(slots, active, group.combined[round]);
  group.is_combined[round] = true;
  memcpy(result, group.combined[round], size);
}

// result += A B of 8 × 8 matrices; each lane brings two elements of A, then two of B (include/sim/matrix.h)
void sim_multiply8x8(const float* mine, float* result, int line) {
  unsigned active, lane = sim_lane();
  const u8* slots = sim_exchange(mine, 4 * sizeof(float), &active, 6, line);
  auto holder = [](unsigned row, unsigned column) {  // the lane that holds this element
    return (row & 4) << 2 | (row & 3) << 1 | (column & 4) << 1 | (column >> 1 & 1);
  };
  unsigned row = (lane / 4 & 4) + lane / 2 % 4, column = (lane / 4 & 2) * 2 + lane % 2 * 2;
  for (unsigned k = 0; k < 8; k++) {
    const float* a = reinterpret_cast<const float*>(slots + holder(row, k) * SLOT);
    const float* b = reinterpret_cast<const float*>(slots + holder(k, column) * SLOT);
    result[0] += a[k & 1] * b[2];
    result[1] += a[k & 1] * b[3];
  }
}
}
