/* A communicator by messages, for groups that span nodes (and nodes whose ranks cannot share memory).
 *
 * Collectives are direct: every rank sends its announcement (with the payload, when small) to every other, and so
 * learns that all call the same thing; larger ones then go in rounds through a fixed staging buffer:
 *
 *   all_reduce      slice j of everyone's round to rank j, which adds in rank order and sends the result to all
 *   reduce_scatter  the first half of that        all_gather, broadcast   straight into `out`
 *
 * Sending and receiving is in comm_msg_pair.c. Nothing is allocated after creation. */
#include "megac/base/comm_msg.h"

#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/pool.h"

enum { ROUND_BYTES = 64 << 20, SLICE_UNIT = 16 };

enum { ANNOUNCE, ANNOUNCED, EXCHANGE, EXCHANGED, RESULT };

static size_t elem_bytes(const mc_request *req)
{
    return mc_dtype_bytes(req->in.dtype);
}

mc_i_hello *mc_i_hello_of(unsigned char *hellos, int member)
{
    return (mc_i_hello *)(hellos + (size_t)member * sizeof(mc_i_hello));
}

/* One part of the exchange: a message of `bytes` with member m; none for no bytes. */
static mc_status post(mc_i_msg_group *g, bool send, void *data, size_t bytes, int m, int tag)
{
    if (bytes == 0) {
        return MC_OK;
    }
    return send ? mc_i_net_send(g->net, data, bytes, g->world[m], g->tag + tag, &g->posts[g->m.size + m])
                : mc_i_net_recv(g->net, data, bytes, g->world[m], g->tag + tag, &g->posts[m]);
}

static mc_status post_announcements(mc_i_msg_group *g, mc_request *req)
{
    size_t bytes = mc_i_request_bytes(req), small = bytes <= MC_I_INLINE_BYTES ? bytes : 0;
    g->mine->call = mc_i_call_of(req);
    if (small) {
        memcpy(g->mine->payload, req->in.data, small);
    }
    for (int m = 0; m < g->m.size; m++) {
        if (m == g->m.rank) {
            continue;
        }
        /* Room for any payload: a rank that calls something else must be seen, not cut off. */
        MC_TRY(post(g, false, mc_i_hello_of(g->hellos, m), sizeof(mc_i_hello), m, MC_I_TAG_HELLO));
        MC_TRY(post(g, true, g->mine, sizeof g->mine->call + small, m, MC_I_TAG_HELLO));
    }
    return MC_OK;
}

static mc_status check_announcements(const mc_i_msg_group *g, const mc_request *req)
{
    for (int m = 0; m < g->m.size; m++) {
        if (m != g->m.rank) {
            MC_TRY(mc_i_call_compare(g->engine, req->comm, &g->mine->call, &mc_i_hello_of(g->hellos, m)->call,
                                     g->world[m]));
        }
    }
    return MC_OK;
}

static const void *payload_of(const mc_i_msg_group *g, int m)
{
    return m == g->m.rank ? g->mine->payload : mc_i_hello_of(g->hellos, m)->payload;
}

/* Everything came with the announcements. */
static void finish_small(mc_i_msg_group *g, mc_request *req)
{
    size_t bytes = mc_i_request_bytes(req), part = mc_tensor_bytes(req->out);
    if (bytes == 0) {
        return;
    }
    if (req->kind == MC_I_BROADCAST) {
        memcpy(req->out.data, payload_of(g, req->peer), bytes);
        return;
    }
    for (int m = 0; m < g->m.size; m++) {
        const char *payload = payload_of(g, m);
        if (req->kind == MC_I_ALL_GATHER) {
            memcpy((char *)req->out.data + (size_t)m * bytes, payload, bytes);
        }
        g->in[m] = payload + (req->kind == MC_I_REDUCE_SCATTER ? (size_t)g->m.rank * part : 0);
    }
    if (req->kind != MC_I_ALL_GATHER) {
        mc_i_reduce(req->in.dtype, req->op, req->out.data, g->in, g->m.size, (size_t)mc_tensor_elems(req->out));
    }
}

