#include "megac/base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "megac/base/alloc.h"

/* The largest count that one read or write may be asked for; Linux stops at 0x7ffff000. */
enum { MAX_CALL_BYTES = 1 << 30 };

mc_status mc_file_fail(const char *verb, const char *path, int error_number)
{
    static const struct {
        int number;
        mc_status st;
        const char *remedy;
    } rows[] = {
        {ENOENT, MC_NOTFOUND, "check the path"},
        {ENOTDIR, MC_NOTFOUND, "a part of the path is a file, not a directory"},
        {EISDIR, MC_INPUT, "give a file, not a directory"},
        {ENAMETOOLONG, MC_INVALID, "use a shorter path"},
        {ELOOP, MC_INVALID, "its symbolic links form a circle"},
        {EACCES, MC_IO, "check owner and permissions"},
        {EPERM, MC_IO, "check owner and permissions"},
        {EROFS, MC_IO, "the file system is mounted read-only; use another directory"},
        {ENOSPC, MC_IO, "the disk is full; free space or use another directory"},
        {EDQUOT, MC_IO, "your disk quota is used up; free space or use another directory"},
        {EFBIG, MC_IO, "the file would exceed the size limit; see `ulimit -f`"},
        {EMFILE, MC_IO, "too many open files; raise `ulimit -n`"},
        {ENFILE, MC_IO, "too many open files on this machine"},
        {ENOMEM, MC_NOMEM, "the system is out of memory"},
        {ESTALE, MC_IO, "the network file system lost the file; check the server"},
        {EIO, MC_IO, "the device reports an error; check the disk"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].number == error_number) {
            return MC_FAIL(rows[i].st, "cannot %s %s: %s; %s", verb, path, strerror(error_number), rows[i].remedy);
        }
    }
    return MC_FAIL(MC_IO, "cannot %s %s: %s", verb, path, strerror(error_number));
}

mc_status mc_path_format(char *out, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(out, MC_PATH_BYTES, fmt, ap);
    va_end(ap);
    if (n < 0 || n >= MC_PATH_BYTES) {
        return MC_FAIL(MC_INVALID, "path of %d bytes, at most %d are possible; use a shorter one: %.80s...", n,
                       MC_PATH_BYTES - 1, out);
    }
    return MC_OK;
}

mc_status mc_path_parent(char *out, const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') {
        n--;
    }
    while (n > 0 && path[n - 1] != '/') {
        n--;
    }
    while (n > 1 && path[n - 1] == '/') {
        n--;
    }
    return n == 0 ? mc_path_format(out, ".") : mc_path_format(out, "%.*s", (int)n, path);
}

bool mc_file_exists(const char *path)
{
    struct stat s;
    return lstat(path, &s) == 0;
}

bool mc_file_is_dir(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

mc_status mc_file_stat(const char *path, uint64_t *bytes_out)
{
    struct stat s;
    if (stat(path, &s) != 0) {
        return mc_file_fail("find", path, errno);
    }
    if (!S_ISREG(s.st_mode)) {
        return MC_FAIL(MC_INPUT, "%s is not a regular file; give a file", path);
    }
    *bytes_out = (uint64_t)s.st_size;
    return MC_OK;
}

static mc_status open_retry(const char *verb, const char *path, int flags, int *fd_out)
{
    int fd = -1;
    do {
        fd = open(path, flags | O_CLOEXEC, 0666);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return mc_file_fail(verb, path, errno);
    }
    *fd_out = fd;
    return MC_OK;
}

mc_status mc_file_open(const char *path, int *fd_out)
{
    int fd = -1;
    struct stat s;
    MC_TRY(open_retry("read", path, O_RDONLY | O_NONBLOCK, &fd)); /* a FIFO must not block */
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
        close(fd);
        return MC_FAIL(MC_INPUT, "%s is not a regular file; give a file", path);
    }
    *fd_out = fd;
    return MC_OK;
}

mc_status mc_file_create(const char *path, int *fd_out)
{
    return open_retry("create", path, O_WRONLY | O_CREAT | O_TRUNC, fd_out);
}

