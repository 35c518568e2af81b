#include "megac/train/optim/offload.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/file.h"

/* Chunks in flight with a file: one being written, one computed with, one being read. */
enum { BUFFERS = 3 };

struct mt_offload {
    mt_offload_config c;
    bool live;                     /* memory is there: not a plan */
    mc_tensor stores[2];           /* host memory: all of m, v */
    mc_tensor buffers[BUFFERS][2]; /* file: pinned */
    mc_tensor on_device[2]; /* m and v of the chunk at hand, where operators run; absent where that is the host */
    int fd;
    char path[MC_PATH_BYTES]; /* for messages */
    void *map;
    const mt_offload_chunk *chunks;
    int n;
    /* The thread reads chunk k once chunk k - BUFFERS was written, and writes chunk k once it was computed. */
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int n_read, n_computed, n_written; /* chunks of the pass under way */
    bool closing;
    mc_status failed;
};

static size_t store_bytes(const mt_offload *o, int which)
{
    return (size_t)o->c.elems * mc_dtype_bytes(o->c.types[which]);
}

/* Offset of a chunk in the file: m first, then v. */
static uint64_t offset(const mt_offload *o, int which, const mt_offload_chunk *c)
{
    return (which ? store_bytes(o, 0) : 0) + (uint64_t)c->at * mc_dtype_bytes(o->c.types[which]);
}

static mc_status transfer(mt_offload *o, int k, bool write)
{
    const mt_offload_chunk *c = &o->chunks[k];
    for (int i = 0; i < 2; i++) {
        mc_tensor t = mc_tensor_slice(o->buffers[k % BUFFERS][i], 0, 0, c->elems);
        MC_TRY(write ? mc_file_pwrite(o->fd, o->path, t.data, mc_tensor_bytes(t), offset(o, i, c))
                     : mc_file_pread(o->fd, o->path, t.data, mc_tensor_bytes(t), offset(o, i, c)));
    }
    return MC_OK;
}

