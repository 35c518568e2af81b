/* How the ranks of a job without MPI find each other, from torchrun's variables (also set by `megac launch`).
 *
 *   rank 0     listens at the master's address ◄── hello (who, where it listens, which machine) ── every other rank
 *              ── table of all of them ──► every other rank
 *   rank r     connects to 1 .. r - 1, with a hello; accepts from r + 1 .. size - 1
 *
 * A port that nobody of the job should know may be called by anything: callers that do not say hello are let go. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/clock.h"
#include "megac/base/hash.h"
#include "megac/base/net_tcp.h"

enum { MAGIC = 0x6d656761, VERSION = 1 };
enum { RETRY_NS = 20 * 1000 * 1000, NAMED = 8 };
static const double HELLO_S = 5; /* that a caller has to say who it is */

typedef struct hello {
    uint32_t magic, version;
    int32_t rank, size;
    uint64_t node; /* which machine */
    uint32_t port; /* where the rank listens, network order */
    uint32_t pad;
} hello;

/* Where a rank listens. */
typedef struct card {
    struct sockaddr_storage address;
    uint64_t node;
} card;

typedef struct meeting {
    const mc_job *job;
    double until_s, waits_s;
    char host[256], port[16]; /* the master's */
    int listen_fd;
    hello mine;
    card *cards; /* by rank */
    int *fds;    /* by rank */
} meeting;

static mc_status sys_fail(const char *call)
{
    return MC_FAIL(MC_COMM, "%s: %s", call, strerror(errno));
}

/* ---- bytes with a deadline ---- */

/* False when `until_s` passes first; an interrupted wait looks again. */
static bool wait_fd(int fd, short events, double until_s)
{
    struct pollfd p = {.fd = fd, .events = events};
    for (;;) {
        double left = until_s - mc_now();
        int n = left > 0 ? poll(&p, 1, left < 60 ? (int)(left * 1e3) + 1 : 60000) : 0;
        if (n > 0) {
            return true;
        }
        if (left <= 0 || (n < 0 && errno != EINTR)) {
            return false;
        }
    }
}

/* All bytes in or out; false: closed, broken or too late. */
static bool move_all(int fd, void *data, size_t bytes, bool out, double until_s)
{
    for (size_t done = 0; done < bytes;) {
        char *at = (char *)data + done;
        ssize_t n = out ? send(fd, at, bytes - done, MSG_NOSIGNAL) : recv(fd, at, bytes - done, 0);
        if (n > 0) {
            done += (size_t)n;
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR) || !wait_fd(fd, out ? POLLOUT : POLLIN, until_s)) {
            return false;
        }
    }
    return true;
}

/* ---- sockets ---- */

static socklen_t address_bytes(const struct sockaddr_storage *a)
{
    return a->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
}

static in_port_t *port_of(struct sockaddr_storage *a)
{
    return a->ss_family == AF_INET6 ? &((struct sockaddr_in6 *)a)->sin6_port : &((struct sockaddr_in *)a)->sin_port;
}

static bool is_loopback(const struct sockaddr_storage *a)
{
    return a->ss_family == AF_INET6 ? IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr)
                                    : ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
}

/* -1 with errno. */
static int listen_at(const struct sockaddr_storage *a)
{
    int on = 1, fd = socket(a->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -1;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (const struct sockaddr *)a, address_bytes(a)) != 0 || listen(fd, SOMAXCONN) != 0) {
        int err = errno;
        close(fd);
        errno = err;
        return -1;
    }
    return fd;
}

/* -1 with errno when the peer refuses, or until_s passes. */
static int connect_to(const struct sockaddr_storage *a, double until_s)
{
    int fd = socket(a->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), err = 0;
    socklen_t n = sizeof err;
    if (fd < 0) {
        return -1;
    }
    if (connect(fd, (const struct sockaddr *)a, address_bytes(a)) != 0) {
        err = errno;
        if (err == EINPROGRESS) {
            err = ETIMEDOUT;
            if (wait_fd(fd, POLLOUT, until_s)) {
                getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &n);
            }
        }
    }
    if (err != 0) {
        close(fd);
        errno = err;
        return -1;
    }
    return fd;
}

/* Small messages go at once. */
static void no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* ---- the master's address ---- */

/* torchrun's agent keeps the master's port for itself, and says so. */
static long port_shift(void)
{
    const char *agent = getenv("TORCHELASTIC_USE_AGENT_STORE");
    return agent && strcmp(agent, "True") == 0 ? 1 : 0;
}

static mc_status read_master(meeting *m)
{
    const char *host = getenv("MASTER_ADDR"), *port = getenv("MASTER_PORT");
    bool here = m->job->local_size == m->job->size;
    if (!port || !*port || ((!host || !*host) && !here)) {
        return MC_FAIL(MC_INVALID,
                       "%s is not set in the environment of rank %d of %d; start with `megac launch` or torchrun, or "
                       "set MASTER_ADDR to rank 0's host and MASTER_PORT to a free port there",
                       !port || !*port ? "MASTER_PORT" : "MASTER_ADDR", m->job->rank, m->job->size);
    }
    char *end;
    long number = strtol(port, &end, 10) + port_shift();
    if (*end != '\0' || number < 1 || number > 65535) {
        return MC_FAIL(MC_INVALID, "MASTER_PORT=\"%s\" in the environment is no port from 1 to 65535", port);
    }
    snprintf(m->host, sizeof m->host, "%s", host && *host ? host : "127.0.0.1");
    snprintf(m->port, sizeof m->port, "%ld", number);
    return MC_OK;
}

