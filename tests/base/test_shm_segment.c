/* Segments: what one mapping writes another reads; anything else than the named segment is refused. */
#include "megac/base/world_impl.h"
#include "tests/unit.h"

static void test_two_mappings(void **state)
{
    (void)state;
    mc_i_segment own, peer;
    assert_int_equal(mc_i_segment_create(10000, false, "test", &own), MC_OK);
    assert_int_equal(own.bytes, 12288);
    assert_int_equal(own.base[9999], 0);
    mc_i_segment_card card = mc_i_segment_card_of(&own);
    assert_true(mc_i_segment_map(&card, &peer));
    assert_ptr_not_equal(own.base, peer.base);
    own.base[9999] = 7;
    assert_int_equal(peer.base[9999], 7);
    /* Both stay when the descriptor goes, and each on its own. */
    mc_i_segment_close_fd(&own);
    mc_i_segment_unmap(&own);
    assert_null(own.base);
    assert_int_equal(peer.base[9999], 7);
    mc_i_segment_unmap(&peer);
    mc_i_segment_unmap(&peer); /* harmless twice */
}

static void test_refused(void **state)
{
    (void)state;
    mc_i_segment own, peer = {.fd = -1}, hidden;
    assert_int_equal(mc_i_segment_create(1, false, "test", &own), MC_OK);
    mc_i_segment_card right = mc_i_segment_card_of(&own), wrong = right;
    wrong.token++;
    assert_false(mc_i_segment_map(&wrong, &peer));
    wrong = right;
    wrong.bytes += 4096;
    assert_false(mc_i_segment_map(&wrong, &peer));
    wrong = right;
    wrong.fd = 1; /* something that is open, but no segment */
    assert_false(mc_i_segment_map(&wrong, &peer));
    wrong = right;
    wrong.pid = 1 << 29; /* above the highest process number */
    assert_false(mc_i_segment_map(&wrong, &peer));
    assert_int_equal(mc_i_segment_create(1, true, "test", &hidden), MC_OK);
    right = mc_i_segment_card_of(&hidden);
    assert_false(mc_i_segment_map(&right, &peer));
    assert_null(peer.base);
    mc_i_segment_unmap(&hidden);
    mc_i_segment_unmap(&own);
}

static void test_too_large(void **state)
{
    (void)state;
    mc_i_segment s;
    char said[1024];
    for (int private_memory = 0; private_memory < 2; private_memory++) {
        mc_status st;
        UNIT_CAPTURE(said, st = mc_i_segment_create((size_t)1 << 60, private_memory, "the buffers", &s));
        assert_int_equal(st, MC_NOMEM);
        assert_non_null(strstr(said, "no memory for the buffers (1152921504606846976 bytes)"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_mappings),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
