/* Files: exact reads and writes, durability, atomic replacement. Every error names the path and says what to do; a
 * short file is MC_INPUT, a missing one MC_NOTFOUND, anything the system refuses MC_IO. Interrupted and short calls are
 * continued. Paths are at most MC_PATH_BYTES - 1 long. */
#ifndef MEGAC_BASE_FILE_H
#define MEGAC_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MC_PATH_BYTES = 4096 };

/* Logs "cannot <verb> <path>: <text of error_number>; <remedy>" and returns the code that belongs to it. */
mc_status mc_file_fail(const char *verb, const char *path, int error_number);

/* out (MC_PATH_BYTES) = printf text. MC_INVALID when it does not fit. */
mc_status mc_path_format(char *out, const char *fmt, ...) MC_PRINTF(2, 3) MC_MUST_CHECK;
/* out (MC_PATH_BYTES) = the directory that holds `path` ("." for a bare name). */
mc_status mc_path_parent(char *out, const char *path) MC_MUST_CHECK;

bool mc_file_exists(const char *path); /* anything by that name */
bool mc_file_is_dir(const char *path);
/* Size of the regular file at `path`. MC_NOTFOUND, MC_INPUT when it is something else. */
mc_status mc_file_stat(const char *path, uint64_t *bytes_out) MC_MUST_CHECK;

mc_status mc_file_open(const char *path, int *fd_out) MC_MUST_CHECK;   /* existing regular file, for reading */
mc_status mc_file_create(const char *path, int *fd_out) MC_MUST_CHECK; /* new or emptied, for writing */
/* Also reports what a late write could not do (quota, network file systems). `fd` is closed in any case. */
mc_status mc_file_close(int fd, const char *path) MC_MUST_CHECK;
/* Exactly `bytes`, at the file's position or at `offset`. `path` is for messages. */
mc_status mc_file_write(int fd, const char *path, const void *data, size_t bytes) MC_MUST_CHECK;
mc_status mc_file_pwrite(int fd, const char *path, const void *data, size_t bytes, uint64_t offset) MC_MUST_CHECK;
mc_status mc_file_read(int fd, const char *path, void *data, size_t bytes) MC_MUST_CHECK;
mc_status mc_file_pread(int fd, const char *path, void *data, size_t bytes, uint64_t offset) MC_MUST_CHECK;

/* A hint that the file will be read from start to end: more is read ahead. */
void mc_file_will_stream(int fd);

/* Until these return, a power cut may undo writes to the file, or creations and renames in the directory. */
mc_status mc_file_sync(int fd, const char *path) MC_MUST_CHECK;
mc_status mc_file_sync_dir(const char *path) MC_MUST_CHECK;

/* Creates a directory and those above it; an existing one is fine. */
mc_status mc_file_make_dirs(const char *path) MC_MUST_CHECK;
mc_status mc_file_rename(const char *from, const char *to) MC_MUST_CHECK;
/* Swaps two existing names in one step. MC_UNSUPPORTED, without a message, where the file system cannot. */
mc_status mc_file_exchange(const char *a, const char *b) MC_MUST_CHECK;
/* Removes a file or a whole directory; a missing one is fine. Symbolic links are removed, not followed. */
mc_status mc_file_remove_tree(const char *path) MC_MUST_CHECK;

/* Opens `path` (made where missing) and takes its lock, which lasts until *fd_out is closed or the process ends; writes
 * host and process into it. MC_INVALID, with `what` and the holder, when another process has it. File systems without
 * locks pass. */
mc_status mc_file_lock(const char *path, const char *what, int *fd_out) MC_MUST_CHECK;

/* Whole new content for `path`, all or nothing, durable on return: written to "<path>.tmp", synced, renamed. */
mc_status mc_file_replace(const char *path, const void *data, size_t bytes) MC_MUST_CHECK;
/* Reads a whole file of at most `max_bytes` (else MC_INPUT) into a new block (mc_free), with a NUL after its end. */
mc_status mc_file_read_all(const char *path, size_t max_bytes, const char *what, char **data_out,
                           size_t *bytes_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