mc_status mc_file_close(int fd, const char *path)
{
    /* After EINTR Linux has released the descriptor; closing again could close somebody else's. */
    if (close(fd) != 0 && errno != EINTR) {
        return mc_file_fail("close", path, errno);
    }
    return MC_OK;
}

static mc_status write_loop(int fd, const char *path, const char *data, size_t bytes, const uint64_t *offset)
{
    for (size_t done = 0; done < bytes;) {
        size_t ask = bytes - done < MAX_CALL_BYTES ? bytes - done : MAX_CALL_BYTES;
        ssize_t n = offset ? pwrite(fd, data + done, ask, (off_t)(*offset + done)) : write(fd, data + done, ask);
        if (n < 0 && errno != EINTR) {
            return mc_file_fail("write", path, errno);
        }
        if (n == 0) {
            return mc_file_fail("write", path, EIO);
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return MC_OK;
}

static mc_status read_loop(int fd, const char *path, char *data, size_t bytes, const uint64_t *offset)
{
    for (size_t done = 0; done < bytes;) {
        size_t ask = bytes - done < MAX_CALL_BYTES ? bytes - done : MAX_CALL_BYTES;
        ssize_t n = offset ? pread(fd, data + done, ask, (off_t)(*offset + done)) : read(fd, data + done, ask);
        if (n < 0 && errno != EINTR) {
            return mc_file_fail("read", path, errno);
        }
        if (n == 0) {
            return MC_FAIL(MC_INPUT, "%s ends %zu bytes early; the file is truncated", path, bytes - done);
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return MC_OK;
}

mc_status mc_file_write(int fd, const char *path, const void *data, size_t bytes)
{
    return write_loop(fd, path, data, bytes, NULL);
}

mc_status mc_file_pwrite(int fd, const char *path, const void *data, size_t bytes, uint64_t offset)
{
    return write_loop(fd, path, data, bytes, &offset);
}

mc_status mc_file_read(int fd, const char *path, void *data, size_t bytes)
{
    return read_loop(fd, path, data, bytes, NULL);
}

mc_status mc_file_pread(int fd, const char *path, void *data, size_t bytes, uint64_t offset)
{
    return read_loop(fd, path, data, bytes, &offset);
}

void mc_file_will_stream(int fd)
{
    /* The result does not matter: some file systems take no hints. */
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
}

mc_status mc_file_sync(int fd, const char *path)
{
    while (fsync(fd) != 0) {
        if (errno != EINTR) {
            return mc_file_fail("make durable", path, errno);
        }
    }
    return MC_OK;
}

mc_status mc_file_sync_dir(const char *path)
{
    int fd = -1;
    MC_TRY(open_retry("open directory", path, O_RDONLY | O_DIRECTORY, &fd));
    int failed = 0;
    while (fsync(fd) != 0) {
        if (errno != EINTR) {
            failed = errno;
            break;
        }
    }
    close(fd);
    /* Some network file systems cannot sync a directory and say so by EINVAL: there is nothing more to do there. */
    return failed == 0 || failed == EINVAL ? MC_OK : mc_file_fail("make durable", path, failed);
}

mc_status mc_file_make_dirs(const char *path)
{
    char part[MC_PATH_BYTES];
    MC_TRY(mc_path_format(part, "%s", path));
    for (char *p = part + 1;; p++) {
        char c = *p;
        if (c != '/' && c != '\0') {
            continue;
        }
        *p = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST && !mc_file_is_dir(part)) {
            return mc_file_fail("create directory", part, errno);
        }
        *p = c;
        if (c == '\0') {
            break;
        }
    }
    return mc_file_is_dir(path) ? MC_OK : MC_FAIL(MC_INVALID, "%s is a file; give a directory", path);
}

mc_status mc_file_rename(const char *from, const char *to)
{
    return rename(from, to) == 0 ? MC_OK : mc_file_fail("rename to", to, errno);
}

mc_status mc_file_exchange(const char *a, const char *b)
{
#ifdef RENAME_EXCHANGE
    if (renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0) {
        return MC_OK;
    }
    if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP) {
        return mc_file_fail("exchange", b, errno);
    }
#else
    (void)a, (void)b;
#endif
    return MC_UNSUPPORTED;
}

/* Removes one name of an open directory and what is below it: 0 or an error number. Links are not followed. */
static int remove_at(int dir, const char *name, int depth)
{
    enum { MAX_DEPTH = 64 };
    if (unlinkat(dir, name, 0) == 0 || errno == ENOENT) {
        return 0;
    }
    if (errno != EISDIR && errno != EPERM) {
        return errno;
    }
    int fd = depth < MAX_DEPTH ? openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    int failed = d ? 0 : errno;
    if (!d && fd >= 0) {
        close(fd);
    }
    for (struct dirent *e; failed == 0 && (e = readdir(d));) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            failed = remove_at(fd, e->d_name, depth + 1);
        }
    }
    if (d) {
        closedir(d);
    }
    return failed == 0 && unlinkat(dir, name, AT_REMOVEDIR) != 0 && errno != ENOENT ? errno : failed;
}

