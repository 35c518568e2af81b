#include "megac/base/log.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE_BYTES = 2048, HELD_BYTES = 8192 };

static struct {
    int rank;
    mc_log_level level;
    bool hold;
    size_t held_bytes;
    char held[HELD_BYTES];
} logger = {.rank = -1, .level = MC_LOG_INFO};

void mc_log_set_rank(int rank)
{
    logger.rank = rank;
}

void mc_log_set_level(mc_log_level level)
{
    logger.level = level;
}

void mc_log_hold(bool hold)
{
    logger.hold = hold;
}

/* One write(2) a line, so that lines of different ranks on one terminal never mix. */
static void emit(const char *text, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = write(STDERR_FILENO, text, bytes);
        if (n <= 0) {
            return;
        }
        text += n;
        bytes -= (size_t)n;
    }
}

bool mc_log_flush_held(void)
{
    bool any = logger.held_bytes > 0;
    emit(logger.held, logger.held_bytes);
    logger.held_bytes = 0;
    return any;
}

void mc_log_v(mc_log_level level, const char *file, int line, const char *fmt, va_list ap)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    if (level > logger.level) {
        return;
    }
    char text[LINE_BYTES];
    size_t cap = sizeof text - 1; /* room for the newline */
    int n = logger.rank > 0 || (logger.rank == 0 && logger.level >= MC_LOG_DEBUG)
                ? snprintf(text, cap, "megac[rank %d]: %s: ", logger.rank, names[level])
                : snprintf(text, cap, "megac: %s: ", names[level]);
    size_t used = (size_t)n;
    n = vsnprintf(text + used, cap - used, fmt, ap);
    used = n < 0 ? used : used + (size_t)n < cap ? used + (size_t)n : cap - 1;
    if (level == MC_LOG_ERROR || logger.level >= MC_LOG_DEBUG) {
        const char *base = strrchr(file, '/');
        n = snprintf(text + used, cap - used, " (%s:%d)", base ? base + 1 : file, line);
        used = n < 0 ? used : used + (size_t)n < cap ? used + (size_t)n : cap - 1;
    }
    text[used++] = '\n';
    if (logger.hold && logger.rank > 0 && logger.held_bytes + used <= sizeof logger.held) {
        memcpy(logger.held + logger.held_bytes, text, used);
        logger.held_bytes += used;
        return;
    }
    emit(text, used);
}

void mc_log(mc_log_level level, const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    mc_log_v(level, file, line, fmt, ap);
    va_end(ap);
}
