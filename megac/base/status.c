#include "megac/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "megac/base/log.h"

static const struct {
    const char *name, *text;
    int exit_status;
} rows[MC_STATUS_COUNT] = {
#define MC_STATUS(name, exit_status, text) [MC_##name] = {#name, text, exit_status},
#include "megac/base/status.def"
#undef MC_STATUS
};

const char *mc_status_name(mc_status st)
{
    return (unsigned)st < MC_STATUS_COUNT ? rows[st].name : "?";
}

const char *mc_status_text(mc_status st)
{
    return (unsigned)st < MC_STATUS_COUNT ? rows[st].text : "?";
}

int mc_status_exit(mc_status st)
{
    return (unsigned)st < MC_STATUS_COUNT ? rows[st].exit_status : 1;
}

void mc_fail_at(const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    mc_log_v(MC_LOG_ERROR, file, line, fmt, ap);
    va_end(ap);
}

void mc_assert_failed(const char *file, int line, const char *expr)
{
    mc_log(MC_LOG_ERROR, file, line, "broken invariant: %s; this is a defect of megac, please report it", expr);
    mc_log_flush_held();
    abort();
}
