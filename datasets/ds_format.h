/* The names and numbers of the HDF5 dataset format, shared by its writer, reader and check (README, "Format"). */
#ifndef DATASETS_DS_FORMAT_H
#define DATASETS_DS_FORMAT_H

#define DS_FORMAT_NAME "megac-dataset"
#define DS_FORMAT_CHECK_ALGORITHM "XXH3-64"

enum {
    DS_FORMAT_VERSION = 1,
    DS_FORMAT_CHECK_BLOCK = 1 << 20,  /* bytes a checksum covers */
    DS_FORMAT_CHUNK_TOKENS = 1 << 16, /* tokens of a stored chunk (--compress) */
    DS_FORMAT_PAGE = 4096,            /* data starts on multiples of this */
    DS_FORMAT_DEFLATE_LEVEL = 4,
};

#endif
