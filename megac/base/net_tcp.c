/* Messages over TCP, without MPI: a connection between every two ranks.
 *
 * A message waits at its sender until the receiver has asked for it:
 *
 *   receiver   recv ──► WANT(tag) ──►                          ──► data straight into the buffer ──► done
 *   sender     send ──► held ───────── matched by tag ──► DATA(tag, bytes) + bytes ──► done when the system has them
 *
 * So nothing is received that has no place yet, a message that nobody asks for holds up no other, and a rank reads what
 * its peers ask at any time. Everything moves inside mc_i_net_test; nothing blocks. */
#include "megac/base/net_tcp.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "megac/base/alloc.h"

enum { WANT = 0x4d43574e, DATA = 0x4d434454 };
enum { READY_AT_ONCE = 64, WANTS_AT_ONCE = 64 };

typedef struct frame {
    int32_t kind, tag;
    uint64_t bytes; /* that follow */
} frame;

/* One mc_i_post. */
typedef struct op {
    struct op *next;     /* in its peer's `sends` or `recvs`, or among the free ones */
    struct op *out_next; /* in its peer's queue of what is to be written: a WANT, or a DATA with its bytes */
    struct op *older;    /* made before this one */
    bool sends, done;
    int peer, tag;
    unsigned char *data;
    size_t bytes; /* a receive: the room */
} op;

typedef struct op_list {
    op *head, *tail;
} op_list;

typedef struct tcp_peer {
    int fd; /* -1: this rank, or the peer has closed */
    op *out_head, *out_tail;
    frame out_frame; /* of out_head */
    size_t out_done; /* bytes written of it and what follows it */
    op_list sends;   /* not wanted yet */
    op_list recvs;   /* wanted; the data have not begun */
    frame in_frame;
    size_t in_done;
    op *in_op;  /* whose data are being read */
    int *wants; /* tags that the peer wants and nobody sends yet, oldest first */
    int n_wants, wants_cap;
} tcp_peer;

typedef struct tcp_net {
    mc_i_net base;
    int rank, size, epoll_fd;
    tcp_peer *peers; /* by rank */
    op *free_ops, *newest_op;
} tcp_net;

static void append(op_list *l, op *o)
{
    o->next = NULL;
    *(l->head ? &l->tail->next : &l->head) = o;
    l->tail = o;
}

/* The oldest of `tag`, taken out; NULL: none. */
static op *take(op_list *l, int tag)
{
    op *before = NULL;
    for (op *o = l->head; o; before = o, o = o->next) {
        if (o->tag == tag) {
            *(before ? &before->next : &l->head) = o->next;
            l->tail = l->tail == o ? before : l->tail;
            return o;
        }
    }
    return NULL;
}

/* ---- writing ---- */

static void start_frame(tcp_peer *p)
{
    const op *o = p->out_head;
    if (o) {
        p->out_frame = (frame){.kind = o->sends ? DATA : WANT, .tag = o->tag, .bytes = o->sends ? o->bytes : 0};
        p->out_done = 0;
    }
}

static void queue_output(tcp_peer *p, op *o)
{
    o->out_next = NULL;
    if (p->out_head) {
        p->out_tail->out_next = o;
        p->out_tail = o;
        return;
    }
    p->out_head = p->out_tail = o;
    start_frame(p);
}

static void close_peer(tcp_peer *p)
{
    close(p->fd); /* epoll forgets it */
    p->fd = -1;
}

/* Writes what the system takes now. A broken connection is found by reading. */
static void flush(tcp_peer *p)
{
    while (p->fd >= 0 && p->out_head) {
        op *o = p->out_head;
        size_t body = o->sends ? o->bytes : 0, head = sizeof p->out_frame;
        size_t from = p->out_done > head ? p->out_done - head : 0;
        struct iovec parts[2] = {
            {(char *)&p->out_frame + (p->out_done < head ? p->out_done : head),
             p->out_done < head ? head - p->out_done : 0},
            {body > 0 ? o->data + from : NULL, body - from},
        };
        struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 2};
        ssize_t n = sendmsg(p->fd, &msg, MSG_NOSIGNAL);
        if (n < 0) {
            return;
        }
        p->out_done += (size_t)n;
        if (p->out_done < head + body) {
            continue;
        }
        o->done = o->sends;
        p->out_head = o->out_next;
        start_frame(p);
    }
}

/* ---- reading ---- */

static mc_status hold_want(tcp_peer *p, int tag)
{
    if (p->n_wants == p->wants_cap) {
        int cap = p->wants_cap > 0 ? 2 * p->wants_cap : WANTS_AT_ONCE;
        MC_TRY(MC_MORE(&p->wants, p->n_wants, cap, "messages asked for"));
        p->wants_cap = cap;
    }
    p->wants[p->n_wants++] = tag;
    return MC_OK;
}

