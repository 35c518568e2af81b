#include "megac/train/model/stage_graphs.h"

#include "megac/base/alloc.h"
#include "megac/base/log.h"

/* A loss scale that changes all the time is not worth recording for. */
enum { MAX_RECORDINGS = 16 };

typedef struct piece {
    mt_graph_key key;
    mc_graph graph;
    int runs, recordings;
} piece;

struct mt_graphs {
    mc_device *dev;
    piece *pieces; /* [2 * micro + backward] */
    int n_pieces;
    int64_t launched;
    bool off; /* the device could not record */
};

const char *mt_graphs_unfit(const mt_stage *s)
{
    const mt_recompute *r = &s->x.recompute;
    if (!s->dev->ops->graph_begin) {
        return "this device has no graphs";
    }
    if (s->c->hidden_dropout > 0 || s->c->attention_dropout > 0) {
        return "dropout takes the sample's number as an argument";
    }
    if (s->place.tp > 1 || s->place.zero > 0) {
        return "tensor-parallel ranks and ZeRO talk inside a micro-batch";
    }
    if (s->shards.grads_bf16) {
        return "bf16 gradients are added up by what ran before";
    }
    if (s->offload || s->shards.host) {
        return "what is offloaded is copied by a stream of its own";
    }
    if (r->full_layers > 0 || r->core_attn || r->mlp) {
        return "recomputation decides by what ran before";
    }
    return NULL;
}

mc_status mt_graphs_create(mt_stage *s, mt_graphs **graphs_out)
{
    mt_graphs *g;
    MC_TRY(MC_NEW(&g, "graphs"));
    g->dev = s->dev;
    g->n_pieces = 2 * s->sizes.max_micro;
    mc_status st = MC_NEW_N(&g->pieces, g->n_pieces, "graphs");
    if (st != MC_OK) {
        mt_graphs_destroy(g);
        return st;
    }
    *graphs_out = g;
    return MC_OK;
}

void mt_graphs_destroy(mt_graphs *g)
{
    if (!g) {
        return;
    }
    for (int i = 0; g->pieces && i < g->n_pieces; i++) {
        if (g->pieces[i].graph.handle) {
            g->dev->ops->graph_destroy(g->dev, g->pieces[i].graph);
        }
    }
    mc_free(g->pieces);
    mc_free(g);
}

int64_t mt_graphs_launched(const mt_graphs *g)
{
    return g->launched;
}

static bool same_key(const mt_graph_key *a, const mt_graph_key *b)
{
    return a->backward == b->backward && a->micro == b->micro && a->slot == b->slot && a->buffer == b->buffer &&
           a->loss_scale == b->loss_scale;
}

/* Records the body. What cannot be recorded is said once, and nothing is recorded from then on. */
static mc_status record(mt_graphs *g, mt_stage *s, piece *p, const mt_graph_key *key, mt_graph_body body)
{
    const mc_device_ops *ops = g->dev->ops;
    mc_graph made = {0};
    if (p->graph.handle) {
        ops->graph_destroy(g->dev, p->graph);
        p->graph = made;
    }
    mc_status st = ops->graph_begin(g->dev, s->ly.stream);
    if (st == MC_OK) {
        mc_status ran = body(s, key);
        st = ops->graph_end(g->dev, s->ly.stream, &made);
        MC_TRY(ran);
    }
    if (st != MC_OK) {
        MC_WARN("--cuda-graphs: off: this device could not record a micro-batch");
        g->off = true;
        return MC_OK;
    }
    p->key = *key;
    p->graph = made;
    p->recordings++;
    return MC_OK;
}

mc_status mt_graphs_run(mt_graphs *g, mt_stage *s, const mt_graph_key *key, mt_graph_body body)
{
    piece *p = g && !g->off ? &g->pieces[2 * key->micro + key->backward] : NULL;
    if (!p || p->runs++ == 0) {
        return body(s, key);
    }
    if (!(p->graph.handle && same_key(&p->key, key)) && p->recordings < MAX_RECORDINGS) {
        MC_TRY(record(g, s, p, key, body));
    }
    if (!p->graph.handle || !same_key(&p->key, key)) {
        return body(s, key);
    }
    g->launched++;
    return g->dev->ops->graph_launch(g->dev, p->graph, s->ly.stream);
}
