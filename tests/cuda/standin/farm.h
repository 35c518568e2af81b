/* Runs a program as several ranks on this machine, each of them its own process, and keeps what they said and how they
 * ended. The program includes this header too: its ranks share an area for a unique id and a barrier. */
#ifndef TESTS_CUDA_STANDIN_FARM_H
#define TESTS_CUDA_STANDIN_FARM_H

#include <stdatomic.h>
#include <stdbool.h>

enum { FARM_MAX_RANKS = 16, FARM_TEXT_CAP = 16384, FARM_ID_BYTES = 128 };

/* What the ranks of one run share. */
typedef struct farm_area {
    atomic_int id_ready, arrived, turn;
    char id[FARM_ID_BYTES];
} farm_area;

typedef struct farm_result {
    int n_ranks;
    int status[FARM_MAX_RANKS];               /* exit status; 128 + number of the signal that ended it */
    char text[FARM_MAX_RANKS][FARM_TEXT_CAP]; /* its standard output and error */
} farm_result;

/* Runs `program mode` as n ranks. env: {"NAME=value", ..., NULL} beside the caller's environment; the rank is in
 * OMPI_COMM_WORLD_RANK. Ranks that still run after `seconds` are killed. */
void farm_run(const char *program, const char *mode, int n, const char *const *env, double seconds, farm_result *out);
/* Prints what the ranks said, for a test that is about to fail. */
void farm_show(const farm_result *result);

/* In a rank: its number, the number of ranks, the area, and a barrier (false after `seconds`). */
int farm_rank(void);
int farm_ranks(void);
farm_area *farm_shared(void);
bool farm_barrier(double seconds);

#endif
