/* Arenas: a measured plan and a bound run give the same layout; marks, peaks and the end of an arena. */
#include <signal.h>
#include <stdalign.h>
#include <sys/wait.h>

#include "megac/base/alloc.h"
#include "megac/base/arena.h"
#include "tests/unit.h"

enum { SLAB = 16384 };

typedef struct slab {
    alignas(MC_ARENA_ALIGN) unsigned char bytes[SLAB];
} slab;

/* A component's layout: the same takes for the plan and for the run. */
static void lay_out(mc_arena *arena, mc_tensor out[3])
{
    out[0] = mc_arena_take_2d(arena, MC_F32, 7, 9);
    out[1] = mc_arena_take_1d(arena, MC_U8, 1);
    out[2] = mc_arena_take_1d(arena, MC_BF16, 300);
}

static void plan_and_run_are_equal(void **state)
{
    (void)state;
    static slab memory;
    mc_arena arena;
    mc_tensor planned[3], real[3];
    mc_arena_init(&arena, "model");
    lay_out(&arena, planned);
    /* 252 -> 256, 1 -> 256, 600 -> 768 */
    assert_int_equal(arena.used_bytes, 256 + 256 + 768);
    assert_int_equal(arena.peak_bytes, arena.used_bytes);
    size_t plan = arena.peak_bytes;

    mc_arena_bind(&arena, memory.bytes, plan);
    assert_int_equal(arena.used_bytes, 0);
    assert_string_equal(arena.name, "model");
    lay_out(&arena, real);
    assert_int_equal(arena.used_bytes, plan);
    assert_ptr_equal(real[0].data, memory.bytes);
    assert_ptr_equal(real[1].data, memory.bytes + 256);
    assert_ptr_equal(real[2].data, memory.bytes + 512);
    for (int i = 0; i < 3; i++) {
        assert_non_null(planned[i].data);
        assert_true(mc_tensor_same_shape(planned[i], real[i]));
        assert_int_equal((uintptr_t)real[i].data % MC_ARENA_ALIGN, 0);
    }
}

static void an_empty_take_is_not_null(void **state)
{
    (void)state;
    mc_arena arena;
    mc_arena_init(&arena, "empty");
    assert_non_null(mc_arena_take(&arena, 0));
    assert_int_equal(arena.used_bytes, 0);
    mc_tensor none = mc_arena_take_2d(&arena, MC_F32, 0, 5);
    assert_true(mc_tensor_present(none));
    assert_int_equal(mc_tensor_elems(none), 0);
}

static void scratch_rewinds_and_keeps_its_peak(void **state)
{
    (void)state;
    static slab memory;
    mc_arena arena;
    mc_arena_init(&arena, "scratch");
    mc_arena_bind(&arena, memory.bytes, SLAB);
    mc_arena_take(&arena, 100);
    size_t mark = mc_arena_mark(&arena);
    void *first = mc_arena_take(&arena, 1000);
    mc_arena_take(&arena, 2000);
    mc_arena_rewind(&arena, mark);
    assert_int_equal(arena.used_bytes, 256);
    assert_int_equal(arena.peak_bytes, 256 + 1024 + 2048);
    assert_ptr_equal(mc_arena_take(&arena, 10), first);
    assert_int_equal(arena.peak_bytes, 256 + 1024 + 2048);
}

static bool dies(void (*act)(mc_arena *), mc_arena *arena)
{
    char text[512];
    int how = 0;
    int saved = unit_capture_begin();
    pid_t child = fork();
    if (child == 0) {
        act(arena);
        _exit(0);
    }
    waitpid(child, &how, 0);
    unit_capture_end(saved, text, sizeof text);
    return WIFSIGNALED(how) && WTERMSIG(how) == SIGABRT && strstr(text, "broken invariant");
}

static void take_one_more(mc_arena *arena)
{
    mc_arena_take(arena, 1);
}

static void take_everything(mc_arena *arena)
{
    mc_arena_take(arena, SIZE_MAX - 10); /* rounded up, it would wrap around to 0 */
}

static void rewind_forward(mc_arena *arena)
{
    mc_arena_rewind(arena, arena->used_bytes + MC_ARENA_ALIGN);
}

static void bind_odd(mc_arena *arena)
{
    mc_arena_bind(arena, (char *)arena->base + 64, 1024);
}

