/* Damage for tests: change number k of the files of a directory, the same on every machine. Each change leaves other
 * bytes than it found. MEGAC_MUTATIONS=10000 sets how many a test makes:
 *
 *   MEGAC_MUTATIONS=10000 tests/run.sh --suite mutations
 *
 * A reader has three answers. `refused`: an error, one line that names the culprit. `same`: it was read, and every
 * value that came out is the undamaged one, compared bit by bit. `other`: it was read as something else, for which the
 * test has to prove that the files say exactly that; formats with checksums allow none. Anything else fails. */
#ifndef TESTS_MUTATE_H
#define TESTS_MUTATE_H

#include <ctype.h>
#include <dirent.h>

#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/base/rng.h"
#include "tests/unit.h"

/* X(name, what it does) */
#define MUTATE_KINDS(X)                               \
    X(BIT, "one bit flipped")                         \
    X(BYTE, "one byte replaced")                      \
    X(DIGIT, "one decimal digit replaced by another") \
    X(TRUNCATE, "cut short")                          \
    X(EXTEND, "bytes appended")                       \
    X(ZERO, "a range zeroed")                         \
    X(NOISE, "a range overwritten with noise")        \
    X(SWAP, "two pages swapped")                      \
    X(COPY, "a range copied over another place")      \
    X(INSERT, "a range doubled, the rest moved up")   \
    X(DELETE, "a range taken out")                    \
    X(OTHER, "the content of another file")           \
    X(REMOVE, "the file removed")

typedef enum {
#define MUTATE_ROW(name, text) MUTATE_##name,
    MUTATE_KINDS(MUTATE_ROW)
#undef MUTATE_ROW
        MUTATE_KIND_COUNT
} mutate_kind;

typedef enum { MUTATE_REFUSED, MUTATE_SAME, MUTATE_OTHER_CONTENT, MUTATE_ANSWERS } mutate_answer;

enum {
    MUTATE_MAX_FILES = 16,
    MUTATE_MAX_RANGE = 4096, /* bytes of a range or page */
    MUTATE_SECONDS = 60,     /* a change that a reader is not done with by then is a hang: SIGALRM ends the test */
};

typedef struct mutate_file {
    char path[MC_PATH_BYTES];
    char *data; /* undamaged */
    size_t bytes;
} mutate_file;

typedef struct mutate_set {
    mutate_file files[MUTATE_MAX_FILES]; /* by path */
    int n;
    uint32_t seed;
    /* The last change: */
    int file;
    mutate_kind kind;
    char *bytes; /* as written; NULL: removed */
    size_t n_bytes;
    unsigned answers[MUTATE_KIND_COUNT][MUTATE_ANSWERS];
} mutate_set;

static inline unsigned mutate_count(unsigned otherwise)
{
    const char *text = getenv("MEGAC_MUTATIONS");
    return text ? (unsigned)strtoul(text, NULL, 10) : otherwise;
}

static inline const char *mutate_kind_text(mutate_kind kind)
{
    static const char *const texts[] = {
#define MUTATE_ROW(name, text) text,
        MUTATE_KINDS(MUTATE_ROW)
#undef MUTATE_ROW
    };
    return texts[kind];
}

static inline int mutate_compare(const void *a, const void *b)
{
    return strcmp(((const mutate_file *)a)->path, ((const mutate_file *)b)->path);
}

/* Adds the regular files of a directory to the set. */
static inline void mutate_add(mutate_set *s, const char *dir)
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_type == DT_REG) {
            assert_true(s->n < MUTATE_MAX_FILES);
            mutate_file *f = &s->files[s->n++];
            assert_int_equal(mc_path_format(f->path, "%s/%s", dir, e->d_name), MC_OK);
            assert_int_equal(mc_file_read_all(f->path, 1 << 24, "a file", &f->data, &f->bytes), MC_OK);
            assert_true(f->bytes > 0);
        }
    }
    closedir(d);
    qsort(s->files, (size_t)s->n, sizeof *s->files, mutate_compare);
}

static inline void mutate_write(const char *path, const char *data, size_t bytes)
{
    int fd = -1;
    assert_int_equal(mc_file_create(path, &fd), MC_OK);
    assert_int_equal(mc_file_write(fd, path, data, bytes), MC_OK);
    assert_int_equal(mc_file_close(fd, path), MC_OK);
}

/* Replaces the first decimal digit from `at` on, or the byte there, by another. */
static inline void mutate_digit(char *data, size_t n, size_t at, uint32_t r)
{
    size_t i = at;
    while (i < n && !isdigit((unsigned char)data[i])) {
        i++;
    }
    i = i < n ? i : at;
    data[i] = (char)('0' + (data[i] - '0' + 1 + (int)(r % 9)) % 10);
}

/* Two different pages of one size, a power of two, change places. */
static inline void mutate_swap(char *data, size_t n, const mc_rng_block *r)
{
    size_t page = (size_t)8 << r->w[1] % 10;
    while (page > 1 && n / page < 2) {
        page /= 2;
    }
    size_t pages = n / page, a = r->w[2] % pages, b = r->w[3] % pages;
    for (size_t i = 0; i < page; i++) {
        char t = data[a * page + i];
        data[a * page + i] = data[b * page + i];
        data[b * page + i] = t;
    }
}

