// Leave one fiber's stack for another's: the registers that a call preserves, and nothing else.
#include <cstring>

#include "runtime.h"

#if defined(__APPLE__)
#define SYMBOL "_sim_switch"
#else
#define SYMBOL "sim_switch"
#endif

#if defined(__x86_64__)
asm(".text\n.globl " SYMBOL "\n" SYMBOL R"(:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

void* sim::prepare_stack(u8* top, void (*start)()) {
  u64* p = reinterpret_cast<u64*>(reinterpret_cast<u64>(top) & ~u64(63));
  *--p = 0;  // where `start` would return to; also aligns the stack as after a call
  *--p = reinterpret_cast<u64>(start);
  for (int i = 0; i < 6; i++) *--p = 0;
  return p;
}
#elif defined(__aarch64__)
asm(".text\n.globl " SYMBOL "\n" SYMBOL R"(:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");

void* sim::prepare_stack(u8* top, void (*start)()) {
  u64* p = reinterpret_cast<u64*>(reinterpret_cast<u64>(top) & ~u64(63)) - 20;
  memset(p, 0, 160);
  p[11] = reinterpret_cast<u64>(start);  // x30, the link register
  return p;
}
#else
#error "the simulator's context switch knows x86-64 and aarch64 only"
#endif
