/* Helpers around the HDF5 library: quiet errors, small attributes. */
#ifndef DATASETS_DS_UTIL_HDF5_H
#define DATASETS_DS_UTIL_HDF5_H

#include <hdf5.h>
#include <stdbool.h>
#include <stdint.h>

#include "megac/base/status.h"

/* HDF5 prints its error stack unless told otherwise; between begin and end it does not. */
typedef struct ds_i_h5_quiet {
    H5E_auto2_t func;
    void *data;
} ds_i_h5_quiet;

ds_i_h5_quiet ds_i_h5_begin(void);
void ds_i_h5_end(ds_i_h5_quiet saved);

enum { DS_I_H5_WHY = 200 };
/* Cause of the last failed HDF5 call of this thread, as one line: call before any other HDF5 function. */
const char *ds_i_h5_why(char why_out[DS_I_H5_WHY]);

/* Attributes of object `at`: 64-bit integers and fixed-length strings. Negative on failure. */
herr_t ds_i_h5_set_u64(hid_t at, const char *name, uint64_t value);
herr_t ds_i_h5_set_i64(hid_t at, const char *name, int64_t value);
herr_t ds_i_h5_set_text(hid_t at, const char *name, const char *text);
herr_t ds_i_h5_get_u64(hid_t at, const char *name, uint64_t *value_out);
herr_t ds_i_h5_get_i64(hid_t at, const char *name, int64_t *value_out);
/* Fails (negative) when the string does not fit. */
herr_t ds_i_h5_get_text(hid_t at, const char *name, char *text_out, size_t cap);

#endif
