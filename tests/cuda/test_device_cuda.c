/* The CUDA device: memory, copies, and order between streams by events alone. Runs on the stand-in runtime, whose
 * streams are as late as CUDA allows, and on a GPU. */
#include <math.h>

#include "megac/base/alloc.h"
#include "megac/base/arena.h"
#include "tests/cuda/cuda_device.h"

enum { N = 1 << 16, GUARD = 64 };

static cuda_device d;

static void every_slot_is_there(void **state)
{
    (void)state;
    const mc_device_ops *o = d.dev.ops;
    assert_string_equal(o->name, "cuda");
    assert_false(o->host_memory);
    assert_true(o->usable && o->open && o->close && o->alloc && o->free && o->copy && o->clear && o->stream_create &&
                o->stream_destroy && o->stream_sync && o->event_create && o->event_destroy && o->event_record &&
                o->event_wait && o->event_sync && o->describe);
    const ly_ops *ops = o->operators;
    assert_string_equal(ops->backend, "cuda");
#define LY_OP(name) assert_non_null(ops->name);
#include "layers/ops.def"
#undef LY_OP
}

static void describes_itself(void **state)
{
    (void)state;
    char text[300] = "", tiny[5] = "";
    double gib = 0;
    d.dev.ops->describe(&d.dev, text, sizeof text);
    const char *comma = strrchr(text, ',');
    assert_non_null(comma);
    assert_int_equal(sscanf(comma, ", %lf GiB", &gib), 1);
    assert_true(gib > 1.0 && gib < 100000.0);
    d.dev.ops->describe(&d.dev, tiny, sizeof tiny);
    assert_memory_equal(tiny, text, 4);
}

static void memory_is_aligned(void **state)
{
    (void)state;
    const size_t sizes[] = {0, 1, 255, 4097, 3 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int kind = MC_MEM_DEVICE; kind <= MC_MEM_PINNED_HOST; kind++) {
            void *p = NULL;
            assert_int_equal(d.dev.ops->alloc(&d.dev, (mc_mem)kind, sizes[i], "test", &p), MC_OK);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 256, 0);
            d.dev.ops->free(&d.dev, (mc_mem)kind, p, sizes[i]);
        }
    }
    d.dev.ops->free(&d.dev, MC_MEM_DEVICE, NULL, 0);
    d.dev.ops->free(&d.dev, MC_MEM_PINNED_HOST, NULL, 0);
}

static void impossible_memory_says_what_and_how_much(void **state)
{
    (void)state;
    char text[600];
    void *p = &d;
    mc_status st = MC_OK;
    size_t bytes = (size_t)1 << 46;
    UNIT_CAPTURE(text, st = d.dev.ops->alloc(&d.dev, MC_MEM_DEVICE, bytes, "the stash", &p));
    assert_int_equal(st, MC_NOMEM);
    assert_ptr_equal(p, &d);
    assert_non_null(strstr(text, "the stash"));
    assert_non_null(strstr(text, "70368744177664 bytes"));
    assert_non_null(strstr(text, "free"));
    assert_non_null(strstr(text, "megac plan"));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    /* The error is not seen again by what comes next. */
    float *x = cuda_memory(&d, sizeof *x), *host = cuda_host(&d, sizeof *host);
    assert_int_equal(d.cx.ops->fill(&d.cx, &(ly_fill){mc_tensor_1d(x, MC_F32, 1), 3.0f}), MC_OK);
    cuda_copy(&d, host, x, sizeof *x);
    cuda_wait(&d);
    assert_true(*host == 3.0f);
    cuda_memory_free(&d, x, sizeof *x);
    cuda_host_free(&d, host, sizeof *host);
}

/* Host, device, device, host, with a cleared part in the middle and a guard that no copy may reach. */
static void copies_and_clears(void **state)
{
    (void)state;
    unsigned char *in = cuda_host(&d, N), *out = cuda_host(&d, N + GUARD);
    unsigned char *a = cuda_memory(&d, N), *b = cuda_memory(&d, N + GUARD);
    for (int i = 0; i < N; i++) {
        in[i] = (unsigned char)(i * 7 + 3);
    }
    cuda_copy(&d, a, in, N);
    cuda_copy(&d, b, a, N);
    assert_int_equal(d.dev.ops->clear(&d.dev, b + 5, 100, d.cx.stream), MC_OK);
    assert_int_equal(d.dev.ops->clear(&d.dev, b, 0, d.cx.stream), MC_OK);
    cuda_copy(&d, a, in, 0);
    memset(out, 0x11, N + GUARD);
    cuda_copy(&d, out, b, N + GUARD);
    cuda_wait(&d);
    for (int i = 0; i < N + GUARD; i++) {
        assert_int_equal(out[i], i >= N ? 0xff : i >= 5 && i < 105 ? 0 : (unsigned char)(i * 7 + 3));
    }
    cuda_memory_free(&d, a, N);
    cuda_memory_free(&d, b, N + GUARD);
    cuda_host_free(&d, in, N);
    cuda_host_free(&d, out, N + GUARD);
}

/* One value goes through two streams and back to the host, several times over the same memory; each hand-over is an
 * event. Without any one of them the value is an older one, or NaN. */