/* Writes come first: they make room for reads. */
static void *move_chunks(void *arg)
{
    mt_offload *o = arg;
    pthread_mutex_lock(&o->lock);
    while (!o->closing) {
        bool write = o->n_written < o->n_computed;
        bool read = o->n_read < o->n && o->n_read < o->n_written + BUFFERS;
        if ((!write && !read) || o->failed != MC_OK) {
            pthread_cond_wait(&o->changed, &o->lock);
            continue;
        }
        int k = write ? o->n_written : o->n_read;
        pthread_mutex_unlock(&o->lock);
        mc_status st = transfer(o, k, write);
        pthread_mutex_lock(&o->lock);
        o->failed = st;
        o->n_written += write;
        o->n_read += !write;
        pthread_cond_broadcast(&o->changed);
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

static void take_memory(mt_offload *o)
{
    const mt_offload_config *c = &o->c;
    int64_t chunk = c->elems < MT_OFFLOAD_CHUNK ? c->elems : MT_OFFLOAD_CHUNK;
    for (int i = 0; i < 2; i++) {
        for (int b = 0; b < BUFFERS && c->dir; b++) {
            o->buffers[b][i] = mc_arena_take_1d(c->pinned, c->types[i], chunk);
        }
        if (!c->dir) {
            o->stores[i] = mc_arena_take_1d(c->pinned, c->types[i], c->elems);
        }
        if (!c->dev->ops->host_memory) {
            o->on_device[i] = mc_arena_take_1d(c->process, c->types[i], chunk);
        }
    }
}

/* The file has its whole size on the disk from the start, all zeros, and no name: it is gone with the process. */
static mc_status open_file(mt_offload *o)
{
    MC_TRY(mc_file_make_dirs(o->c.dir));
    MC_TRY(mc_path_format(o->path, "%s/megac_moments_%ld_%05d", o->c.dir, (long)getpid(), o->c.rank));
    o->fd = open(o->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (o->fd < 0) {
        return mc_file_fail("create", o->path, errno);
    }
    unlink(o->path);
    size_t bytes = store_bytes(o, 0) + store_bytes(o, 1);
    int error = bytes > 0 ? posix_fallocate(o->fd, 0, (off_t)bytes) : 0;
    return error ? mc_file_fail("make room for optimizer states in", o->path, error) : MC_OK;
}

static mc_status go_live(mt_offload *o)
{
    for (int i = 0; i < 2 && !o->c.dir; i++) {
        memset(o->stores[i].data, 0, store_bytes(o, i));
    }
    if (!o->c.dir) {
        return MC_OK;
    }
    MC_TRY(open_file(o));
    pthread_mutex_init(&o->lock, NULL);
    pthread_cond_init(&o->changed, NULL);
    int error = pthread_create(&o->thread, NULL, move_chunks, o);
    o->started = error == 0;
    return error ? MC_FAIL(MC_IO, "cannot start a thread for --optimizer-offload-path: %s", strerror(error)) : MC_OK;
}

mc_status mt_offload_create(const mt_offload_config *c, mt_offload **offload_out)
{
    mt_offload *o;
    MC_TRY(MC_NEW(&o, "optimizer offload"));
    o->c = *c;
    o->fd = -1;
    take_memory(o);
    o->live = c->pinned->bound;
    mc_status st = o->live ? go_live(o) : MC_OK;
    if (st != MC_OK) {
        mt_offload_destroy(o);
        return st;
    }
    *offload_out = o;
    return MC_OK;
}

void mt_offload_destroy(mt_offload *o)
{
    if (!o) {
        return;
    }
    if (o->started) {
        pthread_mutex_lock(&o->lock);
        o->closing = true;
        pthread_cond_broadcast(&o->changed);
        pthread_mutex_unlock(&o->lock);
        pthread_join(o->thread, NULL);
        pthread_cond_destroy(&o->changed);
        pthread_mutex_destroy(&o->lock);
    }
    mt_offload_close(o);
    if (o->fd >= 0) {
        close(o->fd);
    }
    mc_free(o);
}

mc_status mt_offload_begin(mt_offload *o, const mt_offload_chunk *chunks, int n)
{
    if (!o->started) {
        o->chunks = chunks;
        o->n = n;
        return MC_OK;
    }
    pthread_mutex_lock(&o->lock);
    o->chunks = chunks;
    o->n = n;
    o->n_read = o->n_computed = o->n_written = 0;
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
    return MC_OK;
}

/* Waits until *count is above k, or the thread has failed. */
static mc_status wait_for(mt_offload *o, const int *count, int k)
{
    pthread_mutex_lock(&o->lock);
    while (*count <= k && o->failed == MC_OK) {
        pthread_cond_wait(&o->changed, &o->lock);
    }
    mc_status st = o->failed;
    pthread_mutex_unlock(&o->lock);
    return st;
}

/* Where the host has chunk k. */
static mc_tensor host_chunk(const mt_offload *o, int k, int which)
{
    const mt_offload_chunk *c = &o->chunks[k];
    return o->c.dir ? mc_tensor_slice(o->buffers[k % BUFFERS][which], 0, 0, c->elems)
                    : mc_tensor_slice(o->stores[which], 0, c->at, c->elems);
}

/* Between host and device, in the operators' order: a chunk leaves before the next one takes its place. A dry run has
 * no memory to copy. */
static mc_status copy(const mt_offload *o, void *to, mc_tensor from)
{
    return o->live ? o->c.dev->ops->copy(o->c.dev, to, from.data, mc_tensor_bytes(from), o->c.stream) : MC_OK;
}

mc_status mt_offload_fetch(mt_offload *o, int k, mc_tensor *m_out, mc_tensor *v_out)
{
    mc_tensor *const outs[2] = {m_out, v_out};
    MC_TRY(o->started ? wait_for(o, &o->n_read, k) : MC_OK);
    for (int i = 0; i < 2; i++) {
        mc_tensor host = host_chunk(o, k, i);
        *outs[i] = host;
        if (mc_tensor_present(o->on_device[i])) {
            *outs[i] = mc_tensor_slice(o->on_device[i], 0, 0, host.dims[0]);
            MC_TRY(copy(o, outs[i]->data, host));
        }
    }
    return MC_OK;
}

mc_status mt_offload_store(mt_offload *o, int k)
{
    for (int i = 0; i < 2 && mc_tensor_present(o->on_device[i]); i++) {
        mc_tensor host = host_chunk(o, k, i);
        MC_TRY(copy(o, host.data, mc_tensor_slice(o->on_device[i], 0, 0, host.dims[0])));
    }
    if (!o->started) {
        return MC_OK;
    }
    MC_TRY(o->c.dev->ops->stream_sync(o->c.dev, o->c.stream)); /* the file takes what the host has */
    pthread_mutex_lock(&o->lock);
    o->n_computed = k + 1;
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
    return MC_OK;
}

mc_status mt_offload_end(mt_offload *o)
{
    return o->started ? wait_for(o, &o->n_written, o->n - 1) : MC_OK;
}

mc_status mt_offload_open(mt_offload *o, mc_tensor stores_out[2])
{
    size_t bytes = store_bytes(o, 0) + store_bytes(o, 1);
    char *base = NULL;
    MC_TRY(o->c.dev->ops->stream_sync(o->c.dev, o->c.stream));
    if (o->c.dir) {
        o->map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, o->fd, 0);
        if (o->map == MAP_FAILED) {
            o->map = NULL;
            return mc_file_fail("map", o->path, errno);
        }
        base = o->map;
    }
    for (int i = 0; i < 2; i++) {
        void *data = base ? base + (i ? store_bytes(o, 0) : 0) : o->stores[i].data;
        stores_out[i] = mc_tensor_1d(data, o->c.types[i], o->c.elems);
    }
    return MC_OK;
}

void mt_offload_close(mt_offload *o)
{
    if (o->map) {
        munmap(o->map, store_bytes(o, 0) + store_bytes(o, 1));
        o->map = NULL;
    }
}
