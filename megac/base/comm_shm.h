/* What the ranks of a group keep in shared memory, for the two files that work on it.
 *
 * Each member owns one segment, which all members map:
 *
 *   head        how many collectives it has finished
 *   slots       ring of SLOTS announcements of collectives; number s is in slot s % SLOTS
 *   channels    one per receiving member: a ring of SLOTS announcements of messages
 *   stages      through which buffers outside mc_world_map's memory travel: one for collectives, one for messages
 *
 * Words that say how far somebody is are written by one rank and read by the others, with release and acquire; each
 * announcement's own words are on a cache line of their own. An announcement counts as made when its `made` is its
 * sequence number + 1, so that nothing needs to be cleared when the ring comes round. */
#ifndef MEGAC_BASE_COMM_SHM_H
#define MEGAC_BASE_COMM_SHM_H

#include "megac/base/world_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MC_I_SHM_SLOTS = 64,
    MC_I_SHM_PAIR_INLINE = 1024,
    MC_I_SHM_PAIR_STAGE = 256 << 10,
};

typedef struct mc_i_shm_slot {
    /* By the owner. `filled`: rounds whose data are readable; all at once when the buffers are mapped. `used`: rounds
     * in which the owner has done its part. */
    uint64_t made, filled, used;
    uint64_t pad[5];
    mc_i_call call;
    mc_i_place in, out;
    uint64_t mapped; /* peers reach in (and out, where they write it) directly */
    unsigned char payload[MC_I_INLINE_BYTES];
} mc_i_shm_slot;

typedef struct mc_i_shm_message {
    uint64_t made, filled; /* by the sender */
    uint64_t pad[6];
    uint64_t wanted, used, taken; /* by the receiver: number + 1, rounds, number + 1 */
    uint64_t pad2[5];
    mc_i_call call;
    mc_i_place from;
    unsigned char payload[MC_I_SHM_PAIR_INLINE];
} mc_i_shm_message;

typedef struct mc_i_shm_channel {
    uint64_t n_taken; /* by the receiver */
    uint64_t pad[7];
    mc_i_shm_message ring[MC_I_SHM_SLOTS];
} mc_i_shm_channel;

typedef struct mc_i_shm_member {
    uint64_t n_finished;
    uint64_t pad[7];
    mc_i_shm_slot ring[MC_I_SHM_SLOTS];
    unsigned char stage[MC_I_STAGE_BYTES];
    unsigned char pair_stage[MC_I_SHM_PAIR_STAGE];
    mc_i_shm_channel to[1]; /* by receiving member; as many as the group has */
} mc_i_shm_member;

typedef struct mc_i_shm_pair {
    mc_i_queue queue;
    uint64_t begun;
    mc_i_shm_channel *channel;
} mc_i_shm_pair;

typedef struct mc_i_shm_group {
    mc_world *world;
    mc_i_engine *engine;
    mc_i_members m; /* m.world is `ranks` */
    int *ranks;
    mc_i_shared *shared;
    mc_i_shm_member **member; /* by member, as mapped here */
    mc_i_bell **bell;         /* by member */
    mc_i_queue queue;
    uint64_t begun;
    int compared;    /* members whose announcement of the queue's head was compared */
    const void **in; /* scratch: by member */
    void **out;
    mc_i_shm_pair *sends, *recvs;
    const mc_request *stage_user; /* the send that uses pair_stage */
} mc_i_shm_group;

static inline uint64_t mc_i_shm_get(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void mc_i_shm_set(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* Begin of a send or receive, and their queues (comm_shm_pair.c). */
mc_status mc_i_shm_send_begin(const mc_comm *c, mc_request *req) MC_MUST_CHECK;
mc_status mc_i_shm_recv_begin(const mc_comm *c, mc_request *req) MC_MUST_CHECK;
extern const mc_i_queue_ops mc_i_shm_send_queue, mc_i_shm_recv_queue;
extern const mc_i_queue_ops mc_i_shm_group_queue;
mc_status mc_i_shm_group_begin(const mc_comm *c, mc_request *req) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
