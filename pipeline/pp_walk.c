/* The walk over a plan: when receives are begun and sends waited for.
 *
 * Before every compute, the next receive of each direction is begun if its buffer is free: a slot when the micro-batch
 * that held it is done, a grad buffer when its send is done. A send that began before an earlier compute is waited for
 * to make that so (its peer needed the message about then); one that has just begun is not, because the peer may still
 * be computing. Otherwise a send is waited for when its buffer is filled again, and at the end. */
#include "pipeline/pp_impl.h"

static pp_kind recv_kind(pp_i_dir dir)
{
    return dir == PP_I_ACT ? PP_RECV_FWD : PP_RECV_BWD;
}

static int find_recv(const pp_plan *plan, pp_i_dir dir, int from)
{
    while (from < plan->n_actions && plan->actions[from].kind != recv_kind(dir)) {
        from++;
    }
    return from;
}

void pp_i_walk_begin(pp_i_walk *walk, const pp_plan *plan)
{
    *walk = (pp_i_walk){.plan = plan, .last_weight = -1};
    for (int dir = 0; dir < PP_I_N_DIRS; dir++) {
        walk->next_recv[dir] = find_recv(plan, (pp_i_dir)dir, 0);
    }
    for (int i = 0; i < plan->n_actions; i++) {
        if (plan->actions[i].kind == PP_BWD || plan->actions[i].kind == PP_BWD_WEIGHT) {
            walk->last_weight = i;
        }
    }
    for (int i = 0; i < plan->n_slots; i++) {
        plan->state->slots[i].held = false;
        plan->state->slots[i].sending = false;
    }
}

static pp_i_buffer *slot_of(const pp_i_walk *walk, int slot)
{
    MC_ASSERT(slot >= 0 && slot < walk->plan->n_slots);
    return &walk->plan->state->slots[slot];
}

static void hold(pp_i_walk *walk, pp_i_buffer *slot)
{
    MC_ASSERT(!slot->held);
    slot->held = true;
    walk->live++;
    walk->peak_live = walk->live > walk->peak_live ? walk->live : walk->peak_live;
}

static void release(pp_i_walk *walk, pp_i_buffer *slot)
{
    MC_ASSERT(slot->held);
    slot->held = false;
    walk->live--;
}

static pp_i_step wait_send(pp_i_buffer *b, pp_i_dir dir, int slot, int buffer)
{
    MC_ASSERT(b->sending);
    b->sending = false;
    if (dir == PP_I_GRAD) {
        b->held = false;
    }
    return (pp_i_step){.op = PP_I_WAIT_SEND,
                       .dir = dir,
                       .micro = b->sent_micro,
                       .slot = slot,
                       .buffer = buffer,
                       .index = b->sent_index,
                       .send = &b->send};
}

static pp_i_step begin_recv(pp_i_walk *walk, pp_i_dir dir)
{
    const pp_action *a = &walk->plan->actions[walk->next_recv[dir]];
    int buffer = dir == PP_I_GRAD ? walk->n_recv[dir] % PP_GRAD_BUFFERS : -1;
    if (dir == PP_I_ACT) {
        hold(walk, slot_of(walk, a->slot));
    } else {
        MC_ASSERT(!walk->grads[buffer].held);
        walk->grads[buffer].held = true;
    }
    walk->recv_begun[dir] = true;
    return (pp_i_step){.op = PP_I_BEGIN_RECV,
                       .dir = dir,
                       .micro = a->micro,
                       .slot = a->slot,
                       .buffer = buffer,
                       .index = walk->n_recv[dir]};
}

/* A receive whose turn it is: begun now if it is not yet under way, then waited for. */
static pp_i_step walk_recv(pp_i_walk *walk, pp_i_dir dir)
{
    MC_ASSERT(walk->next_recv[dir] == walk->at);
    if (!walk->recv_begun[dir]) {
        int buffer = walk->n_recv[dir] % PP_GRAD_BUFFERS;
        if (dir == PP_I_GRAD && walk->grads[buffer].sending) {
            return wait_send(&walk->grads[buffer], dir, -1, buffer);
        }
        return begin_recv(walk, dir);
    }
    const pp_action *a = &walk->plan->actions[walk->at];
    pp_i_step step = {
        .op = PP_I_WAIT_RECV, .dir = dir, .micro = a->micro, .slot = a->slot, .buffer = -1, .index = walk->n_recv[dir]};
    walk->recv_begun[dir] = false;
    walk->n_recv[dir]++;
    walk->at++;
    walk->next_recv[dir] = find_recv(walk->plan, dir, walk->at);
    return step;
}

