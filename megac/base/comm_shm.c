/* Collectives of ranks that share memory. begin announces a buffer; the head of the queue then advances through
 *
 *   MADE     all members have announced, and announced the same
 *            small: everything came with the announcements, and each member does the whole for itself: done
 *   FILL     members whose buffers peers cannot reach copy a round's data to their stage (others: nothing)
 *   WORK     all have filled: all_reduce adds its slice over all members in rank order and writes it to all;
 *            reduce_scatter adds its part, all_gather and broadcast copy
 *   SETTLE   all have worked: the round's results are everywhere and its data are no longer read; next round
 *
 * With all buffers in mapped memory there is one round and no copy but the operation itself. */
#include "megac/base/comm_shm.h"

#include <string.h>

#include "megac/base/pool.h"

enum { MADE, FILL, WORK, SETTLE };
enum { SLICE_UNIT = 16 };
static const uint64_t ALL_ROUNDS = UINT64_MAX;

static mc_i_shm_slot *slot_of(const mc_i_shm_group *g, int m, const mc_request *req)
{
    return &g->member[m]->ring[req->seq % MC_I_SHM_SLOTS];
}

static void ring_others(const mc_i_shm_group *g)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* our words before their `asleep` (see mc_i_bell) */
    for (int m = 0; m < g->m.size; m++) {
        if (m != g->m.rank) {
            mc_i_bell_ring(g->bell[m]);
        }
    }
}

static bool small(const mc_request *req)
{
    return mc_i_request_bytes(req) <= MC_I_INLINE_BYTES;
}

/* ---- announcing ---- */

/* The slot's earlier operation is finished by all, so that nobody reads it any more. */
static bool has_room(const mc_i_queue *q, const mc_request *req)
{
    const mc_i_shm_group *g = q->group;
    for (int m = 0; m < g->m.size; m++) {
        if (mc_i_shm_get(&g->member[m]->n_finished) + MC_I_SHM_SLOTS <= req->seq) {
            return false;
        }
    }
    return true;
}

static void announce(const mc_i_shm_group *g, const mc_request *req)
{
    mc_i_shm_slot *slot = slot_of(g, g->m.rank, req);
    size_t bytes = mc_i_request_bytes(req);
    slot->call = mc_i_call_of(req);
    slot->used = 0;
    slot->mapped = 1;
    if (small(req)) {
        bool gives = req->kind != MC_I_BROADCAST || req->peer == g->m.rank;
        if (gives && bytes > 0) {
            memcpy(slot->payload, req->in.data, bytes);
        }
    } else if (req->kind != MC_I_BROADCAST || req->peer == g->m.rank) {
        slot->in = mc_i_world_place(g->world, req->in.data, bytes);
        slot->out = req->kind == MC_I_ALL_REDUCE ? mc_i_world_place(g->world, req->out.data, bytes) : slot->in;
        slot->mapped = slot->in.segment >= 0 && slot->out.segment >= 0;
    }
    slot->filled = slot->mapped ? ALL_ROUNDS : 0;
    mc_i_shm_set(&slot->made, req->seq + 1);
    ring_others(g);
}

mc_status mc_i_shm_group_begin(const mc_comm *c, mc_request *req)
{
    mc_i_shm_group *g = c->impl;
    if (g->engine->failed != MC_OK) {
        return g->engine->failed;
    }
    req->seq = g->begun++;
    mc_i_ledger_begun(g->engine->ledger, req);
    if (!has_room(&g->queue, req)) {
        MC_TRY(mc_i_engine_until(g->engine, &g->queue, req, has_room));
    }
    announce(g, req);
    return mc_i_engine_push(g->engine, &g->queue, req);
}

/* ---- rounds ---- */

/* Elements of a whole operation: of everything (all_reduce, broadcast) or of one part (all_gather, reduce_scatter). */
static size_t total_elems(const mc_request *req)
{
    return (size_t)mc_tensor_elems(req->kind == MC_I_REDUCE_SCATTER ? req->out : req->in);
}

static size_t elem_bytes(const mc_request *req)
{
    return mc_dtype_bytes(req->in.dtype);
}

/* Elements of total_elems that fit a round; a reduce_scatter stages that many of each part. */
static size_t staged_elems(const mc_i_shm_group *g, const mc_request *req)
{
    size_t parts = req->kind == MC_I_REDUCE_SCATTER ? (size_t)g->m.size : 1;
    return MC_I_STAGE_BYTES / elem_bytes(req) / parts;
}

static void plan_rounds(const mc_i_shm_group *g, mc_request *req)
{
    bool direct = true;
    for (int m = 0; m < g->m.size; m++) {
        direct = direct && slot_of(g, m, req)->mapped;
    }
    size_t step = staged_elems(g, req);
    req->n_rounds = direct ? 1 : (total_elems(req) + step - 1) / step;
}

