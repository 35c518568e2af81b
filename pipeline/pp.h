/* Pipeline schedules: who computes which micro-batch when, and what is sent in between.
 *
 * A schedule is a pure function (stages, stage, micro-batches) -> list of actions; pp_check simulates all stages' lists
 * (no deadlock, every send has its receive, peak of live micro-batches) and so plans memory; pp_exec runs one stage's
 * list. A schedule does not know what a stage computes and never sees the loss. */
#ifndef PIPELINE_PP_H
#define PIPELINE_PP_H

#include <stdbool.h>

#include "megac/base/comm.h"
#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    PP_RECV_FWD,   /* activation of `micro` from the previous stage into slot */
    PP_FWD,        /* forward of `micro`, its activations kept in slot */
    PP_SEND_FWD,   /* its output to the next stage */
    PP_RECV_BWD,   /* gradient of its output from the next stage */
    PP_BWD,        /* backward of `micro`: input gradient, then weight gradients, block by block; frees the slot */
    PP_BWD_INPUT,  /* input gradient alone (zero-bubble schedules) */
    PP_BWD_WEIGHT, /* weight gradients of an earlier PP_BWD_INPUT; frees the slot */
    PP_SEND_BWD,   /* gradient of its input to the previous stage */
} pp_kind;

const char *pp_kind_name(pp_kind kind);

typedef struct pp_action {
    pp_kind kind;
    int micro; /* 0 .. n_micro - 1 */
    int slot;  /* stash slot that holds this micro-batch's activations */
} pp_action;

typedef struct pp_shape {
    int n_stages, stage, n_micro;
    bool forward_only; /* evaluation: forward and its sends and receives; two slots, so that a send overlaps */
} pp_shape;

typedef struct pp_schedule {
    const char *name; /* "1f1b", "gpipe" */
    const char *help;
    /* Writes the stage's actions (without slots) in order; returns their number. `out` has room for pp_max_actions().
     */
    int (*generate)(const pp_shape *shape, pp_action *out);
    /* Most micro-batches this stage holds at once. */
    int (*n_slots)(const pp_shape *shape);
} pp_schedule;

/* By name; MC_INVALID lists the known ones. */
mc_status pp_schedule_find(const char *name, const pp_schedule **schedule_out) MC_MUST_CHECK;

/* A stage's list with slots assigned. Storage for the largest n_micro is allocated once. */
typedef struct pp_plan {
    pp_action *actions;
    int n_actions, cap_actions;
    int n_slots; /* slots that the list uses */
    pp_shape shape;
    int max_micro;
    struct pp_plan_state *state; /* of a run of the list (pp_impl.h): a plan is run by one thread at a time */
} pp_plan;

int pp_max_actions(int n_micro);
mc_status pp_plan_init(pp_plan *plan, int max_micro) MC_MUST_CHECK;
void pp_plan_fini(pp_plan *plan); /* a zeroed plan is allowed */
/* Fills the plan for `shape` (n_micro <= max_micro); allocates nothing. MC_INVALID when the list is not one that a
 * stage can run: a micro-batch without exactly one forward and one backward, a receive or send missing or in the wrong
 * place, more slots than n_slots() grants, a grad buffer filled again before it was sent. */
mc_status pp_plan_make(pp_plan *plan, const pp_schedule *schedule, const pp_shape *shape) MC_MUST_CHECK;

/* Simulation of all stages of a schedule. MC_INVALID describes the first fault found: deadlock (which stage waits for
 * what), a send without its receive, a micro-batch without exactly one forward and backward, a slot used twice. */
typedef struct pp_report {
    int peak_live[64]; /* most micro-batches held at once, by stage (first 64 stages) */
    double makespan;   /* with forward = 1 and backward = 2 time units and free transfers */
    double ideal;      /* a stage's own work: makespan / ideal - 1 is the bubble */
} pp_report;
mc_status pp_check(const pp_schedule *schedule, int n_stages, int n_micro, bool forward_only,
                   pp_report *report_out) MC_MUST_CHECK;

/* What a stage must be able to do. Buffers belong to the stage; `slot` and `buffer` say which. */
typedef struct pp_stage_ops {
    /* Reads input(slot), which the first stage does not have; leaves the result in output(slot), which must not share
     * memory with input(slot): the next input may arrive while the output is still being sent. */
    mc_status (*forward)(void *stage, int micro, int slot);
    /* `last`: no later micro-batch of this step will add to the weight gradients. dout is in grad buffer `buffer`; the
     * input gradient is left in the same buffer; the last stage gets no dout and computes its own. PP_BWD_WEIGHT has
     * buffer -1: what it needs, the stage has kept in the slot. */
    mc_status (*backward)(void *stage, pp_kind kind, int micro, int slot, int buffer, bool last);
    mc_tensor (*input)(void *stage, int slot);  /* where RECV_FWD puts the activation */
    mc_tensor (*output)(void *stage, int slot); /* what SEND_FWD sends */
    mc_tensor (*grad)(void *stage, int buffer); /* where RECV_BWD puts dout, and what SEND_BWD sends */
} pp_stage_ops;

enum { PP_GRAD_BUFFERS = 2 };

typedef struct pp_stats {
    int peak_live;                        /* most micro-batches held at once in this run of the list */
    double compute_seconds, wait_seconds; /* time inside forward/backward, and inside communication waits */
} pp_stats;

/* Runs the list. `comm` is the pp group: previous stage = rank - 1, next = rank + 1. Receives are begun before the
 * compute that precedes them where their buffer is free; a send is waited for when its buffer is needed again, and at
 * the end. */
mc_status pp_exec(const pp_plan *plan, const mc_comm *comm, const pp_stage_ops *ops, void *stage,
                  pp_stats *stats_out) MC_MUST_CHECK;

/* Layers to stages: first[s] and count[s] for n_stages. `first_layers`/`last_layers`: fixed number on the first and
 * last stage (-1: not fixed); account_*: the embedding or the loss counts as one layer. MC_INVALID names the flags when
 * the remaining layers cannot be divided evenly, and how they could. */
typedef struct pp_partition {
    int n_layers, n_stages, first_layers, last_layers;
    bool account_embedding, account_loss;
} pp_partition;
mc_status pp_partition_layers(const pp_partition *p, int *first_out, int *count_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