static pp_i_step walk_send(pp_i_walk *walk, pp_i_dir dir)
{
    const pp_action *a = &walk->plan->actions[walk->at];
    int buffer = dir == PP_I_GRAD ? walk->n_sent[dir] % PP_GRAD_BUFFERS : -1;
    pp_i_buffer *b = dir == PP_I_GRAD ? &walk->grads[buffer] : slot_of(walk, a->slot);
    MC_ASSERT(!b->sending);
    b->sending = true;
    b->sent_micro = a->micro;
    b->sent_index = walk->n_sent[dir];
    b->sent_at = walk->n_compute;
    walk->n_sent[dir]++;
    walk->at++;
    return (pp_i_step){.op = PP_I_BEGIN_SEND,
                       .dir = dir,
                       .micro = a->micro,
                       .slot = a->slot,
                       .buffer = buffer,
                       .index = b->sent_index,
                       .send = &b->send};
}

/* The begin of a receive that can run beside the compute that is next, or the wait that makes room for it. */
static bool walk_ahead(pp_i_walk *walk, pp_i_step *step_out)
{
    for (int d = 0; d < PP_I_N_DIRS; d++) {
        pp_i_dir dir = (pp_i_dir)d;
        if (walk->recv_begun[dir] || walk->next_recv[dir] == walk->plan->n_actions) {
            continue;
        }
        if (dir == PP_I_ACT) {
            if (slot_of(walk, walk->plan->actions[walk->next_recv[dir]].slot)->held) {
                continue;
            }
        } else {
            int buffer = walk->n_recv[dir] % PP_GRAD_BUFFERS;
            pp_i_buffer *grad = &walk->grads[buffer];
            if (grad->sending && grad->sent_at < walk->n_compute) {
                *step_out = wait_send(grad, dir, -1, buffer);
                return true;
            }
            if (grad->held) {
                continue;
            }
        }
        *step_out = begin_recv(walk, dir);
        return true;
    }
    return false;
}

/* Buffers that the compute fills or frees: its slot, and on the last stage a grad buffer. True when a send must be
 * waited for first. */
static bool walk_make_room(pp_i_walk *walk, const pp_action *a, int buffer, pp_i_step *step_out)
{
    pp_i_buffer *slot = slot_of(walk, a->slot);
    if (slot->sending) {
        *step_out = wait_send(slot, PP_I_ACT, a->slot, -1);
        return true;
    }
    if (buffer >= 0 && walk->grads[buffer].sending) {
        *step_out = wait_send(&walk->grads[buffer], PP_I_GRAD, -1, buffer);
        return true;
    }
    if (a->kind == PP_FWD && !slot->held) {
        hold(walk, slot); /* the first stage receives nothing: the slot is taken here */
    }
    if (buffer >= 0) {
        walk->grads[buffer].held = true;
    }
    return false;
}

static pp_i_step walk_compute(pp_i_walk *walk)
{
    const pp_plan *plan = walk->plan;
    const pp_action *a = &plan->actions[walk->at];
    bool backward = a->kind == PP_BWD || a->kind == PP_BWD_INPUT;
    int buffer = backward ? walk->n_backward % PP_GRAD_BUFFERS : -1;
    pp_i_step step;
    if (walk_make_room(walk, a, buffer, &step) || walk_ahead(walk, &step)) {
        return step;
    }
    step = (pp_i_step){.op = PP_I_COMPUTE,
                       .kind = a->kind,
                       .micro = a->micro,
                       .slot = a->slot,
                       .buffer = buffer,
                       .last = walk->at == walk->last_weight};
    bool frees = plan->shape.forward_only ? a->kind == PP_FWD : a->kind == PP_BWD || a->kind == PP_BWD_WEIGHT;
    if (frees) {
        release(walk, slot_of(walk, a->slot));
    }
    if (backward) {
        walk->n_backward++;
        if (plan->shape.stage == 0) {
            walk->grads[buffer].held = false; /* nothing is sent from it */
        }
    }
    walk->n_compute++;
    walk->at++;
    return step;
}

static pp_i_step walk_end(pp_i_walk *walk)
{
    for (int slot = 0; slot < walk->plan->n_slots; slot++) {
        if (slot_of(walk, slot)->sending) {
            return wait_send(slot_of(walk, slot), PP_I_ACT, slot, -1);
        }
    }
    for (int buffer = 0; buffer < PP_GRAD_BUFFERS; buffer++) {
        if (walk->grads[buffer].sending) {
            return wait_send(&walk->grads[buffer], PP_I_GRAD, -1, buffer);
        }
    }
    return (pp_i_step){.op = PP_I_END};
}

pp_i_step pp_i_walk_next(pp_i_walk *walk)
{
    if (walk->at == walk->plan->n_actions) {
        return walk_end(walk);
    }
    switch (walk->plan->actions[walk->at].kind) {
    case PP_RECV_FWD:
        return walk_recv(walk, PP_I_ACT);
    case PP_RECV_BWD:
        return walk_recv(walk, PP_I_GRAD);
    case PP_SEND_FWD:
        return walk_send(walk, PP_I_ACT);
    case PP_SEND_BWD:
        return walk_send(walk, PP_I_GRAD);
    case PP_FWD:
    case PP_BWD:
    case PP_BWD_INPUT:
    case PP_BWD_WEIGHT:
        break;
    }
    return walk_compute(walk);
}
