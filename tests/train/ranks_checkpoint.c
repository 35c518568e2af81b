/* The collective save on real ranks (tests/ranks 4): saved and loaded in other layouts; a failure of one rank is the
 * failure of all and leaves the previous checkpoint. Argument: a directory. */
#include <signal.h>
#include <sys/resource.h>

#include "megac/base/world.h"
#include "tests/train/ckpt_save.h"

static struct {
    const char *dir;
    mc_world *world;
    int rank, size;
} run;

static mc_status save(const ckpt_layout *l, int64_t iteration, int salt)
{
    const mt_ckpt_state s = ckpt_state(iteration);
    ckpt_rank r;
    ckpt_make(&r, l, run.rank);
    ckpt_fill(&r, salt);
    mc_status st = mt_checkpoint_save(run.dir, run.world, &s, r.items, r.n_items);
    ckpt_drop(&r);
    return st;
}

static void test_save_and_load(void **state)
{
    static const ckpt_layout layouts[] = {
        {2, 2, 3, false, MC_F32}, {4, 1, 1, true, MC_F32}, {1, 1, 8, false, MC_F32}, {3, 1, 5, false, MC_F32}};
    (void)state;
    for (int from = 0; from < 2; from++) {
        assert_int_equal(save(&layouts[from], 10 + from, from), MC_OK);
        for (int to = 0; to < 4; to++) {
            assert_int_equal(ckpt_load_all(run.dir, &layouts[to], from), MC_OK);
        }
        assert_int_equal(mc_comm_barrier(mc_world_comm(run.world)), MC_OK);
    }
}

/* Data-parallel copies write nothing: only ranks 0 and 1 have items to store. */
static void test_ranks_without_a_shard(void **state)
{
    static const ckpt_layout l = {2, 1, 1, false, MC_F32};
    const mt_ckpt_state s = ckpt_state(12);
    char path[MC_PATH_BYTES];
    ckpt_rank r;
    (void)state;
    ckpt_make(&r, &l, run.rank % 2);
    ckpt_fill(&r, 5);
    for (int i = 0; i < CKPT_PARAMS; i++) {
        r.params[i].writes = r.params[i].writes && run.rank < 2;
    }
    assert_int_equal(mt_checkpoint_save(run.dir, run.world, &s, r.items, r.n_items), MC_OK);
    ckpt_drop(&r);
    assert_int_equal(
        mc_path_format(path, "%s/iter_0000012/shard_%05d_of_%05d.safetensors", run.dir, run.rank, run.size), MC_OK);
    assert_int_equal(mc_file_exists(path), run.rank < 2);
    assert_int_equal(ckpt_load_all(run.dir, &l, 5), MC_OK);
    assert_int_equal(mc_comm_barrier(mc_world_comm(run.world)), MC_OK);
}

static void test_failure_of_one_rank(void **state)
{
    static const ckpt_layout l = {4, 1, 1, false, MC_F32};
    char tmp[MC_PATH_BYTES];
    (void)state;
    assert_int_equal(save(&l, 20, 1), MC_OK);
    for (int loser = 0; loser < run.size; loser++) {
        struct rlimit old, small;
        getrlimit(RLIMIT_FSIZE, &old);
        small = (struct rlimit){3000, old.rlim_max};
        signal(SIGXFSZ, SIG_IGN);
        if (run.rank == loser) {
            setrlimit(RLIMIT_FSIZE, &small);
        }
        mc_status st = save(&l, 21, 2);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(st, MC_IO);
        mc_alloc_fail_at(run.rank == loser ? 4 : 0); /* the first three are the test's and the plan's */
        st = save(&l, 22, 2);
        mc_alloc_fail_at(0);
        assert_int_equal(st, MC_NOMEM);
        assert_int_equal(mc_comm_barrier(mc_world_comm(run.world)), MC_OK);
        assert_int_equal(mt_i_iter_path(tmp, run.dir, 21, ".tmp"), MC_OK);
        assert_false(mc_file_exists(tmp));
        assert_int_equal(ckpt_load_all(run.dir, &l, 1), MC_OK);
        assert_int_equal(mc_comm_barrier(mc_world_comm(run.world)), MC_OK);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_save_and_load),
        cmocka_unit_test(test_ranks_without_a_shard),
        cmocka_unit_test(test_failure_of_one_rank),
    };
    mc_job job;
    if (argc != 2 || mc_job_from_env(&job) != MC_OK || job.size != 4 ||
        mc_world_open(&job, NULL, 30.0, &run.world) != MC_OK) {
        fprintf(stderr, "usage: tests/ranks 4 ranks_checkpoint DIRECTORY\n");
        return 1;
    }
    run.dir = argv[1];
    run.rank = job.rank;
    run.size = job.size;
    int failed = job.rank == 0 && mc_file_remove_tree(run.dir) != MC_OK;
    failed += mc_comm_barrier(mc_world_comm(run.world)) != MC_OK;
    failed += cmocka_run_group_tests_name("checkpoint on ranks", tests, NULL, NULL);
    failed += job.rank == 0 && mc_file_remove_tree(run.dir) != MC_OK;
    mc_world_close(run.world, failed != 0, 1);
    return failed != 0;
}
