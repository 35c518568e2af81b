/* Opening and leaving the job, and making its groups. */
#include "megac/base/world.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "megac/base/world_impl.h"

static mc_status check_open(const mc_job *job, const char *name, double deadline_seconds)
{
    if (!(deadline_seconds > 0)) {
        return MC_FAIL(MC_INVALID, "the deadline of communication is %g seconds; it must be positive",
                       deadline_seconds);
    }
    if (strcmp(name, "self") != 0 && strcmp(name, "mpi") != 0 && strcmp(name, "tcp") != 0) {
        return MC_FAIL(MC_INVALID, "--comm \"%s\" is not known among hosts; use self, mpi or tcp", name);
    }
    if (strcmp(name, "self") == 0 && job->size > 1) {
        return MC_FAIL(MC_INVALID, "--comm self is for one rank, %s started %d; use --comm %s", job->launcher,
                       job->size, mc_i_net_default(job));
    }
    return MC_OK;
}

static void node_members(const mc_world *w, int *ranks, mc_i_members *members_out)
{
    *members_out = (mc_i_members){.world = ranks};
    for (int r = 0; r < w->job.size; r++) {
        if (w->node[r] == w->node[w->job.rank]) {
            members_out->rank = r == w->job.rank ? members_out->size : members_out->rank;
            ranks[members_out->size++] = r;
        }
    }
}

/* A group of the members by shared memory where they can, else by messages. Collective over the world. */
static mc_status make_group(mc_world *w, const mc_comm *over, const mc_i_members *members, const char *name,
                            mc_comm *comm_out)
{
    int index = ++w->n_groups; /* 0 is `boot` */
    mc_i_shared *shared = NULL;
    if (w->wants_shm) {
        mc_i_members alone = {.size = 1, .world = &w->job.rank};
        bool near = w->shm;
        for (int m = 0; m < members->size; m++) {
            near = near && w->node[members->world[m]] == w->node[w->job.rank];
        }
        MC_TRY(mc_i_world_share(w, over, near ? members : &alone, mc_i_shm_group_bytes(members->size),
                                "shared memory of a group", &shared));
        if (!near || !shared->direct) {
            mc_i_shared_destroy(shared);
            shared = NULL;
        }
    }
    if (members->size == 1) {
        mc_i_shared_destroy(shared);
        *comm_out = mc_comm_self(name);
        return MC_OK;
    }
    if (!shared) {
        return mc_i_comm_msg_create(w->net, &w->engine, members, index, name, comm_out);
    }
    mc_status st = mc_i_comm_shm_create(w, members, shared, name, comm_out);
    if (st != MC_OK) {
        mc_i_shared_destroy(shared);
    }
    return st;
}

/* Boards of the node's ranks, with doorbell and ledger: whoever maps them all can share memory. */
static mc_status open_boards(mc_world *w, const mc_i_members *node)
{
    mc_i_engine *e = &w->engine;
    MC_TRY(mc_i_world_share(w, &w->boot, node, sizeof(mc_i_board), "board", &w->shared_boards));
    w->shm = node->size > 1 && w->shared_boards->direct;
    if (!w->shm) {
        if (node->size > 1 && node->rank == 0) {
            MC_INFO("ranks of this node cannot map each other's memory; they talk by messages, which is slower");
        }
        return MC_OK;
    }
    MC_TRY(MC_NEW_N(&w->boards, w->job.size, "boards of ranks"));
    for (int m = 0; m < node->size; m++) {
        w->boards[node->world[m]] = (mc_i_board *)w->shared_boards->by_rank[node->world[m]].base;
    }
    mc_i_board *mine = w->boards[w->job.rank];
    mine->ledger = e->own; /* what it did until here */
    e->ledger = &mine->ledger;
    e->bell = &mine->bell;
    e->boards = w->boards;
    e->report = &w->boards[node->world[0]]->report;
    return MC_OK;
}

/* MEGAC_NODE_RANKS=N: as if the ranks of each N lived on a machine of their own. */
static mc_status pretend_nodes(mc_world *w)
{
    const char *text = getenv("MEGAC_NODE_RANKS");
    if (!text || !*text) {
        return MC_OK;
    }
    char *end;
    long n = strtol(text, &end, 10);
    if (*end != '\0' || n < 1 || n > w->job.size) {
        return MC_FAIL(MC_INVALID, "MEGAC_NODE_RANKS=\"%s\" in the environment is no number from 1 to %d", text,
                       w->job.size);
    }
    for (int r = 0; r < w->job.size; r++) {
        w->node[r] = r - r % (int)n;
    }
    return MC_OK;
}

static mc_status open_many(mc_world *w, const char *name, double deadline_seconds, int *ranks)
{
    mc_i_members node, all = {.rank = w->job.rank, .size = w->job.size};
    const char *no_shm = getenv("MEGAC_NO_SHM");
    MC_TRY(mc_i_net_open(name, &w->job, deadline_seconds, &w->net, &w->node));
    MC_TRY(pretend_nodes(w));
    node_members(w, ranks, &node);
    w->job.local_rank = node.rank;
    w->job.local_size = node.size;
    mc_i_engine_init(&w->engine, deadline_seconds, node.size);
    w->engine.rank = w->job.rank;
    w->engine.n_ranks = w->job.size;
    w->wants_shm = !no_shm || strcmp(no_shm, "") == 0 || strcmp(no_shm, "0") == 0;
    int *every = ranks + w->job.size;
    for (int r = 0; r < w->job.size; r++) {
        every[r] = r;
    }
    all.world = every;
    MC_TRY(mc_i_comm_msg_create(w->net, &w->engine, &all, 0, "world", &w->boot));
    MC_TRY(MC_NEW_N(&w->pids, w->job.size, "processes of ranks"));
    MC_TRY(mc_i_world_pids(w, &w->boot));
    if (w->wants_shm) {
        MC_TRY(open_boards(w, &node));
    }
    if (!w->shm || node.size < w->job.size) {
        /* Nodes whose ranks share memory take part in the making of every group. */
        w->comm = w->boot;
        return MC_OK;
    }
    return make_group(w, &w->boot, &all, "world", &w->comm);
}

