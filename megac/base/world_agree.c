/* Do all ranks run with the same configuration? */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/world.h"

enum { LINE_SHOWN = 240 };

/* The first line at which a rank differs from rank 0; what it says there. */
typedef struct difference {
    int32_t line; /* from 0; INT32_MAX: none */
    char theirs[LINE_SHOWN];
} difference;

static const char *next_line(const char *p)
{
    const char *end = strchr(p, '\n');
    return end ? end + 1 : p + strlen(p);
}

static int line_chars(const char *p)
{
    return (int)strcspn(p, "\n");
}

/* Line `line` of text; "" past its end. */
static const char *line_of(const char *text, int line)
{
    for (; line > 0 && *text; line--) {
        text = next_line(text);
    }
    return text;
}

static difference compare(const char *first, const char *mine)
{
    difference d = {.line = 0};
    for (const char *a = first, *b = mine; *a || *b; a = next_line(a), b = next_line(b), d.line++) {
        int n = line_chars(b);
        if (line_chars(a) != n || strncmp(a, b, (size_t)n) != 0) {
            snprintf(d.theirs, sizeof d.theirs, "%.*s", n, b);
            return d;
        }
    }
    d.line = INT32_MAX;
    return d;
}

static mc_status report(const char *first, const difference *d, int rank, int n_differ)
{
    const char *mine = line_of(first, d->line);
    int n = line_chars(mine), name = (int)strcspn(mine, " \n"), their_name = (int)strcspn(d->theirs, " \n");
    char others[48] = "";
    if (n_differ > 1) {
        snprintf(others, sizeof others, " (and %d more ranks differ)", n_differ - 1);
    }
    if (name > 0 && name < n && name == their_name && strncmp(mine, d->theirs, (size_t)name) == 0) {
        const char *value = d->theirs + name + (d->theirs[name] == ' ');
        return MC_FAIL(MC_MISMATCH, "%.*s on rank 0, %s on rank %d%s; give every rank the same flags and files",
                       n < LINE_SHOWN ? n : LINE_SHOWN, mine, *value ? value : "nothing", rank, others);
    }
    return MC_FAIL(MC_MISMATCH,
                   "configurations differ: \"%.*s\" on rank 0, \"%s\" on rank %d%s; give every rank the same flags and "
                   "files",
                   n < LINE_SHOWN ? n : LINE_SHOWN, mine, d->theirs, rank, others);
}

/* Every rank learns the lowest rank that differs; what it says travels from there; rank 0 speaks. */
static mc_status compare_all(const mc_comm *c, const char *first, const char *text, int32_t *lines)
{
    difference mine = compare(first, text);
    MC_TRY(mc_comm_all_gather(c, mc_tensor_1d(&mine.line, MC_I32, 1), mc_tensor_1d(lines, MC_I32, c->size)));
    int rank = -1, n_differ = 0;
    for (int r = c->size - 1; r >= 0; r--) {
        if (lines[r] != INT32_MAX) {
            rank = r;
            n_differ++;
        }
    }
    if (n_differ == 0) {
        return MC_OK;
    }
    MC_TRY(mc_comm_broadcast(c, mc_tensor_1d(&mine, MC_U8, sizeof mine), rank));
    return c->rank == 0 ? report(first, &mine, rank, n_differ) : MC_MISMATCH;
}

mc_status mc_world_agree(mc_world *world, const char *text)
{
    const mc_comm *c = mc_world_comm(world);
    size_t length = strlen(text);
    if (length >= INT32_MAX) {
        return MC_FAIL(MC_INVALID, "the configuration has %zu characters", length);
    }
    int32_t bytes = (int32_t)length + 1;
    MC_TRY(mc_comm_broadcast(c, mc_tensor_1d(&bytes, MC_I32, 1), 0));
    char *first;
    int32_t *lines;
    MC_TRY(mc_alloc((size_t)bytes, 1, "configuration of rank 0", (void **)&first));
    mc_status st = MC_NEW_N(&lines, c->size, "differences of ranks");
    if (st == MC_OK) {
        if (c->rank == 0) {
            memcpy(first, text, (size_t)bytes);
        }
        st = mc_comm_broadcast(c, mc_tensor_1d(first, MC_U8, bytes), 0);
        if (st == MC_OK) {
            st = compare_all(c, first, text, lines);
        }
        mc_free(lines);
    }
    mc_free(first);
    return st;
}
