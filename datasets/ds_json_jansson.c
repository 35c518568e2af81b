/* JSON lines by jansson. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "datasets/ds_json.h"

static const char *type_name(const json_t *v)
{
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    unsigned t = (unsigned)json_typeof(v);
    return t < sizeof names / sizeof *names ? names[t] : "something else";
}

mc_status ds_i_json_text(const char *line, size_t n, const char *const *keys, int n_keys,
                         mc_status (*put)(void *arg, const char *text, size_t n), void *arg, char *why, size_t why_cap)
{
    json_error_t err;
    json_t *root = json_loadb(line, n, JSON_ALLOW_NUL | JSON_DECODE_ANY, &err);
    if (!root) {
        int shown = n > 40 ? 40 : (int)n;
        snprintf(why, why_cap, "not valid JSON: %s, column %d; the line starts with: %.*s%s", err.text, err.column,
                 shown, line, n > 40 ? "..." : "");
        for (char *p = why; *p; p++) {
            *p = *p < ' ' || *p > '~' ? '?' : *p; /* the cut may be inside a character */
        }
        return MC_INPUT;
    }
    mc_status st = MC_OK;
    if (!json_is_object(root)) {
        snprintf(why, why_cap, "a JSON object is wanted, this is %s", type_name(root));
        st = MC_INPUT;
    }
    for (int i = 0; i < n_keys && st == MC_OK; i++) {
        const json_t *v = json_object_get(root, keys[i]);
        if (!json_is_string(v)) {
            snprintf(why, why_cap, "key \"%s\" %s%s; --json-keys names the keys that hold text", keys[i],
                     v ? "is not a string but " : "is missing", v ? type_name(v) : "");
            st = MC_INPUT;
            break;
        }
        st = i > 0 ? put(arg, "\n", 1) : MC_OK;
        st = st == MC_OK ? put(arg, json_string_value(v), json_string_length(v)) : st;
    }
    json_decref(root);
    return st;
}
