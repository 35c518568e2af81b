/* Send and receive by messages, and the making of the group. A message is its announcement, with the payload when
 * it is small, else followed by the data; the receiver takes the data only after it has compared the announcement. */
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/comm_msg.h"

enum { PART_BYTES = 256 << 20 }; /* of one MPI message: its count is an int */

enum { BEGIN, HEAD, DATA };

static mc_i_msg_pair *pair_of(mc_i_queue *q)
{
    return (mc_i_msg_pair *)q; /* its first member */
}

static size_t part_bytes(const mc_request *req)
{
    size_t left = mc_i_request_bytes(req) - req->round * PART_BYTES;
    return left < PART_BYTES ? left : PART_BYTES;
}

static mc_status post_data(const mc_i_msg_group *g, mc_i_msg_pair *p, mc_request *req)
{
    size_t offset = req->round * PART_BYTES, bytes = part_bytes(req);
    int rank = g->world[p->queue.peer], tag = g->tag + MC_I_TAG_PAIR_DATA;
    req->phase = DATA;
    if (req->kind == MC_I_SEND) {
        return mc_i_net_send(g->net, (char *)req->in.data + offset, bytes, rank, tag, &p->posts[1]);
    }
    return mc_i_net_recv(g->net, (char *)req->out.data + offset, bytes, rank, tag, &p->posts[1]);
}

static mc_status post_head(const mc_i_msg_group *g, mc_i_msg_pair *p, mc_request *req)
{
    size_t bytes = mc_i_request_bytes(req);
    int rank = g->world[p->queue.peer], tag = g->tag + MC_I_TAG_PAIR;
    req->phase = HEAD;
    if (req->kind == MC_I_RECV) {
        return mc_i_net_recv(g->net, p->hello, sizeof *p->hello, rank, tag, &p->posts[0]);
    }
    p->hello->call = mc_i_call_of(req);
    bool small = bytes <= MC_I_INLINE_BYTES;
    if (small && bytes > 0) {
        memcpy(p->hello->payload, req->in.data, bytes);
    }
    MC_TRY(mc_i_net_send(g->net, p->hello, sizeof p->hello->call + (small ? bytes : 0), rank, tag, &p->posts[0]));
    return small ? MC_OK : post_data(g, p, req);
}

static mc_status received_head(const mc_i_msg_group *g, mc_i_msg_pair *p, mc_request *req, mc_i_progress *result)
{
    mc_i_call mine = mc_i_call_of(req);
    size_t bytes = mc_i_request_bytes(req);
    MC_TRY(mc_i_call_compare(g->engine, req->comm, &mine, &p->hello->call, g->world[p->queue.peer]));
    if (bytes > MC_I_INLINE_BYTES) {
        *result = MC_I_MOVED;
        return post_data(g, p, req);
    }
    if (bytes > 0) {
        memcpy(req->out.data, p->hello->payload, bytes);
    }
    return MC_OK;
}

static mc_status advance(const mc_i_msg_group *g, mc_i_msg_pair *p, mc_request *req, mc_i_progress *result)
{
    bool done;
    if (req->phase == BEGIN) {
        *result = MC_I_MOVED;
        return post_head(g, p, req);
    }
    MC_TRY(mc_i_net_test(g->net, p->posts, 2, &done));
    *result = done ? MC_I_DONE : MC_I_IDLE;
    if (done && req->phase == HEAD && req->kind == MC_I_RECV) {
        return received_head(g, p, req, result);
    }
    if (done && req->phase == DATA && ++req->round * PART_BYTES < mc_i_request_bytes(req)) {
        *result = MC_I_MOVED;
        return post_data(g, p, req);
    }
    return MC_OK;
}

static mc_i_progress step(mc_i_queue *q, mc_request *req, mc_status *st)
{
    mc_i_progress result;
    *st = advance(q->group, pair_of(q), req, &result);
    return *st == MC_OK ? result : MC_I_FAILED;
}

static int missing(const mc_i_queue *q, const mc_request *req, int *ranks_out, int cap)
{
    const mc_i_msg_group *g = q->group;
    (void)req;
    if (cap > 0) {
        ranks_out[0] = g->world[q->peer];
    }
    return 1;
}

static const mc_i_queue_ops pair_queue = {.polled = true, .step = step, .missing = missing};

static mc_status group_begin(const mc_comm *c, mc_request *req)
{
    mc_i_msg_group *g = c->impl;
    if (g->engine->failed != MC_OK) {
        return g->engine->failed;
    }
    req->seq = g->begun++;
    return mc_i_engine_push(g->engine, &g->queue, req);
}

