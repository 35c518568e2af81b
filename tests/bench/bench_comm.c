/* The communicators against MPI's own collectives, in turn, in one run: tests/ranks 2 build/tests/bench/bench_comm.
 *
 * For each size: the median time of an operation of both, its rate as bytes of a rank's result per second, and the
 * ratio MPI / megac (above 1: megac is faster). Buffers lie in mc_world_map's memory, as the trainer's do. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#include "megac/base/clock.h"
#include "megac/base/comm.h"
#include "megac/base/comm_impl.h"
#include "megac/base/world.h"

enum { ROUNDS = 7, MAX_BYTES = 16 << 20 };

typedef enum { ALL_REDUCE, ALL_GATHER, BARRIER } operation;
static const char *const names[] = {"all_reduce", "all_gather", "barrier"};

typedef struct bench {
    const mc_comm *c;
    float *in, *out;
} bench;

static mc_status ours(const bench *b, operation op, size_t n)
{
    int64_t part = (int64_t)n / b->c->size;
    switch (op) {
    case ALL_REDUCE:
        return mc_comm_all_reduce(b->c, mc_tensor_1d(b->in, MC_F32, (int64_t)n),
                                  mc_tensor_1d(b->out, MC_F32, (int64_t)n), MC_SUM);
    case ALL_GATHER:
        return mc_comm_all_gather(b->c, mc_tensor_1d(b->in, MC_F32, part),
                                  mc_tensor_1d(b->out, MC_F32, part * b->c->size));
    default:
        return mc_comm_barrier(b->c);
    }
}

static void theirs(const bench *b, operation op, size_t n)
{
    int part = (int)n / b->c->size;
    switch (op) {
    case ALL_REDUCE:
        MPI_Allreduce(b->in, b->out, (int)n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        break;
    case ALL_GATHER:
        MPI_Allgather(b->in, part, MPI_FLOAT, b->out, part, MPI_FLOAT, MPI_COMM_WORLD);
        break;
    default:
        MPI_Barrier(MPI_COMM_WORLD);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static mc_status measure(const bench *b, operation op, size_t bytes)
{
    double t[2][ROUNDS];
    size_t n = bytes / sizeof(float);
    int repeat = bytes >= 1 << 20 ? 10 : 300;
    for (int round = 0; round < ROUNDS; round++) {
        for (int who = 0; who < 2; who++) {
            MC_TRY(mc_comm_barrier(b->c));
            double begin = mc_now();
            for (int i = 0; i < repeat; i++) {
                if (who == 0) {
                    MC_TRY(ours(b, op, n));
                } else {
                    theirs(b, op, n);
                }
            }
            t[who][round] = (mc_now() - begin) / repeat;
        }
    }
    qsort(t[0], ROUNDS, sizeof t[0][0], by_value);
    qsort(t[1], ROUNDS, sizeof t[1][0], by_value);
    double a = t[0][ROUNDS / 2], m = t[1][ROUNDS / 2];
    if (b->c->rank == 0) {
        printf("%-10s %9zu bytes  megac %9.2f us %6.2f GB/s  MPI %9.2f us %6.2f GB/s  ratio %.2f\n", names[op], bytes,
               a * 1e6, (double)bytes / a * 1e-9, m * 1e6, (double)bytes / m * 1e-9, m / a);
        fflush(stdout);
    }
    return MC_OK;
}

static mc_status run(mc_world *world)
{
    static const size_t sizes[] = {8, 1024, 4096, 16384, 262144, 1 << 20, 4 << 20, MAX_BYTES};
    bench b = {.c = mc_world_comm(world)};
    void *p;
    MC_TRY(mc_world_map(world, MAX_BYTES, "input", &p));
    b.in = p;
    MC_TRY(mc_world_map(world, MAX_BYTES, "output", &p));
    b.out = p;
    for (size_t i = 0; i < MAX_BYTES / sizeof(float); i++) {
        b.in[i] = (float)(i % 1000);
        b.out[i] = 0;
    }
    MC_TRY(measure(&b, BARRIER, 0));
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        MC_TRY(measure(&b, ALL_REDUCE, sizes[s]));
        MC_TRY(measure(&b, ALL_GATHER, sizes[s]));
    }
    return MC_OK;
}

int main(void)
{
    mc_job job;
    mc_world *world;
    if (mc_job_from_env(&job) != MC_OK || job.size < 2) {
        fprintf(stderr, "usage: tests/ranks 2 build/tests/bench/bench_comm\n");
        return 2;
    }
    mc_status st = mc_world_open(&job, "mpi", 60, &world);
    if (st == MC_OK) {
        st = run(world);
        mc_world_close(world, st != MC_OK, mc_status_exit(st));
    }
    return mc_status_exit(st);
}
