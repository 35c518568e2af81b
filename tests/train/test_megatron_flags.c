/* Megatron-LM's flags: launch lines as people write them, and every flag with its treatment. Run with the path of
 * megatron_flags.txt. */
#include "tests/train/options_run.h"

static const char *flags_path;

/* A GPT-3 launch line in the style of the scripts that people have. */
static void a_gpt3_launch_line_is_read(void **state)
{
    (void)state;
    char said[RUN_SAID_BYTES];
    mt_options *o = good(
        MT_TRAIN, 128,
        "--num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048 "
        "--max-position-embeddings 2048 --attention-backend auto --micro-batch-size 1 --global-batch-size 1536 "
        "--rampup-batch-size 16 16 5859375 --train-samples 146484375 --weight-decay 0.1 --adam-beta1 0.9 "
        "--adam-beta2 0.95 --init-method-std 0.006 --clip-grad 1.0 --lr 6.0e-5 --lr-decay-style cosine --min-lr 6.0e-6 "
        "--lr-warmup-samples 183105 --lr-decay-samples 126953125 --tensor-model-parallel-size 8 "
        "--pipeline-model-parallel-size 16 --sequence-parallel --data-path 0.6 part_a 0.4 part_b --split 949,50,1 "
        "--tokenizer-type NullTokenizer --vocab-size 50257 --log-interval 100 --save-interval 10000 "
        "--eval-interval 1000 --save ckpt --load ckpt --load-if-exists --eval-iters 10 --tensorboard-dir tb "
        "--no-masked-softmax-fusion --distributed-backend nccl --use-mcore-models --ckpt-format torch_dist",
        said);
    assert_int_equal(o->data_path.n, 4);
    assert_string_equal(o->data_path.v[3], "part_b");
    assert_int_equal(o->rampup_batch_size.v[2], 5859375);
    assert_true(o->lr == 6.0e-5 && o->min_lr == 6.0e-6 && o->init_method_std == 0.006);
    assert_int_equal(o->lr_decay_samples, 126953125);
    assert_string_equal(o->split, "949,50,1");
    assert_int_equal(o->data_parallel_size, 1);
    const char *told[] = {
        "--attention-backend: ", "--tensorboard-dir: ", "--no-masked-softmax-fusion: always fused here",
        "--distributed-backend: ", "--use-mcore-models: "};
    for (size_t i = 0; i < sizeof told / sizeof told[0]; i++) {
        if (!strstr(said, told[i])) {
            fail_msg("\"%s\" is missing in %s", told[i], said);
        }
    }
    assert_null(strstr(said, "--ckpt-format"));
    mt_options_free(o);
}

static void a_llama3_launch_line_is_read(void **state)
{
    (void)state;
    char said[RUN_SAID_BYTES];
    mt_options *o = good(
        MT_TRAIN, 16,
        "--use-mcore-models --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 "
        "--group-query-attention --num-query-groups 8 --kv-channels 128 --seq-length 8192 "
        "--max-position-embeddings 8192 --position-embedding-type rope --rotary-base 500000 --rotary-percent 1.0 "
        "--use-rope-scaling --attention-dropout 0.0 --hidden-dropout 0.0 --swiglu --init-method-std 0.0134 "
        "--attention-backend fused --apply-layernorm-1p --untie-embeddings-and-output-weights --disable-bias-linear "
        "--normalization RMSNorm --norm-epsilon 1e-5 --micro-batch-size 1 --global-batch-size 128 "
        "--train-iters 5e5 --lr 0.00015 --min-lr 0.00001 --decoupled-lr 5.0e-4 --decoupled-min-lr 4.5e-5 "
        "--lr-decay-style cosine --clip-grad 1.0 --weight-decay 0.1 --adam-beta1=0.9 --adam-beta2=0.95 "
        "--lr-warmup-fraction 0.01 --cross-entropy-loss-fusion --calculate-per-token-loss --manual-gc "
        "--empty-unused-memory-level 1 --no-bias-swiglu-fusion --tensor-model-parallel-size 2 "
        "--context-parallel-size 1 --pipeline-model-parallel-size 4 --overlap-grad-reduce --no-mmap-bin-files "
        "--data-path corpus --data-cache-path cache --num-workers 1 --tokenizer-type NullTokenizer "
        "--tokenizer-model t --vocab-size 128256 --log-interval 1 --eval-iters 32 --eval-interval 100 "
        "--save-interval 500 --log-throughput --profile --profile-step-start 4 --profile-step-end 6 "
        "--profile-ranks 0 1 --distributed-timeout-minutes 60 --ckpt-format torch_dist --save out "
        "--use-rotary-position-embeddings --layernorm-epsilon 1e-6 --exit-duration-in-mins 230",
        said);
    assert_int_equal(o->train_iters, 500000);
    assert_int_equal(o->num_query_groups, 8);
    assert_int_equal(o->rotary_base, 500000);
    assert_true(o->use_rope_scaling && o->swiglu && o->apply_layernorm_1p);
    assert_false(o->add_bias_linear);
    assert_true(o->norm_epsilon == 1e-6); /* the old spelling came last */
    assert_true(o->decoupled_lr == 5e-4 && o->exit_duration_in_mins == 230);
    assert_string_equal(o->position_embedding_type, "rope");
    assert_int_equal(o->data_parallel_size, 2);
    mt_options_free(o);
}

