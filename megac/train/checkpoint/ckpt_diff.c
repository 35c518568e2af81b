/* Where two checkpoints differ: for people a table of what is in one and in the other, for programs one JSON object. */
#include <inttypes.h>
#include <string.h>

#include "megac/base/hash.h"
#include "megac/train/checkpoint/ckpt_impl.h"
#include "megac/train/checkpoint/ckpt_inspect.h"

typedef struct diff {
    const mt_checkpoint *a, *b;
    bool json;
    mt_text text;
    const char *title; /* of the section, until its first difference is printed */
    int n_section, n_all;
} diff;

static void begin_section(diff *d, const char *key)
{
    d->title = key;
    d->n_section = 0;
    if (d->json) {
        mt_text_printf(&d->text, ",\n\"%s\": {", key);
    }
}

static void end_section(diff *d)
{
    if (d->json) {
        mt_text_printf(&d->text, "}");
    }
}

static void add_value(diff *d, const char *value, bool quote)
{
    if (!value) {
        mt_text_printf(&d->text, d->json ? "null" : "-");
    } else if (d->json && quote) {
        mt_text_json(&d->text, value, strlen(value));
    } else {
        mt_text_printf(&d->text, "%s", value);
    }
}

/* One row, where the two values are not the same; NULL: it has none. `quote`: a string in JSON. */
static void compare(diff *d, const char *name, const char *a, const char *b, bool quote)
{
    if (a && b ? strcmp(a, b) == 0 : a == b) {
        return;
    }
    if (d->json) {
        mt_text_printf(&d->text, d->n_section ? ",\n" : "\n");
        mt_text_json(&d->text, name, strlen(name));
        mt_text_printf(&d->text, ": [");
    } else {
        if (d->n_section == 0) {
            mt_text_printf(&d->text, "%s\n", d->title);
        }
        mt_text_printf(&d->text, "  %s: ", name);
    }
    add_value(d, a, quote);
    mt_text_printf(&d->text, d->json ? ", " : " | ");
    add_value(d, b, quote);
    mt_text_printf(&d->text, d->json ? "]" : "\n");
    d->n_section++;
    d->n_all++;
}

/* X(key, format, value of `s`, `c`): what a checkpoint states beside options and tensors. */
#define STATE_NUMBERS(X)                                   \
    X("iteration", PRId64, s->iteration)                   \
    X("consumed_samples", PRIu64, s->consumed_samples)     \
    X("consumed_tokens", PRIu64, s->consumed_tokens)       \
    X("skipped_iterations", PRIu64, s->skipped_iterations) \
    X("optimizer_steps", PRId64, s->optimizer_steps)       \
    X("schedule_samples", PRIu64, s->schedule_samples)     \
    X("loss_scale", ".17g", s->loss_scale)                 \
    X("best_iteration", PRId64, s->best_iteration)         \
    X("best_loss", ".17g", s->best_loss)                   \
    X("world_size", "d", c->world)                         \
    X("files", "d", c->n_files)                            \
    X("tokenizer_bytes", PRIu64, s->tokenizer_bytes)

enum {
#define STATE_ROW(key, format, value) +1
    N_NUMBERS = STATE_NUMBERS(STATE_ROW),
#undef STATE_ROW
    NUMBER_BYTES = 32,
};

static void print_numbers(const mt_checkpoint *c, char out[N_NUMBERS][NUMBER_BYTES])
{
    const mt_ckpt_state *s = &c->state;
    int n = 0;
#define STATE_ROW(key, format, value) snprintf(out[n++], NUMBER_BYTES, "%" format, value);
    STATE_NUMBERS(STATE_ROW)
#undef STATE_ROW
}

static void compare_state(diff *d)
{
    static const char *const keys[] = {
#define STATE_ROW(key, format, value) key,
        STATE_NUMBERS(STATE_ROW)
#undef STATE_ROW
    };
    char a[N_NUMBERS][NUMBER_BYTES], b[N_NUMBERS][NUMBER_BYTES], sums[2][MC_HASH_HEX_BYTES];
    print_numbers(d->a, a);
    print_numbers(d->b, b);
    mc_hash_print(d->a->tokenizer_xxh3, sums[0]);
    mc_hash_print(d->b->tokenizer_xxh3, sums[1]);
    begin_section(d, "state");
    for (int i = 0; i < N_NUMBERS; i++) {
        compare(d, keys[i], a[i], b[i], false);
    }
    compare(d, "tokenizer_kind", d->a->state.tokenizer_kind, d->b->state.tokenizer_kind, true);
    compare(d, "tokenizer_xxh3", d->a->tokenizer_file ? sums[0] : NULL, d->b->tokenizer_file ? sums[1] : NULL, true);
    end_section(d);
}

/* The flag of a "--flag value" line, NUL-terminated; returns the next line. */
static const char *take_flag(const char *line, char *flag_out, size_t cap)
{
    size_t n = strcspn(line, "\n"), flag = strcspn(line, " \n");
    snprintf(flag_out, cap, "%.*s", (int)flag, line);
    return line + n + (line[n] == '\n');
}

/* Options of the first in their order, then those that the second alone has. */
static void compare_config(diff *d)
{
    char flag[256];
    begin_section(d, "config");
    for (const char *p = d->a->state.config; p && *p;) {
        p = take_flag(p, flag, sizeof flag);
        compare(d, flag, mt_checkpoint_option(d->a, flag), mt_checkpoint_option(d->b, flag), true);
    }
    for (const char *p = d->b->state.config; p && *p;) {
        p = take_flag(p, flag, sizeof flag);
        if (!mt_checkpoint_option(d->a, flag)) {
            compare(d, flag, NULL, mt_checkpoint_option(d->b, flag), true);
        }
    }
    end_section(d);
}

