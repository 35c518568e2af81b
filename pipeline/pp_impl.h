/* Private to pipeline/: the schedules of the table, and the walk that turns a plan into elementary steps.
 *
 * The walk decides when a receive is begun and when a send is waited for. pp_exec performs its steps and pp_check
 * simulates them, so that what was checked is what runs. */
#ifndef PIPELINE_PP_IMPL_H
#define PIPELINE_PP_IMPL_H

#include "pipeline/pp.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const pp_schedule pp_i_1f1b;
extern const pp_schedule pp_i_gpipe;

/* The list of an evaluation, the same for every schedule, and its slots. */
int pp_i_forward_only(const pp_shape *shape, pp_action *out);
int pp_i_forward_only_slots(const pp_shape *shape);

/* Appends the actions of one micro-batch's forward or backward, with the receive and the send that the stage's place
 * asks for. Return the new length. */
int pp_i_put_forward(const pp_shape *shape, int micro, pp_action *out, int n);
int pp_i_put_backward(const pp_shape *shape, int micro, pp_action *out, int n);

/* Which way a message goes: activations forward, gradients backward. */
typedef enum { PP_I_ACT, PP_I_GRAD, PP_I_N_DIRS } pp_i_dir;

/* A buffer that messages pass through: a slot (receive into its input, send from its output) or a grad buffer. */
typedef struct pp_i_buffer {
    bool held;      /* from the begin of the receive (or the compute that fills it) until it is free again */
    bool sending;   /* a send from it has begun and was not waited for */
    int sent_micro; /* what is being sent */
    int sent_index; /* the send's ordinal among this stage's sends in that direction */
    int sent_at;    /* computes done when the send began */
    mc_request send;
} pp_i_buffer;

struct pp_plan_state {
    pp_i_buffer *slots;  /* max_micro, at least two */
    unsigned char *done; /* by micro-batch: kinds seen so far, one bit each */
};

typedef enum {
    PP_I_BEGIN_RECV,
    PP_I_WAIT_RECV,
    PP_I_COMPUTE,
    PP_I_BEGIN_SEND,
    PP_I_WAIT_SEND,
    PP_I_END,
} pp_i_op;

typedef struct pp_i_step {
    pp_i_op op;
    pp_i_dir dir;
    pp_kind kind; /* of PP_I_COMPUTE */
    int micro, slot;
    int buffer;       /* grad buffer, -1 where none is meant */
    int index;        /* ordinal of the message in its direction, from 0 */
    bool last;        /* PP_I_COMPUTE: the last that adds to weight gradients */
    mc_request *send; /* of PP_I_BEGIN_SEND and PP_I_WAIT_SEND */
} pp_i_step;

typedef struct pp_i_walk {
    const pp_plan *plan;
    int at;                       /* next action */
    int next_recv[PP_I_N_DIRS];   /* first receive in the list that was not waited for; n_actions: none */
    bool recv_begun[PP_I_N_DIRS]; /* it is under way */
    int n_recv[PP_I_N_DIRS];      /* receives waited for */
    int n_sent[PP_I_N_DIRS];      /* sends begun */
    int n_backward;               /* PP_BWD and PP_BWD_INPUT done */
    int n_compute;                /* all computes done */
    int last_weight;              /* index of the last action that adds to weight gradients */
    int live, peak_live;          /* slots held */
    pp_i_buffer grads[PP_GRAD_BUFFERS];
} pp_i_walk;

void pp_i_walk_begin(pp_i_walk *walk, const pp_plan *plan);
/* The next elementary step; PP_I_END for ever after the last. */
pp_i_step pp_i_walk_next(pp_i_walk *walk);

#ifdef __cplusplus
}
#endif
#endif