typedef struct span {
    size_t begin, count; /* elements */
} span;

static span round_of(const mc_i_shm_group *g, const mc_request *req)
{
    size_t total = total_elems(req), step = req->n_rounds == 1 ? total : staged_elems(g, req);
    size_t begin = req->round * step, left = total - begin;
    return (span){begin, left < step ? left : step};
}

/* Where element `elem` of this round's part `part` of member m's in (or out) is, here. */
static unsigned char *data_of(const mc_i_shm_group *g, const mc_request *req, int m, bool out, size_t part, size_t elem)
{
    const mc_i_shm_slot *slot = slot_of(g, m, req);
    span round = round_of(g, req);
    size_t e = elem_bytes(req);
    if (m == g->m.rank && !slot->mapped && !out) {
        return (unsigned char *)req->in.data + (part * total_elems(req) + round.begin + elem) * e;
    }
    if (!slot->mapped) {
        return g->member[m]->stage + (part * round.count + elem) * e;
    }
    unsigned char *base = mc_i_world_address(g->world, out ? slot->out : slot->in, g->m.world[m], slot->call.bytes);
    return base + (part * total_elems(req) + round.begin + elem) * e;
}

/* My data of this round to my stage. */
static void fill(const mc_i_shm_group *g, const mc_request *req)
{
    span round = round_of(g, req);
    size_t e = elem_bytes(req), parts = req->kind == MC_I_REDUCE_SCATTER ? (size_t)g->m.size : 1;
    unsigned char *stage = g->member[g->m.rank]->stage;
    const unsigned char *in = req->in.data;
    for (size_t p = 0; p < parts; p++) {
        memcpy(stage + p * round.count * e, in + (p * total_elems(req) + round.begin) * e, round.count * e);
    }
}

static void work_all_reduce(const mc_i_shm_group *g, const mc_request *req)
{
    long begin, end;
    mc_pool_range((long)round_of(g, req).count, g->m.size, g->m.rank, SLICE_UNIT, &begin, &end);
    if (begin == end) {
        return;
    }
    for (int m = 0; m < g->m.size; m++) {
        g->in[m] = data_of(g, req, m, false, 0, (size_t)begin);
        g->out[m] = data_of(g, req, m, true, 0, (size_t)begin);
    }
    mc_i_reduce_to(req->in.dtype, req->op, g->out, g->m.size, g->in, g->m.size, (size_t)(end - begin));
}

static void work_reduce_scatter(const mc_i_shm_group *g, const mc_request *req)
{
    span round = round_of(g, req);
    for (int m = 0; m < g->m.size; m++) {
        g->in[m] = data_of(g, req, m, false, (size_t)g->m.rank, 0);
    }
    mc_i_reduce(req->in.dtype, req->op, (unsigned char *)req->out.data + round.begin * elem_bytes(req), g->in,
                g->m.size, round.count);
}

static void work_all_gather(const mc_i_shm_group *g, const mc_request *req)
{
    span round = round_of(g, req);
    size_t e = elem_bytes(req);
    for (int k = 0; k < g->m.size; k++) {
        int m = (g->m.rank + k) % g->m.size; /* each starts with another: the members' caches share the load */
        unsigned char *to = (unsigned char *)req->out.data + ((size_t)m * total_elems(req) + round.begin) * e;
        const unsigned char *from = data_of(g, req, m, false, 0, 0);
        if (to != from) {
            memcpy(to, from, round.count * e);
        }
    }
}

static void work(const mc_i_shm_group *g, const mc_request *req)
{
    span round = round_of(g, req);
    size_t e = elem_bytes(req);
    switch (req->kind) {
    case MC_I_ALL_REDUCE:
        work_all_reduce(g, req);
        break;
    case MC_I_REDUCE_SCATTER:
        work_reduce_scatter(g, req);
        break;
    case MC_I_ALL_GATHER:
        work_all_gather(g, req);
        break;
    default:
        if (g->m.rank != req->peer) {
            memcpy((unsigned char *)req->out.data + round.begin * e, data_of(g, req, req->peer, false, 0, 0),
                   round.count * e);
        }
    }
}

/* The others have written my round's results to my stage. */
static void collect(const mc_i_shm_group *g, const mc_request *req)
{
    if (req->kind == MC_I_ALL_REDUCE && !slot_of(g, g->m.rank, req)->mapped) {
        span round = round_of(g, req);
        size_t e = elem_bytes(req);
        memcpy((unsigned char *)req->out.data + round.begin * e, g->member[g->m.rank]->stage, round.count * e);
    }
}