static void misuse_is_a_broken_invariant(void **state)
{
    (void)state;
    static slab memory;
    mc_arena arena;
    mc_arena_init(&arena, "full");
    mc_arena_bind(&arena, memory.bytes, SLAB);
    mc_arena_take(&arena, SLAB);
    assert_true(dies(take_one_more, &arena));
    assert_true(dies(take_everything, &arena));
    assert_true(dies(rewind_forward, &arena));
    assert_true(dies(bind_odd, &arena));
}

/* The same plan, but nothing lies next to anything; after a rewind the same take finds its memory again. */
/* What a use after the rewind sees: NaN in all its elements. */
static void assert_spoiled(mc_tensor t)
{
    const unsigned char *bytes = t.data;
    for (size_t i = 0; i < mc_tensor_bytes(t); i++) {
        assert_int_equal(bytes[i], 0xff);
    }
}

/* Of two tensors, only the one above the mark is spoiled by a rewind. */
static void split_keeps_what_is_below_the_mark(void **state)
{
    (void)state;
    mc_device dev = {0};
    mc_arena arena;
    mc_arena_split *split = NULL;
    assert_int_equal(mc_device_open("cpu", 0, &dev), MC_OK);
    assert_int_equal(mc_arena_split_create(&dev, MC_MEM_DEVICE, (mc_stream){0}, &split), MC_OK);
    mc_arena_init(&arena, "scratch");
    mc_arena_bind_split(&arena, split, 1 << 16);
    mc_tensor kept = mc_arena_take_1d(&arena, MC_F32, 1000);
    size_t mark = mc_arena_mark(&arena);
    mc_tensor given_back = mc_arena_take_1d(&arena, MC_F32, 1001);
    memset(kept.data, 1, mc_tensor_bytes(kept));
    memset(given_back.data, 2, mc_tensor_bytes(given_back));
    mc_arena_rewind(&arena, mark);
    for (size_t i = 0; i < mc_tensor_bytes(kept); i++) {
        assert_int_equal(((const unsigned char *)kept.data)[i], 1);
    }
    assert_spoiled(given_back);
    mc_arena_split_destroy(split);
    mc_device_close(&dev);
}

static void split_gives_each_tensor_its_own_block(void **state)
{
    (void)state;
    mc_device dev = {0};
    mc_arena arena;
    mc_arena_split *split = NULL;
    mc_tensor real[3], again[3];
    assert_int_equal(mc_device_open("cpu", 0, &dev), MC_OK);
    mc_arena_init(&arena, "stash");
    lay_out(&arena, real);
    size_t plan = arena.peak_bytes;
    assert_int_equal(mc_arena_split_create(&dev, MC_MEM_DEVICE, (mc_stream){0}, &split), MC_OK);
    mc_arena_bind_split(&arena, split, plan);
    lay_out(&arena, real);
    assert_int_equal(arena.used_bytes, plan);
    for (int i = 0; i < 3; i++) {
        memset(real[i].data, i + 1, mc_tensor_bytes(real[i]));
        assert_int_equal((uintptr_t)real[i].data % 4096, 0); /* the CPU's allocations are whole pages */
    }
    mc_arena_rewind(&arena, 0);
    for (int i = 0; i < 3; i++) {
        assert_spoiled(real[i]);
    }
    lay_out(&arena, again);
    for (int i = 0; i < 3; i++) {
        assert_ptr_equal(again[i].data, real[i].data);
    }
    mc_arena_rewind(&arena, 0);
    unsigned char *other = mc_arena_take(&arena, 8);
    assert_ptr_not_equal(other, real[0].data);
    memset(other, 0, 8); /* what is taken at the same place later does not mend a tensor that is used too late */
    assert_spoiled(real[0]);
    assert_true(dies(take_everything, &arena));
    mc_arena_split_destroy(split);
    mc_arena_split_destroy(NULL);
    mc_device_close(&dev);
    assert_int_equal(mc_alloc_report_leaks(), 0);
    setenv("MC_ARENA_SPLIT", "1", 1);
    assert_true(mc_arena_split_wanted());
    setenv("MC_ARENA_SPLIT", "0", 1);
    assert_false(mc_arena_split_wanted());
    unsetenv("MC_ARENA_SPLIT");
    assert_false(mc_arena_split_wanted());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plan_and_run_are_equal),
        cmocka_unit_test(an_empty_take_is_not_null),
        cmocka_unit_test(scratch_rewinds_and_keeps_its_peak),
        cmocka_unit_test(misuse_is_a_broken_invariant),
        cmocka_unit_test(split_gives_each_tensor_its_own_block),
        cmocka_unit_test(split_keeps_what_is_below_the_mark),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