/* A name that is not known yet may be later: a job's hosts appear one by one. */
static mc_status find_master(const meeting *m, struct sockaddr_storage *address_out)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found;
    int err = getaddrinfo(m->host, m->port, &hints, &found);
    while (err == EAI_AGAIN && mc_now() < m->until_s) {
        nanosleep(&(struct timespec){.tv_nsec = RETRY_NS}, NULL);
        err = getaddrinfo(m->host, m->port, &hints, &found);
    }
    if (err != 0) {
        return MC_FAIL(MC_INVALID, "MASTER_ADDR=\"%s\": %s; give the name or address of rank 0's host", m->host,
                       gai_strerror(err));
    }
    memset(address_out, 0, sizeof *address_out);
    memcpy(address_out, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return MC_OK;
}

/* A socket that the launcher opened for rank 0, so that nobody else can take the port meanwhile. */
static int inherited_fd(void)
{
    const char *text = getenv("MEGAC_MASTER_FD");
    int fd = text ? (int)strtol(text, NULL, 10) : -1, listens = 0;
    socklen_t n = sizeof listens;
    if (fd < 3 || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &n) != 0 || !listens) {
        return -1;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

/* Ranks of one machine are met where only that machine can call; those of several at every address of it, whatever this
 * host calls itself by (Debian's hosts file has its name at 127.0.1.1). */
static mc_status listen_as_master(meeting *m)
{
    struct sockaddr_storage a;
    bool here = m->job->local_size == m->job->size;
    m->listen_fd = inherited_fd();
    if (m->listen_fd >= 0) {
        return MC_OK;
    }
    MC_TRY(find_master(m, &a));
    if (!here || !is_loopback(&a)) {
        in_port_t port = *port_of(&a);
        sa_family_t family = a.ss_family;
        memset(&a, 0, sizeof a);
        a.ss_family = family;
        *port_of(&a) = port;
    }
    m->listen_fd = listen_at(&a);
    if (m->listen_fd < 0) {
        return MC_FAIL(MC_COMM,
                       "rank 0 cannot listen at MASTER_PORT %s: %s; choose a free port, and start rank 0 on the "
                       "host of MASTER_ADDR (%s)",
                       m->port, strerror(errno), m->host);
    }
    return MC_OK;
}

/* ---- meeting ---- */

/* The name of the host tells containers apart that share a kernel, whose number tells hosts of one name apart. */
static uint64_t this_machine(void)
{
    char text[320] = "";
    gethostname(text, 256);
    size_t n = strlen(text);
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (f) {
        n += fread(text + n, 1, 40, f);
        fclose(f);
    }
    return mc_hash(text, n);
}

static mc_status late(const meeting *m, int first)
{
    char who[128] = "";
    int n = 0;
    size_t used = 0;
    for (int r = first; r < m->job->size; r++) {
        if (m->fds[r] < 0 && n++ < NAMED) {
            used += (size_t)snprintf(who + used, sizeof who - used, "%s%d", used ? ", " : "", r);
        }
    }
    return MC_FAIL(
        MC_TIMEOUT,
        "not all of the %d ranks started within %.1f s: rank %d waits at %s port %s for rank%s %s%s; see that "
        "they run, or raise --distributed-timeout-minutes",
        m->job->size, m->waits_s, m->job->rank, m->host, m->port, n == 1 ? "" : "s", n ? who : "that rank 0 names",
        n > NAMED ? " and more" : "");
}

static mc_status check_hello(const meeting *m, const hello *h)
{
    const mc_job *job = m->job;
    if (h->version != VERSION) {
        return MC_FAIL(MC_MISMATCH,
                       "a rank of another version of megac came (%u, this one is %d); start the same program "
                       "everywhere",
                       h->version, VERSION);
    }
    if (h->size != job->size || h->rank <= 0 || h->rank >= job->size || m->fds[h->rank] >= 0) {
        return MC_FAIL(MC_INVALID,
                       "rank %d of %d came%s, and this is rank %d of %d; see RANK and WORLD_SIZE of every "
                       "rank, and that no other job uses port %s of %s",
                       h->rank, h->size, h->size == job->size ? " twice" : "", job->rank, job->size, m->port, m->host);
    }
    return MC_OK;
}

/* Accepts callers until the ranks from `first` on are all there. */
static mc_status accept_ranks(meeting *m, int first)
{
    for (int here = first; here < m->job->size;) {
        hello h;
        if (!wait_fd(m->listen_fd, POLLIN, m->until_s)) {
            return late(m, first);
        }
        int fd = accept4(m->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED || errno == EPROTO)) {
            continue; /* gone again */
        }
        if (fd < 0) {
            return sys_fail("accept4");
        }
        double until_s = mc_now() + HELLO_S < m->until_s ? mc_now() + HELLO_S : m->until_s;
        if (!move_all(fd, &h, sizeof h, false, until_s) || h.magic != MAGIC) {
            close(fd);
            continue;
        }
        mc_status st = check_hello(m, &h);
        if (st != MC_OK) {
            close(fd);
            return st;
        }
        socklen_t n = sizeof m->cards[h.rank].address;
        getpeername(fd, (struct sockaddr *)&m->cards[h.rank].address, &n);
        *port_of(&m->cards[h.rank].address) = (in_port_t)h.port;
        m->cards[h.rank].node = h.node;
        m->fds[h.rank] = fd;
        here++;
    }
    return MC_OK;
}

