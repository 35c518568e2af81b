/* One forward, one backward (Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
 * Megatron-LM", SC 2021, section 2.2; without interleaving). Stage s runs p - 1 - s forwards ahead, then alternates, so
 * that it never holds more than p - s micro-batches. */
#include "pipeline/pp_impl.h"

static int n_slots(const pp_shape *shape)
{
    if (shape->forward_only) {
        return pp_i_forward_only_slots(shape);
    }
    int depth = shape->n_stages - shape->stage;
    return depth < shape->n_micro ? depth : shape->n_micro;
}

static int generate(const pp_shape *shape, pp_action *out)
{
    if (shape->forward_only) {
        return pp_i_forward_only(shape, out);
    }
    int warmup = n_slots(shape) - 1;
    int n = 0;
    for (int micro = 0; micro < warmup; micro++) {
        n = pp_i_put_forward(shape, micro, out, n);
    }
    for (int micro = warmup; micro < shape->n_micro; micro++) {
        n = pp_i_put_forward(shape, micro, out, n);
        n = pp_i_put_backward(shape, micro - warmup, out, n);
    }
    for (int micro = shape->n_micro - warmup; micro < shape->n_micro; micro++) {
        n = pp_i_put_backward(shape, micro, out, n);
    }
    return n;
}

const pp_schedule pp_i_1f1b = {
    .name = "1f1b",
    .help = "one forward, one backward: stage s holds at most PP - s micro-batches",
    .generate = generate,
    .n_slots = n_slots,
};
