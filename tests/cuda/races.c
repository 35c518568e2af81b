#include "tests/cuda/races.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ThreadSanitizer's interface for a report being made (gcc ships no header for it). */
int __tsan_get_report_mop(void *report, unsigned long index, int *tid, void **address, int *size, int *write,
                          int *atomic, void **trace, unsigned long trace_size);
void __sanitizer_symbolize_pc(void *pc, const char *format, char *out, size_t out_size);
void __sanitizer_symbolize_global(void *address, const char *format, char *out, size_t out_size);
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

bool races_on_report(void *report, bool suppressed)
{
    void *trace[FRAMES] = {NULL}, *address = NULL;
    int tid, size, write, atomic;
    char text[256] = "";
    __tsan_get_report_mop(report, 0, &tid, &address, &size, &write, &atomic, trace, FRAMES);
    if (getenv("LY_ON_CPU_TSAN_BLOCKS")) {
        /* A function-local static is shared memory: every block has its own on a GPU. */
        __sanitizer_symbolize_global(address, "%g", text, sizeof text);
        if (strstr(text, ")::")) {
            return true;
        }
        text[0] = '\0';
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
