/* The map between megac's parameters and Hugging Face's tensors, and reading through it: every element goes to one
 * place, any rectangle reads as from the converted checkpoint, memory stays at one tensor, every failed allocation is
 * survived. Arguments: the folder of fixtures, a folder for files. */
#include <sys/stat.h>

#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/train/convert/convert.h"
#include "megac/train/convert/hf_config.h"
#include "megac/train/convert/hf_dir.h"
#include "megac/train/setup.h"
#include "tests/unit.h"

static const char *fixtures, *scratch;

static const char *const names[] = {"gpt2",         "gpt2-untied", "llama2", "llama3",
                                    "llama-biases", "mistral",     "qwen2",  "qwen3"};
enum { N_NAMES = sizeof names / sizeof *names };

static void fixture_path(char *out, const char *name)
{
    assert_int_equal(mc_path_format(out, "%s/%s", fixtures, name), MC_OK);
}

/* Fixture `name` as a checkpoint in a new folder. */
static void make_checkpoint(const char *name, char *out)
{
    char source[MC_PATH_BYTES];
    mt_converted done;
    fixture_path(source, name);
    assert_int_equal(mc_path_format(out, "%s/%s", scratch, name), MC_OK);
    assert_int_equal(mc_file_remove_tree(out), MC_OK);
    mt_convert_request r = {.input = source, .output = out, .step = -1};
    assert_int_equal(mt_convert_to_megac(&r, &done), MC_OK);
}

/* Counts how often each row of tensor and parameter is hit. */
static void check_cover(const mt_hf_map *m, int param)
{
    int64_t rows = m->params.rows[param].global_dims[0];
    int *seen = test_calloc((size_t)rows, sizeof *seen);
    for (int i = 0; i < m->n_tensors; i++) {
        const mt_hf_tensor *t = &m->tensors[i];
        mt_hf_span s;
        int64_t own = t->transposed ? t->dims[1] : t->dims[0];
        int *hit = test_calloc((size_t)own, sizeof *hit);
        for (int k = 0; t->param == param && mt_hf_map_span(m, t, k, &s); k++) {
            assert_true(s.n_rows > 0 && s.param_row + s.n_rows <= rows && s.hf_row + s.n_rows <= own);
            for (int64_t j = 0; j < s.n_rows; j++) {
                seen[s.param_row + j]++;
                hit[s.hf_row + j]++;
            }
        }
        for (int64_t j = 0; t->param == param && j < own; j++) {
            assert_int_equal(hit[j], 1);
        }
        test_free(hit);
    }
    for (int64_t j = 0; j < rows; j++) {
        assert_int_equal(seen[j], 1);
    }
    test_free(seen);
}

static void spans_cover_everything_once(void **state)
{
    (void)state;
    for (int f = 0; f < N_NAMES; f++) {
        char path[MC_PATH_BYTES];
        mt_hf *hf;
        fixture_path(path, names[f]);
        assert_int_equal(mt_hf_open(path, &hf), MC_OK);
        for (int i = 0; i < mt_hf_get_map(hf)->params.n_rows; i++) {
            check_cover(mt_hf_get_map(hf), i);
        }
        mt_hf_close(hf);
    }
}

/* A cut rectangle, or a rank's whole share, of one parameter in both readers: the same bits, and marks left alone. */
static void compare_item(mt_hf *hf, mt_checkpoint *ckpt, mt_ckpt_item item, const int64_t *dims, int64_t gap)
{
    int64_t cols = item.param->n_dims == 2 ? dims[1] : 1, pitch = cols + (item.param->n_dims == 2 ? gap : 0);
    size_t bytes = (size_t)(dims[0] * pitch) * sizeof(float);
    char *a = test_malloc(bytes + 1), *b = test_malloc(bytes + 1);
    memset(a, 0xa5, bytes);
    memset(b, 0xa5, bytes);
    item.local = item.param->n_dims == 2 ? mc_tensor_2d(a, MC_F32, dims[0], cols) : mc_tensor_1d(a, MC_F32, dims[0]);
    if (item.param->n_dims == 2) {
        item.local.strides[0] = pitch;
    }
    assert_int_equal(mt_hf_read(hf, &item), MC_OK);
    item.local.data = b;
    assert_int_equal(mt_checkpoint_read(ckpt, &item), MC_OK);
    assert_memory_equal(a, b, bytes);
    test_free(a);
    test_free(b);
}

