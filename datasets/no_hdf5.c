/* A build without HDF5: no dataset can be opened or written; --mock-data needs none. */
#include "datasets/ds_impl.h"
#include "datasets/ds_write_impl.h"

#define WITHOUT_HDF5 "this megac was built without HDF5; "

mc_status ds_file_open(const char *path, ds_file **file_out)
{
    (void)file_out;
    return MC_FAIL(MC_UNSUPPORTED,
                   WITHOUT_HDF5 "dataset %s cannot be read: use --mock-data, or build with -Dhdf5=enabled", path);
}

/* Never reached: no file was opened. */
void ds_file_close(ds_file *file)
{
    MC_ASSERT(!file);
}

mc_status ds_i_read_chunked(const ds_file *file, uint64_t first, uint64_t count, int32_t *tokens_out)
{
    (void)first;
    (void)count;
    (void)tokens_out;
    return MC_FAIL(MC_UNSUPPORTED, WITHOUT_HDF5 "%s cannot be read", file->path);
}

mc_status ds_i_layout_begin(ds_writer *w)
{
    return MC_FAIL(MC_UNSUPPORTED, WITHOUT_HDF5 "%s cannot be written: build with -Dhdf5=enabled", w->path);
}

mc_status ds_i_layout_chunk(ds_writer *w)
{
    return ds_i_layout_begin(w);
}

mc_status ds_i_layout_finish(ds_writer *w)
{
    return ds_i_layout_begin(w);
}

void ds_i_layout_abandon(ds_writer *w)
{
    (void)w;
}
