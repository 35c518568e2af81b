/* Batches of one data-parallel coordinate, read ahead by a thread.
 *
 *   request ──► wanted ──► thread fills a free buffer ──► ready ──► next ──► current
 *
 * There are two step buffers: the current one, which the trainer reads, and the one being filled. Everything is
 * allocated at create. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "datasets/ds_impl.h"
#include "megac/base/alloc.h"

typedef enum { FREE, WANTED, READY, CURRENT } buffer_state;

typedef struct step_buffer {
    buffer_state state;
    uint64_t first, end; /* its first sample; the first that is not read */
    int n_micro;
    mc_status st;
    double weight_sum;
    int32_t *tokens, *targets; /* (max_micro * B, T) */
    float *weights;
} step_buffer;

struct ds_loader {
    ds_loader_config config;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_bool stop;
    step_buffer buffers[2];
    int current;      /* buffer that the trainer reads, -1: none; touched by the caller's thread only */
    int32_t *window;  /* seq_length + 1 */
    void *own_memory; /* NULL where the caller lent it */
};

/* Values of one array of a step, rounded so that the next array starts on a cache line. */
static size_t step_elems(const ds_loader_config *c)
{
    size_t n = (size_t)c->max_micro * (size_t)c->micro_batch * (size_t)c->seq_length;
    return (n + 15) / 16 * 16;
}

static size_t slab_bytes(const ds_loader_config *c)
{
    return (2 * 3 * step_elems(c) + (size_t)c->seq_length + 1) * 4;
}

size_t ds_loader_plan_bytes(const ds_loader_config *config)
{
    return sizeof(ds_loader) + slab_bytes(config);
}

size_t ds_loader_memory_bytes(const ds_loader_config *config)
{
    return slab_bytes(config);
}

static void write_sample(const ds_loader *l, step_buffer *b, size_t row)
{
    size_t T = (size_t)l->config.seq_length;
    int32_t *tokens = b->tokens + row * T, *targets = b->targets + row * T;
    float *weights = b->weights + row * T;
    int64_t mask = l->config.eod_mask_id;
    int64_t kept = 0;
    for (size_t t = 0; t < T; t++) {
        int32_t target = l->window[t + 1];
        bool keep = target != mask; /* a mask of -1 equals no token */
        tokens[t] = l->window[t];
        targets[t] = target;
        weights[t] = keep ? 1.0f : 0.0f;
        kept += keep;
    }
    b->weight_sum += (double)kept;
}

/* A row past the end of the data: valid tokens that weigh nothing. */
static void write_blank(const ds_loader *l, step_buffer *b, size_t row)
{
    size_t T = (size_t)l->config.seq_length;
    memset(b->tokens + row * T, 0, T * sizeof *b->tokens);
    memset(b->targets + row * T, 0, T * sizeof *b->targets);
    memset(b->weights + row * T, 0, T * sizeof *b->weights);
}

static void fill(ds_loader *l, step_buffer *b)
{
    const ds_loader_config *c = &l->config;
    b->weight_sum = 0;
    b->st = MC_OK;
    for (int m = 0; m < b->n_micro && b->st == MC_OK; m++) {
        uint64_t sample =
            b->first + ((uint64_t)m * (uint64_t)c->dp_size + (uint64_t)c->dp_rank) * (uint64_t)c->micro_batch;
        for (int i = 0; i < c->micro_batch && b->st == MC_OK && !atomic_load(&l->stop); i++) {
            size_t row = (size_t)m * (size_t)c->micro_batch + (size_t)i;
            if (sample + (uint64_t)i >= b->end) {
                write_blank(l, b, row);
                continue;
            }
            b->st = ds_source_read(c->source, sample + (uint64_t)i, l->window);
            if (b->st == MC_OK) {
                write_sample(l, b, row);
            }
        }
    }
}

static step_buffer *find(ds_loader *l, buffer_state state)
{
    for (int i = 0; i < 2; i++) {
        if (l->buffers[i].state == state) {
            return &l->buffers[i];
        }
    }
    return NULL;
}

