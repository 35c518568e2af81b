/* Send and receive of ranks that share memory, and the making of the group.
 *
 * A send announces its buffer in the channel's ring; the receiver copies from it and says so. Small messages travel in
 * the announcement and are complete at once. Buffers outside mapped memory go through the sender's pair stage, which
 * one send at a time uses, the first whose receiver is ready for it: so a send that nobody receives yet holds up no
 * other. */
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/comm_shm.h"

enum { SEND_MADE, SEND_FILL, SEND_DRAIN };
enum { RECV_HEAD, RECV_STAGED };

static mc_i_shm_pair *pair_of(const mc_i_queue *q)
{
    return (mc_i_shm_pair *)q; /* its first member */
}

static mc_i_shm_message *message_of(const mc_i_queue *q, const mc_request *req)
{
    return &pair_of(q)->channel->ring[req->seq % MC_I_SHM_SLOTS];
}

static void ring_peer(const mc_i_queue *q)
{
    const mc_i_shm_group *g = q->group;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* our words before its `asleep` (see mc_i_bell) */
    mc_i_bell_ring(g->bell[q->peer]);
}

static uint64_t rounds_of(const mc_request *req)
{
    return (mc_i_request_bytes(req) + MC_I_SHM_PAIR_STAGE - 1) / MC_I_SHM_PAIR_STAGE;
}

static size_t round_bytes(const mc_request *req)
{
    size_t left = mc_i_request_bytes(req) - req->round * MC_I_SHM_PAIR_STAGE;
    return left < MC_I_SHM_PAIR_STAGE ? left : MC_I_SHM_PAIR_STAGE;
}

/* ---- sending ---- */

static bool has_room(const mc_i_queue *q, const mc_request *req)
{
    return mc_i_shm_get(&pair_of(q)->channel->n_taken) + MC_I_SHM_SLOTS > req->seq;
}

mc_status mc_i_shm_send_begin(const mc_comm *c, mc_request *req)
{
    mc_i_shm_group *g = c->impl;
    if (g->engine->failed != MC_OK) {
        return g->engine->failed;
    }
    mc_i_shm_pair *p = &g->sends[req->peer];
    req->seq = p->begun++;
    mc_i_ledger_begun(g->engine->ledger, req);
    if (!has_room(&p->queue, req)) {
        MC_TRY(mc_i_engine_until(g->engine, &p->queue, req, has_room));
    }
    size_t bytes = mc_i_request_bytes(req);
    bool small = bytes <= MC_I_SHM_PAIR_INLINE;
    mc_i_shm_message *msg = message_of(&p->queue, req);
    msg->call = mc_i_call_of(req);
    msg->filled = msg->wanted = msg->used = msg->taken = 0;
    msg->from = small ? (mc_i_place){.segment = -1} : mc_i_world_place(g->world, req->in.data, bytes);
    if (small && bytes > 0) {
        memcpy(msg->payload, req->in.data, bytes);
    }
    mc_i_shm_set(&msg->made, req->seq + 1);
    ring_peer(&p->queue);
    if (small) {
        req->done = true;
        mc_i_ledger_done(g->engine->ledger, req);
        return MC_OK;
    }
    return mc_i_engine_push(g->engine, &p->queue, req);
}

static mc_i_progress step_send(mc_i_queue *q, mc_request *req, mc_status *st)
{
    mc_i_shm_group *g = q->group;
    mc_i_shm_message *msg = message_of(q, req);
    (void)st;
    switch (req->phase) {
    case SEND_MADE:
        if (msg->from.segment >= 0) {
            return mc_i_shm_get(&msg->taken) == req->seq + 1 ? MC_I_DONE : MC_I_IDLE;
        }
        if (g->stage_user || mc_i_shm_get(&msg->wanted) != req->seq + 1) {
            return MC_I_IDLE;
        }
        g->stage_user = req;
        req->phase = SEND_FILL;
        return MC_I_MOVED;
    case SEND_FILL:
        memcpy(g->member[g->m.rank]->pair_stage, (const char *)req->in.data + req->round * MC_I_SHM_PAIR_STAGE,
               round_bytes(req));
        mc_i_shm_set(&msg->filled, req->round + 1);
        ring_peer(q);
        req->phase = SEND_DRAIN;
        return MC_I_MOVED;
    default:
        if (mc_i_shm_get(&msg->used) != req->round + 1) {
            return MC_I_IDLE;
        }
        if (++req->round == rounds_of(req)) {
            g->stage_user = NULL;
            return MC_I_DONE;
        }
        req->phase = SEND_FILL;
        return MC_I_MOVED;
    }
}

