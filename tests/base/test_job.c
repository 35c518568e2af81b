/* The launchers' variables, right and wrong. */
#include "megac/base/alloc.h"
#include "megac/base/world.h"
#include "tests/unit.h"

static const char *const variables[] = {
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_NODEID",
};
enum { N_VARIABLES = sizeof variables / sizeof variables[0] };

/* Short names of the variables in a row: "o.rank=1 o.size=4" and so on. */
static const char *const shorts[N_VARIABLES] = {"o.rank",  "o.size",  "o.lrank", "o.lsize", "t.rank",
                                                "t.size",  "t.lrank", "t.lsize", "s.rank",  "s.size",
                                                "s.lrank", "s.tasks", "s.node"};

static void set_environment(const char *row)
{
    for (int i = 0; i < N_VARIABLES; i++) {
        unsetenv(variables[i]);
    }
    char copy[256], *rest = copy;
    snprintf(copy, sizeof copy, "%s", row);
    for (char *word; (word = strsep(&rest, " ")) != NULL;) {
        char *value = strchr(word, '=');
        for (int i = 0; value && i < N_VARIABLES; i++) {
            if (strncmp(word, shorts[i], (size_t)(value - word)) == 0 && shorts[i][value - word] == '\0') {
                setenv(variables[i], value + 1, 1);
                value = NULL;
            }
        }
        if (value || (*word && !strchr(word, '='))) {
            fail_msg("no such variable: %s", word);
        }
    }
}

