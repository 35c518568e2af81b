/* Helpers around the HDF5 library: quiet errors, small attributes. HDF5 identifiers (hid_t) are int64_t here and its
 * results (herr_t) int, so that hdf5.h stays in the files named for it. */
#ifndef DATASETS_DS_UTIL_HDF5_H
#define DATASETS_DS_UTIL_HDF5_H

#include <stddef.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* HDF5 prints its error stack unless told otherwise; between begin and end it does not. */
typedef struct ds_i_h5_quiet {
    int (*func)(int64_t stack, void *data);
    void *data;
} ds_i_h5_quiet;

ds_i_h5_quiet ds_i_h5_begin(void);
void ds_i_h5_end(ds_i_h5_quiet saved);

enum { DS_I_H5_WHY = 200 };
/* Cause of the last failed HDF5 call of this thread, as one line: call before any other HDF5 function. */
const char *ds_i_h5_why(char why_out[DS_I_H5_WHY]);

/* Attributes of object `at`: 64-bit integers and fixed-length strings. Negative on failure. */
int ds_i_h5_set_u64(int64_t at, const char *name, uint64_t value);
int ds_i_h5_set_i64(int64_t at, const char *name, int64_t value);
int ds_i_h5_set_text(int64_t at, const char *name, const char *text);
int ds_i_h5_get_u64(int64_t at, const char *name, uint64_t *value_out);
int ds_i_h5_get_i64(int64_t at, const char *name, int64_t *value_out);
/* Fails (negative) when the string does not fit. */
int ds_i_h5_get_text(int64_t at, const char *name, char *text_out, size_t cap);

#ifdef __cplusplus
}
#endif
#endif
