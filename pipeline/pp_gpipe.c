/* All forwards, then all backwards in the same order (Huang et al., "GPipe", 2019). Holds every micro-batch of the
 * step: simple, and the reference that other schedules are compared with. */
#include "pipeline/pp_impl.h"

static int n_slots(const pp_shape *shape)
{
    return shape->forward_only ? pp_i_forward_only_slots(shape) : shape->n_micro;
}

static int generate(const pp_shape *shape, pp_action *out)
{
    int n = pp_i_forward_only(shape, out);
    if (shape->forward_only) {
        return n;
    }
    for (int micro = 0; micro < shape->n_micro; micro++) {
        n = pp_i_put_backward(shape, micro, out, n);
    }
    return n;
}

const pp_schedule pp_i_gpipe = {
    .name = "gpipe",
    .help = "all forwards, then all backwards: every stage holds all micro-batches of the step",
    .generate = generate,
    .n_slots = n_slots,
};