static void *loader_main(void *arg)
{
    ds_loader *l = arg;
    pthread_mutex_lock(&l->lock);
    while (!atomic_load(&l->stop)) {
        step_buffer *b = find(l, WANTED);
        if (!b) {
            pthread_cond_wait(&l->changed, &l->lock);
            continue;
        }
        pthread_mutex_unlock(&l->lock);
        fill(l, b);
        pthread_mutex_lock(&l->lock);
        b->state = READY;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static mc_status check_config(const ds_loader_config *c)
{
    if (c->seq_length < 1 || c->micro_batch < 1 || c->max_micro < 1 || c->dp_size < 1 || c->dp_rank < 0 ||
        c->dp_rank >= c->dp_size) {
        return MC_FAIL(MC_INVALID,
                       "loader: seq_length %lld, micro-batch %d, micro-batches %d, data-parallel %d of %d: each must "
                       "be at least 1, and the rank below the size",
                       (long long)c->seq_length, c->micro_batch, c->max_micro, c->dp_rank, c->dp_size);
    }
    return MC_OK;
}

mc_status ds_loader_create(const ds_loader_config *config, ds_loader **loader_out)
{
    MC_TRY(check_config(config));
    ds_loader *l;
    MC_TRY(MC_NEW(&l, "data loader"));
    l->config = *config;
    l->current = -1;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    mc_status st = config->memory ? MC_OK : mc_alloc(1, slab_bytes(config), "data loader steps", &l->own_memory);
    if (st != MC_OK) {
        ds_loader_destroy(l);
        return st;
    }
    int32_t *p = config->memory ? config->memory : l->own_memory;
    size_t n = step_elems(config);
    for (int i = 0; i < 2; i++, p += 3 * n) {
        l->buffers[i].tokens = p;
        l->buffers[i].targets = p + n;
        l->buffers[i].weights = (float *)(p + 2 * n);
    }
    l->window = p;
    int err = pthread_create(&l->thread, NULL, loader_main, l);
    if (err) {
        ds_loader_destroy(l);
        return MC_FAIL(MC_UNSUPPORTED, "the system refused the data loader's thread (error %d)", err);
    }
    l->started = true;
    *loader_out = l;
    return MC_OK;
}

void ds_loader_destroy(ds_loader *loader)
{
    if (!loader) {
        return;
    }
    if (loader->started) {
        pthread_mutex_lock(&loader->lock);
        atomic_store(&loader->stop, true);
        pthread_cond_broadcast(&loader->changed);
        pthread_mutex_unlock(&loader->lock);
        pthread_join(loader->thread, NULL);
    }
    pthread_cond_destroy(&loader->changed);
    pthread_mutex_destroy(&loader->lock);
    mc_free(loader->own_memory);
    mc_free(loader);
}

mc_status ds_loader_request(ds_loader *loader, uint64_t first, int n_micro)
{
    return ds_loader_request_last(loader, first, UINT64_MAX, n_micro);
}

mc_status ds_loader_request_last(ds_loader *loader, uint64_t first, uint64_t end, int n_micro)
{
    if (n_micro < 1 || n_micro > loader->config.max_micro) {
        return MC_FAIL(MC_INVALID, "loader: %d micro-batches asked for, room for 1..%d", n_micro,
                       loader->config.max_micro);
    }
    mc_status st = MC_OK;
    pthread_mutex_lock(&loader->lock);
    step_buffer *b = find(loader, FREE);
    if (!b || find(loader, WANTED) || find(loader, READY)) {
        st = MC_FAIL(MC_INVALID,
                     "loader: step at sample %llu asked for while another is in the works; call "
                     "ds_loader_next first",
                     (unsigned long long)first);
    } else {
        b->first = first;
        b->end = end;
        b->n_micro = n_micro;
        b->state = WANTED;
        pthread_cond_broadcast(&loader->changed);
    }
    pthread_mutex_unlock(&loader->lock);
    return st;
}

mc_status ds_loader_next(ds_loader *loader, double *weight_sum_out)
{
    mc_status st = MC_OK;
    pthread_mutex_lock(&loader->lock);
    while (find(loader, WANTED)) {
        pthread_cond_wait(&loader->changed, &loader->lock);
    }
    step_buffer *old = find(loader, CURRENT), *b = find(loader, READY);
    if (old && b) {
        old->state = FREE;
        loader->current = -1;
    }
    if (!b) {
        st = MC_FAIL(MC_INVALID, "loader: no step was requested; call ds_loader_request before ds_loader_next");
    } else if (b->st != MC_OK) {
        st = b->st; /* the reader thread told why */
        b->state = FREE;
    } else {
        b->state = CURRENT;
        loader->current = (int)(b - loader->buffers);
        *weight_sum_out = b->weight_sum;
    }
    pthread_mutex_unlock(&loader->lock);
    return st;
}

ds_batch ds_loader_batch(const ds_loader *loader, int micro)
{
    MC_ASSERT(loader->current >= 0);
    const step_buffer *b = &loader->buffers[loader->current];
    MC_ASSERT(micro >= 0 && micro < b->n_micro);
    const ds_loader_config *c = &loader->config;
    size_t at = (size_t)micro * (size_t)c->micro_batch * (size_t)c->seq_length;
    uint64_t block = (uint64_t)micro * (uint64_t)c->dp_size + (uint64_t)c->dp_rank;
    return (ds_batch){.tokens = b->tokens + at,
                      .targets = b->targets + at,
                      .weights = b->weights + at,
                      .sample0 = b->first + block * (uint64_t)c->micro_batch};
}
