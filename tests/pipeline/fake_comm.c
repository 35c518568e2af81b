#include "tests/pipeline/fake_comm.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_SIZE = 8, QUEUE = 64, DEADLINE_SECONDS = 20 };

/* Messages from one rank to another, in order. `taken` counts those that the receiver has copied. */
typedef struct channel {
    mc_tensor buf[QUEUE];
    long n_sent, n_taken, n_recv_begun;
} channel;

struct fake_group {
    int size;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    channel channels[MAX_SIZE][MAX_SIZE]; /* [from][to] */
};

typedef enum { SEND, RECV } request_kind;

fake_group *fake_group_create(int size)
{
    MC_ASSERT(size <= MAX_SIZE);
    fake_group *g = calloc(1, sizeof *g);
    MC_ASSERT(g != NULL);
    g->size = size;
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    return g;
}

void fake_group_destroy(fake_group *g)
{
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->changed);
    free(g);
}

int fake_group_unfinished(fake_group *g)
{
    int n = 0;
    for (int from = 0; from < g->size; from++) {
        for (int to = 0; to < g->size; to++) {
            const channel *c = &g->channels[from][to];
            n += (int)(c->n_sent - c->n_taken) + (int)(c->n_recv_begun - c->n_taken);
        }
    }
    return n;
}

static mc_status send_begin(const mc_comm *comm, mc_request *req)
{
    fake_group *g = comm->impl;
    channel *c = &g->channels[comm->rank][req->peer];
    pthread_mutex_lock(&g->lock);
    MC_ASSERT(c->n_sent - c->n_taken < QUEUE);
    c->buf[c->n_sent % QUEUE] = mc_tensor_present(req->in) ? req->in : req->out;
    req->kind = SEND;
    req->seq = (uint64_t)c->n_sent++;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    return MC_OK;
}

static mc_status recv_begin(const mc_comm *comm, mc_request *req)
{
    fake_group *g = comm->impl;
    channel *c = &g->channels[req->peer][comm->rank];
    pthread_mutex_lock(&g->lock);
    req->kind = RECV;
    req->seq = (uint64_t)c->n_recv_begun++;
    pthread_mutex_unlock(&g->lock);
    /* Whatever was in the buffer is lost from here on: an early begin into a buffer in use must show. */
    mc_tensor buf = mc_tensor_present(req->out) ? req->out : req->in;
    memset(buf.data, 0xee, mc_tensor_bytes(buf));
    return MC_OK;
}

static mc_status wait_request(const mc_comm *comm, mc_request *req)
{
    fake_group *g = comm->impl;
    bool recv = req->kind == RECV;
    channel *c = recv ? &g->channels[req->peer][comm->rank] : &g->channels[comm->rank][req->peer];
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += DEADLINE_SECONDS;
    pthread_mutex_lock(&g->lock);
    while (recv ? c->n_sent <= (long)req->seq : c->n_taken <= (long)req->seq) {
        if (pthread_cond_timedwait(&g->changed, &g->lock, &until) != 0) {
            pthread_mutex_unlock(&g->lock);
            return MC_FAIL(MC_TIMEOUT, "rank %d waited too long for message %ld %s rank %d", comm->rank, (long)req->seq,
                           recv ? "from" : "to", req->peer);
        }
    }
    if (recv) {
        mc_tensor to = mc_tensor_present(req->out) ? req->out : req->in;
        mc_tensor from = c->buf[req->seq % QUEUE];
        MC_ASSERT(c->n_taken == (long)req->seq && mc_tensor_same_shape(to, from));
        memcpy(to.data, from.data, mc_tensor_bytes(to));
        c->n_taken++;
        pthread_cond_broadcast(&g->changed);
    }
    pthread_mutex_unlock(&g->lock);
    return MC_OK;
}

static const mc_comm_ops fake_ops = {
    .name = "fake", .send_begin = send_begin, .recv_begin = recv_begin, .wait = wait_request};

mc_comm fake_group_member(fake_group *g, int rank)
{
    return (mc_comm){.ops = &fake_ops, .impl = g, .name = "pp", .rank = rank, .size = g->size};
}
