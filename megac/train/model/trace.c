#include "megac/train/model/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/base/half.h"
#include "megac/base/hash.h"
#include "megac/train/model/host_view.h"

struct mt_trace {
    FILE *file;
    mc_device *dev;
    mc_stream stream;
    int64_t iteration;
};

/* Orders leave room for the largest layer count between the parts of a step. */
static const int64_t LAYER = 16, HEAD = 1LL << 40, BACKWARD = 1LL << 41, GRADIENTS = 1LL << 42, LAYERS_MAX = 1LL << 30;

static const char *const names[] = {"embedding", "qkv",    "attention", "after_attention", "fc1",
                                    "output",    "losses", "d_output",  "d_embedding"};

mc_status mt_trace_open(const char *dir, int rank, mc_device *dev, mc_stream stream, mt_trace **trace_out)
{
    char path[4096];
    mt_trace *t;
    MC_TRY(mc_file_make_dirs(dir));
    if (snprintf(path, sizeof path, "%s/rank_%05d.jsonl", dir, rank) >= (int)sizeof path) {
        return MC_FAIL(MC_INVALID, "--trace-tensors: the path is longer than %zu bytes", sizeof path - 32);
    }
    MC_TRY(MC_NEW(&t, "trace"));
    *t = (mt_trace){.file = fopen(path, "w"), .dev = dev, .stream = stream};
    if (!t->file) {
        mc_free(t);
        return MC_FAIL(MC_INVALID, "--trace-tensors %s: %s; give a writable directory", dir, strerror(errno));
    }
    *trace_out = t;
    return MC_OK;
}

mc_status mt_trace_close(mt_trace *t)
{
    mc_status st = MC_OK;
    if (!t) {
        return MC_OK;
    }
    bool failed = ferror(t->file) != 0;
    if (fclose(t->file) != 0 || failed) {
        st = MC_FAIL(MC_IO, "the trace of tensors could not be written: %s", strerror(errno));
    }
    mc_free(t);
    return st;
}

void mt_trace_step(mt_trace *t, int64_t iteration)
{
    if (t) {
        t->iteration = iteration;
    }
}

static double element(mc_dtype dtype, const void *data, int64_t i)
{
    switch (dtype) {
    case MC_F32:
        return ((const float *)data)[i];
    case MC_BF16:
        return mc_f32_from_bf16(((const uint16_t *)data)[i]);
    default:
        MC_ASSERT(dtype == MC_F16);
        return mc_f32_from_f16(((const uint16_t *)data)[i]);
    }
}

static void put(FILE *f, const char *key, double v)
{
    if (isfinite(v)) {
        fprintf(f, ",\"%s\":%.17g", key, v);
    } else {
        fprintf(f, ",\"%s\":\"%s\"", key, isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
    }
}

static mc_status write_line(mt_trace *t, int64_t sample, int64_t order, const char *name, bool counts, mc_tensor x)
{
    mt_host_view view;
    MC_TRY(mt_host_view_open(&view, t->dev, t->stream, x, true));
    const void *data = view.host.data;
    int64_t n = mc_tensor_elems(x), nan = 0;
    double sum = 0, sum_sq = 0, min = INFINITY, max = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        double v = element(x.dtype, data, i);
        if (isnan(v)) {
            nan++;
            continue;
        }
        sum += v;
        sum_sq += v * v;
        min = v < min ? v : min;
        max = v > max ? v : max;
    }
    char hash[MC_HASH_HEX_BYTES];
    mc_hash_print(mc_hash(data, mc_tensor_bytes(x)), hash);
    mt_host_view_close(&view);
    fprintf(t->file,
            "{\"iteration\":%" PRId64 ",\"sample\":%" PRId64 ",\"order\":%" PRId64
            ",\"name\":\"%s\",\"counts\":%s,\"n\":%" PRId64,
            t->iteration, sample, order, name, counts ? "true" : "false", n);
    put(t->file, "sum", sum);
    put(t->file, "sum_sq", sum_sq);
    put(t->file, "min", min);
    put(t->file, "max", max);
    fprintf(t->file, ",\"nan\":%" PRId64 ",\"hash\":\"%s\"}\n", nan, hash);
    if (ferror(t->file)) {
        return MC_FAIL(MC_IO, "the trace of tensors could not be written: %s", strerror(errno));
    }
    return MC_OK;
}

static int64_t order_of(mt_trace_place place, int layer)
{
    switch (place) {
    case MT_TRACE_EMBEDDING:
        return 0;
    case MT_TRACE_LOSSES:
        return HEAD;
    case MT_TRACE_D_OUTPUT:
        return BACKWARD + (LAYERS_MAX - layer) * LAYER;
    case MT_TRACE_D_EMBEDDING:
        return BACKWARD + (LAYERS_MAX + 1) * LAYER;
    default:
        return (layer + 1) * LAYER + (int64_t)place;
    }
}

mc_status mt_trace_tensor(mt_trace *t, mt_trace_place place, int layer, int64_t sample, bool counts, mc_tensor x)
{
    char name[64];
    if (!t) {
        return MC_OK;
    }
    bool inside = place != MT_TRACE_EMBEDDING && place != MT_TRACE_LOSSES && place != MT_TRACE_D_EMBEDDING;
    if (inside) {
        snprintf(name, sizeof name, "decoder.layers.%d.%s", layer, names[place]);
    } else {
        snprintf(name, sizeof name, "%s", names[place]);
    }
    return write_line(t, sample, order_of(place, layer), name, counts, x);
}

/* Rows of the local tensor that are of the model: a vocabulary's padding, which depends on the layout, is not. */
static int64_t real_rows(const mt_param *r, bool vocabulary, int64_t vocab)
{
    int64_t left = vocab - r->ranges[0].begin, rows = r->local_dims[0];
    return !vocabulary || left >= rows ? rows : left < 0 ? 0 : left;
}

mc_status mt_trace_gradients(mt_trace *t, const mt_shards *shards, const mt_place *place, int64_t vocab,
                             bool first_replica)
{
    char name[MT_NAME_BYTES + 16];
    const mt_params *params = shards->params;
    for (int i = 0; t && i < params->n_rows; i++) {
        const mt_param *r = &params->rows[i];
        bool counts = r->counts_in_norm && (place->zero > 0 || place->dp_rank == 0);
        bool vocabulary = i == params->outer[MT_WORD_EMBEDDINGS] || i == params->outer[MT_OUTPUT_WEIGHT];
        int64_t cols = r->n_dims == 2 ? r->local_dims[1] : 1, all = real_rows(r, vocabulary, vocab) * cols;
        int64_t own = r->grad_sum == MT_SUM_KV_REPLICAS ? r->ranges[0].count * cols : all;
        int64_t order = GRADIENTS + r->init_stream;
        snprintf(name, sizeof name, "gradient of %s", r->name);
        mc_tensor mine = mt_shards_summed(shards, i, 0, own), kv = mt_shards_summed(shards, i, own, all);
        if (mine.dims[0] > 0) {
            MC_TRY(write_line(t, -1, order, name, counts, mine));
        }
        if (kv.dims[0] > 0) { /* key and value rows that several ranks hold */
            MC_TRY(write_line(t, -1, order, name, counts && first_replica, kv));
        }
    }
    return MC_OK;
}
