/* Memory that one process makes and others of its machine map: a memfd, which peers open through /proc/<pid>/fd. Unlike
 * files in /dev/shm it is not limited by that mount's size (64 MB in many containers) and cannot be left behind. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "megac/base/world_impl.h"

static unsigned char *map_fd(int fd, size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        return NULL;
    }
    madvise(p, bytes, MADV_HUGEPAGE); /* advice only: most systems give none to shared memory */
    return p;
}

mc_status mc_i_segment_create(size_t bytes, bool private_memory, const char *what, mc_i_segment *segment_out)
{
    size_t page = 4096, size = bytes ? (bytes + page - 1) / page * page : page;
    if (private_memory) {
        void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) {
            return MC_FAIL(MC_NOMEM, "no memory for %s (%zu bytes): %s", what, size, strerror(errno));
        }
        madvise(p, size, MADV_HUGEPAGE); /* advice only: fewer page faults and TLB misses */
        *segment_out = (mc_i_segment){.base = p, .bytes = size, .fd = -1};
        return MC_OK;
    }
    uint64_t token;
    if (getrandom(&token, sizeof token, 0) != (ssize_t)sizeof token) {
        return MC_FAIL(MC_UNSUPPORTED, "getrandom: %s", strerror(errno));
    }
    char name[64];
    snprintf(name, sizeof name, "megac-%016llx", (unsigned long long)token);
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0) {
        return MC_FAIL(MC_UNSUPPORTED, "memfd_create for %s: %s", what, strerror(errno));
    }
    unsigned char *base = ftruncate(fd, (off_t)size) == 0 ? map_fd(fd, size) : NULL;
    if (!base) {
        int err = errno;
        close(fd);
        return MC_FAIL(MC_NOMEM, "no memory for %s (%zu bytes): %s", what, size, strerror(err));
    }
    *segment_out = (mc_i_segment){.base = base, .bytes = size, .fd = fd, .token = token};
    return MC_OK;
}

mc_i_segment_card mc_i_segment_card_of(const mc_i_segment *segment)
{
    return (mc_i_segment_card){.pid = getpid(), .fd = segment->fd, .bytes = segment->bytes, .token = segment->token};
}

/* A process of that number may be another one, in another container: the file's name tells. */
static bool is_named(int fd, uint64_t token)
{
    char path[64], want[64], have[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    snprintf(want, sizeof want, "/memfd:megac-%016llx", (unsigned long long)token);
    ssize_t n = readlink(path, have, sizeof have - 1);
    if (n < 0) {
        return false;
    }
    have[n] = '\0';
    return strncmp(have, want, strlen(want)) == 0;
}

bool mc_i_segment_map(const mc_i_segment_card *card, mc_i_segment *segment_out)
{
    char path[64];
    struct stat info;
    snprintf(path, sizeof path, "/proc/%lld/fd/%lld", (long long)card->pid, (long long)card->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    unsigned char *base = NULL;
    if (is_named(fd, card->token) && fstat(fd, &info) == 0 && (uint64_t)info.st_size == card->bytes) {
        base = map_fd(fd, card->bytes);
    }
    close(fd);
    if (!base) {
        return false;
    }
    *segment_out = (mc_i_segment){.base = base, .bytes = card->bytes, .fd = -1, .token = card->token};
    return true;
}

void mc_i_segment_close_fd(mc_i_segment *segment)
{
    if (segment->fd >= 0) {
        close(segment->fd);
        segment->fd = -1;
    }
}

void mc_i_segment_unmap(mc_i_segment *segment)
{
    if (segment->base) {
        mc_i_segment_close_fd(segment);
        munmap(segment->base, segment->bytes);
        segment->base = NULL;
    }
}
