#include "megac/train/model/stage_offload.h"

#include "megac/base/alloc.h"

/* Places on the device. */
enum { STASHES = 2, INPUTS = 3 };

struct mt_stage_offload {
    int n_items, group; /* item i begins with layer i group */
    bool live;          /* memory is there: not a plan */
    mt_block_stash stashes[STASHES];
    mc_tensor parts[STASHES], inputs[INPUTS];
    char **host;                   /* [slot][item] */
    mc_stream stream;              /* of the copies */
    mc_event reached;              /* how far computation was queued when a copy was */
    mc_event stash_moved[STASHES]; /* the last copy from or to a place */
    mc_event input_moved[INPUTS];
    int held_slot[STASHES], held_item[STASHES]; /* whose values a stash and its input still have; slot -1: none */
};

static int stage_layers(const mt_stage *s)
{
    return s->sizes.offload_layers < s->place.n_layers ? s->sizes.offload_layers : s->place.n_layers;
}

/* Blocks [first, end) of the item that layer l belongs to; its number, or -1 where it stays. */
static int item_of(const mt_stage *s, int l, int *first_out, int *end_out)
{
    const mt_stage_offload *o = s->offload;
    if (!o || l >= s->place.n_layers || l / o->group >= o->n_items) {
        return -1;
    }
    if (!mt_stage_group(s, l, first_out, end_out)) {
        *first_out = l;
        *end_out = l + 1;
    }
    return l / o->group;
}

bool mt_stage_offload_moves(const mt_stage *s, int l)
{
    int first, end;
    return item_of(s, l, &first, &end) >= 0;
}

mc_tensor *mt_stage_offload_input(mt_stage *s, int l)
{
    return &s->offload->inputs[l / s->offload->group % INPUTS];
}

mc_tensor *mt_stage_offload_part(mt_stage *s, int l)
{
    return &s->offload->parts[l / s->offload->group % STASHES];
}

mt_block_stash *mt_stage_offload_stash(mt_stage *s, int l)
{
    return &s->offload->stashes[l / s->offload->group % STASHES];
}

/* ---- life ---- */

mc_status mt_stage_offload_create(mt_stage *s)
{
    mt_stage_offload *o;
    int n = stage_layers(s), group = s->x.recompute.group;
    if (n == 0) {
        return MC_OK;
    }
    MC_TRY(MC_NEW(&o, "activation offload"));
    s->offload = o;
    o->group = group;
    o->n_items = (n + group - 1) / group;
    for (int i = 0; i < STASHES; i++) {
        o->held_slot[i] = -1;
    }
    MC_TRY(MC_NEW_N(&o->host, (int64_t)s->sizes.n_slots * o->n_items, "activation offload"));
    o->live = s->arenas->stash.bound;
    if (!o->live) {
        return MC_OK;
    }
    const mc_device_ops *ops = s->dev->ops;
    MC_TRY(ops->stream_create(s->dev, &o->stream));
    MC_TRY(ops->event_create(s->dev, &o->reached));
    for (int i = 0; i < STASHES; i++) {
        MC_TRY(ops->event_create(s->dev, &o->stash_moved[i]));
    }
    for (int i = 0; i < INPUTS; i++) {
        MC_TRY(ops->event_create(s->dev, &o->input_moved[i]));
    }
    return MC_OK;
}

void mt_stage_offload_destroy(mt_stage *s)
{
    mt_stage_offload *o = s->offload;
    const mc_device_ops *ops = s->dev->ops;
    if (!o) {
        return;
    }
    if (o->stream.handle) { /* after an error copies may be under way */
        (void)ops->stream_sync(s->dev, o->stream);
        ops->stream_destroy(s->dev, o->stream);
    }
    ops->event_destroy(s->dev, o->reached);
    for (int i = 0; i < STASHES; i++) {
        ops->event_destroy(s->dev, o->stash_moved[i]);
    }
    for (int i = 0; i < INPUTS; i++) {
        ops->event_destroy(s->dev, o->input_moved[i]);
    }
    mc_free(o->host);
    mc_free(o);
    s->offload = NULL;
}

