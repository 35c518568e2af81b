/* Segments that the ranks of a node map from each other, and buffers found in them again. */
#include <sys/stat.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/world_impl.h"

static mc_status gather(const mc_comm *over, const void *mine, size_t bytes, void *all)
{
    return mc_comm_all_gather(over, mc_tensor_1d((void *)(uintptr_t)mine, MC_U8, (int64_t)bytes),
                              mc_tensor_1d(all, MC_U8, (int64_t)bytes * over->size));
}

/* Each maps what it can, tells the others, and lets go of its descriptor when all have mapped it. */
static mc_status exchange(const mc_comm *over, const mc_i_members *with, mc_i_shared *s, mc_i_segment_card *cards,
                          uint8_t *mapped)
{
    mc_i_segment *own = &s->by_rank[s->self];
    mc_i_segment_card card = mc_i_segment_card_of(own);
    MC_TRY(gather(over, &card, sizeof card, cards));
    uint8_t all_mapped = 1;
    for (int m = 0; m < with->size; m++) {
        int r = with->world[m];
        all_mapped = all_mapped && (r == s->self ? own->base != NULL : mc_i_segment_map(&cards[r], &s->by_rank[r]));
    }
    MC_TRY(gather(over, &all_mapped, 1, mapped));
    mc_i_segment_close_fd(own);
    s->direct = true;
    for (int m = 0; m < with->size; m++) {
        s->direct = s->direct && mapped[with->world[m]];
    }
    return MC_OK;
}

mc_status mc_i_world_share(mc_world *w, const mc_comm *over, const mc_i_members *with, size_t bytes, const char *what,
                           mc_i_shared **shared_out)
{
    mc_i_shared *s;
    mc_i_segment_card *cards = NULL;
    uint8_t *mapped = NULL;
    MC_TRY(MC_NEW(&s, what));
    s->n_ranks = w->job.size;
    s->self = w->job.rank;
    mc_status st, made;
    MC_TRY_GOTO(st, MC_NEW_N(&s->by_rank, s->n_ranks, what), undo_shared);
    for (int r = 0; r < s->n_ranks; r++) {
        s->by_rank[r].fd = -1;
    }
    MC_TRY_GOTO(st, MC_NEW_N(&cards, s->n_ranks, "places of shared memory"), undo_shared);
    MC_TRY_GOTO(st, MC_NEW_N(&mapped, s->n_ranks, "places of shared memory"), undo_shared);
    /* A rank without memory still takes part in the exchange, so that its peers do not wait for it. */
    made = mc_i_segment_create(bytes, with->size == 1, what, &s->by_rank[s->self]);
    MC_TRY_GOTO(st, exchange(over, with, s, cards, mapped), undo_shared);
    MC_TRY_GOTO(st, made, undo_shared);
    mc_free(cards);
    mc_free(mapped);
    *shared_out = s;
    return MC_OK;

undo_shared:
    mc_free(cards);
    mc_free(mapped);
    mc_i_shared_destroy(s);
    return st;
}

void mc_i_shared_destroy(mc_i_shared *s)
{
    if (!s) {
        return;
    }
    for (int r = 0; s->by_rank && r < s->n_ranks; r++) {
        mc_i_segment_unmap(&s->by_rank[r]);
    }
    mc_free(s->by_rank);
    mc_free(s);
}

mc_i_bell *mc_i_world_bell(const mc_world *w, int rank)
{
    return &w->boards[rank]->bell;
}

mc_status mc_i_world_pids(mc_world *w, const mc_comm *over)
{
    typedef struct process {
        int64_t pid;
        uint64_t space; /* of process numbers; 0: not known */
    } process;
    struct stat info;
    process mine = {.pid = getpid(), .space = stat("/proc/self/ns/pid", &info) == 0 ? (uint64_t)info.st_ino : 0};
    process *all;
    MC_TRY(MC_NEW_N(&all, w->job.size, "processes of ranks"));
    mc_status st = gather(over, &mine, sizeof mine, all);
    for (int r = 0; st == MC_OK && r < w->job.size; r++) {
        bool near = w->node[r] == w->node[w->job.rank] && mine.space != 0 && all[r].space == mine.space;
        w->pids[r] = near ? (int32_t)all[r].pid : 0;
    }
    mc_free(all);
    if (st == MC_OK) {
        w->engine.pids = w->pids;
    }
    return st;
}

mc_status mc_world_map(mc_world *w, size_t bytes, const char *what, void **out)
{
    int *ranks;
    MC_TRY(MC_NEW_N(&ranks, w->job.size, "lists of ranks"));
    mc_i_members with = {.world = ranks};
    for (int r = 0; r < w->job.size; r++) {
        if (r == w->job.rank || (w->shm && w->node[r] == w->node[w->job.rank])) {
            with.rank = r == w->job.rank ? with.size : with.rank;
            ranks[with.size++] = r;
        }
    }
    mc_i_shared *s;
    mc_status st = mc_i_world_share(w, &w->comm, &with, bytes, what, &s);
    mc_free(ranks);
    MC_TRY(st);
    s->next = w->maps;
    w->maps = s;
    w->n_maps++;
    *out = s->by_rank[s->self].base;
    return MC_OK;
}

mc_i_place mc_i_world_place(const mc_world *w, const void *data, size_t bytes)
{
    int id = w->n_maps;
    for (const mc_i_shared *s = w->maps; s; s = s->next) {
        const mc_i_segment *own = &s->by_rank[s->self];
        uintptr_t at = (uintptr_t)data - (uintptr_t)own->base;
        id--;
        if (s->direct && at <= own->bytes && bytes <= own->bytes - at) {
            return (mc_i_place){.segment = id, .offset = at};
        }
    }
    return (mc_i_place){.segment = -1};
}

unsigned char *mc_i_world_address(const mc_world *w, mc_i_place place, int rank, size_t bytes)
{
    int id = w->n_maps - 1;
    const mc_i_shared *s = w->maps;
    for (; s && id != place.segment; s = s->next) {
        id--;
    }
    MC_ASSERT(s && s->by_rank[rank].base && place.offset <= s->by_rank[rank].bytes &&
              bytes <= s->by_rank[rank].bytes - place.offset);
    return s->by_rank[rank].base + place.offset;
}
