/* A group that talks by messages, as its two files see it. */
#ifndef MEGAC_BASE_COMM_MSG_H
#define MEGAC_BASE_COMM_MSG_H

#include "megac/base/world_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MC_I_TAG_HELLO, MC_I_TAG_DATA, MC_I_TAG_RESULT, MC_I_TAG_PAIR, MC_I_TAG_PAIR_DATA, MC_I_TAGS = 8 };

/* An announcement; only the payload's used bytes travel. */
typedef struct mc_i_hello {
    mc_i_call call;
    unsigned char payload[MC_I_INLINE_BYTES];
} mc_i_hello;

/* One direction between me and a peer. */
typedef struct mc_i_msg_pair {
    mc_i_queue queue;
    uint64_t begun;
    mc_i_post posts[2]; /* announcement, data */
    mc_i_hello *hello;
} mc_i_msg_pair;

typedef struct mc_i_msg_group {
    mc_i_net *net;
    mc_i_engine *engine;
    mc_i_members m; /* m.world is `world` */
    int *world;
    int tag; /* first of the group's MC_I_TAGS tags */
    mc_i_queue queue;
    uint64_t begun;
    mc_i_post *posts; /* size receives, size sends */
    mc_i_hello *mine;
    unsigned char *hellos; /* by member */
    unsigned char *stage;
    size_t stage_bytes;
    const void **in; /* scratch: by member */
    mc_i_msg_pair *sends, *recvs;
} mc_i_msg_group;

mc_i_hello *mc_i_hello_of(unsigned char *hellos, int member);
extern const mc_i_queue_ops mc_i_msg_group_queue;

#ifdef __cplusplus
}
#endif
#endif
