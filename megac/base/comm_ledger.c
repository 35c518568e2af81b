#include "megac/base/comm_ledger.h"

#include <stdio.h>
#include <string.h>

#include "megac/base/clock.h"
#include "megac/base/comm_impl.h"

_Static_assert(sizeof(mc_i_ledger_row) % 8 == 0 && sizeof(mc_i_ledger_wait) % 8 == 0, "they move in words");

/* The first word is 0 while the others change. Stores with release and loads with acquire keep their order among
 * themselves, which fences would too, but ThreadSanitizer knows no fences. */
static void put(uint64_t *to, const void *from, size_t words)
{
    uint64_t w[MC_I_ROW_WORDS];
    memcpy(w, from, words * sizeof *w);
    __atomic_store_n(&to[0], 0, __ATOMIC_RELAXED);
    for (size_t i = 1; i < words; i++) {
        __atomic_store_n(&to[i], w[i], __ATOMIC_RELEASE);
    }
    __atomic_store_n(&to[0], w[0], __ATOMIC_RELEASE);
}

static bool get(const uint64_t *from, void *to, size_t words)
{
    uint64_t w[MC_I_ROW_WORDS];
    for (size_t i = 0; i < words; i++) {
        w[i] = __atomic_load_n(&from[i], __ATOMIC_ACQUIRE);
    }
    memcpy(to, w, words * sizeof *w);
    return w[0] != 0 && __atomic_load_n(&from[0], __ATOMIC_RELAXED) == w[0];
}

static uint64_t *place_of(mc_i_ledger *l, uint64_t id)
{
    return l->rows[id % MC_I_LEDGER_OPS];
}

/* ---- writing ---- */

void mc_i_ledger_set_step(mc_i_ledger *l, int64_t step)
{
    __atomic_store_n(&l->step, step, __ATOMIC_RELAXED);
}

void mc_i_ledger_leaves(mc_i_ledger *l)
{
    __atomic_store_n(&l->left, 1, __ATOMIC_RELEASE);
}

/* `name_bytes` of the row's name, with its NUL, are used; what a place holds behind it is older. */
static uint64_t add(mc_i_ledger *l, mc_i_ledger_row *row, size_t name_bytes)
{
    row->id = l->last_id + 1; /* this thread alone changes it */
    row->step = l->step;
    row->begun_s = mc_now();
    put(place_of(l, row->id), row, (offsetof(mc_i_ledger_row, name) + name_bytes + 7) / 8);
    __atomic_store_n(&l->last_id, row->id, __ATOMIC_RELEASE);
    return row->id;
}

void mc_i_ledger_ended(mc_i_ledger *l, uint64_t id)
{
    uint64_t *place = place_of(l, id), bits;
    double now = mc_now();
    memcpy(&bits, &now, sizeof bits);
    if (id != 0 && place[0] == id) {
        __atomic_store_n(&place[offsetof(mc_i_ledger_row, done_s) / 8], bits, __ATOMIC_RELEASE);
    }
}

void mc_i_ledger_begun(mc_i_ledger *l, mc_request *req)
{
    mc_i_ledger_row row = {
        .kind = req->kind,
        .dtype = (int32_t)(req->kind == MC_I_RECV ? req->out : req->in).dtype,
        .peer = req->peer,
        .seq = req->seq,
        .bytes = mc_i_request_bytes(req),
    };
    size_t n = strnlen(req->comm->name, sizeof row.name - 1);
    memcpy(row.name, req->comm->name, n);
    req->ledger_id = add(l, &row, n + 1);
}

void mc_i_ledger_done(mc_i_ledger *l, const mc_request *req)
{
    mc_i_ledger_ended(l, req->ledger_id);
}

uint64_t mc_i_ledger_own_begun(mc_i_ledger *l, const char *what, const char *path)
{
    mc_i_ledger_row row = {.kind = MC_I_OWN, .peer = -1};
    size_t used = (size_t)snprintf(row.name, sizeof row.name, "%s", what);
    if (path && used + 8 < sizeof row.name) {
        size_t room = sizeof row.name - used - 2, n = strlen(path);
        bool cut = n > room; /* the end of a path says most */
        used += (size_t)snprintf(row.name + used, sizeof row.name - used, " %s%s", cut ? "..." : "",
                                 cut ? path + (n - room + 3) : path);
    }
    return add(l, &row, used < sizeof row.name ? used + 1 : sizeof row.name);
}

