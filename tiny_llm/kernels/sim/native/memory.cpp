// Threadgroup memory, and buffers between guard pages.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "runtime.h"

namespace sim {
std::vector<Variable> variables;  // in the order of their offsets; the same in every group of a launch
u8* arena;
static size_t used;

void prepare_arena() {
  if (!arena) {
    arena = static_cast<u8*>(mmap(nullptr, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(arena, 0xff, ARENA);
  }
  variables.clear();
  used = GAP;
}
void begin_group_memory() { memset(arena, 0xff, std::min(used, ARENA)); }  // what is not written is NaN

const Variable* variable_at(size_t offset, size_t size) {
  for (const Variable& v : variables)
    if (offset >= v.offset && offset + size <= v.offset + v.size) return &v;
  return nullptr;
}
size_t threadgroup_bytes() {
  size_t total = 0;
  for (const Variable& v : variables) total += v.size;
  return total;
}
}  // namespace sim

using namespace sim;
extern "C" {
// The group's one copy of the variable `tag` stands for: what `threadgroup T name[…];` was rewritten to.
void* sim_threadgroup(void* tag, unsigned long size, unsigned long granularity, unsigned long item,
                      const char* name) {
  for (const Variable& v : variables)
    if (v.tag == tag) return arena + v.offset;
  size_t total = threadgroup_bytes() + size;
  if (total > launched->threadgroup_limit || used + size + 2 * GAP > ARENA) {
    Finding finding = finding_by(fibers[current], THREADGROUP_MEMORY);
    finding.size = i64(total);
    finding.limit = launched->threadgroup_limit;
    snprintf(finding.name, sizeof finding.name, "%s", name);
    finding.pc = library_offset(__builtin_return_address(0));
    fail(finding);
  }
  size_t offset = (used + GAP - 1) / GAP * GAP;
  Busy busy;
  variables.push_back({tag, u32(offset), u32(size), u32(granularity), u32(item), name});
  used = offset + size + GAP;
  forget_variable(variables.back());
  return arena + offset;
}

// `size` bytes that end at a page without access, so that a kernel that runs over the end stops there.
void* sim_guarded(u64 size, u64* mapped) {
  u64 body = std::max<u64>(16, (size + 15) / 16 * 16), pages = (body + PAGE - 1) / PAGE * PAGE;
  *mapped = pages + 2 * RED_ZONE;
  void* map = mmap(nullptr, *mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return nullptr;
  u8* low = static_cast<u8*>(map) + RED_ZONE;
  mprotect(low, pages, PROT_READ | PROT_WRITE);
  return low + pages - body;
}
static u8* page_of(void* address) { return reinterpret_cast<u8*>(reinterpret_cast<u64>(address) & ~u64(PAGE - 1)); }
void sim_protect(void* data, u64 size) {
  u8* low = page_of(data);
  mprotect(low, size_t(static_cast<u8*>(data) + size - low), PROT_READ);
}
void sim_release(void* data, u64 mapped) { munmap(page_of(data) - RED_ZONE, mapped); }
}