static void compare_rank(mt_hf *hf, mt_checkpoint *ckpt, int tp, int rank, unsigned *random)
{
    const mt_hf_map *m = mt_hf_get_map(hf);
    mt_model_config c = m->model;
    mt_place place = {.tp = tp, .tp_rank = rank, .dp = 1, .pp = 1, .n_layers = c.n_layers};
    mt_params params;
    c.padded_vocab = tp_padded_vocab(c.vocab, 8, tp);
    assert_int_equal(mt_params_create(&c, &place, &params), MC_OK);
    for (int i = 0; i < params.n_rows; i++) {
        const mt_param *p = &params.rows[i];
        bool vocabulary = i == params.outer[MT_WORD_EMBEDDINGS] || i == params.outer[MT_OUTPUT_WEIGHT];
        mt_ckpt_item item = {.prefix = "model", .param = p, .valid_rows = vocabulary ? c.vocab : 0};
        compare_item(hf, ckpt, item, p->local_dims, (int64_t)(*random % 3));
        item.cut = true;
        int64_t dims[2];
        for (int d = 0; d < p->n_dims; d++) {
            *random = *random * 1103515245 + 12345;
            item.begin[d] = (int64_t)(*random >> 8) % p->global_dims[d];
            *random = *random * 1103515245 + 12345;
            dims[d] = 1 + (int64_t)(*random >> 8) % (p->global_dims[d] - item.begin[d]);
        }
        compare_item(hf, ckpt, item, dims, (int64_t)(*random % 3));
    }
    mt_params_destroy(&params);
}

static void any_share_reads_as_from_the_checkpoint(void **state)
{
    (void)state;
    unsigned random = 7;
    for (int f = 0; f < N_NAMES; f++) {
        char path[MC_PATH_BYTES], made[MC_PATH_BYTES];
        mt_hf *hf;
        mt_checkpoint *ckpt;
        fixture_path(path, names[f]);
        make_checkpoint(names[f], made);
        assert_int_equal(mt_hf_open(path, &hf), MC_OK);
        assert_int_equal(mt_checkpoint_open(made, -1, &ckpt), MC_OK);
        for (int tp = 1; tp <= mt_hf_get_map(hf)->model.heads; tp *= 2) {
            for (int rank = 0; rank < tp; rank++) {
                compare_rank(hf, ckpt, tp, rank, &random);
            }
        }
        mt_checkpoint_close(ckpt);
        mt_hf_close(hf);
    }
}

static void another_vocabulary_is_refused(void **state)
{
    (void)state;
    char path[MC_PATH_BYTES], text[600];
    mt_hf *hf;
    fixture_path(path, "qwen3");
    assert_int_equal(mt_hf_open(path, &hf), MC_OK);
    mt_param p = mt_hf_get_map(hf)->params.rows[0];
    static float memory[300 * 16];
    mt_ckpt_item item = {.prefix = "model", .param = &p, .valid_rows = 257};
    p.global_dims[0] = p.local_dims[0] = p.ranges[0].count = 264;
    item.local = mc_tensor_2d(memory, MC_F32, 264, 16);
    UNIT_CAPTURE(text, assert_int_equal(mt_hf_read(hf, &item), MC_MISMATCH));
    assert_non_null(strstr(text, "259 x 16 there and 257 x 16"));
    mt_hf_close(hf);
}

/* Bytes of zeros under the names and shapes of a Llama's tensors: 24 layers, 16 MB, the largest parameter 262 KB. */
static uint64_t make_large(const char *path)
{
    static const char config[] = "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
                                 "\"hidden_size\": 128, \"intermediate_size\": 256, \"num_hidden_layers\": 24, "
                                 "\"num_attention_heads\": 4, \"max_position_embeddings\": 64, \"vocab_size\": 256}";
    char name[MC_PATH_BYTES];
    mt_text flags = {0};
    mt_hf_arch arch;
    mt_options *o;
    mt_model_config model;
    mt_hf_map map;
    mt_st_writer *w;
    static const char zeros[256 * 128 * sizeof(float)];
    assert_int_equal(mc_file_make_dirs(path), MC_OK);
    assert_int_equal(mc_path_format(name, "%s/config.json", path), MC_OK);
    assert_int_equal(mc_file_replace(name, config, sizeof config - 1), MC_OK);
    assert_int_equal(mt_hf_config_parse(name, config, sizeof config - 1, &arch, &flags), MC_OK);
    assert_int_equal(mt_hf_options(name, flags.data, &o), MC_OK);
    assert_int_equal(mt_model_config_from(o, NULL, &model), MC_OK);
    assert_int_equal(mt_hf_map_create(arch, &model, &map), MC_OK);
    mt_st_tensor *tensors = test_calloc((size_t)map.n_tensors, sizeof *tensors);
    for (int i = 0; i < map.n_tensors; i++) {
        const mt_hf_tensor *t = &map.tensors[i];
        tensors[i] = (mt_st_tensor){.name = t->name, .dtype = MT_ST_F32, .n_dims = t->n_dims};
        memcpy(tensors[i].shape, t->dims, sizeof t->dims);
    }
    assert_int_equal(mc_path_format(name, "%s/model.safetensors", path), MC_OK);
    assert_int_equal(mt_st_writer_create(name, tensors, map.n_tensors, NULL, 0, &w), MC_OK);
    uint64_t bytes = tensors[map.n_tensors - 1].end;
    for (int i = 0; i < map.n_tensors; i++) {
        assert_int_equal(mt_st_writer_append(w, zeros, (size_t)(tensors[i].end - tensors[i].begin)), MC_OK);
    }
    assert_int_equal(mt_st_writer_finish(w), MC_OK);
    mt_st_writer_destroy(w);
    test_free(tensors);
    mt_hf_map_destroy(&map);
    mt_options_free(o);
    mt_text_fini(&flags);
    return bytes;
}