/* Whether the peer has asked for a message of `tag`: the oldest such wish is then served. */
static bool take_want(tcp_peer *p, int tag)
{
    for (int i = 0; i < p->n_wants; i++) {
        if (p->wants[i] == tag) {
            memmove(p->wants + i, p->wants + i + 1, (size_t)(--p->n_wants - i) * sizeof *p->wants);
            return true;
        }
    }
    return false;
}

static mc_status accept_frame(tcp_peer *p, int rank)
{
    const frame *f = &p->in_frame;
    if (f->kind == WANT && f->bytes == 0) {
        op *o = take(&p->sends, f->tag);
        if (!o) {
            return hold_want(p, f->tag);
        }
        queue_output(p, o);
        flush(p);
        return MC_OK;
    }
    op *o = f->kind == DATA ? take(&p->recvs, f->tag) : NULL;
    if (!o || f->bytes > o->bytes) {
        return MC_FAIL(MC_COMM,
                       "rank %d sent %llu bytes (tag %d) that nobody asked for; is it the same build of megac?", rank,
                       (unsigned long long)f->bytes, (int)f->tag);
    }
    p->in_op = o;
    return MC_OK;
}

/* One read: 0 when nothing is there now, -1 when the connection is closed, else the bytes. */
static ssize_t read_some(const tcp_peer *p, void *to, size_t bytes)
{
    ssize_t n = recv(p->fd, to, bytes, 0);
    return n > 0 ? n : n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

static mc_status read_peer(tcp_peer *p, int rank)
{
    const size_t head = sizeof p->in_frame;
    while (p->fd >= 0) {
        bool in_head = p->in_done < head;
        size_t end = in_head ? head : head + (size_t)p->in_frame.bytes;
        char *to = in_head ? (char *)&p->in_frame + p->in_done : (char *)p->in_op->data + (p->in_done - head);
        ssize_t n = read_some(p, to, end - p->in_done);
        if (n == 0) {
            return MC_OK;
        }
        if (n < 0) {
            close_peer(p);
            return MC_OK;
        }
        p->in_done += (size_t)n;
        if (in_head && p->in_done == head) {
            MC_TRY(accept_frame(p, rank));
        }
        if (p->in_done >= head && p->in_done == head + (size_t)p->in_frame.bytes) {
            if (p->in_op) {
                p->in_op->done = true;
                p->in_op = NULL;
            }
            p->in_done = 0;
        }
    }
    return MC_OK;
}

static mc_status progress(tcp_net *net)
{
    struct epoll_event ready[READY_AT_ONCE];
    for (int r = 0; r < net->size; r++) {
        flush(&net->peers[r]);
    }
    int n = epoll_wait(net->epoll_fd, ready, READY_AT_ONCE, 0);
    for (int i = 0; i < n; i++) {
        int r = (int)ready[i].data.u32;
        MC_TRY(read_peer(&net->peers[r], r));
    }
    return MC_OK;
}

/* ---- the network's calls ---- */

/* A message to or from a rank, from the free ones where there is one. */
static mc_status new_op(tcp_net *net, op value, mc_i_post *post)
{
    op *o = net->free_ops;
    if (o) {
        net->free_ops = o->next;
        value.older = o->older;
    } else {
        MC_TRY(MC_NEW(&o, "message"));
        value.older = net->newest_op;
        net->newest_op = o;
    }
    *o = value;
    *post = (mc_i_post){.handle = o, .under_way = true};
    return MC_OK;
}

static mc_status net_send(mc_i_net *base, const void *data, size_t bytes, int rank, int tag, mc_i_post *post)
{
    tcp_net *net = (tcp_net *)base;
    tcp_peer *p = &net->peers[rank];
    op value = {.sends = true, .peer = rank, .tag = tag, .data = (unsigned char *)(uintptr_t)data, .bytes = bytes};
    MC_TRY(new_op(net, value, post));
    if (take_want(p, tag)) {
        queue_output(p, post->handle);
        flush(p);
    } else {
        append(&p->sends, post->handle);
    }
    return MC_OK;
}

static mc_status net_recv(mc_i_net *base, void *data, size_t bytes, int rank, int tag, mc_i_post *post)
{
    tcp_net *net = (tcp_net *)base;
    tcp_peer *p = &net->peers[rank];
    MC_TRY(new_op(net, (op){.peer = rank, .tag = tag, .data = data, .bytes = bytes}, post));
    append(&p->recvs, post->handle);
    queue_output(p, post->handle);
    flush(p);
    return MC_OK;
}

static mc_status net_test(mc_i_net *base, mc_i_post *posts, int n, bool *done_out)
{
    tcp_net *net = (tcp_net *)base;
    bool done = true;
    MC_TRY(progress(net));
    for (int i = 0; i < n; i++) {
        op *o = posts[i].under_way ? posts[i].handle : NULL;
        if (!o) {
            continue;
        }
        if (!o->done && net->peers[o->peer].fd < 0) {
            return MC_FAIL(MC_COMM,
                           "rank %d is gone (its connection is closed) while this rank waits for it; see its "
                           "last messages",
                           o->peer);
        }
        done = done && o->done;
        if (o->done) {
            posts[i] = (mc_i_post){0};
            o->next = net->free_ops;
            net->free_ops = o;
        }
    }
    *done_out = done;
    return MC_OK;
}

static int net_max_tag(const mc_i_net *net)
{
    (void)net;
    return INT_MAX;
}

static bool net_lost(const mc_i_net *base, int rank)
{
    const tcp_net *net = (const tcp_net *)base;
    return rank != net->rank && net->peers[rank].fd < 0;
}

/* Messages under way are lost; peers that wait for them see the connection closed. */
static void net_drop(mc_i_net *base)
{
    tcp_net *net = (tcp_net *)base;
    for (int r = 0; net->peers && r < net->size; r++) {
        if (net->peers[r].fd >= 0) {
            close_peer(&net->peers[r]);
        }
        mc_free(net->peers[r].wants);
    }
    while (net->newest_op) {
        op *older = net->newest_op->older;
        mc_free(net->newest_op);
        net->newest_op = older;
    }
    if (net->epoll_fd >= 0) {
        close(net->epoll_fd);
    }
    mc_free(net->peers);
    mc_free(net);
}

static void net_abort(mc_i_net *base, int exit_status)
{
    (void)exit_status; /* this process ends with it */
    net_drop(base);
}

/* The lowest rank with the same number of its machine. */
static mc_status find_nodes(const uint64_t *ids, int size, int **node_out)
{
    int *node;
    MC_TRY(MC_NEW_N(&node, size, "nodes of ranks"));
    for (int r = 0; r < size; r++) {
        node[r] = 0;
        while (ids[node[r]] != ids[r]) {
            node[r]++;
        }
    }
    *node_out = node;
    return MC_OK;
}

static mc_status watch(tcp_net *net)
{
    net->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (net->epoll_fd < 0) {
        return MC_FAIL(MC_UNSUPPORTED, "epoll_create1: %s", strerror(errno));
    }
    for (int r = 0; r < net->size; r++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)r};
        if (r != net->rank && epoll_ctl(net->epoll_fd, EPOLL_CTL_ADD, net->peers[r].fd, &event) != 0) {
            return MC_FAIL(MC_UNSUPPORTED, "epoll_ctl: %s", strerror(errno));
        }
    }
    return MC_OK;
}