void mc_i_ledger_waits(mc_i_ledger *l, uint64_t id, double since_s, const int *ranks, int n)
{
    mc_i_ledger_wait wait = {.id = id, .since_s = since_s, .n = n};
    for (int i = 0; i < n && i < MC_I_LEDGER_MISSING; i++) {
        wait.ranks[i] = ranks[i];
    }
    put(l->waits, &wait, MC_I_WAIT_WORDS);
}

/* ---- reading ---- */

int64_t mc_i_ledger_step(const mc_i_ledger *l)
{
    return __atomic_load_n(&l->step, __ATOMIC_RELAXED);
}

bool mc_i_ledger_has_left(const mc_i_ledger *l)
{
    return __atomic_load_n(&l->left, __ATOMIC_ACQUIRE) != 0;
}

uint64_t mc_i_ledger_last_id(const mc_i_ledger *l)
{
    return __atomic_load_n(&l->last_id, __ATOMIC_ACQUIRE);
}

/* Memory that another process writes is not trusted with the end of a text. */
bool mc_i_ledger_get_row(const mc_i_ledger *l, uint64_t id, mc_i_ledger_row *row_out)
{
    bool whole = get(l->rows[id % MC_I_LEDGER_OPS], row_out, MC_I_ROW_WORDS);
    row_out->name[sizeof row_out->name - 1] = '\0';
    return whole && row_out->id == id;
}

bool mc_i_ledger_get_wait(const mc_i_ledger *l, mc_i_ledger_wait *wait_out)
{
    return get(l->waits, wait_out, MC_I_WAIT_WORDS);
}

/* First row that may still be there, and that may be read while the next one is written over the oldest. */
static uint64_t oldest(uint64_t last)
{
    return last < MC_I_LEDGER_OPS ? 1 : last - MC_I_LEDGER_OPS + 1;
}

bool mc_i_ledger_get_own(const mc_i_ledger *l, mc_i_ledger_row *row_out)
{
    uint64_t last = mc_i_ledger_last_id(l);
    for (uint64_t id = last; id > 0 && id >= oldest(last); id--) {
        if (mc_i_ledger_get_row(l, id, row_out) && row_out->kind == MC_I_OWN && row_out->done_s == 0) {
            return true;
        }
    }
    return false;
}

/* ---- texts ---- */

int mc_i_ledger_op_text(const mc_i_ledger_row *row, char *text_out, size_t cap)
{
    char peer[32] = "";
    if (row->kind == MC_I_OWN) {
        return snprintf(text_out, cap, "%s", row->name);
    }
    if (row->peer >= 0) {
        snprintf(peer, sizeof peer, " %s member %d", row->kind == MC_I_SEND ? "to" : "from", (int)row->peer);
    }
    return snprintf(text_out, cap, "%s #%llu %s%s, %llu bytes %s", row->name, (unsigned long long)row->seq,
                    mc_i_kind_name(row->kind), peer, (unsigned long long)row->bytes,
                    (unsigned)row->dtype < MC_DTYPE_COUNT ? mc_dtype_name((mc_dtype)row->dtype) : "?");
}

int mc_i_ledger_row_text(const mc_i_ledger_row *row, double now_s, char *text_out, size_t cap)
{
    char op[MC_I_LEDGER_NAME_BYTES + 128], end[32] = "under way";
    mc_i_ledger_op_text(row, op, sizeof op);
    if (row->done_s > 0) {
        snprintf(end, sizeof end, "took %.6f s", row->done_s - row->begun_s);
    }
    return snprintf(text_out, cap, "%s, step %lld, begun %.3f s ago, %s", op, (long long)row->step,
                    now_s - row->begun_s, end);
}

void mc_i_ledger_text(const mc_i_ledger *l, int max_rows, const char *separator, char *text_out, size_t cap)
{
    if (cap == 0) {
        return;
    }
    uint64_t last = mc_i_ledger_last_id(l), begin = last + 1;
    size_t used = 0, gap = strlen(separator);
    double now = mc_now();
    mc_i_ledger_row row;
    text_out[0] = '\0';
    while (begin > oldest(last) && last + 1 - begin < (uint64_t)max_rows && mc_i_ledger_get_row(l, begin - 1, &row)) {
        size_t n = (size_t)mc_i_ledger_row_text(&row, now, NULL, 0) + gap;
        if (used + n + 1 > cap) {
            break;
        }
        used += n;
        begin--;
    }
    used = 0;
    for (uint64_t id = begin; id <= last && used + 1 < cap; id++) {
        if (mc_i_ledger_get_row(l, id, &row)) {
            used += (size_t)mc_i_ledger_row_text(&row, now, text_out + used, cap - used);
            used = used < cap ? used + (size_t)snprintf(text_out + used, cap - used, "%s", separator) : used;
        }
    }
}
