// A thread's own variables that are declared without a value (sim/rewrite_private.py makes each a sim::Private). A byte of the
// shadow stands for each byte of the fibers' stacks: 1 until something is written there.
#include <sys/mman.h>

#include <cstring>

#include "runtime.h"

namespace sim {
struct Own {
  const u8* address;
  size_t size, item;
  const char* name;
};
static std::vector<Own> own[MAX_THREADS];  // those that are in scope, the innermost last
static u8* shadow;

static u8* shadow_of(const u8* address) { return shadow + (address - fibers[0].stack_low); }
static size_t shadow_size() { return size_t(fibers[MAX_THREADS - 1].stack_high - fibers[0].stack_low); }

void begin_private() {
  if (!shadow)
    shadow = static_cast<u8*>(mmap(nullptr, shadow_size(), PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (Fiber& fiber : fibers) forget_private(fiber);
}
void forget_private(Fiber& fiber) {  // a launch that failed left them in scope
  for (const Own& variable : own[fiber.index]) memset(shadow_of(variable.address), 0, variable.size);
  own[fiber.index].clear();
}
void write_private(const u8* address, size_t size) {
  if (!own[current].empty()) memset(shadow_of(address), 0, size);
}
// Whether nothing was written to any of these bytes. One that was written is enough: a vector of three is read as four.
bool read_private(const u8* address, size_t size, Unwritten& found) {
  if (own[current].empty() || !shadow_of(address)[0]) return false;
  const u8* marks = shadow_of(address);
  for (size_t i = 0; i < size; i++)
    if (!marks[i]) return false;
  for (const Own& variable : own[current]) {
    if (address < variable.address || address >= variable.address + variable.size) continue;
    found = {variable.name, i64((address - variable.address) / variable.item), i64(variable.size / variable.item)};
    return true;
  }
  return false;
}
}  // namespace sim

using namespace sim;
extern "C" {
void sim_private_begin(void* data, unsigned long size, unsigned long item, const char* name) {
  const u8* address = static_cast<u8*>(data);
  if (!launched->check || address < fibers[current].stack_low || address >= fibers[current].stack_high) return;
  Busy busy;
  own[current].push_back({address, size, item, name});
  memset(shadow_of(address), 1, size);
}
void sim_private_end(void* data, unsigned long size) {
  std::vector<Own>& variables = own[current];
  if (variables.empty() || variables.back().address != data) return;
  memset(shadow_of(static_cast<u8*>(data)), 0, size);
  variables.pop_back();
}
}
