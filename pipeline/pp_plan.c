/* From a schedule's list to a plan: checks that the list is one that a stage can run, and gives every micro-batch a
 * slot. */
#include <string.h>

#include "megac/base/alloc.h"
#include "pipeline/pp_impl.h"

enum { KINDS_PER_MICRO = 7 }; /* PP_BWD, or PP_BWD_INPUT and PP_BWD_WEIGHT */

int pp_max_actions(int n_micro)
{
    return KINDS_PER_MICRO * n_micro;
}

mc_status pp_plan_init(pp_plan *plan, int max_micro)
{
    MC_ASSERT(max_micro >= 1);
    pp_plan p = {.cap_actions = pp_max_actions(max_micro), .max_micro = max_micro};
    int max_slots = max_micro < 2 ? 2 : max_micro;
    mc_status st;
    MC_TRY_GOTO(st, MC_NEW(&p.state, "pipeline plan state"), undo_all);
    MC_TRY_GOTO(st, MC_NEW_N(&p.actions, p.cap_actions, "pipeline actions"), undo_all);
    MC_TRY_GOTO(st, MC_NEW_N(&p.state->slots, max_slots, "pipeline slots"), undo_all);
    MC_TRY_GOTO(st, MC_NEW_N(&p.state->done, max_micro, "pipeline micro-batch states"), undo_all);
    *plan = p;
    return MC_OK;
undo_all:
    pp_plan_fini(&p);
    return st;
}

void pp_plan_fini(pp_plan *plan)
{
    if (plan->state != NULL) {
        mc_free(plan->state->slots);
        mc_free(plan->state->done);
    }
    mc_free(plan->state);
    mc_free(plan->actions);
    *plan = (pp_plan){0};
}

static unsigned bit(pp_kind kind)
{
    return 1u << kind;
}

/* Kinds of which the stage does not do any. */
static unsigned foreign_kinds(const pp_shape *shape)
{
    unsigned foreign = 0;
    if (shape->stage == 0) {
        foreign |= bit(PP_RECV_FWD) | bit(PP_SEND_BWD);
    }
    if (shape->stage == shape->n_stages - 1) {
        foreign |= bit(PP_SEND_FWD) | bit(PP_RECV_BWD);
    }
    if (shape->forward_only) {
        foreign |= bit(PP_RECV_BWD) | bit(PP_BWD) | bit(PP_BWD_INPUT) | bit(PP_BWD_WEIGHT) | bit(PP_SEND_BWD);
    }
    return foreign;
}

/* Kinds that a micro-batch must have behind it before `kind`. */
static unsigned needed_kinds(pp_kind kind)
{
    switch (kind) {
    case PP_RECV_FWD:
        return 0;
    case PP_FWD:
        return bit(PP_RECV_FWD);
    case PP_SEND_FWD:
        return bit(PP_FWD);
    case PP_RECV_BWD:
        return bit(PP_SEND_FWD);
    case PP_BWD:
    case PP_BWD_INPUT:
        return bit(PP_FWD) | bit(PP_SEND_FWD) | bit(PP_RECV_BWD);
    case PP_BWD_WEIGHT:
        return bit(PP_BWD_INPUT);
    case PP_SEND_BWD:
        return bit(PP_BWD); /* PP_BWD_INPUT marks this too */
    }
    return 0;
}

/* What one pass over the list knows. */
typedef struct pass {
    const pp_plan *plan;
    const pp_schedule *schedule;
    unsigned foreign;
    int granted; /* slots */
    int next_slot, used_slots;
    int n_recv_bwd, n_bwd, n_send_bwd; /* their order must be the same: buffers alternate */
} pass;

#define LIST_FAULT(p, a, what, ...)                                                                                    \
    MC_FAIL(MC_INVALID, what " (micro-batch %d on stage %d of %d, pipeline schedule \"%s\")", __VA_ARGS__, (a)->micro, \
            (p)->plan->shape.stage, (p)->plan->shape.n_stages, (p)->schedule->name)

static mc_status check_place(pass *p, const pp_action *a)
{
    const pp_shape *shape = &p->plan->shape;
    if ((unsigned)a->kind > PP_SEND_BWD || a->micro < 0 || a->micro >= shape->n_micro) {
        return MC_FAIL(MC_INVALID, "pipeline schedule \"%s\", stage %d: action of kind %d on micro-batch %d of %d",
                       p->schedule->name, shape->stage, (int)a->kind, a->micro, shape->n_micro);
    }
    unsigned char *done = &p->plan->state->done[a->micro];
    if ((bit(a->kind) & p->foreign) != 0) {
        return LIST_FAULT(p, a, "%s has no place on this stage", pp_kind_name(a->kind));
    }
    unsigned mark = bit(a->kind);
    if (a->kind == PP_BWD) {
        mark |= bit(PP_BWD_INPUT) | bit(PP_BWD_WEIGHT);
    } else if (a->kind == PP_BWD_INPUT) {
        mark |= bit(PP_BWD);
    }
    if ((*done & bit(a->kind)) != 0) {
        return LIST_FAULT(p, a, "%s comes twice", pp_kind_name(a->kind));
    }
    unsigned missing = needed_kinds(a->kind) & ~p->foreign & ~(unsigned)*done;
    if (missing != 0) {
        return LIST_FAULT(p, a, "%s comes before its %s", pp_kind_name(a->kind),
                          pp_kind_name((pp_kind)__builtin_ctz(missing)));
    }
    *done = (unsigned char)(*done | mark);
    return MC_OK;
}