/* ---- receiving ---- */

mc_status mc_i_shm_recv_begin(const mc_comm *c, mc_request *req)
{
    mc_i_shm_group *g = c->impl;
    if (g->engine->failed != MC_OK) {
        return g->engine->failed;
    }
    mc_i_shm_pair *p = &g->recvs[req->peer];
    req->seq = p->begun++;
    return mc_i_engine_push(g->engine, &p->queue, req);
}

/* The sender's buffer is free, and the announcement's place in the ring. */
static mc_i_progress taken(mc_i_queue *q, mc_i_shm_message *msg, const mc_request *req)
{
    mc_i_shm_set(&msg->taken, req->seq + 1);
    mc_i_shm_set(&pair_of(q)->channel->n_taken, req->seq + 1);
    ring_peer(q);
    return MC_I_DONE;
}

static mc_i_progress step_recv(mc_i_queue *q, mc_request *req, mc_status *st)
{
    const mc_i_shm_group *g = q->group;
    mc_i_shm_message *msg = message_of(q, req);
    size_t bytes = mc_i_request_bytes(req);
    if (req->phase == RECV_STAGED) {
        if (mc_i_shm_get(&msg->filled) <= req->round) {
            return MC_I_IDLE;
        }
        memcpy((char *)req->out.data + req->round * MC_I_SHM_PAIR_STAGE, g->member[q->peer]->pair_stage,
               round_bytes(req));
        if (req->round + 1 == rounds_of(req)) {
            mc_i_shm_set(&msg->used, req->round + 1);
            return taken(q, msg, req);
        }
        mc_i_shm_set(&msg->used, ++req->round);
        ring_peer(q);
        return MC_I_MOVED;
    }
    if (mc_i_shm_get(&msg->made) != req->seq + 1) {
        return MC_I_IDLE;
    }
    mc_i_call mine = mc_i_call_of(req);
    *st = mc_i_call_compare(g->engine, req->comm, &mine, &msg->call, g->m.world[q->peer]);
    if (*st != MC_OK) {
        return MC_I_FAILED;
    }
    if (bytes <= MC_I_SHM_PAIR_INLINE) {
        if (bytes > 0) {
            memcpy(req->out.data, msg->payload, bytes);
        }
        return taken(q, msg, req);
    }
    if (msg->from.segment >= 0) {
        memcpy(req->out.data, mc_i_world_address(g->world, msg->from, g->m.world[q->peer], bytes), bytes);
        return taken(q, msg, req);
    }
    req->phase = RECV_STAGED;
    mc_i_shm_set(&msg->wanted, req->seq + 1);
    ring_peer(q);
    return MC_I_MOVED;
}

static int missing(const mc_i_queue *q, const mc_request *req, int *ranks_out, int cap)
{
    const mc_i_shm_group *g = q->group;
    (void)req;
    if (cap > 0) {
        ranks_out[0] = g->m.world[q->peer];
    }
    return 1;
}

const mc_i_queue_ops mc_i_shm_send_queue = {.step = step_send, .missing = missing};
const mc_i_queue_ops mc_i_shm_recv_queue = {.step = step_recv, .missing = missing};

/* ---- the group ---- */

static mc_status group_wait(const mc_comm *c, mc_request *req)
{
    const mc_i_shm_group *g = c->impl;
    return mc_i_engine_wait(g->engine, req);
}

