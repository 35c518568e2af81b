/* Rules of the data flags. */
#include <errno.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "megac/train/options/options_impl.h"

enum { MAX_LIST_BYTES = 16 << 20 };

/* Words of the text, in place. */
static mc_status split_words(mt_options *o, char *text)
{
    int n = 0;
    for (const char *p = text; *(p += strspn(p, " \t\r\n")); p += strcspn(p, " \t\r\n")) {
        n++;
    }
    if (n == 0) {
        return MC_FAIL(MC_INVALID, "--data-args-path %s: the file names no dataset", o->data_args_path);
    }
    mc_string_list list = {.n = 0};
    MC_TRY(mc_config_alloc(&o->config_, (size_t)n * sizeof *list.v, (void **)&list.v));
    char *rest = text;
    for (char *word = strtok_r(text, " \t\r\n", &rest); word; word = strtok_r(NULL, " \t\r\n", &rest)) {
        list.v[list.n++] = word;
    }
    o->data_path = list;
    mc_config_set_source(&o->config_, &o->data_path, MC_FROM_DERIVED);
    return MC_OK;
}

/* --data-args-path: what would follow --data-path, from a file. */
static mc_status read_list(mt_options *o)
{
    const char *path = o->data_args_path;
    FILE *file = fopen(path, "rb");
    if (!file) {
        return MC_FAIL(MC_NOTFOUND, "--data-args-path %s: %s", path, strerror(errno));
    }
    char *text = NULL;
    mc_status st = mc_config_alloc(&o->config_, MAX_LIST_BYTES + 1, (void **)&text);
    size_t n = st == MC_OK ? fread(text, 1, MAX_LIST_BYTES + 1, file) : 0;
    if (st == MC_OK && ferror(file)) {
        st = MC_FAIL(MC_INPUT, "--data-args-path %s: cannot be read", path);
    } else if (st == MC_OK && n > MAX_LIST_BYTES) {
        st = MC_FAIL(MC_INPUT, "--data-args-path %s: larger than %d bytes", path, MAX_LIST_BYTES);
    }
    (void)fclose(file); /* nothing was written */
    if (st == MC_OK && memchr(text, '\0', n)) {
        st = MC_FAIL(MC_INPUT, "--data-args-path %s: not a text file", path);
    }
    return st == MC_OK ? split_words(o, text) : st;
}

mc_status mt_i_check_data(mt_options *o)
{
    bool own = o->train_data_path.n + o->valid_data_path.n + o->test_data_path.n > 0;
    const char *own_flag = o->train_data_path.n   ? "--train-data-path"
                           : o->valid_data_path.n ? "--valid-data-path"
                                                  : "--test-data-path";
    const struct {
        const char *flag;
        bool given;
    } ways[] = {
        {"--data-path", o->data_path.n > 0},
        {"--data-args-path", o->data_args_path != NULL},
        {own_flag, own},
        {"--mock-data", o->mock_data},
    };
    const char *first = NULL;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        if (ways[i].given && first) {
            return MC_FAIL(MC_INVALID, "%s and %s: data comes from one of them; keep one", first, ways[i].flag);
        }
        first = ways[i].given ? ways[i].flag : first;
    }
    if (!first && (o->command == MT_TRAIN || o->command == MT_EVAL)) {
        return MC_FAIL(MC_INVALID, "there is no data; give --data-path PREFIX (made by megac prepare) or --mock-data");
    }
    if (own && !o->train_data_path.n && mt_i_trains(o)) {
        return MC_FAIL(MC_INVALID, "%s: there is no data to train on; add --train-data-path", own_flag);
    }
    if (own && mt_options_given(o, &o->split)) {
        return MC_FAIL(MC_INVALID, "--split %s: divides --data-path; it does not go with %s", o->split, own_flag);
    }
    return o->data_args_path ? read_list(o) : MC_OK;
}
