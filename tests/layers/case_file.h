/* Cases of operators as reference/make_cases.py writes them (its case.py describes the file). */
#ifndef TESTS_LAYERS_CASE_FILE_H
#define TESTS_LAYERS_CASE_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "layers/ops.h"

enum { CASE_MAX_BUFFERS = 24, CASE_MAX_FIELDS = 48, CASE_MAX_SEGMENTS = 8, CASE_NAME = 48 };

/* Memory before the call, and what must be there after it: elements whose tolerance is 0 keep their bits. */
typedef struct case_buffer {
    mc_dtype dtype;
    size_t count;
    const unsigned char *before;
    const double *want, *tol;
} case_buffer;

typedef struct case_field {
    char name[CASE_NAME];
    enum { CASE_INT, CASE_FLOAT, CASE_TENSOR } kind;
    long long i;
    float f;
    int buffer;
    long long offset; /* elements */
    mc_tensor tensor; /* data NULL until a run has memory */
} case_field;

typedef struct case_file {
    char op[CASE_NAME];
    int n_buffers, n_fields, n_segments;
    case_buffer buffers[CASE_MAX_BUFFERS];
    case_field fields[CASE_MAX_FIELDS];
    ly_segment segments[CASE_MAX_SEGMENTS];
    unsigned char *bytes; /* the whole file */
} case_file;

/* Fails the running cmocka test with the reason: a missing or damaged file is never skipped. */
void case_open(const char *path, case_file *file_out);
void case_close(case_file *file);

/* The memory of one run of a case on a device: the buffers, the segments and the operator's workspace one after
 * another, each between guards that nobody may touch. `host` is its image in host memory, and is the memory itself
 * where the host addresses the device's. */
typedef struct case_memory {
    mc_device *dev;
    mc_stream stream;
    unsigned char *device, *host;
    size_t bytes, workspace_bytes;
    size_t data[CASE_MAX_BUFFERS]; /* where each buffer begins */
    size_t segments, workspace;
} case_memory;

/* Takes the memory and puts the case's values there. */
void case_memory_create(const case_file *file, mc_device *dev, mc_stream stream, size_t workspace_bytes,
                        case_memory *memory_out);
/* Waits for the stream and brings the device's memory to `host`. */
void case_memory_fetch(case_memory *memory);
void case_memory_destroy(case_memory *memory);

/* Checks guards, kept bits and tolerances of every fetched buffer; `where` is for messages. Returns the largest error
 * in units of its tolerance. */
double case_check(const case_file *file, case_memory *memory, const char *where);

#endif
