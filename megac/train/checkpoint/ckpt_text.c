#include "megac/train/checkpoint/ckpt_text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"

void mt_text_fini(mt_text *t)
{
    mc_free(t->data);
    *t = (mt_text){0};
}

/* Room for `more` bytes and a NUL. */
static bool grow(mt_text *t, size_t more)
{
    if (t->st != MC_OK) {
        return false;
    }
    if (t->cap - t->bytes > more) {
        return true;
    }
    size_t cap = t->cap * 2 > t->bytes + more + 1 ? t->cap * 2 : t->bytes + more + 1;
    cap = cap > 4096 ? cap : 4096;
    char *data;
    t->st = mc_alloc(cap, 1, "checkpoint text", (void **)&data);
    if (t->st != MC_OK) {
        return false;
    }
    if (t->bytes > 0) {
        memcpy(data, t->data, t->bytes);
    }
    mc_free(t->data);
    t->data = data;
    t->cap = cap;
    return true;
}

void mt_text_add(mt_text *t, const char *data, size_t bytes)
{
    if (grow(t, bytes)) {
        memcpy(t->data + t->bytes, data, bytes);
        t->bytes += bytes;
        t->data[t->bytes] = '\0';
    }
}

void mt_text_printf(mt_text *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    MC_ASSERT(n >= 0);
    if (grow(t, (size_t)n)) {
        va_start(ap, fmt);
        vsnprintf(t->data + t->bytes, (size_t)n + 1, fmt, ap);
        va_end(ap);
        t->bytes += (size_t)n;
    }
}

/* Length of the well-formed UTF-8 sequence at s (Unicode 15, table 3-7), 0 when there is none. */
static size_t utf8_length(const unsigned char *s, size_t left)
{
    static const struct {
        unsigned char first_lo, first_hi, second_lo, second_hi, length;
    } rows[] = {
        {0x00, 0x7f, 0x00, 0x00, 1}, {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
        {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
        {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (s[0] < rows[i].first_lo || s[0] > rows[i].first_hi) {
            continue;
        }
        size_t n = rows[i].length;
        if (n > left || (n > 1 && (s[1] < rows[i].second_lo || s[1] > rows[i].second_hi))) {
            return 0;
        }
        for (size_t k = 2; k < n; k++) {
            if (s[k] < 0x80 || s[k] > 0xbf) {
                return 0;
            }
        }
        return n;
    }
    return 0;
}

void mt_text_json(mt_text *t, const char *data, size_t bytes)
{
    mt_text_add(t, "\"", 1);
    for (size_t i = 0; i < bytes;) {
        unsigned char c = (unsigned char)data[i];
        size_t n = utf8_length((const unsigned char *)data + i, bytes - i);
        if (n == 0) {
            mt_text_add(t, "\xef\xbf\xbd", 3);
            n = 1;
        } else if (c == '"' || c == '\\') {
            mt_text_printf(t, "\\%c", c);
        } else if (c < 0x20) {
            mt_text_printf(t, "\\u%04x", c);
        } else {
            mt_text_add(t, data + i, n);
        }
        i += n;
    }
    mt_text_add(t, "\"", 1);
}
