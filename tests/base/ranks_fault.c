/* Faults of a job of ranks, by name; test_comm_faults.c runs this under tests/ranks and reads what it says. Each rank
 * prints "rank R: STATUS" with what the faulty call returned, and leaves like the program does. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "megac/base/comm.h"
#include "megac/base/log.h"
#include "megac/base/world.h"

typedef mc_status (*fault_fn)(mc_world *w);

static int rank_of(const mc_world *w)
{
    return mc_world_job(w)->rank;
}

static mc_tensor numbers(int64_t n)
{
    static float data[200000];
    return mc_tensor_1d(data, MC_F32, n);
}

static void wait_long(void)
{
    sleep(30);
}

/* The last rank never comes. */
static mc_status never_comes(mc_world *w)
{
    if (rank_of(w) == mc_world_job(w)->size - 1) {
        wait_long();
    }
    return mc_comm_all_reduce(mc_world_comm(w), numbers(100000), numbers(100000), MC_SUM);
}

/* The last rank is stopped, in step 3; rank 1 waits for it, and rank 0 for rank 1. */
static mc_status chain(mc_world *w)
{
    const mc_comm *c = mc_world_comm(w);
    int rank = rank_of(w), last = mc_world_job(w)->size - 1;
    mc_world_set_step(w, 3);
    MC_TRY(mc_comm_barrier(c));
    if (rank == last) {
        uint64_t own = mc_world_own_begin(w, "saves iteration 3:", "run/iter_0000003.tmp/shard");
        raise(SIGSTOP);
        mc_world_own_end(w, own);
    }
    mc_request req;
    MC_TRY(mc_comm_recv_begin(c, numbers(8 * (rank + 1)), (rank + 1) % mc_world_job(w)->size, &req));
    return mc_comm_wait(&req);
}

/* Each waits for what the other would send next. */
static mc_status deadlock(mc_world *w)
{
    mc_request req;
    MC_TRY(mc_comm_recv_begin(mc_world_comm(w), numbers(8), 1 - rank_of(w), &req));
    return mc_comm_wait(&req);
}

/* As on a disk that hangs for rank 1 and is slow for rank 0; nobody waits for anybody. */
static mc_status own_work(mc_world *w)
{
    FILE *f = tmpfile();
    MC_TRY(f ? mc_world_watch(w) : MC_FAIL(MC_IO, "no temporary file"));
    (void)mc_world_own_begin(w, rank_of(w) == 0 ? "writes slowly" : "reads data", NULL);
    for (int i = 0; i < 300; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        if (rank_of(w) == 0 && (fputc('x', f) == EOF || fflush(f) != 0)) {
            return MC_IO;
        }
    }
    return MC_OK;
}

static mc_status nobody_sends(mc_world *w)
{
    mc_request req;
    if (rank_of(w) != 0) {
        wait_long();
    }
    MC_TRY(mc_comm_recv_begin(mc_world_comm(w), numbers(8), 1, &req));
    return mc_comm_wait(&req);
}

static mc_status dies(mc_world *w)
{
    if (rank_of(w) == mc_world_job(w)->size - 1) {
        raise(SIGKILL);
    }
    return mc_comm_barrier(mc_world_comm(w));
}

static mc_status other_size(mc_world *w)
{
    mc_tensor t = numbers(rank_of(w) == 1 ? 300 : 200);
    return mc_comm_all_reduce(mc_world_comm(w), t, t, MC_SUM);
}

static mc_status other_operation(mc_world *w)
{
    mc_tensor t = numbers(200);
    if (rank_of(w) == 1) {
        return mc_comm_broadcast(mc_world_comm(w), t, 0);
    }
    return mc_comm_all_reduce(mc_world_comm(w), t, t, MC_SUM);
}

static mc_status other_message(mc_world *w)
{
    mc_request req;
    const mc_comm *c = mc_world_comm(w);
    if (rank_of(w) == 0) {
        MC_TRY(mc_comm_send_begin(c, numbers(200), 1, &req));
    } else {
        MC_TRY(mc_comm_recv_begin(c, numbers(100), 0, &req));
    }
    return mc_comm_wait(&req);
}

static mc_status other_value(mc_world *w)
{
    return mc_world_agree(w, rank_of(w) >= 1 ? "--seed 1\n--hidden-size 128\n--lr 1\n"
                                             : "--seed 1\n--hidden-size 64\n--lr 1\n");
}

static mc_status other_lines(mc_world *w)
{
    return mc_world_agree(w, rank_of(w) == 1 ? "--seed 1\n" : "--seed 1\n--swiglu\n");
}

/* A rank that found an error of its own leaves; the others are ended with its status. */
static mc_status one_fails(mc_world *w)
{
    if (rank_of(w) == 1) {
        return MC_FAIL(MC_NUMERIC, "the loss is not finite");
    }
    return mc_comm_barrier(mc_world_comm(w));
}

static mc_status other_grid(mc_world *w)
{
    mc_grid grid;
    mc_comm c;
    MC_TRY(mc_grid_init(16, 2, 1, 0, 1, &grid));
    return mc_world_group(w, &grid, 1, "tp", &c);
}

static const struct {
    const char *name;
    double deadline_s;
    fault_fn run; /* NULL: opening is the fault */
} faults[] = {
    {"never-comes", 3, never_comes},
    {"chain", 2, chain},
    {"deadlock", 1, deadlock},
    {"own-work", 1, own_work},
    {"nobody-sends", 3, nobody_sends},
    {"dies", 20, dies},
    {"other-size", 20, other_size},
    {"other-operation", 20, other_operation},
    {"other-message", 20, other_message},
    {"other-value", 20, other_value},
    {"other-lines", 20, other_lines},
    {"one-fails", 20, one_fails},
    {"other-grid", 20, other_grid},
    {"never-opens", 1, NULL},
    {"wrong-size", 5, NULL},
};

static int finish(int rank, mc_status st)
{
    printf("rank %d: %s\n", rank, mc_status_name(st));
    fflush(stdout);
    return mc_status_exit(st);
}

int main(int argc, char **argv)
{
    mc_job job;
    size_t i = 0, n = sizeof faults / sizeof faults[0];
    while (i < n && (argc != 2 || strcmp(faults[i].name, argv[1]) != 0)) {
        i++;
    }
    if (i == n || mc_job_from_env(&job) != MC_OK) {
        return 99;
    }
    mc_log_set_rank(job.rank);
    if (strcmp(faults[i].name, "never-opens") == 0 && job.rank == job.size - 1) {
        wait_long();
    }
    if (strcmp(faults[i].name, "wrong-size") == 0) {
        job.size++;
    }
    mc_world *world;
    mc_status st = mc_world_open(&job, NULL, faults[i].deadline_s, &world);
    if (st != MC_OK) {
        return finish(job.rank, st);
    }
    if (faults[i].run) {
        st = faults[i].run(world);
    }
    int code = finish(job.rank, st);
    if (st != MC_OK && (strstr(argv[1], "other-") || strcmp(argv[1], "wrong-size") == 0)) {
        /* Seen by several ranks: each may speak before the first to leave ends the others. */
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    }
    mc_world_close(world, st != MC_OK, code);
    return code;
}