static mc_status pair_begin(const mc_comm *c, mc_request *req)
{
    mc_i_msg_group *g = c->impl;
    if (g->engine->failed != MC_OK) {
        return g->engine->failed;
    }
    mc_i_msg_pair *p = &(req->kind == MC_I_SEND ? g->sends : g->recvs)[req->peer];
    req->seq = p->begun++;
    return mc_i_engine_push(g->engine, &p->queue, req);
}

static mc_status group_wait(const mc_comm *c, mc_request *req)
{
    const mc_i_msg_group *g = c->impl;
    return mc_i_engine_wait(g->engine, req);
}

static mc_i_engine *group_engine(const mc_comm *c)
{
    const mc_i_msg_group *g = c->impl;
    return g->engine;
}

static void group_free(mc_i_msg_group *g)
{
    for (int m = 0; m < g->m.size; m++) {
        if (g->sends) {
            mc_free(g->sends[m].hello);
        }
        if (g->recvs) {
            mc_free(g->recvs[m].hello);
        }
    }
    mc_free(g->sends);
    mc_free(g->recvs);
    mc_free(g->world);
    mc_free(g->posts);
    mc_free(g->mine);
    mc_free(g->hellos);
    mc_free(g->stage);
    mc_free(g->in);
    mc_free(g);
}

static void group_destroy(mc_comm *c)
{
    group_free(c->impl);
}

static mc_status make_pairs(mc_i_msg_group *g, mc_i_msg_pair **pairs_out)
{
    MC_TRY(MC_NEW_N(pairs_out, g->m.size, "peers of a group"));
    for (int m = 0; m < g->m.size; m++) {
        mc_i_msg_pair *p = &(*pairs_out)[m];
        p->queue = (mc_i_queue){.ops = &pair_queue, .group = g, .peer = m};
        if (m != g->m.rank) {
            MC_TRY(MC_NEW(&p->hello, "announcement of a message"));
        }
    }
    return MC_OK;
}

static mc_status make_buffers(mc_i_msg_group *g, const mc_i_members *members)
{
    size_t n = (size_t)members->size;
    MC_TRY(MC_NEW_N(&g->world, n, "ranks of a group"));
    memcpy(g->world, members->world, n * sizeof *g->world);
    g->m.world = g->world;
    MC_TRY(MC_NEW_N(&g->posts, 2 * n, "messages of a group"));
    MC_TRY(MC_NEW(&g->mine, "announcement of a group"));
    MC_TRY(mc_alloc(n, sizeof(mc_i_hello), "announcements of a group", (void **)&g->hellos));
    /* Slices of a round are rounded up to whole units; one more of them for each rank. */
    g->stage_bytes = MC_I_STAGE_BYTES;
    MC_TRY(mc_alloc(1, g->stage_bytes + n * 1024, "staging of a group", (void **)&g->stage));
    MC_TRY(MC_NEW_N(&g->in, n, "scratch of a group"));
    MC_TRY(make_pairs(g, &g->sends));
    return make_pairs(g, &g->recvs);
}

mc_status mc_i_comm_msg_create(mc_i_net *net, mc_i_engine *engine, const mc_i_members *members, int index,
                               const char *name, mc_comm *comm_out)
{
    static const mc_comm_ops ops = {
        .name = "host",
        .all_reduce_begin = group_begin,
        .all_gather_begin = group_begin,
        .reduce_scatter_begin = group_begin,
        .broadcast_begin = group_begin,
        .send_begin = pair_begin,
        .recv_begin = pair_begin,
        .wait = group_wait,
        .destroy = group_destroy,
        .engine = group_engine,
    };
    int max_groups = mc_i_net_max_tag(net) / MC_I_TAGS;
    if (index >= max_groups) {
        return MC_FAIL(MC_UNSUPPORTED, "group %s is number %d; the network has tags for %d only", name, index,
                       max_groups);
    }
    mc_i_msg_group *g;
    MC_TRY(MC_NEW(&g, "group"));
    g->net = net;
    g->engine = engine;
    g->m = *members;
    g->tag = index * MC_I_TAGS;
    g->queue = (mc_i_queue){.ops = &mc_i_msg_group_queue, .group = g, .peer = -1};
    mc_status st = make_buffers(g, members);
    if (st != MC_OK) {
        group_free(g);
        return st;
    }
    *comm_out = (mc_comm){.ops = &ops, .impl = g, .name = name, .rank = members->rank, .size = members->size};
    return MC_OK;
}
