#include "tests/cuda/races.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ThreadSanitizer's interface for a report being made (gcc ships no header for it). */
int __tsan_get_report_mop(void *report, unsigned long index, int *tid, void **address, int *size, int *write,
                          int *atomic, void **trace, unsigned long trace_size);
void __sanitizer_symbolize_pc(void *pc, const char *format, char *out, size_t out_size);
void __sanitizer_symbolize_global(void *address, const char *format, char *out, size_t out_size);
void AnnotateBenignRaceSized(const char *file, int line, const volatile void *address, size_t size, const char *text);
/* bool __tsan::OnReport(const ReportDesc *, bool suppressed): called before a report is printed; true keeps it back. */
bool races_on_report(void *report, bool suppressed) __asm__("_ZN6__tsan8OnReportEPKNS_10ReportDescEb");

/* Every race of every test counts, also at an address or in a place that raced before; the program's own exit status
 * tells what that means. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "exitcode=0:suppress_equal_stacks=0:suppress_equal_addresses=0";
}

enum { FRAMES = 4 };
static struct {
    int seen;
    bool quiet;
    char first[256];
} races;

static bool is_in_variable(const char *at, const char *name)
{
    char other[256] = "";
    __sanitizer_symbolize_global((void *)(uintptr_t)at, "%g", other, sizeof other);
    return strcmp(other, name) == 0;
}

/* Whether the address is in a function-local static: shared memory, of which every block has its own on a GPU. A report
 * takes a millisecond, and every word of every block would make one: the first one declares the whole variable. */
static bool is_shared_memory(void *address)
{
    enum { STEP = 8 };
    char name[256] = "";
    __sanitizer_symbolize_global(address, "%g", name, sizeof name);
    if (!strstr(name, ")::")) {
        return false;
    }
    const char *begin = address, *end = begin + STEP;
    while (is_in_variable(begin - STEP, name)) {
        begin -= STEP;
    }
    while (is_in_variable(end, name)) {
        end += STEP;
    }
    AnnotateBenignRaceSized(__FILE__, __LINE__, begin, (size_t)(end - begin), "shared memory of two blocks");
    return true;
}

bool races_on_report(void *report, bool suppressed)
{
    void *trace[FRAMES] = {NULL}, *address = NULL;
    int tid, size, write, atomic;
    char text[256] = "";
    __tsan_get_report_mop(report, 0, &tid, &address, &size, &write, &atomic, trace, FRAMES);
    if (getenv("LY_ON_CPU_TSAN_BLOCKS") && is_shared_memory(address)) {
        return true;
    }
    /* The innermost frame may be an interceptor's (memcpy). */
    for (int i = 0; i < FRAMES && trace[i] && (!text[0] || strncmp(text, "__interceptor", 13) == 0); i++) {
        __sanitizer_symbolize_pc(trace[i], "%f, %s:%l", text, sizeof text);
    }
    if (races.seen++ == 0) {
        snprintf(races.first, sizeof races.first, "%s", text);
    }
    return suppressed || races.quiet;
}

void races_reset(int quiet)
{
    races.seen = 0;
    races.quiet = quiet != 0;
    races.first[0] = '\0';
}

int races_seen(void)
{
    return races.seen;
}

const char *races_first(void)
{
    return races.first;
}
