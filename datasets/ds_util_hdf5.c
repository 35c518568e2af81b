/* Errors and attributes of the HDF5 library. */
#include "datasets/ds_util_hdf5.h"

#include <hdf5.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

_Static_assert(sizeof(hid_t) == sizeof(int64_t) && sizeof(herr_t) == sizeof(int), "HDF5 1.10 or later");

ds_i_h5_quiet ds_i_h5_begin(void)
{
    ds_i_h5_quiet saved = {NULL, NULL};
    /* All files are closed by ds_file_close and ds_writer_destroy. The library's own routine at exit finds, after a
     * damaged file, what its error paths have left behind, and prints "infinite loop closing library" below our message
     * (seen with 1.10.8). Has an effect before the first call only. */
    H5dont_atexit();
    H5Eget_auto2(H5E_DEFAULT, &saved.func, &saved.data);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    return saved;
}

void ds_i_h5_end(ds_i_h5_quiet saved)
{
    H5Eset_auto2(H5E_DEFAULT, saved.func, saved.data);
}

/* Innermost entry of the stack: what went wrong, without the calls around it. */
static herr_t take_first(unsigned n, const H5E_error2_t *err, void *arg)
{
    char *out = arg;
    if (n == 0 && err->desc) {
        snprintf(out, DS_I_H5_WHY, "%s", err->desc);
        for (char *p = out; *p; p++) {
            *p = *p == '\n' || *p == '\r' ? ' ' : *p;
        }
    }
    return 0;
}

const char *ds_i_h5_why(char why_out[DS_I_H5_WHY])
{
    snprintf(why_out, DS_I_H5_WHY, "no reason given");
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, why_out);
    return why_out;
}

static herr_t set_scalar(hid_t at, const char *name, hid_t file_type, hid_t mem_type, const void *value)
{
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attr = H5Acreate2(at, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT);
    herr_t st = attr < 0 ? -1 : H5Awrite(attr, mem_type, value);
    if (attr >= 0) {
        H5Aclose(attr);
    }
    H5Sclose(space);
    return st;
}

int ds_i_h5_set_u64(int64_t at, const char *name, uint64_t value)
{
    return set_scalar(at, name, H5T_STD_U64LE, H5T_NATIVE_UINT64, &value);
}

int ds_i_h5_set_i64(int64_t at, const char *name, int64_t value)
{
    return set_scalar(at, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

int ds_i_h5_set_text(int64_t at, const char *name, const char *text)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, strlen(text) + 1);
    herr_t st = set_scalar(at, name, type, type, text);
    H5Tclose(type);
    return st;
}

static herr_t get_scalar(hid_t at, const char *name, H5T_class_t cls, hid_t mem_type, void *value_out)
{
    hid_t attr = H5Aopen(at, name, H5P_DEFAULT);
    if (attr < 0) {
        return -1;
    }
    hid_t type = H5Aget_type(attr), space = H5Aget_space(attr);
    herr_t st = -1;
    if (H5Tget_class(type) == cls && H5Sget_simple_extent_npoints(space) == 1) {
        st = H5Aread(attr, mem_type, value_out);
    }
    H5Tclose(type);
    H5Sclose(space);
    H5Aclose(attr);
    return st;
}

int ds_i_h5_get_u64(int64_t at, const char *name, uint64_t *value_out)
{
    return get_scalar(at, name, H5T_INTEGER, H5T_NATIVE_UINT64, value_out);
}

int ds_i_h5_get_i64(int64_t at, const char *name, int64_t *value_out)
{
    return get_scalar(at, name, H5T_INTEGER, H5T_NATIVE_INT64, value_out);
}

int ds_i_h5_get_text(int64_t at, const char *name, char *text_out, size_t cap)
{
    hid_t attr = H5Aopen(at, name, H5P_DEFAULT);
    if (attr < 0) {
        return -1;
    }
    herr_t st = -1;
    hid_t type = H5Aget_type(attr), space = H5Aget_space(attr);
    bool is_text = H5Tget_class(type) == H5T_STRING && H5Sget_simple_extent_npoints(space) == 1;
    if (is_text && H5Tis_variable_str(type) > 0) { /* as h5py writes str attributes */
        char *text = NULL;
        hid_t mem = H5Tcopy(H5T_C_S1);
        H5Tset_size(mem, H5T_VARIABLE);
        H5Tset_cset(mem, H5Tget_cset(type));
        if (H5Aread(attr, mem, &text) >= 0 && text && strlen(text) < cap) {
            snprintf(text_out, cap, "%s", text);
            st = 0;
        }
        H5free_memory(text);
        H5Tclose(mem);
    } else if (is_text && H5Tget_size(type) <= cap) {
        memset(text_out, 0, cap);
        st = H5Aread(attr, type, text_out);
        text_out[cap - 1] = '\0';
    }
    H5Tclose(type);
    H5Sclose(space);
    H5Aclose(attr);
    return st;
}