static void test_right(void **state)
{
    (void)state;
    static const struct {
        const char *env, *launcher;
        int rank, size, local_rank, local_size;
    } rows[] = {
        {"", "none", 0, 1, 0, 1},
        {"o.rank=3 o.size=8 o.lrank=1 o.lsize=2", "mpirun", 3, 8, 1, 2},
        {"o.rank=0 o.size=1", "mpirun", 0, 1, 0, 1},
        {"t.rank=5 t.size=8 t.lrank=1 t.lsize=4", "torchrun", 5, 8, 1, 4},
        {"t.rank=2 t.size=4", "torchrun", 2, 4, 2, 4},
        {"s.rank=4 s.size=6 s.lrank=1 s.tasks=3,1,2 s.node=2", "slurm", 4, 6, 1, 2},
        {"s.rank=9 s.size=14 s.lrank=1 s.tasks=4(x3),2 s.node=2", "slurm", 9, 14, 1, 4},
        {"s.rank=13 s.size=14 s.lrank=1 s.tasks=4(x3),2 s.node=3", "slurm", 13, 14, 1, 2},
        {"s.rank=1 s.size=4 s.lrank=1", "slurm", 1, 4, 1, 4},
        /* mpirun inside a Slurm job: Slurm's variables are those of mpirun's daemon. */
        {"o.rank=15 o.size=16 o.lrank=7 o.lsize=8 s.rank=1 s.size=2 s.lrank=0", "mpirun", 15, 16, 7, 8},
        {"t.rank=15 t.size=16 t.lrank=7 t.lsize=8 s.rank=1 s.size=2 s.lrank=0", "torchrun", 15, 16, 7, 8},
        {"o.rank=1 o.size=2 o.lrank=1 o.lsize=2 t.rank=1 t.size=2", "mpirun", 1, 2, 1, 2},
        /* A batch script is no step. */
        {"s.rank=0", "none", 0, 1, 0, 1},
        {"o.rank= o.size=", "none", 0, 1, 0, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        set_environment(rows[i].env);
        mc_job job = {.rank = -7};
        assert_int_equal(mc_job_from_env(&job), MC_OK);
        if (strcmp(job.launcher, rows[i].launcher) != 0 || job.rank != rows[i].rank || job.size != rows[i].size ||
            job.local_rank != rows[i].local_rank || job.local_size != rows[i].local_size) {
            fail_msg("\"%s\": %s rank %d of %d, local %d of %d", rows[i].env, job.launcher, job.rank, job.size,
                     job.local_rank, job.local_size);
        }
    }
}

static void test_wrong(void **state)
{
    (void)state;
    static const struct {
        const char *env, *says;
    } rows[] = {
        {"o.rank=x o.size=4", "OMPI_COMM_WORLD_RANK=\"x\""},
        {"o.rank=1 o.size=4z", "OMPI_COMM_WORLD_SIZE=\"4z\""},
        {"o.rank=4 o.size=4", "OMPI_COMM_WORLD_RANK=4 in the environment is out of range [0, 3]"},
        {"o.rank=-1 o.size=4", "OMPI_COMM_WORLD_RANK=-1"},
        {"o.rank=0 o.size=0", "OMPI_COMM_WORLD_SIZE=0"},
        {"o.rank=0 o.size=99999999999999999999", "OMPI_COMM_WORLD_SIZE"},
        {"o.rank=0", "OMPI_COMM_WORLD_RANK is set in the environment but OMPI_COMM_WORLD_SIZE is not"},
        {"t.size=2", "WORLD_SIZE is set in the environment but RANK is not"},
        {"t.rank=1 t.size=4 t.lrank=2 t.lsize=2", "LOCAL_RANK=2 in the environment is out of range [0, 1]"},
        {"t.rank=1 t.size=4 t.lsize=8", "LOCAL_WORLD_SIZE=8"},
        {"t.rank=3 t.size=4 t.lsize=2", "LOCAL_RANK is not; set both"},
        {"o.rank=1 o.size=2 t.rank=0 t.size=2", "OMPI_COMM_WORLD_RANK=1 of OMPI_COMM_WORLD_SIZE=2 but RANK=0"},
        {"o.rank=1 o.size=2 t.rank=1 t.size=4", "WORLD_SIZE=4"},
        {"s.rank=2 s.size=2", "SLURM_PROCID=2"},
        {"s.rank=1 s.size=4 s.lrank=3 s.tasks=2(x2) s.node=0", "SLURM_LOCALID=3"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        set_environment(rows[i].env);
        mc_job job = {.rank = -7};
        char said[2048];
        mc_status st;
        UNIT_CAPTURE(said, st = mc_job_from_env(&job));
        if (st != MC_INVALID || !strstr(said, rows[i].says)) {
            fail_msg("\"%s\": %s: %s", rows[i].env, mc_status_name(st), said);
        }
    }
}

static void test_world_of_one(void **state)
{
    (void)state;
    set_environment("");
    mc_job job;
    mc_world *w;
    void *p;
    char said[2048];
    mc_status st;
    assert_int_equal(mc_job_from_env(&job), MC_OK);
    assert_int_equal(mc_world_open(&job, NULL, 1, &w), MC_OK);
    assert_int_equal(mc_world_map(w, 10000, "buffers", &p), MC_OK);
    assert_int_equal((uintptr_t)p % 4096, 0);
    assert_int_equal(((char *)p)[9999], 0);
    assert_int_equal(mc_world_agree(w, "--seed 1\n"), MC_OK);
    mc_world_close(w, false, 0);
    UNIT_CAPTURE(said, st = mc_world_open(&job, "nccl", 1, &w));
    assert_int_equal(st, MC_INVALID);
    assert_non_null(strstr(said, "\"nccl\""));
    UNIT_CAPTURE(said, st = mc_world_open(&job, NULL, 0, &w));
    assert_int_equal(st, MC_INVALID);
    assert_non_null(strstr(said, "deadline"));
    job.size = 2;
    UNIT_CAPTURE(said, st = mc_world_open(&job, "self", 1, &w));
    assert_int_equal(st, MC_INVALID);
    assert_non_null(strstr(said, "use --comm mpi"));
}

/* Allocation n fails for n = 1, 2, ...: a status each time, and nothing stays behind. */
static void test_out_of_memory(void **state)
{
    (void)state;
    mc_job job = {.size = 1, .local_size = 1, .launcher = "none"};
    size_t live = mc_alloc_get_stats().live_blocks;
    bool succeeded = false;
    size_t n = 1;
    for (; !succeeded && n < 100; n++) {
        mc_world *w = NULL;
        void *p;
        char said[2048];
        mc_status st;
        mc_alloc_fail_at(n);
        UNIT_CAPTURE(said, {
            st = mc_world_open(&job, NULL, 1, &w);
            st = st == MC_OK ? mc_world_map(w, 100, "buffers", &p) : st;
            st = st == MC_OK ? mc_world_agree(w, "--seed 1\n") : st;
        });
        mc_alloc_fail_at(0);
        mc_world_close(w, false, 0);
        succeeded = st == MC_OK;
        assert_true(succeeded || st == MC_NOMEM);
        assert_int_equal(mc_alloc_get_stats().live_blocks, live);
    }
    assert_true(succeeded && n > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right),
        cmocka_unit_test(test_wrong),
        cmocka_unit_test(test_world_of_one),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
