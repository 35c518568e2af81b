#include "megac/train/checkpoint/ckpt_inspect.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/hash.h"
#include "megac/base/log.h"
#include "megac/train/checkpoint/ckpt_impl.h"

bool mt_checkpoint_is(const char *path)
{
    char name[MC_PATH_BYTES], head[64] = {0};
    int fd = -1;
    if (!mc_file_is_dir(path) || strlen(path) + 64 > MC_PATH_BYTES) {
        return false;
    }
    snprintf(name, sizeof name, "%s/%s", path, MT_I_LATEST);
    if (mc_file_exists(name)) {
        return true;
    }
    snprintf(name, sizeof name, "%s/%s", path, MT_I_METADATA);
    if (!mc_file_exists(name) || mc_file_open(name, &fd) != MC_OK) {
        return false;
    }
    ssize_t n = read(fd, head, sizeof head - 1);
    close(fd);
    return n > 0 && strstr(head, MT_I_FORMAT) != NULL;
}

static uint64_t tensor_bytes(const mt_i_tensor *t)
{
    uint64_t bytes = 0;
    bool ok = mt_st_tensor_bytes(t->dtype, t->n_dims, t->shape, &bytes);
    MC_ASSERT(ok); /* checked at open */
    return bytes;
}

typedef struct totals {
    uint64_t tensor_bytes, file_bytes;
    int n_spare;
} totals;

static totals sum_up(const mt_checkpoint *c)
{
    totals s = {0};
    for (int i = 0; i < c->n_tensors; i++) {
        s.tensor_bytes += tensor_bytes(&c->tensors[i]);
    }
    for (int i = 0; i < c->n_files; i++) {
        s.file_bytes += c->files[i].bytes;
    }
    for (int i = 0; i < c->n_slices; i++) {
        s.n_spare += c->slices[i].spare;
    }
    return s;
}

/* Metadata and tokenizer were checked at open. */
mc_status mt_i_checkpoint_verify(mt_checkpoint *c)
{
    mc_status st = MC_OK;
    for (int f = 0; f < c->n_files; f++) {
        for (int i = c->files[f].first_slice; i >= 0; i = c->slices[i].next_in_file) {
            mc_status one = mt_i_slice_verify(c, &c->slices[i]);
            MC_KEEP_FIRST(st, one);
            if (one != MC_OK && !c->files[f].resolved) {
                break; /* its header is damaged: one message is enough */
            }
        }
    }
    return st;
}

static void print_text(const mt_checkpoint *c, bool verified, FILE *out)
{
    const mt_ckpt_state *s = &c->state;
    totals sum = sum_up(c);
    fprintf(out, "checkpoint %s\n", c->dir);
    fprintf(out,
            "  iteration          %" PRId64 "\n  consumed samples   %" PRIu64 "\n  consumed tokens    %" PRIu64 "\n",
            s->iteration, s->consumed_samples, s->consumed_tokens);
    fprintf(out, "  skipped iterations %" PRIu64 "\n  optimizer steps    %" PRId64 "\n", s->skipped_iterations,
            s->optimizer_steps);
    fprintf(out, "  tokenizer          %s", *s->tokenizer_kind ? s->tokenizer_kind : "none");
    fprintf(out, s->tokenizer ? ", file of %" PRIu64 " bytes\n" : "\n", s->tokenizer_bytes);
    fprintf(out, "  written by         %d ranks, %d shards, %" PRIu64 " bytes\n", c->world, c->n_files, sum.file_bytes);
    fprintf(out, "  tensors            %d in %d slices, %" PRIu64 " bytes", c->n_tensors, c->n_slices,
            sum.tensor_bytes);
    fprintf(out, sum.n_spare ? "; %d slices stored more than once\n" : "\n", sum.n_spare);
    if (verified) {
        fprintf(out, "  verified           every byte of every file\n");
    }
    fprintf(out, "tensors\n");
    for (int i = 0; i < c->n_tensors; i++) {
        const mt_i_tensor *t = &c->tensors[i];
        char shape[64];
        snprintf(shape, sizeof shape, t->n_dims == 2 ? "%" PRId64 " x %" PRId64 : "%" PRId64, t->shape[0], t->shape[1]);
        fprintf(out, "  %-72s %-4s %18s %14" PRIu64 " bytes, %d slice%s", t->name, mt_st_dtype_name(t->dtype), shape,
                tensor_bytes(t), t->n_slices, t->n_slices == 1 ? "" : "s");
        fprintf(out, t->valid_rows ? ", %" PRId64 " rows valid\n" : "\n", t->valid_rows);
    }
    fprintf(out, "configuration\n");
    for (const char *p = s->config; p && *p;) {
        int n = (int)strcspn(p, "\n");
        fprintf(out, "  %.*s\n", n, p);
        p += n + (p[n] == '\n');
    }
}