enum { SHAPE_BYTES = 160 };

/* Type, shape and valid rows; NULL for no tensor. */
static const char *describe(const mt_i_tensor *t, bool json, char out[SHAPE_BYTES])
{
    char shape[64], valid[48] = "";
    if (!t) {
        return NULL;
    }
    snprintf(shape, sizeof shape,
             t->n_dims == 1 ? "%" PRId64
             : json         ? "%" PRId64 ", %" PRId64
                            : "%" PRId64 " x %" PRId64,
             t->shape[0], t->shape[1]);
    if (t->valid_rows) {
        snprintf(valid, sizeof valid, json ? ", \"valid_rows\": %" PRId64 : ", %" PRId64 " rows valid", t->valid_rows);
    }
    snprintf(out, SHAPE_BYTES, json ? "{\"dtype\": \"%s\", \"shape\": [%s]%s}" : "%s %s%s", mt_st_dtype_name(t->dtype),
             shape, valid);
    return out;
}

typedef struct values {
    int same, other, unknown; /* tensors; unknown: cut in other ways, so that checksums say nothing */
} values;

static void compare_values(const diff *d, const mt_i_tensor *ta, const mt_i_tensor *tb, values *v)
{
    bool same = true, known = ta->n_slices == tb->n_slices && ta->dtype == tb->dtype;
    for (int i = 0; i < ta->n_slices && known; i++) {
        const mt_i_slice *x = &d->a->slices[ta->first_slice + i], *y = &d->b->slices[tb->first_slice + i];
        known = mt_i_rect_equal(x->rect, y->rect);
        same = same && x->xxh3 == y->xxh3;
    }
    *(known ? same ? &v->same : &v->other : &v->unknown) += 1;
}

/* Both lists are in order of names. */
static void compare_tensors(diff *d, values *v)
{
    char sa[SHAPE_BYTES], sb[SHAPE_BYTES];
    begin_section(d, "tensors");
    for (int i = 0, j = 0; i < d->a->n_tensors || j < d->b->n_tensors;) {
        const mt_i_tensor *ta = i < d->a->n_tensors ? &d->a->tensors[i] : NULL;
        const mt_i_tensor *tb = j < d->b->n_tensors ? &d->b->tensors[j] : NULL;
        int order = !ta ? 1 : !tb ? -1 : strcmp(ta->name, tb->name);
        ta = order <= 0 ? ta : NULL;
        tb = order >= 0 ? tb : NULL;
        compare(d, ta ? ta->name : tb->name, describe(ta, d->json, sa), describe(tb, d->json, sb), false);
        if (ta && tb) {
            compare_values(d, ta, tb, v);
        }
        i += ta != NULL;
        j += tb != NULL;
    }
    end_section(d);
}

static void compare_all(diff *d)
{
    values v = {0};
    if (d->json) {
        mt_text_printf(&d->text, "{\"kind\": \"checkpoint-difference\", \"a\": ");
        mt_text_json(&d->text, d->a->dir, strlen(d->a->dir));
        mt_text_printf(&d->text, ", \"b\": ");
        mt_text_json(&d->text, d->b->dir, strlen(d->b->dir));
    } else {
        mt_text_printf(&d->text, "%s | %s\n", d->a->dir, d->b->dir);
    }
    compare_state(d);
    compare_config(d);
    compare_tensors(d, &v);
    bool same = d->n_all == 0 && v.other == 0 && v.unknown == 0;
    if (d->json) {
        mt_text_printf(&d->text, ",\n\"values\": {\"same\": %d, \"other\": %d, \"unknown\": %d}, \"same\": %s}\n",
                       v.same, v.other, v.unknown, same ? "true" : "false");
        return;
    }
    mt_text_printf(&d->text, "values\n  by their checksums %d tensors are the same, %d are not", v.same, v.other);
    mt_text_printf(&d->text, v.unknown ? "; %d are cut into other slices, which says nothing\n" : "\n", v.unknown);
    mt_text_printf(&d->text, same ? "no difference\n" : "");
}

static mc_status open_pair(const char *path_a, const char *path_b, bool verify, mt_checkpoint **a, mt_checkpoint **b)
{
    MC_TRY(mt_checkpoint_open(path_a, -1, a));
    MC_TRY(mt_checkpoint_open(path_b, -1, b));
    mc_status st = verify ? mt_i_checkpoint_verify(*a) : MC_OK;
    MC_KEEP_FIRST(st, verify ? mt_i_checkpoint_verify(*b) : MC_OK);
    return st;
}

mc_status mt_checkpoint_compare(const char *path_a, const char *path_b, bool verify, bool json, FILE *out)
{
    mt_checkpoint *a = NULL, *b = NULL;
    mc_status st = open_pair(path_a, path_b, verify, &a, &b);
    if (st == MC_OK) {
        diff d = {.a = a, .b = b, .json = json};
        compare_all(&d);
        st = d.text.st;
        if (st == MC_OK) {
            fwrite(d.text.data, 1, d.text.bytes, out);
            st = mt_i_print_end(out, path_a);
        }
        mt_text_fini(&d.text);
    }
    mt_checkpoint_close(a);
    mt_checkpoint_close(b);
    return st;
}
