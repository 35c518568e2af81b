#include "megac/base/log.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE_BYTES = 2048 };

static struct {
    int rank;
    mc_log_level level;
    bool hold;
    size_t held_bytes;
    char held[MC_LOG_HELD_BYTES]; /* of rank 0: what it printed meanwhile */
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
    bool any = logger.held_bytes > 0 && logger.rank > 0;
    if (any) {
        emit(logger.held, logger.held_bytes);
    }
    logger.held_bytes = 0;
    return any;
}

void mc_log_copy_held(char text_out[MC_LOG_HELD_BYTES])
{
    memset(text_out, 0, MC_LOG_HELD_BYTES);
    memcpy(text_out, logger.held, logger.held_bytes);
}

/* A line without its "megac[rank N]: ", and its length with the newline. */
static const char *body_of(const char *line, const char *end, size_t *bytes_out)
{
    const char *newline = memchr(line, '\n', (size_t)(end - line)), *body = line;
    end = newline ? newline + 1 : end;
    while (end - body > 2 && memcmp(body, ": ", 2) != 0) {
        body++;
    }
    *bytes_out = (size_t)(end - body);
    return body;
}

static bool has_body(const char *text, const char *text_end, const char *body, size_t bytes)
{
    while (text < text_end) {
        size_t n;
        const char *other = body_of(text, text_end, &n);
        if (n == bytes && memcmp(other, body, n) == 0) {
            return true;
        }
        text = other + n;
    }
    return false;
}

void mc_log_drop_held(const char said[MC_LOG_HELD_BYTES])
{
    size_t kept = 0;
    const char *end = logger.held + logger.held_bytes, *said_end = said + strnlen(said, MC_LOG_HELD_BYTES);
    for (const char *line = logger.held; line < end;) {
        size_t n;
        const char *body = body_of(line, end, &n), *next = body + n;
        if (!has_body(said, said_end, body, n)) {
            memmove(logger.held + kept, line, (size_t)(next - line));
            kept += (size_t)(next - line);
        }
        line = next;
    }
    logger.held_bytes = kept;
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
    bool held = logger.hold && logger.rank >= 0 && logger.held_bytes + used <= sizeof logger.held;
    if (held) {
        memcpy(logger.held + logger.held_bytes, text, used);
        logger.held_bytes += used;
    }
    if (!held || logger.rank == 0) {
        emit(text, used);
    }
}

void mc_log(mc_log_level level, const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    mc_log_v(level, file, line, fmt, ap);
    va_end(ap);
}