/* What travels of an item: views of its places on the device. Returns their number. */
static int tensors_of(const mt_stage *s, int slot, int item, mc_tensor out[MT_STASH_TENSORS + 1])
{
    int l = item * s->offload->group, first, end, n = 0;
    mt_block_stash b = s->slots[slot].blocks[l];
    mc_tensor *kept[MT_STASH_TENSORS];
    bool again = mt_stage_group(s, l, &first, &end), part = again && s->x.recompute.distribute;
    mc_tensor input = part && l > 0 ? s->slots[slot].saved[item] : b.h_in;
    if (mc_tensor_present(input)) {
        out[n++] = input;
    }
    int n_kept = again ? 0 : mt_block_stash_tensors(&s->x, &b, s->again != NULL, kept);
    for (int i = 0; i < n_kept; i++) {
        out[n++] = *kept[i];
    }
    return n;
}

static size_t align_up(size_t bytes)
{
    return (bytes + MC_ARENA_ALIGN - 1) / MC_ARENA_ALIGN * MC_ARENA_ALIGN;
}

void mt_stage_offload_take(mt_stage *s)
{
    mt_stage_offload *o = s->offload;
    for (int i = 0; o && i < s->sizes.n_slots * o->n_items; i++) {
        mc_tensor t[MT_STASH_TENSORS + 1];
        size_t bytes = 0;
        for (int n = tensors_of(s, i / o->n_items, i % o->n_items, t); n > 0; n--) {
            bytes += align_up(mc_tensor_bytes(t[n - 1]));
        }
        o->host[i] = mc_arena_take(&s->arenas->pinned, bytes);
    }
}

/* ---- copies ---- */

/* Queues the copy of an item, behind all computation that has been queued so far and every earlier copy. */
static mc_status move(mt_stage *s, int slot, int item, bool out)
{
    mt_stage_offload *o = s->offload;
    const mc_device_ops *ops = s->dev->ops;
    mc_tensor t[MT_STASH_TENSORS + 1];
    char *host = o->host[slot * o->n_items + item];
    int n = tensors_of(s, slot, item, t);
    MC_TRY(ops->event_record(s->dev, o->reached, s->ly.stream));
    MC_TRY(ops->event_wait(s->dev, o->reached, o->stream));
    for (int i = 0; i < n; i++) {
        size_t bytes = mc_tensor_bytes(t[i]);
        MC_TRY(ops->copy(s->dev, out ? host : t[i].data, out ? t[i].data : host, bytes, o->stream));
        host += align_up(bytes);
    }
    o->held_slot[item % STASHES] = slot;
    o->held_item[item % STASHES] = item;
    MC_TRY(ops->event_record(s->dev, o->input_moved[item % INPUTS], o->stream));
    return ops->event_record(s->dev, o->stash_moved[item % STASHES], o->stream);
}

/* A backward that follows its own forward finds the last two items where they were. */
static mc_status fetch(mt_stage *s, int slot, int item)
{
    const mt_stage_offload *o = s->offload;
    bool held = o->held_slot[item % STASHES] == slot && o->held_item[item % STASHES] == item;
    return held ? MC_OK : move(s, slot, item, false);
}

mc_status mt_stage_offload_room(mt_stage *s, int l)
{
    mt_stage_offload *o = s->offload;
    int first, end, item = item_of(s, l, &first, &end);
    if (item < 0 || l != first || !o->live) {
        return MC_OK;
    }
    o->held_slot[item % STASHES] = -1;
    MC_TRY(s->dev->ops->event_wait(s->dev, o->stash_moved[item % STASHES], s->ly.stream));
    return s->dev->ops->event_wait(s->dev, o->input_moved[(item + 1) % INPUTS], s->ly.stream);
}

mc_status mt_stage_offload_store(mt_stage *s, int slot, int l)
{
    int first, end, item = item_of(s, l, &first, &end);
    return item >= 0 && l == first && s->offload->live && s->training ? move(s, slot, item, true) : MC_OK;
}

mc_status mt_stage_offload_use(mt_stage *s, int slot, int l)
{
    mt_stage_offload *o = s->offload;
    int first, end, item = item_of(s, l, &first, &end);
    if (!o || !o->live || (item >= 0 && l != end - 1)) {
        return MC_OK;
    }
    if (item >= 0) {
        MC_TRY(fetch(s, slot, item));
        MC_TRY(s->dev->ops->event_wait(s->dev, o->stash_moved[item % STASHES], s->ly.stream));
    }
    int before = item >= 0 ? item - 1 : item_of(s, l - 1, &first, &end);
    return before >= 0 ? fetch(s, slot, before) : MC_OK;
}

void mt_stage_offload_done(mt_stage *s, int l)
{
    int first, end, item = item_of(s, l, &first, &end);
    if (item >= 0 && l == first) {
        s->offload->held_slot[item % STASHES] = -1;
    }
}
