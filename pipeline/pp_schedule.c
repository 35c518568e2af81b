/* The table of schedules, and the pieces that their generators share. */
#include <stdio.h>
#include <string.h>

#include "pipeline/pp_impl.h"

static const pp_schedule *const schedules[] = {&pp_i_1f1b, &pp_i_gpipe};
enum { N_SCHEDULES = sizeof schedules / sizeof schedules[0] };

mc_status pp_schedule_find(const char *name, const pp_schedule **schedule_out)
{
    char known[256];
    size_t used = 0;
    for (int i = 0; i < N_SCHEDULES; i++) {
        if (strcmp(schedules[i]->name, name) == 0) {
            *schedule_out = schedules[i];
            return MC_OK;
        }
        int n = snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", schedules[i]->name);
        MC_ASSERT(n > 0 && (size_t)n < sizeof known - used);
        used += (size_t)n;
    }
    return MC_FAIL(MC_INVALID, "pipeline schedule \"%s\" is not known; choose one of: %s", name, known);
}

const char *pp_kind_name(pp_kind kind)
{
    switch (kind) {
    case PP_RECV_FWD:
        return "receive of the activation";
    case PP_FWD:
        return "forward";
    case PP_SEND_FWD:
        return "send of the output";
    case PP_RECV_BWD:
        return "receive of the output's gradient";
    case PP_BWD:
        return "backward";
    case PP_BWD_INPUT:
        return "input-gradient backward";
    case PP_BWD_WEIGHT:
        return "weight-gradient backward";
    case PP_SEND_BWD:
        return "send of the input's gradient";
    }
    return "?";
}

static int put(pp_kind kind, int micro, pp_action *out, int n)
{
    out[n] = (pp_action){.kind = kind, .micro = micro, .slot = -1};
    return n + 1;
}

int pp_i_put_forward(const pp_shape *shape, int micro, pp_action *out, int n)
{
    if (shape->stage > 0) {
        n = put(PP_RECV_FWD, micro, out, n);
    }
    n = put(PP_FWD, micro, out, n);
    if (shape->stage < shape->n_stages - 1) {
        n = put(PP_SEND_FWD, micro, out, n);
    }
    return n;
}

int pp_i_put_backward(const pp_shape *shape, int micro, pp_action *out, int n)
{
    if (shape->stage < shape->n_stages - 1) {
        n = put(PP_RECV_BWD, micro, out, n);
    }
    n = put(PP_BWD, micro, out, n);
    if (shape->stage > 0) {
        n = put(PP_SEND_BWD, micro, out, n);
    }
    return n;
}

int pp_i_forward_only(const pp_shape *shape, pp_action *out)
{
    int n = 0;
    for (int micro = 0; micro < shape->n_micro; micro++) {
        n = pp_i_put_forward(shape, micro, out, n);
    }
    return n;
}

int pp_i_forward_only_slots(const pp_shape *shape)
{
    return shape->n_micro < 2 ? shape->n_micro : 2;
}