/* Peak of both conversions against a bound far below the model: fixed buffers (5 chunks of 256 KiB to read a directory,
 * 1 to read a checkpoint), one tensor, tables of options, names and shapes. Runs first: the peak is the process's. */
static void memory_is_one_tensor(void **state)
{
    (void)state;
    char model[MC_PATH_BYTES], made[MC_PATH_BYTES], back[MC_PATH_BYTES];
    mt_converted done;
    assert_int_equal(mc_path_format(model, "%s/large", scratch), MC_OK);
    assert_int_equal(mc_path_format(made, "%s/large-megac", scratch), MC_OK);
    assert_int_equal(mc_path_format(back, "%s/large-hf", scratch), MC_OK);
    assert_int_equal(mc_file_remove_tree(made), MC_OK);
    assert_int_equal(mc_file_remove_tree(back), MC_OK);
    uint64_t bytes = make_large(model);
    mt_convert_request to_megac = {.input = model, .output = made, .step = -1};
    mt_convert_request to_hf = {.input = made, .output = back, .step = -1, .max_file_bytes = 1 << 30};
    assert_int_equal(mt_convert_to_megac(&to_megac, &done), MC_OK);
    assert_int_equal(done.bytes, bytes);
    assert_int_equal(mt_convert_to_hf(&to_hf, &done), MC_OK);
    assert_int_equal(done.bytes, bytes);
    assert_int_equal(mc_alloc_get_stats().live_blocks, 0);
    assert_true(bytes > 15u << 20 && mc_alloc_get_stats().peak_bytes < 3u << 20);
    assert_int_equal(mc_file_remove_tree(model), MC_OK);
    assert_int_equal(mc_file_remove_tree(made), MC_OK);
    assert_int_equal(mc_file_remove_tree(back), MC_OK);
}

static int entries(const char *dir)
{
    struct stat s;
    return stat(dir, &s) == 0 ? (int)s.st_nlink : -1; /* of a directory: its subdirectories and 2 */
}

/* Every allocation of a conversion fails once. */
static void sweep(mc_status (*convert)(const mt_convert_request *, mt_converted *), const mt_convert_request *r)
{
    int before = entries(scratch);
    for (size_t n = 1;; n++) {
        mt_converted done;
        char text[4096];
        mc_status st = MC_OK;
        mc_alloc_fail_at(n);
        UNIT_CAPTURE(text, st = convert(r, &done));
        mc_alloc_fail_at(0);
        assert_int_equal(mc_alloc_get_stats().live_blocks, 0);
        if (st == MC_OK) {
            assert_true(n > 20);
            break;
        }
        assert_int_equal(st, MC_NOMEM);
        assert_int_equal(entries(scratch), before);
    }
    assert_int_equal(mc_file_remove_tree(r->output), MC_OK);
}

static void every_failed_allocation_is_survived(void **state)
{
    (void)state;
    char model[MC_PATH_BYTES], made[MC_PATH_BYTES], out[MC_PATH_BYTES];
    fixture_path(model, "qwen2");
    make_checkpoint("qwen2", made);
    assert_int_equal(mc_path_format(out, "%s/sweep", scratch), MC_OK);
    assert_int_equal(mc_file_remove_tree(out), MC_OK);
    sweep(mt_convert_to_megac, &(mt_convert_request){.input = model, .output = out, .step = -1});
    sweep(mt_convert_to_hf, &(mt_convert_request){.input = made, .output = out, .step = -1, .max_file_bytes = 9000});
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: test_convert_map FIXTURES FOLDER\n");
        return 2;
    }
    fixtures = argv[1];
    scratch = argv[2];
    if (mc_file_make_dirs(scratch) != MC_OK) {
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_one_tensor),
        cmocka_unit_test(spans_cover_everything_once),
        cmocka_unit_test(any_share_reads_as_from_the_checkpoint),
        cmocka_unit_test(another_vocabulary_is_refused),
        cmocka_unit_test(every_failed_allocation_is_survived),
    };
    return cmocka_run_group_tests_name("convert_map", tests, NULL, NULL);
}