static mc_status meet_as_master(meeting *m)
{
    MC_TRY(listen_as_master(m));
    MC_TRY(accept_ranks(m, 1));
    for (int r = 1; r < m->job->size; r++) {
        if (!move_all(m->fds[r], m->cards, (size_t)m->job->size * sizeof *m->cards, true, m->until_s)) {
            return MC_FAIL(MC_COMM, "rank %d left while the ranks met; see its messages", r);
        }
    }
    return MC_OK;
}

/* Rank 0 may start later than this one. */
static mc_status call_master(meeting *m)
{
    struct sockaddr_storage a;
    MC_TRY(find_master(m, &a));
    while ((m->fds[0] = connect_to(&a, m->until_s)) < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == EAFNOSUPPORT) { /* which no waiting mends */
            return sys_fail("socket");
        }
        if (mc_now() >= m->until_s) {
            return MC_FAIL(MC_TIMEOUT,
                           "rank 0 did not answer at %s port %s within %.1f s (%s); see that it runs there "
                           "(MASTER_ADDR, MASTER_PORT), or raise --distributed-timeout-minutes",
                           m->host, m->port, m->waits_s, strerror(errno));
        }
        nanosleep(&(struct timespec){.tv_nsec = RETRY_NS}, NULL);
    }
    return MC_OK;
}

/* Where this rank is seen from rank 0, at a port that the system chooses. */
static mc_status listen_beside(meeting *m)
{
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    if (getsockname(m->fds[0], (struct sockaddr *)&a, &n) != 0) {
        return sys_fail("getsockname");
    }
    *port_of(&a) = 0;
    m->listen_fd = listen_at(&a);
    n = sizeof a;
    if (m->listen_fd < 0 || getsockname(m->listen_fd, (struct sockaddr *)&a, &n) != 0) {
        return sys_fail("listen");
    }
    m->mine.port = *port_of(&a);
    return MC_OK;
}

static mc_status meet_as_other(meeting *m)
{
    MC_TRY(call_master(m));
    MC_TRY(listen_beside(m));
    if (!move_all(m->fds[0], &m->mine, sizeof m->mine, true, m->until_s) ||
        !move_all(m->fds[0], m->cards, (size_t)m->job->size * sizeof *m->cards, false, m->until_s)) {
        return mc_now() < m->until_s
                   ? MC_FAIL(MC_COMM, "rank 0 at %s port %s ended the meeting of the ranks; see its messages", m->host,
                             m->port)
                   : late(m, m->job->size);
    }
    for (int r = 1; r < m->job->rank; r++) {
        m->fds[r] = connect_to(&m->cards[r].address, m->until_s);
        if (m->fds[r] < 0 || !move_all(m->fds[r], &m->mine, sizeof m->mine, true, m->until_s)) {
            return MC_FAIL(MC_COMM,
                           "rank %d does not reach rank %d: %s; see that the hosts reach each other on all ports",
                           m->job->rank, r, strerror(errno));
        }
    }
    return accept_ranks(m, m->job->rank + 1);
}

mc_status mc_i_tcp_meet(const mc_job *job, double deadline_s, int *fds_out, uint64_t *nodes_out)
{
    meeting m = {.job = job, .until_s = mc_now() + deadline_s, .waits_s = deadline_s, .listen_fd = -1, .fds = fds_out};
    m.mine = (hello){.magic = MAGIC, .version = VERSION, .rank = job->rank, .size = job->size, .node = this_machine()};
    for (int r = 0; r < job->size; r++) {
        fds_out[r] = -1;
    }
    MC_TRY(MC_NEW_N(&m.cards, job->size, "places of ranks"));
    m.cards[0].node = m.mine.node; /* rank 0's; the others get the table */
    mc_status st = read_master(&m);
    if (st == MC_OK) {
        st = job->rank == 0 ? meet_as_master(&m) : meet_as_other(&m);
    }
    for (int r = 0; r < job->size; r++) {
        nodes_out[r] = m.cards[r].node;
        if (fds_out[r] >= 0 && st == MC_OK) {
            no_delay(fds_out[r]);
        } else if (fds_out[r] >= 0) {
            close(fds_out[r]);
            fds_out[r] = -1;
        }
    }
    if (m.listen_fd >= 0) {
        close(m.listen_fd);
    }
    mc_free(m.cards);
    return st;
}
