/* The tokenizer table and ByteTokenizer. */
#include "datasets/ds_tokenizer.h"
#include "megac/base/alloc.h"
#include "tests/unit.h"

static void bytes(void **state)
{
    (void)state;
    ds_tokenizer *tok;
    assert_int_equal(ds_tokenizer_open("ByteTokenizer", NULL, &tok), MC_OK);
    assert_int_equal(tok->vocab_size, 257);
    assert_int_equal(tok->eod_id, 256);
    unsigned char text[256];
    uint32_t ids[256];
    int32_t back[258];
    char out[256];
    for (int i = 0; i < 256; i++) {
        text[i] = (unsigned char)(255 - i);
    }
    assert_int_equal(ds_tokenizer_max_ids(tok, 256), 256);
    assert_int_equal(ds_tokenizer_cut(tok, text, 100), 100);
    assert_int_equal(ds_tokenizer_encode(tok, text, 256, ids), 256);
    for (int i = 0; i < 256; i++) {
        assert_int_equal(ids[i], 255 - i);
        back[i] = (int32_t)ids[i];
    }
    back[256] = 256; /* EOD and padding ids have no text */
    back[257] = 300;
    assert_int_equal(ds_tokenizer_decode(tok, back, 258, out, sizeof out), 256);
    assert_memory_equal(out, text, 256);
    memset(out, 'x', sizeof out);
    assert_int_equal(ds_tokenizer_decode(tok, back, 258, out, 3), 256); /* the whole length, three bytes written */
    assert_memory_equal(out, text, 3);
    assert_int_equal(out[3], 'x');
    ds_tokenizer_close(tok);
    ds_tokenizer_close(NULL);
}

static void refusals(void **state)
{
    (void)state;
    ds_tokenizer *tok = NULL;
    char text[3][600];
    mc_status st[3];
    UNIT_CAPTURE(text[0], st[0] = ds_tokenizer_open("NoSuchTokenizer", NULL, &tok));
    UNIT_CAPTURE(text[1], st[1] = ds_tokenizer_open("ByteTokenizer", "/some/model", &tok));
    UNIT_CAPTURE(text[2], st[2] = ds_tokenizer_open_stored("ByteTokenizer", "x", 1, &tok));
    assert_int_equal(st[0], MC_UNSUPPORTED);
    assert_non_null(strstr(text[0], "NoSuchTokenizer"));
    assert_non_null(strstr(text[0], "ByteTokenizer"));
    assert_int_equal(st[1], MC_INVALID);
    assert_int_equal(st[2], MC_INPUT);
    assert_null(tok);
}

static void stored(void **state)
{
    (void)state;
    ds_tokenizer *tok;
    assert_int_equal(ds_tokenizer_open_stored("ByteTokenizer", NULL, 0, &tok), MC_OK);
    assert_string_equal(tok->ops->name, "ByteTokenizer");
    ds_tokenizer_close(tok);
    assert_int_equal(mc_alloc_get_stats().live_blocks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes),
        cmocka_unit_test(refusals),
        cmocka_unit_test(stored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
