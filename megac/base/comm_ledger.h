/* The ledger: what a rank did last, what it waits for and what it is doing on its own, where the other ranks of its
 * machine can read it, also after it has died or was stopped (world_impl.h, boards).
 *
 * The rank's main thread writes, anybody reads, nobody locks: every word is atomic, and what is longer than a word
 * counts when its first word is the same before and after it was read. */
#ifndef MEGAC_BASE_COMM_LEDGER_H
#define MEGAC_BASE_COMM_LEDGER_H

#include "megac/base/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MC_I_LEDGER_OPS = 64,
    MC_I_LEDGER_NAME_BYTES = 160, /* a multiple of 8; longer texts lose their beginning */
    MC_I_LEDGER_MISSING = 8,
};

/* One operation of a group, or one of the rank's own (MC_I_OWN). */
typedef struct mc_i_ledger_row {
    uint64_t id; /* 1 for the first; 0: being written */
    int32_t kind, dtype;
    int32_t peer, unused; /* member of the group; -1: none */
    uint64_t seq, bytes;
    int64_t step;
    double begun_s, done_s;            /* mc_now; done 0: under way */
    char name[MC_I_LEDGER_NAME_BYTES]; /* of the group; MC_I_OWN: what it does */
} mc_i_ledger_row;

/* What the rank waits for, known after a tenth of a second of waiting. */
typedef struct mc_i_ledger_wait {
    uint64_t id; /* of the row; 0: it does not wait */
    double since_s;
    int32_t n, ranks[MC_I_LEDGER_MISSING]; /* world ranks that have not come, the first of n */
    int32_t unused;
} mc_i_ledger_wait;

enum {
    MC_I_ROW_WORDS = sizeof(mc_i_ledger_row) / sizeof(uint64_t),
    MC_I_WAIT_WORDS = sizeof(mc_i_ledger_wait) / sizeof(uint64_t),
};

typedef struct mc_i_ledger {
    uint64_t last_id;
    int64_t step;  /* of training, from 1; 0: before it */
    uint64_t left; /* 1: it leaves after an error that it has told itself */
    uint64_t waits[MC_I_WAIT_WORDS];
    uint64_t rows[MC_I_LEDGER_OPS][MC_I_ROW_WORDS]; /* id is at id % MC_I_LEDGER_OPS */
} mc_i_ledger;

/* ---- writing; a zero-filled ledger is an empty one ---- */

void mc_i_ledger_set_step(mc_i_ledger *ledger, int64_t step);
void mc_i_ledger_leaves(mc_i_ledger *ledger);
void mc_i_ledger_begun(mc_i_ledger *ledger, mc_request *req);
void mc_i_ledger_done(mc_i_ledger *ledger, const mc_request *req);
/* Something of the rank's own: "what" or "what path"; returns its id. */
uint64_t mc_i_ledger_own_begun(mc_i_ledger *ledger, const char *what, const char *path);
/* By its id; 0: nothing. */
void mc_i_ledger_ended(mc_i_ledger *ledger, uint64_t id);
/* It waits for the operation `id`, for which `n` ranks are missing; id 0: no more. */
void mc_i_ledger_waits(mc_i_ledger *ledger, uint64_t id, double since_s, const int *ranks, int n);

/* ---- reading, by any process; false: there is none, or it was changing ---- */

int64_t mc_i_ledger_step(const mc_i_ledger *ledger);
bool mc_i_ledger_has_left(const mc_i_ledger *ledger);
uint64_t mc_i_ledger_last_id(const mc_i_ledger *ledger);
bool mc_i_ledger_get_row(const mc_i_ledger *ledger, uint64_t id, mc_i_ledger_row *row_out);
bool mc_i_ledger_get_wait(const mc_i_ledger *ledger, mc_i_ledger_wait *wait_out);
/* The newest of the rank's own that is under way. */
bool mc_i_ledger_get_own(const mc_i_ledger *ledger, mc_i_ledger_row *row_out);

/* "dp #98 all_reduce, 16 bytes f32": as snprintf. */
int mc_i_ledger_op_text(const mc_i_ledger_row *row, char *text_out, size_t cap);
/* The same with step and times, as of `now_s`. */
int mc_i_ledger_row_text(const mc_i_ledger_row *row, double now_s, char *text_out, size_t cap);
/* The newest rows that fit into `cap` bytes, at most `max_rows`, oldest first, each followed by `separator`. */
void mc_i_ledger_text(const mc_i_ledger *ledger, int max_rows, const char *separator, char *text_out, size_t cap);

#ifdef __cplusplus
}
#endif
#endif