/* Every flag of the list is known, with the treatment that the list says, and has a text that explains it. */
static void every_flag_of_megatron_is_known(void **state)
{
    (void)state;
    char line[256], flag[128], wanted[64];
    int n = 0;
    FILE *f = fopen(flags_path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        if (line[0] == '#') {
            continue;
        }
        assert_int_equal(sscanf(line, "%127s %63s", flag, wanted), 2);
        const mc_option *row = mc_option_find(mt_options_table(MT_TRAIN), flag);
        if (!row) {
            fail_msg("%s is not known", flag);
        }
        const char *is = row->kind == MC_OPTION_NO_EFFECT     ? "ignored"
                         : row->kind == MC_OPTION_UNAVAILABLE ? "refused"
                         : row->kind == MC_OPTION_OLD         ? "renamed"
                                                              : "honoured";
        if (strcmp(is, wanted) != 0) {
            fail_msg("%s is %s, not %s", flag, is, wanted);
        }
        n++;
    }
    fclose(f);
    assert_true(n >= 280);
}

/* Rows are well formed: a text, no flag twice, defaults in range (mc_config_init would have failed), old spellings that
 * lead somewhere. */
static void rows_are_sound(void **state)
{
    (void)state;
    for (int c = MT_TRAIN; c <= MT_PLAN; c++) {
        const mc_option_table *t = mt_options_table((mt_command)c);
        for (int i = 0; i < mc_option_count(t); i++) {
            const mc_option *row = mc_option_at(t, i);
            char flags[256], *rest;
            snprintf(flags, sizeof flags, "%s", row->flags);
            if (row->kind != MC_OPTION_OLD && !row->help[0]) {
                fail_msg("%s has no help text", row->flags);
            }
            for (char *word = strtok_r(flags, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
                if (mc_option_find(t, word) != row) {
                    fail_msg("%s stands in two rows", word);
                }
            }
            if (row->kind == MC_OPTION_OLD) {
                char to[64];
                assert_int_equal(sscanf(row->check, "%63s", to), 1);
                assert_non_null(mc_option_find(t, to));
            }
            if (row->bits & MC_OPTION_DERIVED && !row->preset && !strstr(row->help, "default") &&
                !strstr(row->help, "otherwise")) {
                fail_msg("%s does not say its default", row->flags);
            }
        }
    }
}

/* Each flag that is ignored says so, each that is refused fails, by itself on a good command line. */
static void treatments_are_what_rows_say(void **state)
{
    (void)state;
    static const char *const values[] = {"", " 7", " 7 8"};
    const mc_option_table *t = mt_options_table(MT_TRAIN);
    char said[RUN_SAID_BYTES], line[1024], flag[128];
    int ignored = 0, refused = 0;
    for (int i = 0; i < mc_option_count(t); i++) {
        const mc_option *row = mc_option_at(t, i);
        if ((row->kind != MC_OPTION_NO_EFFECT && row->kind != MC_OPTION_UNAVAILABLE) || strchr(row->flags, '*')) {
            continue;
        }
        mc_option_flag(row, flag, sizeof flag);
        snprintf(line, sizeof line, GOOD_RUN "%s%s", flag, values[row->arity]);
        mt_options *o = NULL;
        mc_status st = run_options(MT_TRAIN, 1, line, said, &o);
        bool ok = row->kind == MC_OPTION_NO_EFFECT ? st == MC_OK && strstr(said, "; ignored\n") : st == MC_UNSUPPORTED;
        if (!ok || !strstr(said, flag) || !strstr(said, row->help)) {
            fail_msg("%s: status %s, said %s", line, mc_status_name(st), said);
        }
        ignored += row->kind == MC_OPTION_NO_EFFECT;
        refused += row->kind == MC_OPTION_UNAVAILABLE;
        mt_options_free(o);
    }
    assert_true(ignored > 60 && refused > 30); /* fewer with every release */
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_gpt3_launch_line_is_read, nothing_leaked),
        cmocka_unit_test_teardown(a_llama3_launch_line_is_read, nothing_leaked),
        cmocka_unit_test_teardown(every_flag_of_megatron_is_known, nothing_leaked),
        cmocka_unit_test_teardown(rows_are_sound, nothing_leaked),
        cmocka_unit_test_teardown(treatments_are_what_rows_say, nothing_leaked),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: test_megatron_flags megatron_flags.txt\n");
        return 1;
    }
    flags_path = argv[1];
    return cmocka_run_group_tests_name("megatron_flags", tests, NULL, NULL);
}