/* Everything came with the announcements. */
static void finish_small(const mc_i_shm_group *g, const mc_request *req)
{
    size_t bytes = mc_i_request_bytes(req), part = mc_tensor_bytes(req->out);
    if (bytes == 0) {
        return;
    }
    if (req->kind == MC_I_BROADCAST) {
        if (g->m.rank != req->peer) {
            memcpy(req->out.data, slot_of(g, req->peer, req)->payload, bytes);
        }
        return;
    }
    for (int m = 0; m < g->m.size; m++) {
        const unsigned char *payload = slot_of(g, m, req)->payload;
        if (req->kind == MC_I_ALL_GATHER) {
            memcpy((unsigned char *)req->out.data + (size_t)m * bytes, payload, bytes);
        }
        g->in[m] = payload + (req->kind == MC_I_REDUCE_SCATTER ? (size_t)g->m.rank * part : 0);
    }
    if (req->kind != MC_I_ALL_GATHER) {
        mc_i_reduce(req->in.dtype, req->op, req->out.data, g->in, g->m.size, (size_t)mc_tensor_elems(req->out));
    }
}

/* ---- the queue ---- */

static mc_i_progress finish(mc_i_shm_group *g, const mc_request *req)
{
    g->compared = 0;
    mc_i_shm_set(&g->member[g->m.rank]->n_finished, req->seq + 1);
    ring_others(g); /* one of them may wait for room in its ring */
    return MC_I_DONE;
}

static mc_i_progress step_made(mc_i_shm_group *g, mc_request *req, mc_status *st)
{
    const mc_i_call *mine = &slot_of(g, g->m.rank, req)->call;
    for (; g->compared < g->m.size; g->compared++) {
        const mc_i_shm_slot *slot = slot_of(g, g->compared, req);
        if (mc_i_shm_get(&slot->made) != req->seq + 1) {
            return MC_I_IDLE;
        }
        *st = mc_i_call_compare(g->engine, req->comm, mine, &slot->call, g->m.world[g->compared]);
        if (*st != MC_OK) {
            return MC_I_FAILED;
        }
    }
    if (small(req)) {
        finish_small(g, req);
        return finish(g, req);
    }
    plan_rounds(g, req);
    req->phase = FILL;
    return MC_I_MOVED;
}

static bool all_reached(const mc_i_shm_group *g, const mc_request *req, bool used)
{
    for (int m = 0; m < g->m.size; m++) {
        const mc_i_shm_slot *slot = slot_of(g, m, req);
        if (mc_i_shm_get(used ? &slot->used : &slot->filled) <= req->round) {
            return false;
        }
    }
    return true;
}

static mc_i_progress step(mc_i_queue *q, mc_request *req, mc_status *st)
{
    mc_i_shm_group *g = q->group;
    mc_i_shm_slot *mine = slot_of(g, g->m.rank, req);
    switch (req->phase) {
    case MADE:
        return step_made(g, req, st);
    case FILL:
        if (!mine->mapped) {
            fill(g, req);
            mc_i_shm_set(&mine->filled, req->round + 1);
            ring_others(g);
        }
        req->phase = WORK;
        return MC_I_MOVED;
    case WORK:
        if (!all_reached(g, req, false)) {
            return MC_I_IDLE;
        }
        work(g, req);
        mc_i_shm_set(&mine->used, req->round + 1);
        ring_others(g);
        req->phase = SETTLE;
        return MC_I_MOVED;
    default:
        if (!all_reached(g, req, true)) {
            return MC_I_IDLE;
        }
        collect(g, req);
        req->phase = FILL;
        return ++req->round == req->n_rounds ? finish(g, req) : MC_I_MOVED;
    }
}

/* Members that have not announced, or are behind in the phase that `req` is in. */
static int missing(const mc_i_queue *q, const mc_request *req, int *ranks_out, int cap)
{
    const mc_i_shm_group *g = q->group;
    int n = 0;
    for (int m = 0; m < g->m.size; m++) {
        const mc_i_shm_slot *slot = slot_of(g, m, req);
        bool behind = req->phase == MADE   ? mc_i_shm_get(&slot->made) != req->seq + 1
                      : req->phase == WORK ? mc_i_shm_get(&slot->filled) <= req->round
                                           : mc_i_shm_get(&slot->used) <= req->round;
        if (!req->queued) {
            behind = mc_i_shm_get(&g->member[m]->n_finished) + MC_I_SHM_SLOTS <= req->seq;
        }
        if (behind && m != g->m.rank) {
            if (n < cap) {
                ranks_out[n] = g->m.world[m];
            }
            n++;
        }
    }
    return n;
}

const mc_i_queue_ops mc_i_shm_group_queue = {.step = step, .missing = missing};
