/* The host's wait for a device that may wait for other ranks: errors of any group, and the deadline without progress.
 */
#include <stdio.h>

#include "megac/base/clock.h"
#include "megac/base/comm_group_nccl.h"

typedef mc_i_nccl_slot slot;
typedef mc_i_nccl_lane lane;

static const char *const lane_names[MC_I_NCCL_LANES] = {"collectives", "messages to higher ranks",
                                                        "messages to lower ranks"};

mc_status mc_i_nccl_failed(const mc_nccl *g, ncclResult_t r, const char *what)
{
    const char *last = ncclGetLastError(NULL);
    return MC_FAIL(MC_COMM, "NCCL, group %s: %s: %s%s%s; NCCL_DEBUG=INFO in the environment tells more", g->name, what,
                   ncclGetErrorString(r), last && *last ? ": " : "", last ? last : "");
}

/* First operation of the lane that is not complete, or NULL. *n_out: complete ones, as far as is known. */
static const slot *oldest_open(lane *l, uint64_t *n_out)
{
    uint64_t first = l->n_ops > MC_I_NCCL_RECENT ? l->n_ops - MC_I_NCCL_RECENT : 0;
    for (uint64_t seq = l->n_complete > first ? l->n_complete : first; seq < l->n_ops; seq++) {
        const slot *s = l->recent[seq % MC_I_NCCL_RECENT];
        if (cudaEventQuery(s->done) == cudaErrorNotReady) {
            *n_out = seq;
            return s;
        }
    }
    *n_out = l->n_ops;
    return NULL;
}

/* In the ledger an operation ends when this watch sees that it did. */
static void note_ended(const mc_nccl *g, lane *l, uint64_t n)
{
    uint64_t first = l->n_ops > MC_I_NCCL_RECENT ? l->n_ops - MC_I_NCCL_RECENT : 0;
    for (uint64_t seq = l->n_complete > first ? l->n_complete : first; seq < n; seq++) {
        mc_i_ledger_ended(g->engine->ledger, l->recent[seq % MC_I_NCCL_RECENT]->ledger_id);
    }
}

/* Whether an operation of any group has completed since the last call. */
static bool progress(mc_cuda *cuda)
{
    bool any = false;
    for (mc_nccl *g = cuda->groups; g; g = g->next) {
        for (int i = 0; i < g->n_lanes; i++) {
            lane *l = &g->lanes[i];
            uint64_t n;
            (void)oldest_open(l, &n);
            any = any || n > l->n_complete;
            note_ended(g, l, n);
            l->n_complete = n;
        }
    }
    return any;
}

static mc_status check_async(mc_cuda *cuda)
{
    for (const mc_nccl *g = cuda->groups; g; g = g->next) {
        for (int i = 0; i < g->n_lanes; i++) {
            ncclResult_t r = ncclSuccess, q = ncclCommGetAsyncError(g->lanes[i].comm, &r);
            r = q != ncclSuccess ? q : r;
            if (r != ncclSuccess && r != ncclInProgress) {
                return mc_i_nccl_failed(g, r, lane_names[i]);
            }
        }
    }
    return MC_OK;
}

/* The host waits for the device since `since`, and the device for the oldest open operation, of ranks that it does not
 * name. NULL where none is open. */
static mc_i_engine *show_wait(mc_cuda *cuda, double since)
{
    for (mc_nccl *g = cuda->groups; g; g = g->next) {
        for (int i = 0; i < g->n_lanes; i++) {
            uint64_t n;
            const slot *s = oldest_open(&g->lanes[i], &n);
            if (s) {
                mc_i_ledger_waits(g->engine->ledger, s->ledger_id, since, NULL, 0);
                return g->engine;
            }
        }
    }
    return NULL;
}

/* "tp all_reduce #41 (8192 bytes)" of every lane with an open operation. */
static mc_status report(mc_cuda *cuda, double waited)
{
    char text[1024] = "";
    size_t used = 0;
    for (mc_nccl *g = cuda->groups; g; g = g->next) {
        for (int i = 0; i < g->n_lanes; i++) {
            uint64_t n;
            const slot *s = oldest_open(&g->lanes[i], &n);
            if (!s || used + 1 >= sizeof text) {
                continue;
            }
            int wrote = snprintf(text + used, sizeof text - used, "%s%s %s #%llu of %zu bytes, rank %d of %d",
                                 used ? "; " : "", g->name, mc_i_kind_name(s->kind), (unsigned long long)s->seq,
                                 s->bytes, g->host->rank, g->host->size);
            used += wrote > 0 ? (size_t)wrote : 0;
            if (s->peer >= 0 && used + 1 < sizeof text) {
                wrote = snprintf(text + used, sizeof text - used, ", other side rank %d", s->peer);
                used += wrote > 0 ? (size_t)wrote : 0;
            }
        }
    }
    return MC_FAIL(
        MC_TIMEOUT,
        "no operation between devices completed for %.0f s; not complete: %s; see the other ranks' messages, "
        "or raise --distributed-timeout-minutes",
        waited, text[0] ? text : "none (the device itself does not come to an end)");
}

/* Nothing of these groups can be used again. Operations under way end with an error. */
static void abort_all(mc_cuda *cuda)
{
    for (mc_nccl *g = cuda->groups; g; g = g->next) {
        for (int i = 0; i < g->n_lanes; i++) {
            if (g->lanes[i].comm) {
                (void)ncclCommAbort(g->lanes[i].comm);
                g->lanes[i].comm = NULL;
            }
        }
        g->n_lanes = 0;
    }
}

static double shortest_deadline(const mc_cuda *cuda)
{
    double least = 0;
    for (const mc_nccl *g = cuda->groups; g; g = g->next) {
        least = least == 0 || g->deadline < least ? g->deadline : least;
    }
    return least;
}

mc_status mc_nccl_wait_event(mc_cuda *cuda, cudaEvent_t event)
{
    double limit = shortest_deadline(cuda), since = mc_now(), checked = since;
    mc_i_engine *waits = NULL;
    for (cudaError_t e = cudaEventQuery(event); e != cudaSuccess; e = cudaEventQuery(event)) {
        mc_status st = e == cudaErrorNotReady ? MC_OK : mc_cuda_check_at(__FILE__, __LINE__, e, "cudaEventQuery");
        if (st == MC_OK && mc_now() - checked > 0.05) {
            checked = mc_now();
            st = check_async(cuda);
            since = progress(cuda) ? checked : since;
            waits = show_wait(cuda, since);
        }
        if (st == MC_OK && mc_now() - since > limit) {
            st = report(cuda, mc_now() - since);
        }
        if (st != MC_OK) {
            waits = show_wait(cuda, since);
            if (waits && (st == MC_TIMEOUT || st == MC_COMM)) {
                mc_i_report(waits, MC_I_TIMED_OUT, NULL, 0);
            }
            abort_all(cuda);
            return st;
        }
        mc_i_nccl_nap();
    }
    (void)progress(cuda); /* for the ledger */
    if (waits) {
        mc_i_ledger_waits(waits->ledger, 0, 0, NULL, 0);
    }
    return MC_OK;
}
