/* A case of an operator (tests/layers/case_file.h) in a type of its own: f32 as it stands in the file; in bf16 and f16
 * its tensors of type T are rounded, and what is wanted is what the CPU's f32 operator makes of the rounded values. */
#ifndef TESTS_CUDA_KERNEL_CASE_H
#define TESTS_CUDA_KERNEL_CASE_H

#include "tests/layers/case_file.h"

typedef union kernel_args {
#define LY_OP(name) ly_##name name;
#include "layers/ops.def"
#undef LY_OP
} kernel_args;

typedef struct kernel_case {
    case_file file;
    mc_dtype type;                     /* T */
    mc_dtype dtypes[CASE_MAX_BUFFERS]; /* of the buffers now */
    double *want[CASE_MAX_BUFFERS];    /* by the CPU operator; NULL where the file's stands */
    double spread;                     /* unit roundoffs of the largest element, besides one of the element */
} kernel_case;

/* Memory of one launch, with guards around every buffer and the workspace. */
typedef struct kernel_memory {
    unsigned char *blocks[CASE_MAX_BUFFERS + 1], *data[CASE_MAX_BUFFERS + 1]; /* the last one: workspace */
    size_t bytes[CASE_MAX_BUFFERS + 1];
    int n;
} kernel_memory;

/* False: no tensor of this operator may be of this type. Otherwise kernel_case_close follows. Fails the running test
 * where the file is damaged. */
bool kernel_case_open(const char *path, mc_dtype type, mc_pool *pool, kernel_case *kc_out);
void kernel_case_close(kernel_case *kc);

/* Buffers as before the call; their first elements stand `shift` elements behind a 256-byte boundary. */
void kernel_memory_create(const kernel_case *kc, int shift, size_t workspace_bytes, kernel_memory *memory_out);
void kernel_memory_destroy(kernel_memory *memory);
/* The operator's arguments, with tensors in `memory`. */
void kernel_fill_args(const kernel_case *kc, const kernel_memory *memory, kernel_args *args_out);
void *kernel_workspace(const kernel_memory *memory);

/* Fails the test where a guard was touched, an element that must be kept was written, or a result is outside its
 * tolerance. Returns the largest error in units of its tolerance. */
double kernel_check(const kernel_case *kc, kernel_memory *memory, const char *where);
/* Fails the test unless both runs left the same bits. */
void kernel_same_bits(const kernel_case *kc, const kernel_memory *a, const kernel_memory *b, const char *where);

#endif