/* Elements of a round: of all (all_reduce, broadcast) or of each part (all_gather, reduce_scatter). */
static size_t round_elems(const mc_i_msg_group *g, const mc_request *req)
{
    bool staged = req->kind == MC_I_ALL_REDUCE || req->kind == MC_I_REDUCE_SCATTER;
    size_t elems = (staged ? g->stage_bytes : (size_t)ROUND_BYTES) / elem_bytes(req);
    return req->kind == MC_I_REDUCE_SCATTER ? elems / (size_t)g->m.size : elems;
}

static size_t total_elems(const mc_request *req)
{
    return (size_t)mc_tensor_elems(req->kind == MC_I_REDUCE_SCATTER ? req->out : req->in);
}

typedef struct span {
    size_t begin, count; /* elements */
} span;

static span round_of(const mc_i_msg_group *g, const mc_request *req)
{
    size_t step = round_elems(g, req), begin = req->round * step, left = total_elems(req) - begin;
    return (span){begin, left < step ? left : step};
}

/* Member m's slice of an all_reduce round, or its place in a reduce_scatter's `in`. */
static span slice_of(const mc_i_msg_group *g, const mc_request *req, int m)
{
    span round = round_of(g, req);
    if (req->kind == MC_I_REDUCE_SCATTER) {
        return (span){(size_t)m * total_elems(req) + round.begin, round.count};
    }
    long begin, end;
    mc_pool_range((long)round.count, g->m.size, m, SLICE_UNIT, &begin, &end);
    return (span){round.begin + (size_t)begin, (size_t)(end - begin)};
}

static char *at(const mc_request *req, mc_tensor t, size_t elem)
{
    return (char *)t.data + elem * elem_bytes(req);
}

static char *stage_of(const mc_i_msg_group *g, const mc_request *req, int m)
{
    span mine = slice_of(g, req, g->m.rank);
    return (char *)g->stage + (size_t)m * mine.count * elem_bytes(req);
}

static mc_status post_exchange(mc_i_msg_group *g, mc_request *req)
{
    size_t e = elem_bytes(req);
    span round = round_of(g, req), mine = slice_of(g, req, g->m.rank);
    for (int m = 0; m < g->m.size; m++) {
        if (m == g->m.rank) {
            continue;
        }
        span theirs = slice_of(g, req, m);
        size_t receive = mine.count * e, send = theirs.count * e;
        char *to = stage_of(g, req, m), *from = at(req, req->in, theirs.begin);
        if (req->kind == MC_I_ALL_GATHER) {
            receive = send = round.count * e;
            to = at(req, req->out, (size_t)m * total_elems(req) + round.begin);
            from = at(req, req->in, round.begin);
        } else if (req->kind == MC_I_BROADCAST) {
            receive = m == req->peer ? round.count * e : 0;
            send = g->m.rank == req->peer ? round.count * e : 0;
            to = from = at(req, req->in, round.begin);
        }
        MC_TRY(post(g, false, to, receive, m, MC_I_TAG_DATA));
        MC_TRY(post(g, true, from, send, m, MC_I_TAG_DATA));
    }
    return MC_OK;
}

/* Adds my slice in rank order and leaves it in `out`. */
static void reduce_slice(mc_i_msg_group *g, mc_request *req)
{
    span mine = slice_of(g, req, g->m.rank);
    for (int m = 0; m < g->m.size; m++) {
        g->in[m] = m == g->m.rank ? at(req, req->in, mine.begin) : stage_of(g, req, m);
    }
    size_t to = req->kind == MC_I_REDUCE_SCATTER ? req->round * round_elems(g, req) : mine.begin;
    mc_i_reduce(req->in.dtype, req->op, at(req, req->out, to), g->in, g->m.size, mine.count);
}