static void json_config(const mt_checkpoint *c, mt_text *t)
{
    mt_text_printf(t, "\"config\": {");
    for (const char *p = c->state.config; p && *p;) {
        size_t line = strcspn(p, "\n"), flag = strcspn(p, " \n"), value = flag < line ? flag + 1 : line;
        mt_text_printf(t, p == c->state.config ? "" : ", ");
        mt_text_json(t, p, flag);
        mt_text_printf(t, ": ");
        mt_text_json(t, p + value, line - value);
        p += line + (p[line] == '\n');
    }
    mt_text_printf(t, "}");
}

static void json_all(const mt_checkpoint *c, bool verified, mt_text *t)
{
    const mt_ckpt_state *s = &c->state;
    totals sum = sum_up(c);
    mt_text_printf(t, "{\"kind\": \"checkpoint\", \"path\": ");
    mt_text_json(t, c->dir, strlen(c->dir));
    mt_text_printf(t, ", \"iteration\": %" PRId64 ", \"consumed_samples\": %" PRIu64 ", \"consumed_tokens\": %" PRIu64,
                   s->iteration, s->consumed_samples, s->consumed_tokens);
    mt_text_printf(t, ", \"skipped_iterations\": %" PRIu64 ", \"optimizer_steps\": %" PRId64, s->skipped_iterations,
                   s->optimizer_steps);
    mt_text_printf(t, ", \"tokenizer_kind\": ");
    mt_text_json(t, s->tokenizer_kind, strlen(s->tokenizer_kind));
    mt_text_printf(t, ", \"tokenizer_bytes\": %" PRIu64 ", \"world_size\": %d, \"files\": %d, \"file_bytes\": %" PRIu64,
                   s->tokenizer_bytes, c->world, c->n_files, sum.file_bytes);
    mt_text_printf(t, ", \"tensor_bytes\": %" PRIu64 ", \"slices\": %d, \"verified\": %s,\n", sum.tensor_bytes,
                   c->n_slices, verified ? "true" : "false");
    json_config(c, t);
    mt_text_printf(t, ",\n\"tensors\": {");
    for (int i = 0; i < c->n_tensors; i++) {
        const mt_i_tensor *x = &c->tensors[i];
        mt_text_printf(t, i ? ",\n" : "\n");
        mt_text_json(t, x->name, strlen(x->name));
        mt_text_printf(t, ": {\"dtype\": \"%s\", \"shape\": [%" PRId64, mt_st_dtype_name(x->dtype), x->shape[0]);
        if (x->n_dims == 2) {
            mt_text_printf(t, ", %" PRId64, x->shape[1]);
        }
        mt_text_printf(t, "], \"bytes\": %" PRIu64 ", \"slices\": %d}", tensor_bytes(x), x->n_slices);
    }
    mt_text_printf(t, "}}\n");
}

static mc_status print_json(const mt_checkpoint *c, bool verified, FILE *out)
{
    mt_text t = {0};
    json_all(c, verified, &t);
    mc_status st = t.st;
    if (st == MC_OK) {
        fwrite(t.data, 1, t.bytes, out);
    }
    mt_text_fini(&t);
    return st;
}

mc_status mt_i_print_end(FILE *out, const char *path)
{
    if (fflush(out) != 0 || ferror(out)) {
        return MC_FAIL(MC_IO, "cannot write the description of %s; is the output's disk full?", path);
    }
    return MC_OK;
}

mc_status mt_checkpoint_inspect(const char *path, bool verify, bool json, FILE *out)
{
    mt_checkpoint *c;
    MC_TRY(mt_checkpoint_open(path, -1, &c));
    mc_status st = verify ? mt_i_checkpoint_verify(c) : MC_OK;
    if (st == MC_OK && json) {
        st = print_json(c, verify, out);
    } else if (st == MC_OK) {
        print_text(c, verify, out);
    }
    mt_checkpoint_close(c);
    return st == MC_OK ? mt_i_print_end(out, path) : st;
}