static void free_world(mc_world *w)
{
    if (w->comm.impl != w->boot.impl) {
        mc_comm_destroy(&w->comm);
    }
    mc_comm_destroy(&w->boot);
    while (w->maps) {
        mc_i_shared *next = w->maps->next;
        mc_i_shared_destroy(w->maps);
        w->maps = next;
    }
    mc_i_shared_destroy(w->shared_boards);
    mc_free(w->boards);
    mc_free(w->pids);
    mc_free(w->node);
    mc_free(w);
}

mc_status mc_world_open(const mc_job *job, const char *name, double deadline_seconds, mc_world **world_out)
{
    name = name ? name : job->size == 1 ? "self" : mc_i_net_default(job);
    MC_TRY(check_open(job, name, deadline_seconds));
    mc_world *w;
    int *ranks = NULL;
    MC_TRY(MC_NEW(&w, "world"));
    w->job = *job;
    mc_i_engine_init(&w->engine, deadline_seconds, job->local_size);
    mc_status st = MC_OK;
    if (job->size == 1) {
        w->comm = mc_comm_self("world"); /* MPI takes a quarter of a second to start: not for one rank */
    } else {
        MC_TRY_GOTO(st, MC_NEW_N(&ranks, 2 * job->size, "lists of ranks"), undo_world);
        MC_TRY_GOTO(st, open_many(w, name, deadline_seconds, ranks), undo_world);
        mc_free(ranks);
    }
    *world_out = w;
    return MC_OK;

undo_world:
    mc_free(ranks);
    if (w->net) {
        mc_i_net_drop(w->net);
    }
    free_world(w);
    return st;
}

void mc_world_close(mc_world *w, bool failed, int exit_status)
{
    if (!w) {
        return;
    }
    mc_i_watch_destroy(w->watch);
    if (w->net) {
        mc_status st = failed ? MC_COMM : mc_comm_barrier(&w->comm);
        if (st != MC_OK) {
            mc_i_ledger_leaves(w->engine.ledger);
            alarm(MC_I_END_S); /* the network's end may wait for what never comes */
            mc_i_net_abort(w->net, failed ? exit_status : mc_status_exit(st));
            return; /* where MPI_Abort comes back, the process is about to end */
        }
    }
    mc_i_net *net = w->net;
    free_world(w);
    if (net) {
        mc_i_net_close(net);
    }
}

const mc_job *mc_world_job(const mc_world *w)
{
    return &w->job;
}

const mc_comm *mc_world_comm(const mc_world *w)
{
    return &w->comm;
}

void mc_world_set_step(mc_world *w, int64_t step)
{
    mc_i_ledger_set_step(w->engine.ledger, step);
}

uint64_t mc_world_own_begin(mc_world *w, const char *what, const char *path)
{
    return mc_i_ledger_own_begun(w->engine.ledger, what, path);
}

void mc_world_own_end(mc_world *w, uint64_t id)
{
    mc_i_ledger_ended(w->engine.ledger, id);
}

void mc_world_ledger(const mc_world *w, char *text_out, size_t cap)
{
    mc_i_ledger_text(w->engine.ledger, MC_I_LEDGER_OPS, "\n", text_out, cap);
}

static mc_status split_with(mc_world *w, int color, int *colors, int *ranks, const char *name, mc_comm *comm_out)
{
    int32_t mine = color;
    MC_TRY(mc_comm_all_gather(&w->comm, mc_tensor_1d(&mine, MC_I32, 1), mc_tensor_1d(colors, MC_I32, w->job.size)));
    mc_i_members members = {.world = ranks};
    for (int r = 0; r < w->job.size; r++) {
        if (r == w->job.rank || (color >= 0 && colors[r] == color)) {
            members.rank = r == w->job.rank ? members.size : members.rank;
            ranks[members.size++] = r;
        }
    }
    return make_group(w, &w->comm, &members, name, comm_out);
}

mc_status mc_world_split(mc_world *w, int color, const char *name, mc_comm *comm_out)
{
    if (w->job.size == 1) {
        *comm_out = mc_comm_self(name);
        return MC_OK;
    }
    int *lists;
    MC_TRY(MC_NEW_N(&lists, 2 * w->job.size, "lists of ranks"));
    mc_status st = split_with(w, color, lists, lists + w->job.size, name, comm_out);
    mc_free(lists);
    return st;
}

mc_status mc_world_group(mc_world *w, const mc_grid *grid, unsigned axes, const char *name, mc_comm *comm_out)
{
    if (mc_grid_ranks(grid) != w->job.size) {
        return MC_FAIL(MC_INVALID, "group %s: the grid has %d ranks, the job %d", name, mc_grid_ranks(grid),
                       w->job.size);
    }
    mc_group group = mc_grid_group(grid, w->job.rank, axes);
    if (group.size == 1) { /* then all groups along these axes are */
        *comm_out = mc_comm_self(name);
        return MC_OK;
    }
    return mc_world_split(w, group.color, name, comm_out);
}