static mc_status post_results(mc_i_msg_group *g, mc_request *req)
{
    size_t e = elem_bytes(req);
    span mine = slice_of(g, req, g->m.rank);
    for (int m = 0; m < g->m.size; m++) {
        if (m == g->m.rank) {
            continue;
        }
        span theirs = slice_of(g, req, m);
        MC_TRY(post(g, false, at(req, req->out, theirs.begin), theirs.count * e, m, MC_I_TAG_RESULT));
        MC_TRY(post(g, true, at(req, req->out, mine.begin), mine.count * e, m, MC_I_TAG_RESULT));
    }
    return MC_OK;
}

static mc_i_progress next_round(const mc_i_msg_group *g, mc_request *req)
{
    req->round++;
    req->phase = EXCHANGE;
    return req->round * round_elems(g, req) >= total_elems(req) ? MC_I_DONE : MC_I_MOVED;
}

/* The members' data of the first round that is not theirs: my own part of an all_gather. */
static void copy_own_part(const mc_i_msg_group *g, const mc_request *req)
{
    char *own = at(req, req->out, (size_t)g->m.rank * total_elems(req));
    if (req->kind == MC_I_ALL_GATHER && own != req->in.data) {
        memcpy(own, req->in.data, mc_tensor_bytes(req->in));
    }
}

static bool reduces(const mc_request *req)
{
    return req->kind == MC_I_ALL_REDUCE || req->kind == MC_I_REDUCE_SCATTER;
}

/* After the phase's messages have all arrived. */
static mc_status after_messages(mc_i_msg_group *g, mc_request *req, mc_i_progress *p)
{
    *p = MC_I_MOVED;
    switch (req->phase) {
    case ANNOUNCED:
        MC_TRY(check_announcements(g, req));
        if (mc_i_request_bytes(req) <= MC_I_INLINE_BYTES) {
            finish_small(g, req);
            *p = MC_I_DONE;
            return MC_OK;
        }
        copy_own_part(g, req);
        req->phase = EXCHANGE;
        return MC_OK;
    case EXCHANGED:
        if (reduces(req)) {
            reduce_slice(g, req);
        }
        if (req->kind == MC_I_ALL_REDUCE) {
            req->phase = RESULT;
            return post_results(g, req);
        }
        break;
    default:
        break;
    }
    *p = next_round(g, req);
    return MC_OK;
}

static mc_status advance(mc_i_msg_group *g, mc_request *req, mc_i_progress *p)
{
    bool done;
    *p = MC_I_MOVED;
    if (req->phase == ANNOUNCE) {
        req->phase = ANNOUNCED;
        return post_announcements(g, req);
    }
    if (req->phase == EXCHANGE) {
        req->phase = EXCHANGED;
        return post_exchange(g, req);
    }
    MC_TRY(mc_i_net_test(g->net, g->posts, 2 * g->m.size, &done));
    if (done) {
        return after_messages(g, req, p);
    }
    *p = MC_I_IDLE;
    return MC_OK;
}

static mc_i_progress step(mc_i_queue *q, mc_request *req, mc_status *st)
{
    mc_i_progress p;
    *st = advance(q->group, req, &p);
    return *st == MC_OK ? p : MC_I_FAILED;
}

/* Where ranks are known to be gone these alone: the others would have come. */
static int missing(const mc_i_queue *q, const mc_request *req, int *ranks_out, int cap)
{
    const mc_i_msg_group *g = q->group;
    (void)req;
    int n = 0;
    for (int only_lost = 1; only_lost >= 0 && n == 0; only_lost--) {
        for (int m = 0; m < g->m.size; m++) {
            bool under_way = g->posts[m].under_way || g->posts[g->m.size + m].under_way;
            if (under_way && (!only_lost || mc_i_net_lost(g->net, g->world[m]))) {
                if (n < cap) {
                    ranks_out[n] = g->world[m];
                }
                n++;
            }
        }
    }
    return n;
}

const mc_i_queue_ops mc_i_msg_group_queue = {.polled = true, .step = step, .missing = missing};
