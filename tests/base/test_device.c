/* Devices: choosing one by name, and the CPU's memory, copies, streams and events. */
#include "megac/base/device.h"
#include "tests/unit.h"

static void unknown_device_lists_the_known_ones(void **state)
{
    (void)state;
    const char *const names[] = {"tpu", "", "CPU", "cpu0"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char text[512];
        mc_device dev = {.ordinal = 77};
        mc_status st = MC_OK;
        UNIT_CAPTURE(text, st = mc_device_open(names[i], 0, &dev));
        assert_int_equal(st, MC_UNSUPPORTED);
        assert_int_equal(dev.ordinal, 77);
        assert_non_null(strstr(text, names[i]));
        assert_non_null(strstr(text, "\"cpu\""));
    }
}

static void open_and_close(void **state)
{
    (void)state;
    mc_device dev = {0};
    assert_int_equal(mc_device_open("cpu", 3, &dev), MC_OK);
    assert_string_equal(dev.ops->name, "cpu");
    assert_int_equal(dev.ordinal, 3);
    mc_device_close(&dev);
    assert_null(dev.ops);
    mc_device_close(&dev); /* closing twice is harmless */
}

/* No slot may be missing: callers do not ask. */
static void the_table_is_complete(void **state)
{
    (void)state;
    const mc_device_ops *o = &mc_device_cpu;
    assert_true(o->open && o->close && o->alloc && o->free && o->copy && o->clear && o->stream_create &&
                o->stream_destroy && o->stream_sync && o->event_create && o->event_destroy && o->event_record &&
                o->event_wait);
}

static void memory_is_aligned_and_usable(void **state)
{
    (void)state;
    mc_device dev = {0};
    mc_stream s = {0};
    assert_int_equal(mc_device_open("cpu", 0, &dev), MC_OK);
    const size_t sizes[] = {0, 1, 255, 4096, 4097, 3 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (int kind = MC_MEM_DEVICE; kind <= MC_MEM_PINNED_HOST; kind++) {
            unsigned char *p = NULL;
            assert_int_equal(dev.ops->alloc(&dev, (mc_mem)kind, sizes[i], "test", (void **)&p), MC_OK);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 256, 0);
            memset(p, 0x5a, sizes[i]);
            assert_int_equal(dev.ops->clear(&dev, p, sizes[i] / 2, s), MC_OK);
            for (size_t b = 0; b < sizes[i]; b++) {
                assert_int_equal(p[b], b < sizes[i] / 2 ? 0 : 0x5a);
            }
            dev.ops->free(&dev, (mc_mem)kind, p, sizes[i]);
        }
    }
    dev.ops->free(&dev, MC_MEM_DEVICE, NULL, 0);
    mc_device_close(&dev);
}

static void impossible_memory_names_its_arena(void **state)
{
    (void)state;
    char text[512];
    mc_device dev = {0};
    void *p = &dev;
    mc_status st = MC_OK;
    assert_int_equal(mc_device_open("cpu", 0, &dev), MC_OK);
    UNIT_CAPTURE(text, st = dev.ops->alloc(&dev, MC_MEM_DEVICE, SIZE_MAX / 2, "stash", &p));
    assert_int_equal(st, MC_NOMEM);
    assert_ptr_equal(p, &dev);
    assert_non_null(strstr(text, "stash"));
    mc_device_close(&dev);
}

static void work_is_done_in_order(void **state)
{
    (void)state;
    mc_device dev = {0};
    mc_stream a = {0}, b = {0};
    mc_event done = {0};
    char one[] = "one", buf[8] = "", out[8] = "";
    assert_int_equal(mc_device_open("cpu", 0, &dev), MC_OK);
    assert_int_equal(dev.ops->stream_create(&dev, &a), MC_OK);
    assert_int_equal(dev.ops->stream_create(&dev, &b), MC_OK);
    assert_int_equal(dev.ops->event_create(&dev, &done), MC_OK);
    assert_int_equal(dev.ops->copy(&dev, buf, one, sizeof one, a), MC_OK);
    assert_int_equal(dev.ops->event_record(&dev, done, a), MC_OK);
    assert_int_equal(dev.ops->event_wait(&dev, done, b), MC_OK);
    assert_int_equal(dev.ops->copy(&dev, out, buf, sizeof one, b), MC_OK);
    assert_int_equal(dev.ops->stream_sync(&dev, b), MC_OK);
    assert_string_equal(out, "one");
    assert_int_equal(dev.ops->copy(&dev, out + 1, out, 4, b), MC_OK); /* overlap */
    assert_string_equal(out, "oone");
    dev.ops->event_destroy(&dev, done);
    dev.ops->stream_destroy(&dev, a);
    dev.ops->stream_destroy(&dev, b);
    mc_device_close(&dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_device_lists_the_known_ones),
        cmocka_unit_test(open_and_close),
        cmocka_unit_test(the_table_is_complete),
        cmocka_unit_test(memory_is_aligned_and_usable),
        cmocka_unit_test(impossible_memory_names_its_arena),
        cmocka_unit_test(work_is_done_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
