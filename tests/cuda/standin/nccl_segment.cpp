/* The shared memory of a communicator: making, finding and mapping it. */
#include "nccl_segment.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

namespace standin::nccl
{

static constexpr uint64_t MAGIC = 0x6d6567616e63636c;

/* Files of segments that others may still have to open: nonce -> descriptor. */
static std::mutex files_lock;
static auto &files = *new std::map<uint64_t, int>;

static Shared *map_file(int file)
{
    void *p = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return p == MAP_FAILED ? nullptr : static_cast<Shared *>(p);
}

bool segment_make(Address *address_out)
{
    uint64_t nonce = 0;
    int file = memfd_create("nccl-standin", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, sizeof(Shared)) != 0 || getrandom(&nonce, sizeof nonce, 0) != sizeof nonce) {
        if (file >= 0) {
            close(file);
        }
        return false;
    }
    Shared *shared = map_file(file);
    if (!shared) {
        close(file);
        return false;
    }
    shared->nonce = nonce;
    segment_unmap(shared);
    std::lock_guard<std::mutex> guard(files_lock);
    files[nonce] = file;
    *address_out = Address{MAGIC, getpid(), file, nonce};
    return true;
}

void segment_forget(const Address &address)
{
    std::lock_guard<std::mutex> guard(files_lock);
    auto it = files.find(address.nonce);
    if (it != files.end() && address.pid == getpid()) {
        close(it->second);
        files.erase(it);
    }
}

Shared *segment_map(const Address &address, std::string *why_out)
{
    if (address.magic != MAGIC) {
        *why_out = "the unique id was not made by ncclGetUniqueId of this library";
        return nullptr;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", address.pid, address.file);
    int file = open(path, O_RDWR | O_CLOEXEC);
    Shared *shared = file < 0 ? nullptr : map_file(file);
    if (file >= 0) {
        close(file);
    }
    if (shared && shared->nonce != address.nonce) {
        segment_unmap(shared);
        shared = nullptr;
    }
    if (!shared) {
        *why_out = "the unique id of process " + std::to_string(address.pid) +
                   " is used up: the process has ended, or all ranks had come already";
    }
    return shared;
}

void segment_unmap(Shared *shared)
{
    munmap(shared, sizeof(Shared));
}

bool process_runs(int pid)
{
    if (kill(pid, 0) != 0 && errno == ESRCH) {
        return false;
    }
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return errno != ENOENT;
    }
    ssize_t n = read(file, text, sizeof text - 1);
    close(file);
    text[n > 0 ? n : 0] = '\0';
    const char *name_end = strrchr(text, ')'); /* the state follows the name, which may hold anything */
    return !name_end || (name_end[1] == ' ' && name_end[2] != 'Z' && name_end[2] != 'X');
}

} // namespace standin::nccl