mc_status mc_file_remove_tree(const char *path)
{
    int failed = remove_at(AT_FDCWD, path, 0);
    return failed == 0 ? MC_OK : mc_file_fail("remove", path, failed);
}

static mc_status write_new(const char *path, const void *data, size_t bytes)
{
    int fd = -1;
    MC_TRY(mc_file_create(path, &fd));
    mc_status st = mc_file_write(fd, path, data, bytes);
    if (st == MC_OK) {
        st = mc_file_sync(fd, path);
    }
    MC_KEEP_FIRST(st, mc_file_close(fd, path));
    return st;
}

mc_status mc_file_lock(const char *path, const char *what, int *fd_out)
{
    char holder[128] = "", host[64] = "";
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
        return mc_file_fail("open", path, errno);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        ssize_t n = read(fd, holder, sizeof holder - 1);
        holder[n > 0 ? n : 0] = '\0';
        close(fd);
        return MC_FAIL(MC_INVALID, "%s: %s is held by %s; end it first, or use another directory", what, path,
                       holder[0] ? holder : "another process");
    }
    gethostname(host, sizeof host - 1);
    int n = snprintf(holder, sizeof holder, "process %ld on %s", (long)getpid(), host);
    mc_status st =
        ftruncate(fd, 0) == 0 ? mc_file_write(fd, path, holder, (size_t)n) : mc_file_fail("write", path, errno);
    if (st != MC_OK) {
        close(fd);
        return st;
    }
    *fd_out = fd;
    return MC_OK;
}

mc_status mc_file_replace(const char *path, const void *data, size_t bytes)
{
    char tmp[MC_PATH_BYTES], dir[MC_PATH_BYTES];
    MC_TRY(mc_path_format(tmp, "%s.tmp", path));
    MC_TRY(mc_path_parent(dir, path));
    mc_status st = write_new(tmp, data, bytes);
    if (st == MC_OK) {
        st = mc_file_rename(tmp, path);
    }
    if (st != MC_OK) {
        unlink(tmp);
        return st;
    }
    return mc_file_sync_dir(dir);
}

mc_status mc_file_read_all(const char *path, size_t max_bytes, const char *what, char **data_out, size_t *bytes_out)
{
    int fd = -1;
    uint64_t bytes;
    char *data;
    MC_TRY(mc_file_stat(path, &bytes));
    if (bytes > max_bytes) {
        return MC_FAIL(MC_INPUT, "%s has %llu bytes, at most %zu are expected of %s; is it the right file?", path,
                       (unsigned long long)bytes, max_bytes, what);
    }
    MC_TRY(mc_file_open(path, &fd));
    mc_status st = mc_alloc((size_t)bytes + 1, 1, what, (void **)&data);
    if (st == MC_OK) {
        st = mc_file_read(fd, path, data, (size_t)bytes);
        if (st != MC_OK) {
            mc_free(data);
        }
    }
    close(fd);
    if (st == MC_OK) {
        *data_out = data;
        *bytes_out = (size_t)bytes;
    }
    return st;
}