static void events_order_streams(void **state)
{
    (void)state;
    const mc_device_ops *o = d.dev.ops;
    mc_stream s[2];
    mc_event there, back;
    int *host = cuda_host(&d, 2 * sizeof *host), *a = cuda_memory(&d, N * sizeof *a),
        *b = cuda_memory(&d, N * sizeof *b);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(o->stream_create(&d.dev, &s[i]), MC_OK);
        assert_non_null(s[i].handle);
    }
    assert_int_equal(o->event_create(&d.dev, &there), MC_OK);
    assert_int_equal(o->event_create(&d.dev, &back), MC_OK);
    for (int turn = 0; turn < 4; turn++) {
        host[0] = 100 + turn;
        assert_int_equal(o->copy(&d.dev, a + N - 1, host, sizeof *host, s[0]), MC_OK);
        assert_int_equal(o->event_record(&d.dev, there, s[0]), MC_OK);
        assert_int_equal(o->event_wait(&d.dev, there, s[1]), MC_OK);
        assert_int_equal(o->copy(&d.dev, b, a, N * sizeof *b, s[1]), MC_OK);
        assert_int_equal(o->copy(&d.dev, &host[1], b + N - 1, sizeof *host, s[1]), MC_OK);
        assert_int_equal(o->event_record(&d.dev, back, s[1]), MC_OK);
        assert_int_equal(o->event_wait(&d.dev, back, s[0]), MC_OK);
        assert_int_equal(o->clear(&d.dev, a, N * sizeof *a, s[0]), MC_OK);
        assert_int_equal(o->event_sync(&d.dev, back), MC_OK);
        assert_int_equal(host[1], 100 + turn);
        assert_int_equal(o->stream_sync(&d.dev, s[0]), MC_OK);
    }
    o->event_destroy(&d.dev, there);
    o->event_destroy(&d.dev, back);
    for (int i = 0; i < 2; i++) {
        o->stream_destroy(&d.dev, s[i]);
    }
    cuda_memory_free(&d, a, N * sizeof *a);
    cuda_memory_free(&d, b, N * sizeof *b);
    cuda_host_free(&d, host, 2 * sizeof *host);
}

/* Two devices of one process: the second opens and closes beside the first. */
static void opens_twice(void **state)
{
    (void)state;
    mc_device second = {0};
    assert_int_equal(mc_device_open("cuda", 0, &second), MC_OK);
    assert_ptr_not_equal(second.impl, d.dev.impl);
    mc_device_close(&second);
    assert_null(second.ops);
}

/* Work that is queued before the rewind of a split arena sees the tensor, work that is queued after it sees NaN: a use
 * after the rewind is planted and found, whenever the device gets there. */
static void a_tensor_is_spoiled_where_it_was_rewound(void **state)
{
    (void)state;
    enum { ELEMS = 1000 };
    mc_arena arena;
    mc_arena_split *split = NULL;
    float *host = cuda_host(&d, 3 * sizeof *host), *out = cuda_memory(&d, 2 * ELEMS * sizeof *out);
    mc_arena_init(&arena, "scratch");
    assert_int_equal(mc_arena_split_create(&d.dev, MC_MEM_DEVICE, d.cx.stream, &split), MC_OK);
    mc_arena_bind_split(&arena, split, 1 << 16);
    mc_tensor x = mc_arena_take_1d(&arena, MC_F32, ELEMS);
    mc_tensor early = mc_tensor_1d(out, MC_F32, ELEMS), late = mc_tensor_1d(out + ELEMS, MC_F32, ELEMS);
    assert_int_equal(d.cx.ops->fill(&d.cx, &(ly_fill){x, 1.5f}), MC_OK);
    assert_int_equal(d.cx.ops->add(&d.cx, &(ly_add){.a = x, .b = x, .out = early}), MC_OK);
    mc_arena_rewind(&arena, 0);
    mc_tensor other = mc_arena_take_1d(&arena, MC_F32, ELEMS / 2);
    assert_int_equal(d.cx.ops->fill(&d.cx, &(ly_fill){other, 4.0f}), MC_OK);
    assert_int_equal(d.cx.ops->add(&d.cx, &(ly_add){.a = x, .b = x, .out = late}), MC_OK);
    cuda_copy(&d, &host[0], out + ELEMS - 1, sizeof *host);
    cuda_copy(&d, &host[1], out + ELEMS, sizeof *host);
    cuda_copy(&d, &host[2], out + 2 * ELEMS - 1, sizeof *host);
    cuda_wait(&d);
    assert_true(host[0] == 3.0f);
    assert_true(isnan(host[1]) && isnan(host[2]));
    mc_arena_split_destroy(split);
    cuda_memory_free(&d, out, 2 * ELEMS * sizeof *out);
    cuda_host_free(&d, host, 3 * sizeof *host);
}

static int open_all(void **state)
{
    (void)state;
    cuda_device_open(&d, 0);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    cuda_device_close(&d);
    return mc_alloc_report_leaks() > 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_slot_is_there), cmocka_unit_test(describes_itself),
        cmocka_unit_test(memory_is_aligned),   cmocka_unit_test(impossible_memory_says_what_and_how_much),
        cmocka_unit_test(copies_and_clears),   cmocka_unit_test(events_order_streams),
        cmocka_unit_test(opens_twice),         cmocka_unit_test(a_tensor_is_spoiled_where_it_was_rewound),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
