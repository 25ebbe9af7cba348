// Whether the writes of a race left the same value. The compiler's hook comes before the write, so the bytes that stand
// there are kept and compared at the next write, or when the thread lets another run.
#include <cstring>

#include "runtime.h"

namespace sim {
struct Expected {
  int finding;  // -1: nothing is expected
  const u8* address;
  size_t size;
  u8 bytes[64];
};
static Expected expected = {-1, nullptr, 0, {}};

void expect_equal(int finding, const u8* address, size_t size) {
  if (finding < 0) return;
  if (size > sizeof expected.bytes) {
    launched->findings[finding].same_value = 0;
    return;
  }
  expected.finding = finding;
  expected.address = address;
  expected.size = size;
  memcpy(expected.bytes, address, size);
}
void settle_equal() {
  if (expected.finding < 0) return;
  if (memcmp(expected.bytes, expected.address, expected.size)) launched->findings[expected.finding].same_value = 0;
  expected.finding = -1;
}
}  // namespace sim
