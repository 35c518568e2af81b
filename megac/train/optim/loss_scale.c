#include "megac/train/optim/loss_scale.h"

mt_loss_scale mt_loss_scale_start(const mt_loss_scale_config *c)
{
    return (mt_loss_scale){.scale = c->initial, .hysteresis_left = c->hysteresis};
}

void mt_loss_scale_update(const mt_loss_scale_config *c, mt_loss_scale *s, bool overflow)
{
    if (!c->dynamic) {
        return;
    }
    if (overflow) {
        s->good_steps = 0;
        s->hysteresis_left--;
        if (s->hysteresis_left <= 0) {
            s->scale = s->scale / 2 > c->min ? s->scale / 2 : c->min;
        }
        return;
    }
    bool grows = ++s->good_steps == c->window;
    if (grows) {
        s->good_steps = 0;
        s->scale *= 2;
    }
    if (grows || c->consecutive) {
        s->hysteresis_left = c->hysteresis;
    }
}
