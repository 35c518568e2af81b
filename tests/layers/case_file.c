#include "tests/layers/case_file.h"

#include <errno.h>
#include <math.h>

#include "megac/base/alloc.h"
#include "megac/base/half.h"
#include "tests/unit.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define GUARD_CLOSE(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define GUARD_OPEN(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define GUARD_CLOSE(p, n) (void)(p)
#define GUARD_OPEN(p, n) (void)(p)
#endif

/* As a float of any type the guard's bytes are huge, so that reading them shows. */
enum { GUARD_BYTES = 256, GUARD_BYTE = 0xFB, MAX_ERRORS = 5 };

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

/* The next region of `bytes` and the guard behind it. */
static size_t lay_out(size_t *end, size_t bytes)
{
    size_t begin = *end;
    *end = begin + (bytes + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES + GUARD_BYTES;
    return begin;
}

/* Where AddressSanitizer watches and the operator sees host memory, touching a guard ends the test at once. */
static void close_guards(const case_file *file, const case_memory *m)
{
    if (m->device == m->host) {
        GUARD_CLOSE(m->host, m->bytes);
        for (int i = 0; i < file->n_buffers; i++) {
            GUARD_OPEN(m->host + m->data[i], buffer_bytes(&file->buffers[i]));
        }
        GUARD_OPEN(m->host + m->segments, (size_t)file->n_segments * sizeof *file->segments);
        GUARD_OPEN(m->host + m->workspace, m->workspace_bytes);
    }
}

void case_memory_create(const case_file *file, mc_device *dev, mc_stream stream, size_t workspace_bytes,
                        case_memory *memory_out)
{
    case_memory m = {.dev = dev, .stream = stream, .bytes = GUARD_BYTES, .workspace_bytes = workspace_bytes};
    size_t segment_bytes = (size_t)file->n_segments * sizeof *file->segments;
    void *host = NULL, *device = NULL;
    for (int i = 0; i < file->n_buffers; i++) {
        m.data[i] = lay_out(&m.bytes, buffer_bytes(&file->buffers[i]));
    }
    m.segments = lay_out(&m.bytes, segment_bytes);
    m.workspace = lay_out(&m.bytes, workspace_bytes);
    assert_int_equal(dev->ops->alloc(dev, MC_MEM_PINNED_HOST, m.bytes, "case on the host", &host), MC_OK);
    m.host = m.device = host;
    if (!dev->ops->host_memory) {
        assert_int_equal(dev->ops->alloc(dev, MC_MEM_DEVICE, m.bytes, "case", &device), MC_OK);
        m.device = device;
    }
    memset(m.host, GUARD_BYTE, m.bytes);
    for (int i = 0; i < file->n_buffers; i++) {
        memcpy(m.host + m.data[i], file->buffers[i].before, buffer_bytes(&file->buffers[i]));
    }
    memcpy(m.host + m.segments, file->segments, segment_bytes);
    memset(m.host + m.workspace, 0xff, workspace_bytes);
    if (m.device != m.host) {
        assert_int_equal(dev->ops->copy(dev, m.device, m.host, m.bytes, stream), MC_OK);
    }
    close_guards(file, &m);
    *memory_out = m;
}

void case_memory_fetch(case_memory *m)
{
    if (m->device != m->host) {
        assert_int_equal(m->dev->ops->copy(m->dev, m->host, m->device, m->bytes, m->stream), MC_OK);
    }
    assert_int_equal(m->dev->ops->stream_sync(m->dev, m->stream), MC_OK);
}

void case_memory_destroy(case_memory *m)
{
    GUARD_OPEN(m->host, m->bytes);
    m->dev->ops->free(m->dev, MC_MEM_PINNED_HOST, m->host, m->bytes);
    if (m->device != m->host) {
        m->dev->ops->free(m->dev, MC_MEM_DEVICE, m->device, m->bytes);
    }
}

/* Buffers of 16 bits leave those behind them in the file unaligned. */
static double element(const case_buffer *b, const unsigned char *data, size_t i)
{
    union {
        float f;
        double d;
        int32_t i;
        uint16_t h;
        uint8_t u;
    } v;
    size_t bytes = mc_dtype_bytes(b->dtype);
    memcpy(&v, data + i * bytes, bytes);
    switch (b->dtype) {
    case MC_F32:
        return (double)v.f;
    case MC_F64:
        return v.d;
    case MC_BF16:
        return (double)mc_f32_from_bf16(v.h);
    case MC_F16:
        return (double)mc_f32_from_f16(v.h);
    case MC_U8:
        return v.u;
    default:
        return v.i;
    }
}

/* Region number `i`: the buffers, then segments and workspace. */
static void region(const case_file *file, const case_memory *m, int i, size_t *begin_out, size_t *bytes_out)
{
    if (i < file->n_buffers) {
        *begin_out = m->data[i];
        *bytes_out = buffer_bytes(&file->buffers[i]);
    } else {
        bool segments = i == file->n_buffers;
        *begin_out = segments ? m->segments : m->workspace;
        *bytes_out = segments ? (size_t)file->n_segments * sizeof *file->segments : m->workspace_bytes;
    }
}

/* All bytes outside of the regions. */
static int check_guards(const case_file *file, case_memory *m, const char *where)
{
    size_t at = 0, begin = 0, bytes = 0;
    int errors = 0;
    GUARD_OPEN(m->host, m->bytes);
    for (int i = 0; i <= file->n_buffers + 2; i++) {
        size_t touched = 0, end = m->bytes;
        if (i < file->n_buffers + 2) {
            region(file, m, i, &begin, &bytes);
            end = begin;
        }
        for (; at < end; at++) {
            touched += m->host[at] != GUARD_BYTE;
        }
        if (touched) {
            print_error("%s: before buffer %d (%d: segments, then workspace): %zu bytes were written\n", where, i,
                        file->n_buffers, touched);
        }
        errors += touched > 0;
        at = begin + bytes;
    }
    return errors;
}

double case_check(const case_file *file, case_memory *memory, const char *where)
{
    double worst = 0;
    int errors = check_guards(file, memory, where);
    if (memcmp(memory->host + memory->segments, file->segments, (size_t)file->n_segments * sizeof *file->segments) !=
        0) {
        fail_msg("%s: the segments were written", where);
    }
    for (int i = 0; i < file->n_buffers; i++) {
        const case_buffer *b = &file->buffers[i];
        size_t size = mc_dtype_bytes(b->dtype);
        const unsigned char *data = memory->host + memory->data[i];
        for (size_t k = 0; k < b->count; k++) {
            double got = element(b, data, k), error = fabs(got - b->want[k]);
            bool right;
            if (b->tol[k] == 0) {
                right = memcmp(data + k * size, b->before + k * size, size) == 0;
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
