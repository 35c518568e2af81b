/* The HDF5 structure of a dataset file (ds_write_impl.h tells how it gets around streamed tokens). */
#include <hdf5.h>
#include <string.h>
#include <unistd.h>

#include "datasets/ds_format.h"
#include "datasets/ds_util_hdf5.h"
#include "datasets/ds_write_impl.h"
#include "megac/base/log.h"

static mc_status fail_h5(const ds_writer *w, const char *what)
{
    char why[DS_I_H5_WHY];
    ds_i_h5_why(why);
    return MC_FAIL(MC_IO, "%s: cannot write %s: HDF5 says: %s; free space or choose another place", w->tmp_path, what,
                   why);
}

/* The 1.10 format, whose metadata has checksums; data on page boundaries; no aggregation of small data, so that a data
 * set's place does not depend on its size. */
static hid_t access_list(void)
{
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(fapl, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_alignment(fapl, 1, DS_FORMAT_PAGE);
    H5Pset_small_data_block_size(fapl, 0);
    return fapl;
}

/* Empties the temporary file and makes it an HDF5 file with a root group. Times are not stored: equal input gives equal
 * bytes. */
static hid_t create_file(const ds_writer *w)
{
    hid_t fcpl = H5Pcreate(H5P_FILE_CREATE), fapl = access_list();
    H5Pset_obj_track_times(fcpl, false);
    hid_t file = H5Fcreate(w->tmp_path, H5F_ACC_TRUNC, fcpl, fapl);
    H5Pclose(fcpl);
    H5Pclose(fapl);
    return file;
}

static hid_t token_type(const ds_writer *w)
{
    return w->token_bytes == 2 ? H5T_STD_U16LE : H5T_STD_U32LE;
}

/* A contiguous 1-D data set of n elements whose bytes the caller writes: storage is allocated, nothing is filled. */
static hid_t create_plain(hid_t at, const char *name, hid_t type, uint64_t n, ds_i_extent *extent_out)
{
    hsize_t dims[1] = {n};
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(1, dims, NULL);
    H5Pset_layout(dcpl, H5D_CONTIGUOUS);
    H5Pset_alloc_time(dcpl, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(dcpl, H5D_FILL_TIME_NEVER);
    H5Pset_obj_track_times(dcpl, false);
    hid_t set = H5Dcreate2(at, name, type, space, H5P_DEFAULT, dcpl, H5P_DEFAULT);
    H5Pclose(dcpl);
    H5Sclose(space);
    if (set >= 0) {
        *extent_out = (ds_i_extent){H5Dget_offset(set), n * H5Tget_size(type)};
    }
    return set;
}

static hid_t create_chunked(const ds_writer *w)
{
    hsize_t none[1] = {0}, endless[1] = {H5S_UNLIMITED}, chunk[1] = {DS_FORMAT_CHUNK_TOKENS};
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(1, none, endless);
    hid_t dapl = H5Pcreate(H5P_DATASET_ACCESS);
    H5Pset_chunk(dcpl, 1, chunk);
    H5Pset_shuffle(dcpl);
    H5Pset_deflate(dcpl, DS_FORMAT_DEFLATE_LEVEL);
    H5Pset_fletcher32(dcpl);
    H5Pset_fill_time(dcpl, H5D_FILL_TIME_NEVER);
    H5Pset_obj_track_times(dcpl, false);
    /* No cache: a chunk goes to the disk in the call that writes it, which can then report a full disk. */
    H5Pset_chunk_cache(dapl, 1, 0, H5D_CHUNK_CACHE_W0_DEFAULT);
    hid_t set = H5Dcreate2(w->h5_file, "tokens", token_type(w), space, H5P_DEFAULT, dcpl, dapl);
    H5Pclose(dcpl);
    H5Pclose(dapl);
    H5Sclose(space);
    return set;
}

/* Reopens the (empty) HDF5 file and creates /tokens as the first thing in it. */
static herr_t open_and_create(ds_writer *w, uint64_t n, ds_i_extent *extent_out)
{
    hid_t fapl = access_list();
    w->h5_file = H5Fopen(w->tmp_path, H5F_ACC_RDWR, fapl);
    H5Pclose(fapl);
    if (w->h5_file < 0) {
        return -1;
    }
    w->h5_tokens = create_plain(w->h5_file, "tokens", token_type(w), n, extent_out);
    return w->h5_tokens < 0 ? -1 : 0;
}

static herr_t close_all(ds_writer *w)
{
    herr_t st = 0;
    if (w->h5_tokens >= 0 && H5Dclose(w->h5_tokens) < 0) {
        st = -1;
    }
    if (w->h5_file >= 0 && H5Fclose(w->h5_file) < 0) {
        st = -1;
    }
    w->h5_tokens = w->h5_file = -1;
    return st;
}

/* Makes the empty file twice: the first time to see where the library puts /tokens. */
static mc_status find_tokens_offset(ds_writer *w)
{
    ds_i_extent at = {0, 0};
    for (int round = 0; round < 2; round++) {
        hid_t file = create_file(w);
        if (file < 0 || H5Fclose(file) < 0) {
            return fail_h5(w, "an empty file");
        }
        if (round == 0 && (open_and_create(w, DS_FORMAT_PAGE, &at) < 0 || close_all(w) < 0)) {
            return fail_h5(w, "/tokens");
        }
    }
    w->tokens_offset = at.offset;
    return MC_OK;
}

mc_status ds_i_layout_begin(ds_writer *w)
{
    ds_i_h5_quiet quiet = ds_i_h5_begin();
    mc_status st = MC_OK;
    if (!w->config.compress) {
        st = find_tokens_offset(w);
    } else {
        w->h5_file = create_file(w);
        w->h5_tokens = w->h5_file < 0 ? -1 : create_chunked(w);
        st = w->h5_tokens < 0 ? fail_h5(w, "/tokens") : MC_OK;
    }
    ds_i_h5_end(quiet);
    return st;
}

mc_status ds_i_layout_chunk(ds_writer *w)
{
    ds_i_h5_quiet quiet = ds_i_h5_begin();
    hsize_t first[1] = {w->block_first / (uint64_t)w->token_bytes};
    hsize_t count[1] = {w->block_used / (uint64_t)w->token_bytes}, size[1] = {first[0] + count[0]};
    mc_status st = MC_OK;
    if (H5Dset_extent(w->h5_tokens, size) < 0) {
        st = fail_h5(w, "/tokens");
    } else {
        hid_t space = H5Dget_space(w->h5_tokens), memory = H5Screate_simple(1, count, NULL);
        H5Sselect_hyperslab(space, H5S_SELECT_SET, first, NULL, count, NULL);
        if (H5Dwrite(w->h5_tokens, token_type(w), memory, space, H5P_DEFAULT, w->block) < 0) {
            st = fail_h5(w, "a chunk of /tokens");
        }
        H5Sclose(space);
        H5Sclose(memory);
    }
    ds_i_h5_end(quiet);
    return st;
}

static herr_t write_attributes(const ds_writer *w)
{
    char sha[65] = "";
    if (w->config.tokenizer_bytes) {
        ds_i_sha256(w->config.tokenizer, w->config.tokenizer_bytes, sha);
    }
    hid_t f = w->h5_file;
    bool ok =
        ds_i_h5_set_text(f, "format", DS_FORMAT_NAME) >= 0 && ds_i_h5_set_u64(f, "version", DS_FORMAT_VERSION) >= 0 &&
        ds_i_h5_set_u64(f, "vocab_size", w->config.vocab_size) >= 0 &&
        ds_i_h5_set_i64(f, "eod_id", w->config.eod_id) >= 0 && ds_i_h5_set_u64(f, "num_tokens", w->n_tokens) >= 0 &&
        ds_i_h5_set_u64(f, "num_documents", w->n_documents) >= 0 &&
        ds_i_h5_set_text(f, "tokenizer_kind", w->kind) >= 0 && ds_i_h5_set_text(f, "tokenizer_sha256", sha) >= 0;
    return ok ? 0 : -1;
}

static herr_t create_opaque(ds_writer *w)
{
    hid_t type = H5Tcreate(H5T_OPAQUE, 1);
    H5Tset_tag(type, w->kind);
    hid_t set = create_plain(w->h5_file, "tokenizer", type, w->config.tokenizer_bytes, &w->data[DS_I_TOKENIZER]);
    H5Tclose(type);
    return set < 0 ? -1 : H5Dclose(set);
}

/* Group /checksums: for each data set that has blocks, their XXH3-64; "rest" covers every byte that is in none. */
static herr_t create_sums(ds_writer *w)
{
    hid_t gcpl = H5Pcreate(H5P_GROUP_CREATE);
    H5Pset_obj_track_times(gcpl, false);
    hid_t group = H5Gcreate2(w->h5_file, "checksums", H5P_DEFAULT, gcpl, H5P_DEFAULT);
    H5Pclose(gcpl);
    if (group < 0) {
        return -1;
    }
    herr_t st = 0;
    for (int i = 0; i < DS_I_DATA_COUNT && st >= 0; i++) {
        uint64_t n = (w->data[i].bytes + DS_FORMAT_CHECK_BLOCK - 1) / DS_FORMAT_CHECK_BLOCK;
        if (n) {
            hid_t set = create_plain(group, ds_i_data_names[i], H5T_STD_U64LE, n, &w->sums_at[i]);
            st = set < 0 ? -1 : H5Dclose(set);
        }
    }
    hid_t rest = st < 0 ? -1 : create_plain(group, "rest", H5T_STD_U64LE, 1, &w->rest);
    st = rest < 0 ? -1 : H5Dclose(rest);
    if (st < 0 || ds_i_h5_set_text(group, "algorithm", DS_FORMAT_CHECK_ALGORITHM) < 0 ||
        ds_i_h5_set_u64(group, "block_bytes", DS_FORMAT_CHECK_BLOCK) < 0) {
        st = -1;
    }
    return H5Gclose(group) < 0 ? -1 : st;
}

static mc_status finish(ds_writer *w)
{
    if (!w->config.compress) {
        if (open_and_create(w, w->n_tokens, &w->data[DS_I_TOKENS]) < 0) {
            return fail_h5(w, "/tokens");
        }
        if (w->data[DS_I_TOKENS].offset != w->tokens_offset) {
            return MC_FAIL(MC_UNSUPPORTED,
                           "this HDF5 library puts /tokens at byte %llu after it had said %llu; use --compress, or "
                           "build with another HDF5 1.10 or 1.12",
                           (unsigned long long)w->data[DS_I_TOKENS].offset, (unsigned long long)w->tokens_offset);
        }
    }
    hid_t docs = create_plain(w->h5_file, "documents", H5T_STD_U64LE, w->n_documents + 1, &w->data[DS_I_DOCUMENTS]);
    if (docs < 0 || H5Dclose(docs) < 0) {
        return fail_h5(w, "/documents");
    }
    if (w->config.tokenizer_bytes && create_opaque(w) < 0) {
        return fail_h5(w, "/tokenizer");
    }
    if (create_sums(w) < 0) {
        return fail_h5(w, "/checksums");
    }
    if (write_attributes(w) < 0) {
        return fail_h5(w, "the attributes");
    }
    return close_all(w) < 0 ? fail_h5(w, "the structure") : MC_OK;
}

mc_status ds_i_layout_finish(ds_writer *w)
{
    ds_i_h5_quiet quiet = ds_i_h5_begin();
    mc_status st = finish(w);
    ds_i_h5_end(quiet);
    return st;
}

void ds_i_layout_abandon(ds_writer *w)
{
    if (w->h5_file < 0) {
        return;
    }
    ds_i_h5_quiet quiet = ds_i_h5_begin();
    /* The library flushes when it closes; on a full disk that would fail, and again at exit. Emptying the file, which
     * is about to be removed, makes room. */
    if (w->tmp_exists && truncate(w->tmp_path, 0) != 0) {
        MC_WARN("%s: cannot be emptied; closing it as it is", w->tmp_path);
    }
    close_all(w);
    ds_i_h5_end(quiet);
}