/* Change of one kind to `s->bytes`, which holds the undamaged file and has MUTATE_MAX_RANGE bytes of room behind it. */
static inline void mutate_bytes(mutate_set *s, const mc_rng_block *r)
{
    const mutate_file *f = &s->files[s->file];
    char *p = s->bytes;
    size_t n = f->bytes, at = r->w[1] % n, left = n - at, length = (size_t)1 << r->w[2] % 13;
    length = 1 + r->w[3] % length;
    size_t range = length < left ? length : left, to = r->w[3] / 8191 % (n - range + 1);
    switch (s->kind) {
    case MUTATE_BIT:
        p[at] ^= (char)(1u << r->w[2] % 8);
        break;
    case MUTATE_BYTE:
        p[at] = (char)r->w[2];
        break;
    case MUTATE_DIGIT:
        mutate_digit(p, n, at, r->w[2]);
        break;
    case MUTATE_TRUNCATE:
        n = at;
        break;
    case MUTATE_ZERO:
        memset(p + at, 0, range);
        break;
    case MUTATE_SWAP:
        mutate_swap(p, n, r);
        break;
    case MUTATE_COPY:
        memmove(p + to, p + at, range);
        break;
    case MUTATE_INSERT:
        memmove(p + at + range, p + at, left), n += range;
        break;
    case MUTATE_DELETE:
        memmove(p + at, p + at + range, left - range), n -= range;
        break;
    case MUTATE_EXTEND: /* with bytes of its own or noise */
        for (size_t i = 0; i < length; i++) {
            p[n + i] = r->w[2] % 2 ? p[i] : (char)mc_rng_bits(s->seed, 2, r->w[0], i).w[0];
        }
        n += length;
        break;
    case MUTATE_NOISE:
        for (size_t i = 0; i < range; i++) {
            p[at + i] = (char)mc_rng_bits(s->seed, 2, r->w[0], i).w[0];
        }
        break;
    default:
        break;
    }
    s->n_bytes = n;
}

/* Writes change number k. Files and kinds take turns. */
static inline void mutate_apply(mutate_set *s, unsigned k)
{
    s->file = (int)(k % (unsigned)s->n);
    s->kind = (mutate_kind)(k / (unsigned)s->n % MUTATE_KIND_COUNT);
    const mutate_file *f = &s->files[s->file];
    alarm(MUTATE_SECONDS);
    for (unsigned attempt = 0;; attempt++) {
        mc_rng_block r = mc_rng_bits(s->seed, 1, attempt, k);
        const mutate_file *from = f;
        s->kind = attempt < 16 ? s->kind : MUTATE_BIT; /* in a file of zeros nothing can be zeroed */
        if (s->kind == MUTATE_REMOVE) {
            assert_int_equal(mc_file_remove_tree(f->path), MC_OK);
            return;
        }
        if (s->kind == MUTATE_OTHER) {
            from = &s->files[r.w[1] % (unsigned)s->n];
        }
        mc_free(s->bytes);
        s->bytes = NULL;
        assert_int_equal(MC_NEW_N(&s->bytes, from->bytes + MUTATE_MAX_RANGE, "damaged file"), MC_OK);
        memcpy(s->bytes, from->data, from->bytes);
        s->n_bytes = from->bytes;
        if (s->kind != MUTATE_OTHER) {
            mutate_bytes(s, &r);
        }
        if (s->n_bytes != f->bytes || memcmp(s->bytes, f->data, f->bytes) != 0) {
            break;
        }
    }
    mutate_write(f->path, s->bytes, s->n_bytes);
}

/* Undoes it. */
static inline void mutate_undo(mutate_set *s, mutate_answer answer)
{
    const mutate_file *f = &s->files[s->file];
    mutate_write(f->path, f->data, f->bytes);
    mc_free(s->bytes);
    s->bytes = NULL;
    s->answers[s->kind][answer]++;
    alarm(0);
}

/* Fails the test that met the last change. */
#define MUTATE_FAIL(s, k, fmt, ...) \
    fail_msg("change %u of %s (%s): " fmt, (k), (s)->files[(s)->file].path, mutate_kind_text((s)->kind), __VA_ARGS__)

/* Whether a captured text has one error, warnings aside, and it names `culprit`. */
static inline bool mutate_one_error(const char *text, const char *culprit)
{
    static const char mark[] = "megac: error: ";
    const char *error = strstr(text, mark);
    return error && !strstr(error + 1, mark) && strstr(error, culprit) &&
           strchr(error, '\n') == text + strlen(text) - 1;
}

/* Prints how many of each kind had which answer, and releases the set. Returns the sum of one answer. */
static inline void mutate_end(mutate_set *s, const char *what, unsigned sums_out[MUTATE_ANSWERS])
{
    memset(sums_out, 0, MUTATE_ANSWERS * sizeof *sums_out);
    printf("%-42s %8s %8s %8s\n", what, "refused", "same", "other");
    for (int i = 0; i < MUTATE_KIND_COUNT; i++) {
        const unsigned *row = s->answers[i];
        printf("  %-40s %8u %8u %8u\n", mutate_kind_text((mutate_kind)i), row[0], row[1], row[2]);
        for (int j = 0; j < MUTATE_ANSWERS; j++) {
            sums_out[j] += row[j];
        }
    }
    printf("  %-40s %8u %8u %8u\n", "all", sums_out[0], sums_out[1], sums_out[2]);
    for (int i = 0; i < s->n; i++) {
        mc_free(s->files[i].data);
    }
}

#endif
