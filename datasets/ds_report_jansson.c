/* The report of megac inspect as JSON. */
#include <jansson.h>

#include "datasets/ds_report.h"

static json_t *integer(uint64_t v)
{
    return json_integer((json_int_t)v);
}

static json_t *lengths_json(const ds_i_lengths *l)
{
    json_t *o = json_object(), *bins = json_array();
    json_object_set_new(o, "min", integer(l->min));
    json_object_set_new(o, "mean", json_real(l->mean));
    json_object_set_new(o, "median", integer(l->median));
    json_object_set_new(o, "p90", integer(l->p90));
    json_object_set_new(o, "max", integer(l->max));
    for (int b = 0; b < DS_I_LENGTH_BINS; b++) {
        if (l->bins[b]) {
            json_t *bin = json_object();
            json_object_set_new(bin, "from", integer(b ? (uint64_t)1 << (b - 1) : 0));
            json_object_set_new(bin, "documents", integer(l->bins[b]));
            json_array_append_new(bins, bin);
        }
    }
    json_object_set_new(o, "histogram", bins);
    return o;
}

mc_status ds_i_report_json(const ds_i_report *r, FILE *out)
{
    const ds_info *info = r->info;
    json_t *o = json_object(), *first = json_array();
    json_object_set_new(o, "path", json_string(r->path));
    json_object_set_new(o, "format", json_string("megac-dataset"));
    json_object_set_new(o, "file_bytes", integer(r->file_bytes));
    json_object_set_new(o, "num_tokens", integer(info->n_tokens));
    json_object_set_new(o, "num_documents", integer(info->n_documents));
    json_object_set_new(o, "vocab_size", integer(info->vocab_size));
    json_object_set_new(o, "eod_id", json_integer(info->eod_id));
    json_object_set_new(o, "token_bytes", json_integer(info->token_bytes));
    json_object_set_new(o, "storage", json_string(info->compressed ? "chunked" : "contiguous"));
    json_object_set_new(o, "tokenizer_kind", json_string(info->tokenizer_kind));
    json_object_set_new(o, "tokenizer_sha256", json_string(info->tokenizer_sha256));
    json_object_set_new(o, "has_checksums", json_boolean(r->has_checksums));
    json_object_set_new(o, "verified", json_boolean(r->verified));
    json_object_set_new(o, "document_lengths", lengths_json(&r->lengths));
    for (int i = 0; i < r->n_tokens; i++) {
        json_array_append_new(first, json_integer(r->tokens[i]));
    }
    json_object_set_new(o, "first_tokens", first);
    json_object_set_new(o, "first_text", r->text ? json_string(r->text) : json_null());
    int bad = json_dumpf(o, out, JSON_INDENT(2));
    json_decref(o);
    if (bad || fputc('\n', out) == EOF) {
        return MC_FAIL(MC_IO, "cannot write the report of %s; is the disk full or the pipe closed?", r->path);
    }
    return MC_OK;
}
