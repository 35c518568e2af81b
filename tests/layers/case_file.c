#include "tests/layers/case_file.h"

#include <errno.h>
#include <math.h>

#include "megac/base/alloc.h"
#include "tests/unit.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define GUARD_CLOSE(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define GUARD_OPEN(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define GUARD_CLOSE(p, n) (void)(p)
#define GUARD_OPEN(p, n) (void)(p)
#endif

enum { GUARD_BYTES = 256, GUARD_BYTE = 0xA5, MAX_ERRORS = 5 };

static void need(bool ok, const char *path, const char *what)
{
    if (!ok) {
        fail_msg("%s: %s; delete it and build again", path, what);
    }
}

static size_t read_all(const char *path, unsigned char **data_out)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        fail_msg("%s: %s; the build target op_cases makes it", path, strerror(errno));
    }
    fseek(f, 0, SEEK_END);
    long bytes = ftell(f);
    rewind(f);
    need(bytes > 0 && mc_alloc(1, (size_t)bytes + 1, "case file", (void **)data_out) == MC_OK, path,
         "empty or too big");
    need(fread(*data_out, 1, (size_t)bytes, f) == (size_t)bytes, path, "cannot be read");
    fclose(f);
    return (size_t)bytes;
}

static void parse_tensor(const char *text, case_field *field, const char *path)
{
    int used = 0, n_dims = 0;
    need(sscanf(text, "%47s %d %lld %d%n", field->name, &field->buffer, &field->offset, &n_dims, &used) == 4, path,
         "bad tensor line");
    need(n_dims >= 1 && n_dims <= MC_MAX_DIMS, path, "bad number of dims");
    field->tensor.n_dims = n_dims;
    char *next = (char *)text + used;
    for (int i = 0; i < 2 * n_dims; i++) {
        int64_t *to = i < n_dims ? &field->tensor.dims[i] : &field->tensor.strides[i - n_dims];
        *to = strtoll(next, &next, 10);
    }
}

static void parse_line(case_file *file, const char *line, const char *path)
{
    case_field *field = &file->fields[file->n_fields];
    case_buffer *buffer = &file->buffers[file->n_buffers];
    ly_segment *s = &file->segments[file->n_segments];
    char word[16] = "", dtype[8];
    need(file->n_fields < CASE_MAX_FIELDS && file->n_buffers < CASE_MAX_BUFFERS, path, "too many fields or buffers");
    need(sscanf(line, "%15s", word) == 1, path, "empty line");
    if (strcmp(word, "op") == 0) {
        need(sscanf(line, "op %47s", file->op) == 1, path, "bad op line");
    } else if (strcmp(word, "int") == 0) {
        field->kind = CASE_INT;
        need(sscanf(line, "int %47s %lld", field->name, &field->i) == 2, path, "bad int line");
        file->n_fields++;
    } else if (strcmp(word, "float") == 0) {
        field->kind = CASE_FLOAT;
        need(sscanf(line, "float %47s %f", field->name, &field->f) == 2, path, "bad float line");
        file->n_fields++;
    } else if (strcmp(word, "segment") == 0) {
        long long begin, end;
        need(file->n_segments < CASE_MAX_SEGMENTS, path, "too many segments");
        need(sscanf(line, "segment %lld %lld %f %f %f", &begin, &end, &s->lr_mult, &s->decay_mult, &s->norm_weight) ==
                 5,
             path, "bad segment line");
        s->begin = begin;
        s->end = end;
        file->n_segments++;
    } else if (strcmp(word, "buffer") == 0) {
        need(sscanf(line, "buffer %7s %zu", dtype, &buffer->count) == 2, path, "bad buffer line");
        need(mc_dtype_parse(dtype, &buffer->dtype) == MC_OK, path, "unknown dtype");
        file->n_buffers++;
    } else if (strcmp(word, "tensor") == 0) {
        field->kind = CASE_TENSOR;
        parse_tensor(line + strlen("tensor "), field, path);
        file->n_fields++;
    } else {
        need(false, path, "unknown line");
    }
}

