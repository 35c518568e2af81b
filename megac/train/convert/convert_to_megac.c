/* Hugging Face to a checkpoint of one shard, tensor by tensor. */
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/hash.h"
#include "megac/train/convert/convert.h"
#include "megac/train/convert/convert_output.h"
#include "megac/train/convert/hf_impl.h"

typedef struct job {
    mt_hf *hf;
    const mt_convert_request *r;
    mt_output out;
    mt_ckpt_item *items; /* one for each row of the parameter table; they share `memory` */
    void *memory;        /* of the largest */
    mt_i_shard shard;
} job;

static mc_dtype item_dtype(const job *j, int param)
{
    mc_dtype dtype = mt_hf_param_dtype(j->hf, param);
    if (j->r->cast) {
        bool known = mt_st_dtype_to_mc(j->r->dtype, &dtype);
        MC_ASSERT(known);
    }
    return dtype;
}

static mc_status make_items(job *j)
{
    const mt_hf_map *m = mt_hf_get_map(j->hf);
    size_t largest = 0;
    for (int i = 0; i < m->params.n_rows; i++) {
        size_t bytes = (size_t)mt_param_elems(&m->params.rows[i]) * mc_dtype_bytes(item_dtype(j, i));
        largest = bytes > largest ? bytes : largest;
    }
    MC_TRY(MC_NEW_N(&j->items, m->params.n_rows, "tensors to convert"));
    MC_TRY(mc_alloc(largest, 1, "tensor under conversion", &j->memory));
    for (int i = 0; i < m->params.n_rows; i++) {
        const mt_param *p = &m->params.rows[i];
        bool vocabulary = i == m->params.outer[MT_WORD_EMBEDDINGS] || i == m->params.outer[MT_OUTPUT_WEIGHT];
        mc_dtype dtype = item_dtype(j, i);
        j->items[i] = (mt_ckpt_item){
            .prefix = "model",
            .param = p,
            .local = p->n_dims == 2 ? mc_tensor_2d(j->memory, dtype, p->local_dims[0], p->local_dims[1])
                                    : mc_tensor_1d(j->memory, dtype, p->local_dims[0]),
            .valid_rows = vocabulary ? m->model.vocab : 0,
        };
    }
    return mt_i_shard_plan(j->items, m->params.n_rows, 0, 1, &j->shard);
}

static mc_status write_pieces(job *j, mt_st_writer *w)
{
    const mt_ckpt_item *filled = NULL;
    for (int i = 0; i < j->shard.n_pieces; i++) {
        mt_i_piece *q = &j->shard.pieces[i];
        if (q->item != filled) {
            MC_TRY(mt_hf_read(j->hf, q->item));
            filled = q->item;
        }
        q->xxh3 = mc_hash(q->view.data, mc_tensor_bytes(q->view));
        MC_TRY(mt_st_writer_append(w, q->view.data, mc_tensor_bytes(q->view)));
    }
    return mt_st_writer_finish(w);
}

static mc_status write_shard(job *j)
{
    char dir[MC_PATH_BYTES], path[MC_PATH_BYTES];
    static const char *const metadata[] = {"format", "pt", "megac_iteration", "0"};
    mt_i_shard *s = &j->shard;
    mt_st_tensor *tensors;
    mt_st_writer *w = NULL;
    MC_TRY(mt_i_iter_path(dir, j->out.tmp, 0, ".tmp"));
    MC_TRY(mc_path_format(path, "%s/%s", dir, s->file));
    MC_TRY(MC_NEW_N(&tensors, s->n_pieces, "shard tensors"));
    for (int i = 0; i < s->n_pieces; i++) {
        const mt_i_piece *q = &s->pieces[i];
        tensors[i] = (mt_st_tensor){.name = q->name, .dtype = mt_st_dtype_of(q->view.dtype), .n_dims = q->view.n_dims};
        memcpy(tensors[i].shape, q->shape, sizeof q->shape);
    }
    mc_status st = mt_st_writer_create(path, tensors, s->n_pieces, metadata, 2, &w);
    if (st == MC_OK) {
        s->header_xxh3 = mt_st_writer_header_hash(w);
        s->file_bytes = mt_st_writer_header_bytes(w) + tensors[s->n_pieces - 1].end;
        st = write_pieces(j, w);
    }
    mt_st_writer_destroy(w);
    mc_free(tensors);
    return st;
}

static mc_status write_checkpoint(job *j)
{
    char carried[MC_PATH_BYTES];
    mt_ckpt_state state = {.config = mt_hf_config_text(j->hf)};
    mt_text table = {0};
    MC_TRY(mt_i_save_begin(j->out.tmp, 0));
    MC_TRY(write_shard(j));
    mt_i_shard_table(&j->shard, &table);
    mc_status st = table.st;
    if (st == MC_OK) {
        st = mt_i_save_publish(j->out.tmp, &state, 1, table.data);
    }
    mt_text_fini(&table);
    MC_TRY(st);
    MC_TRY(mc_path_format(carried, "%s/%s", j->out.tmp, MT_CARRIED));
    MC_TRY(mt_carry(j->r->input, true, carried));
    return mt_output_publish(&j->out);
}

static void describe(const job *j, mt_converted *done)
{
    const mt_hf_map *m = mt_hf_get_map(j->hf);
    *done = (mt_converted){.n_files = 1, .n_params = mt_params_count(&m->model, true)};
    snprintf(done->model, sizeof done->model, "%s", mt_hf_class(m->arch));
    for (int i = 0; i < j->shard.n_pieces; i++) {
        done->bytes += mc_tensor_bytes(j->shard.pieces[i].view);
    }
}

mc_status mt_convert_to_megac(const mt_convert_request *r, mt_converted *done_out)
{
    job j = {.r = r};
    MC_TRY(mt_hf_open(r->input, &j.hf));
    mc_status st = make_items(&j);
    if (st == MC_OK) {
        st = mt_output_begin(&j.out, r->output);
    }
    if (st == MC_OK) {
        st = write_checkpoint(&j);
        if (st != MC_OK) {
            mt_output_undo(&j.out);
        } else {
            describe(&j, done_out);
        }
    }
    mt_i_shard_fini(&j.shard);
    mc_free(j.items);
    mc_free(j.memory);
    mt_hf_close(j.hf);
    return st;
}
