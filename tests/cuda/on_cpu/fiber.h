/* Fibers: stacks that one OS thread switches between, known to the sanitizers. */
#ifndef TESTS_CUDA_ON_CPU_FIBER_H
#define TESTS_CUDA_ON_CPU_FIBER_H

#include <stddef.h>

namespace ly_on_cpu
{

struct fiber {
    void *stack_pointer; /* while it does not run */
    char *stack;         /* above a page that cannot be touched */
    size_t stack_bytes;
    void *fake_stack; /* AddressSanitizer's */
};

/* Its first switch enters `entry`, which never returns. Aborts where memory lacks. */
fiber *fiber_create(void (*entry)());
/* Not while it runs. What stands on its stack is forgotten, not destroyed. */
void fiber_destroy(fiber *f);
/* Makes `f` stand for the calling OS thread's own stack. */
void fiber_adopt(fiber *f);
void fiber_switch(fiber *from, fiber *to);
/* The first thing that `entry` does. */
void fiber_entered();

} // namespace ly_on_cpu

#endif
