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

/* The memory of one run of a case: each buffer between two guards that nobody may touch. */
typedef struct case_memory {
    unsigned char *blocks[CASE_MAX_BUFFERS];
    unsigned char *data[CASE_MAX_BUFFERS];
} case_memory;

void case_memory_create(const case_file *file, case_memory *memory_out);
void case_memory_destroy(const case_file *file, case_memory *memory);

/* Checks guards, kept bits and tolerances of every buffer; `where` is for messages. Returns the largest error in units
 * of its tolerance. */
double case_check(const case_file *file, const case_memory *memory, const char *where);

#endif