static mc_status connect_all(tcp_net *net, const mc_job *job, double deadline_s, int **node_out)
{
    int *fds;
    uint64_t *ids = NULL;
    mc_status st;
    MC_TRY(MC_NEW_N(&fds, job->size, "connections"));
    MC_TRY_GOTO(st, MC_NEW_N(&ids, job->size, "machines of ranks"), undo_lists);
    MC_TRY_GOTO(st, mc_i_tcp_meet(job, deadline_s, fds, ids), undo_lists);
    for (int r = 0; r < job->size; r++) {
        net->peers[r].fd = fds[r];
    }
    MC_TRY_GOTO(st, watch(net), undo_lists);
    MC_TRY_GOTO(st, find_nodes(ids, job->size, node_out), undo_lists);
undo_lists:
    mc_free(ids);
    mc_free(fds);
    return st;
}

mc_status mc_i_net_tcp_open(const mc_job *job, double deadline_s, mc_i_net **net_out, int **node_out)
{
    static const mc_i_net_ops ops = {
        .close = net_drop,
        .abort = net_abort,
        .drop = net_drop,
        .max_tag = net_max_tag,
        .lost = net_lost,
        .send = net_send,
        .recv = net_recv,
        .test = net_test,
    };
    tcp_net *net;
    MC_TRY(MC_NEW(&net, "network"));
    *net = (tcp_net){.base = {&ops}, .rank = job->rank, .size = job->size, .epoll_fd = -1};
    mc_status st = MC_NEW_N(&net->peers, job->size, "connections");
    for (int r = 0; st == MC_OK && r < job->size; r++) {
        net->peers[r].fd = -1;
    }
    st = st == MC_OK ? connect_all(net, job, deadline_s, node_out) : st;
    if (st != MC_OK) {
        net_drop(&net->base);
        return st;
    }
    *net_out = &net->base;
    return MC_OK;
}