/* Grad buffer k % PP_GRAD_BUFFERS serves the kth backward: it must be empty again when it is filled, and receives,
 * backwards and sends must come in one order. */
static mc_status check_grads(pass *p, const pp_action *a)
{
    const pp_shape *shape = &p->plan->shape;
    bool receives = shape->stage<shape->n_stages - 1, sends = shape->stage> 0;
    bool computes = a->kind == PP_BWD || a->kind == PP_BWD_INPUT;
    int *count = a->kind == PP_RECV_BWD ? &p->n_recv_bwd : computes ? &p->n_bwd : &p->n_send_bwd;
    if (!computes && a->kind != PP_RECV_BWD && a->kind != PP_SEND_BWD) {
        return MC_OK;
    }
    bool fills = receives ? a->kind == PP_RECV_BWD : computes;
    int emptied = sends ? p->n_send_bwd : p->n_bwd;
    if (fills && *count - emptied >= PP_GRAD_BUFFERS) {
        return LIST_FAULT(p, a, "%s needs a grad buffer, and all %d are in use", pp_kind_name(a->kind),
                          PP_GRAD_BUFFERS);
    }
    /* The micro-batch in the buffer, in order of filling, is remembered where the plan's walk will keep its send. */
    int *in_buffer = &p->plan->state->slots[*count % PP_GRAD_BUFFERS].sent_micro;
    if (fills) {
        *in_buffer = a->micro;
    } else if (*in_buffer != a->micro) {
        return LIST_FAULT(p, a, "%s comes where micro-batch %d is next", pp_kind_name(a->kind), *in_buffer);
    }
    (*count)++;
    return MC_OK;
}

/* Slots are taken in turn, so that with two of them a send overlaps the next forward. */
static mc_status take_slot(pass *p, const pp_action *a, int *slot_out)
{
    pp_i_buffer *slots = p->plan->state->slots;
    for (int i = 0; i < p->granted; i++) {
        int slot = (p->next_slot + i) % p->granted;
        if (!slots[slot].held) {
            slots[slot].held = true;
            slots[slot].sent_index = a->micro;
            p->next_slot = (slot + 1) % p->granted;
            p->used_slots = slot + 1 > p->used_slots ? slot + 1 : p->used_slots;
            *slot_out = slot;
            return MC_OK;
        }
    }
    return LIST_FAULT(p, a, "%s needs a slot, and all %d are in use", pp_kind_name(a->kind), p->granted);
}

static mc_status assign_slot(pass *p, pp_action *a)
{
    pp_i_buffer *slots = p->plan->state->slots;
    bool first = a->kind == PP_RECV_FWD || (a->kind == PP_FWD && p->plan->shape.stage == 0);
    if (first) {
        MC_TRY(take_slot(p, a, &a->slot));
    } else {
        /* The newest slot that this micro-batch took; free already for the sends that come after the last compute. */
        int slot = 0;
        while (slot < p->granted && slots[slot].sent_index != a->micro) {
            slot++;
        }
        if (slot == p->granted) {
            return LIST_FAULT(p, a, "%s comes after its slot was given away", pp_kind_name(a->kind));
        }
        a->slot = slot;
    }
    bool frees = p->plan->shape.forward_only ? a->kind == PP_FWD : a->kind == PP_BWD || a->kind == PP_BWD_WEIGHT;
    if (frees) {
        slots[a->slot].held = false;
    }
    return MC_OK;
}

/* Every micro-batch must have seen every kind that has a place on this stage. */
static mc_status check_complete(const pass *p)
{
    const pp_shape *shape = &p->plan->shape;
    for (int micro = 0; micro < shape->n_micro; micro++) {
        unsigned missing = ((bit(PP_SEND_BWD) << 1) - 1) & ~p->foreign & ~(unsigned)p->plan->state->done[micro];
        if (missing != 0) {
            pp_action a = {.micro = micro};
            return LIST_FAULT(p, &a, "the list has no %s", pp_kind_name((pp_kind)__builtin_ctz(missing)));
        }
    }
    return MC_OK;
}

mc_status pp_plan_make(pp_plan *plan, const pp_schedule *schedule, const pp_shape *shape)
{
    MC_ASSERT(shape->n_stages >= 1 && shape->stage >= 0 && shape->stage < shape->n_stages);
    MC_ASSERT(shape->n_micro >= 1 && shape->n_micro <= plan->max_micro);
    plan->shape = *shape;
    plan->n_actions = schedule->generate(shape, plan->actions);
    MC_ASSERT(plan->n_actions >= 0 && plan->n_actions <= plan->cap_actions);

    int max_slots = plan->max_micro < 2 ? 2 : plan->max_micro;
    pass p = {.plan = plan, .schedule = schedule, .foreign = foreign_kinds(shape), .granted = schedule->n_slots(shape)};
    MC_ASSERT(p.granted >= 1 && p.granted <= max_slots);
    memset(plan->state->done, 0, (size_t)shape->n_micro);
    for (int i = 0; i < max_slots; i++) {
        plan->state->slots[i] = (pp_i_buffer){.sent_micro = -1, .sent_index = -1};
    }
    for (int i = 0; i < plan->n_actions; i++) {
        MC_TRY(check_place(&p, &plan->actions[i]));
        MC_TRY(check_grads(&p, &plan->actions[i]));
        MC_TRY(assign_slot(&p, &plan->actions[i]));
    }
    MC_TRY(check_complete(&p));
    plan->n_slots = p.used_slots;
    return MC_OK;
}