void case_open(const char *path, case_file *file_out)
{
    memset(file_out, 0, sizeof *file_out);
    size_t bytes = read_all(path, &file_out->bytes);
    char *text = (char *)file_out->bytes, *end = strstr(text, "\nend\n");
    need(end != NULL && strncmp(text, "megac-op-case 1\n", 16) == 0, path, "not a case of version 1");
    *end = '\0';
    char *save = NULL;
    (void)strtok_r(text, "\n", &save);
    for (char *line; (line = strtok_r(NULL, "\n", &save)) != NULL;) {
        parse_line(file_out, line, path);
    }
    unsigned char *at = (unsigned char *)end + 5;
    size_t left = bytes - (size_t)(at - file_out->bytes), total = 0;
    for (int i = 0; i < file_out->n_buffers; i++) {
        total += file_out->buffers[i].count * (mc_dtype_bytes(file_out->buffers[i].dtype) + 2 * sizeof(double));
    }
    need(left == total, path, "cut or too long");
    /* The payload moves to the start of the block, over the text, so that its doubles are aligned. */
    memmove(file_out->bytes, at, total);
    at = file_out->bytes;
    for (int i = 0; i < file_out->n_buffers; i++) {
        case_buffer *b = &file_out->buffers[i];
        b->want = (const double *)at;
        b->tol = b->want + b->count;
        at += b->count * 2 * sizeof(double);
    }
    for (int i = 0; i < file_out->n_buffers; i++) {
        case_buffer *b = &file_out->buffers[i];
        b->before = at;
        at += b->count * mc_dtype_bytes(b->dtype);
    }
    for (int i = 0; i < file_out->n_fields; i++) {
        case_field *f = &file_out->fields[i];
        need(f->kind != CASE_TENSOR || (f->buffer >= 0 && f->buffer < file_out->n_buffers), path, "no such buffer");
    }
}

void case_close(case_file *file)
{
    mc_free(file->bytes);
    file->bytes = NULL;
}

static size_t buffer_bytes(const case_buffer *b)
{
    return b->count * mc_dtype_bytes(b->dtype);
}

void case_memory_create(const case_file *file, case_memory *memory_out)
{
    for (int i = 0; i < file->n_buffers; i++) {
        size_t bytes = buffer_bytes(&file->buffers[i]);
        void *block = NULL;
        assert_int_equal(mc_alloc(1, bytes + 2 * GUARD_BYTES, "case buffer", &block), MC_OK);
        unsigned char *p = block;
        memset(p, GUARD_BYTE, bytes + 2 * GUARD_BYTES);
        memcpy(p + GUARD_BYTES, file->buffers[i].before, bytes);
        GUARD_CLOSE(p, GUARD_BYTES);
        GUARD_CLOSE(p + GUARD_BYTES + bytes, GUARD_BYTES);
        memory_out->blocks[i] = p;
        memory_out->data[i] = p + GUARD_BYTES;
    }
}

void case_memory_destroy(const case_file *file, case_memory *memory)
{
    for (int i = 0; i < file->n_buffers; i++) {
        GUARD_OPEN(memory->blocks[i], buffer_bytes(&file->buffers[i]) + 2 * GUARD_BYTES);
        mc_free(memory->blocks[i]);
    }
}

static double element(const case_buffer *b, const unsigned char *data, size_t i)
{
    switch (b->dtype) {
    case MC_F32:
        return ((const float *)data)[i];
    case MC_F64:
        return ((const double *)data)[i];
    default:
        return ((const int32_t *)data)[i];
    }
}

static int check_guards(const case_file *file, const case_memory *memory, int i, const char *where)
{
    size_t bytes = buffer_bytes(&file->buffers[i]), touched = 0;
    unsigned char *before = memory->blocks[i], *after = memory->data[i] + bytes;
    GUARD_OPEN(before, GUARD_BYTES);
    GUARD_OPEN(after, GUARD_BYTES);
    for (int k = 0; k < GUARD_BYTES; k++) {
        touched += (before[k] != GUARD_BYTE) + (after[k] != GUARD_BYTE);
    }
    if (touched) {
        print_error("%s: buffer %d: %zu bytes outside of it were written\n", where, i, touched);
    }
    return touched > 0;
}

double case_check(const case_file *file, const case_memory *memory, const char *where)
{
    double worst = 0;
    int errors = 0;
    for (int i = 0; i < file->n_buffers; i++) {
        const case_buffer *b = &file->buffers[i];
        size_t size = mc_dtype_bytes(b->dtype);
        errors += check_guards(file, memory, i, where);
        for (size_t k = 0; k < b->count; k++) {
            double got = element(b, memory->data[i], k), error = fabs(got - b->want[k]);
            bool right;
            if (b->tol[k] == 0) {
                right = memcmp(memory->data[i] + k * size, b->before + k * size, size) == 0;
            } else {
                /* Written so that a NaN is wrong; the second form is for wanted infinities. */
                right = error <= b->tol[k] || got == b->want[k] || isinf(b->tol[k]);
                worst = isfinite(error / b->tol[k]) && error > 0 ? fmax(worst, error / b->tol[k]) : worst;
            }
            if (!right && errors++ < MAX_ERRORS) {
                print_error("%s: buffer %d element %zu is %.9g, want %.9g within %.3g%s\n", where, i, k, got,
                            b->tol[k] == 0 ? element(b, b->before, k) : b->want[k], b->tol[k],
                            b->tol[k] == 0 ? " (must not be written)" : "");
            }
        }
    }
    if (errors) {
        fail_msg("%s: %d wrong", where, errors);
    }
    return worst;
}
