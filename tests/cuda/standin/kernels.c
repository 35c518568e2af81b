/* The kernels of kernels.h. */
#include "tests/cuda/standin/kernels.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/cuda/on_cpu/hook.h"

typedef struct call {
    float *y, *workspace;
    const float *x;
    size_t n;
    float a;
} call;

static int launch(const char *kernel, unsigned n_blocks, int (*run)(void *, char *, size_t), call arguments,
                  void *stream)
{
    call *closure = malloc(sizeof *closure);
    if (!closure || !ly_on_cpu_launch_hook) {
        fprintf(stderr,
                "kernels.c: no runtime takes launches: is the stand-in the first libcudart of LD_LIBRARY_PATH?\n");
        exit(3);
    }
    *closure = arguments;
    const ly_on_cpu_pointer pointers[] = {{arguments.y, 1, 0}, {arguments.x, 0, 1}, {arguments.workspace, 1, 2}};
    const ly_on_cpu_launch what = {
        .kernel = kernel,
        .grid = {n_blocks, 1, 1},
        .block = {128, 1, 1},
        .stream = stream,
        .pointers = pointers,
        .n_pointers = 3,
        .run = run,
        .release = free,
        .closure = closure,
    };
    return ly_on_cpu_launch_hook(&what);
}

static int run_subtract(void *closure, char *message_out, size_t cap)
{
    const call *c = closure;
    (void)message_out, (void)cap;
    for (size_t i = 0; i < c->n; i++) {
        c->y[i] -= c->a * c->x[i];
    }
    return 0;
}

int tk_subtract(float *y, const float *x, size_t n, float a, void *stream)
{
    return launch("subtract", 1, run_subtract, (call){.y = y, .x = x, .n = n, .a = a}, stream);
}

static int run_square(void *closure, char *message_out, size_t cap)
{
    const call *c = closure;
    (void)message_out, (void)cap;
    for (size_t i = 0; i < c->n; i++) {
        c->workspace[i] = c->x[i];
    }
    for (size_t i = 0; i < c->n; i++) {
        c->y[i] = c->workspace[i] * c->workspace[i];
    }
    return 0;
}

int tk_square(float *y, const float *x, float *workspace, size_t n, void *stream)
{
    return launch("square", 1, run_square, (call){.y = y, .x = x, .workspace = workspace, .n = n}, stream);
}

static int run_fail(void *closure, char *message_out, size_t cap)
{
    (void)closure;
    snprintf(message_out, cap, "thread 3 left the barrier");
    return 719;
}

int tk_fail(float *y, void *stream)
{
    return launch("fail", 1, run_fail, (call){.y = y}, stream);
}

int tk_empty_grid(float *y, void *stream)
{
    return launch("empty", 0, run_fail, (call){.y = y}, stream);
}
