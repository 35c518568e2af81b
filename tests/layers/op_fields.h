/* The arguments of every operator as data, so that one driver can fill any operator's struct from a case. */
#ifndef TESTS_LAYERS_OP_FIELDS_H
#define TESTS_LAYERS_OP_FIELDS_H

#include <stddef.h>

#include "layers/ops.h"

typedef enum { FIELD_INT, FIELD_FLOAT, FIELD_TENSOR, FIELD_SEGMENTS, FIELD_N_SEGMENTS } op_field_kind;

typedef struct op_field {
    const char *op, *name;
    size_t offset;
    op_field_kind kind;
    size_t bytes; /* of integers: bool, int, enum, int64_t, ... */
} op_field;

extern const op_field op_fields[];
extern const int op_n_fields;

#endif