static mc_i_engine *group_engine(const mc_comm *c)
{
    const mc_i_shm_group *g = c->impl;
    return g->engine;
}

static void group_free(mc_i_shm_group *g)
{
    mc_free(g->ranks);
    mc_free(g->member);
    mc_free(g->bell);
    mc_free(g->in);
    mc_free(g->out);
    mc_free(g->sends);
    mc_free(g->recvs);
    mc_free(g);
}

static void group_destroy(mc_comm *c)
{
    mc_i_shm_group *g = c->impl;
    mc_i_shared_destroy(g->shared);
    group_free(g);
}

/* Through a pointer: the array is longer than its declaration. */
static mc_i_shm_channel *channel_to(mc_i_shm_member *member, int m)
{
    mc_i_shm_channel *first = member->to;
    return first + m;
}

static mc_status fill_group(mc_i_shm_group *g, const mc_i_members *members)
{
    size_t n = (size_t)members->size;
    int me = members->rank;
    MC_TRY(MC_NEW_N(&g->ranks, n, "ranks of a group"));
    memcpy(g->ranks, members->world, n * sizeof *g->ranks);
    g->m = (mc_i_members){.rank = me, .size = members->size, .world = g->ranks};
    MC_TRY(MC_NEW_N(&g->member, n, "members of a group"));
    MC_TRY(MC_NEW_N(&g->bell, n, "bells of a group"));
    MC_TRY(MC_NEW_N(&g->in, n, "scratch of a group"));
    MC_TRY(MC_NEW_N(&g->out, n, "scratch of a group"));
    MC_TRY(MC_NEW_N(&g->sends, n, "peers of a group"));
    MC_TRY(MC_NEW_N(&g->recvs, n, "peers of a group"));
    for (size_t m = 0; m < n; m++) {
        g->member[m] = (mc_i_shm_member *)g->shared->by_rank[g->ranks[m]].base;
        g->bell[m] = mc_i_world_bell(g->world, g->ranks[m]);
    }
    for (size_t m = 0; m < n; m++) {
        g->sends[m].queue = (mc_i_queue){.ops = &mc_i_shm_send_queue, .group = g, .peer = (int)m};
        g->sends[m].channel = channel_to(g->member[me], (int)m);
        g->recvs[m].queue = (mc_i_queue){.ops = &mc_i_shm_recv_queue, .group = g, .peer = (int)m};
        g->recvs[m].channel = channel_to(g->member[m], me);
    }
    g->queue = (mc_i_queue){.ops = &mc_i_shm_group_queue, .group = g, .peer = -1};
    return MC_OK;
}

size_t mc_i_shm_group_bytes(int size)
{
    return offsetof(mc_i_shm_member, to) + (size_t)size * sizeof(mc_i_shm_channel);
}

mc_status mc_i_comm_shm_create(mc_world *world, const mc_i_members *members, mc_i_shared *shared, const char *name,
                               mc_comm *comm_out)
{
    static const mc_comm_ops ops = {
        .name = "host", /* "shared memory" is how */
        .all_reduce_begin = mc_i_shm_group_begin,
        .all_gather_begin = mc_i_shm_group_begin,
        .reduce_scatter_begin = mc_i_shm_group_begin,
        .broadcast_begin = mc_i_shm_group_begin,
        .send_begin = mc_i_shm_send_begin,
        .recv_begin = mc_i_shm_recv_begin,
        .wait = group_wait,
        .destroy = group_destroy,
        .engine = group_engine,
    };
    mc_i_shm_group *g;
    MC_TRY(MC_NEW(&g, "group"));
    g->world = world;
    g->engine = &world->engine;
    g->shared = shared;
    mc_status st = fill_group(g, members);
    if (st != MC_OK) {
        group_free(g);
        return st;
    }
    *comm_out = (mc_comm){.ops = &ops, .impl = g, .name = name, .rank = members->rank, .size = members->size};
    return MC_OK;
}
