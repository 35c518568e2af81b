/* Stacks and the switch between them. */
#include "tests/cuda/on_cpu/fiber.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the context switch is written for x86-64"
#endif

/* Saves what the System V ABI says a callee keeps, and goes on where `to` was left. No signal mask is touched: that is
 * why this is 30 times faster than swapcontext. */
extern "C" void ly_on_cpu_switch_stack(void **from, void *to);
asm(R"(
.text
.hidden ly_on_cpu_switch_stack
.globl ly_on_cpu_switch_stack
.type ly_on_cpu_switch_stack,@function
ly_on_cpu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size ly_on_cpu_switch_stack,.-ly_on_cpu_switch_stack
)");

namespace ly_on_cpu
{

enum { PAGE = 4096, SAVED_REGISTERS = 6 };
#if defined(__SANITIZE_ADDRESS__)
enum { STACK_BYTES = 256 << 10 };
#else
enum { STACK_BYTES = 64 << 10 };
#endif

fiber *fiber_create(void (*entry)())
{
    static unsigned n_created;
    void *map =
        mmap(nullptr, STACK_BYTES + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    auto *f = static_cast<fiber *>(malloc(sizeof(fiber)));
    if (map == MAP_FAILED || !f || mprotect(map, PAGE, PROT_NONE) != 0) {
        fprintf(stderr, "on_cpu: no memory for the stack of a CUDA thread\n");
        abort();
    }
    *f = {nullptr, static_cast<char *>(map) + PAGE, STACK_BYTES, nullptr};
    /* Stacks begin at different offsets: at equal ones all would share a few sets of the cache. */
    uintptr_t top = reinterpret_cast<uintptr_t>(f->stack) + STACK_BYTES - ++n_created % 61 * 320;
    void **stack = reinterpret_cast<void **>(top / 16 * 16) - 2;
    stack[0] = reinterpret_cast<void *>(entry);
    stack[1] = nullptr; /* the return address that entry must not use */
    stack -= SAVED_REGISTERS;
    memset(stack, 0, SAVED_REGISTERS * sizeof *stack);
    f->stack_pointer = stack;
    return f;
}

void fiber_destroy(fiber *f)
{
    munmap(f->stack - PAGE, f->stack_bytes + PAGE);
    free(f);
}

void fiber_adopt(fiber *f)
{
    *f = {};
    pthread_attr_t attributes;
    void *stack = nullptr;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &stack, &f->stack_bytes);
        pthread_attr_destroy(&attributes);
    }
    f->stack = static_cast<char *>(stack);
}

void fiber_switch(fiber *from, fiber *to)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
    ly_on_cpu_switch_stack(&from->stack_pointer, to->stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

void fiber_entered()
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

} // namespace ly_on_cpu
