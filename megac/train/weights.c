#include "megac/train/weights.h"

#include "megac/base/alloc.h"
#include "megac/train/checkpoint/ckpt_inspect.h"
#include "megac/train/convert/hf_dir.h"

struct mt_weights {
    char *path;
    mt_checkpoint *ckpt; /* one of the two */
    mt_hf *hf;
};

mc_status mt_weights_open(const char *path, int64_t step, mt_weights **weights_out)
{
    mt_weights *w;
    MC_TRY(MC_NEW(&w, "weights"));
    bool hf = mt_hf_is(path) && !mt_checkpoint_is(path);
    mc_status st;
    MC_TRY_GOTO(st, mc_strdup(path, "path of weights", &w->path), undo_weights);
    MC_TRY_GOTO(st, hf ? mt_hf_open(path, &w->hf) : mt_checkpoint_open(path, step, &w->ckpt), undo_weights);
    *weights_out = w;
    return MC_OK;
undo_weights:
    mt_weights_close(w);
    return st;
}

void mt_weights_close(mt_weights *w)
{
    if (w) {
        mt_checkpoint_close(w->ckpt);
        mt_hf_close(w->hf);
        mc_free(w->path);
        mc_free(w);
    }
}

const char *mt_weights_config(const mt_weights *w)
{
    return w->hf ? mt_hf_config_text(w->hf) : mt_checkpoint_state(w->ckpt)->config;
}

const char *mt_weights_path(const mt_weights *w)
{
    return w->path;
}

mt_checkpoint *mt_weights_checkpoint(const mt_weights *w)
{
    return w->ckpt;
}

mc_status mt_weights_read(mt_weights *w, const mt_ckpt_item *item)
{
    return w->hf ? mt_hf_read(w->hf, item) : mt_checkpoint_read(w->ckpt, item);
}

mt_start mt_start_of(const mt_options *o)
{
    bool optional = o->load_if_exists || o->pretrained_checkpoint;
    if (o->load && (!optional || mt_checkpoint_is(o->load))) {
        return (mt_start){o->load, "--load", mc_given_int(o->ckpt_step) ? o->ckpt_step : -1, o->finetune};
    }
    return (mt_start){o->pretrained_checkpoint, "--pretrained-checkpoint", -1, true};
}
