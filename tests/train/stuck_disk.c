/* A disk that hangs. Preloaded (LD_PRELOAD), it keeps calls on some files from ever coming back.
 *
 *   STUCK_DISK=RANKS:CALL:N:TEXT   in the ranks (digits, "01"), the N-th CALL (pread or fsync) on files whose path
 * holds TEXT, and those after it */
#undef _FILE_OFFSET_BITS /* which gives pread the name pread64: both are defined here */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is_stuck_here(const char *call, int fd)
{
    static long n_calls;
    const char *at = getenv("STUCK_DISK"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    char ranks[16], name[16], part[64], link[64], path[4096];
    long from;
    rank = rank ? rank : getenv("RANK");
    if (!at || !rank || sscanf(at, "%15[^:]:%15[^:]:%ld:%63s", ranks, name, &from, part) != 4 ||
        !strchr(ranks, *rank) || strcmp(name, call) != 0) {
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    return strstr(path, part) && __atomic_add_fetch(&n_calls, 1, __ATOMIC_SEQ_CST) >= from;
}

static void hang(void)
{
    for (;;) {
        pause();
    }
}

int fsync(int fd)
{
    if (is_stuck_here("fsync", fd)) {
        hang();
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

ssize_t pread(int fd, void *to, size_t bytes, off_t at)
{
    if (is_stuck_here("pread", fd)) {
        hang();
    }
    return ((ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread"))(fd, to, bytes, at);
}

ssize_t pread64(int fd, void *to, size_t bytes, off_t at)
{
    return pread(fd, to, bytes, at);
}
