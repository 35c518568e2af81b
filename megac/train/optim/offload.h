/* Adam's moments out of the device's memory: in pinned host memory (--optimizer-cpu-offload) or in a file
 * (--optimizer-offload-path, for NVMe). The update goes over them by chunks, in order. A file is read ahead and written
 * behind while a chunk is computed with; between host and device chunks are copied in the operators' order, as the next
 * one takes the place of the one before. The numbers are those of the run without. */
#ifndef MEGAC_TRAIN_OPTIM_OFFLOAD_H
#define MEGAC_TRAIN_OPTIM_OFFLOAD_H

#include "megac/base/arena.h"
#include "megac/base/device.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MT_OFFLOAD_CHUNK = 1 << 20 }; /* elements */

/* Elements [at, at + elems) of both stores. */
typedef struct mt_offload_chunk {
    int64_t at, elems; /* at most MT_OFFLOAD_CHUNK */
} mt_offload_chunk;

typedef struct mt_offload_config {
    mc_device *dev;
    mc_stream stream;
    const char *dir; /* of the file, which has no name once it is open; NULL: host memory */
    int rank;
    int64_t elems;              /* of each store */
    mc_dtype types[2];          /* m, v */
    mc_arena *pinned, *process; /* measuring or bound: for host buffers or stores, and for buffers on the device */
} mt_offload_config;

typedef struct mt_offload mt_offload;

/* Moments start at 0. MC_IO when the file cannot be made as large as it must be. */
mc_status mt_offload_create(const mt_offload_config *c, mt_offload **offload_out) MC_MUST_CHECK;
void mt_offload_destroy(mt_offload *o); /* NULL allowed */

/* One pass over the chunks: begin, then fetch and store each in order, then end. Between the two the operator on the
 * stream may read and write m and v. */
mc_status mt_offload_begin(mt_offload *o, const mt_offload_chunk *chunks, int n) MC_MUST_CHECK;
mc_status mt_offload_fetch(mt_offload *o, int k, mc_tensor *m_out, mc_tensor *v_out) MC_MUST_CHECK;
mc_status mt_offload_store(mt_offload *o, int k) MC_MUST_CHECK;
mc_status mt_offload_end(mt_offload *o) MC_MUST_CHECK;

/* The stores as the host sees them, between passes, for checkpoints. A file is mapped, until close. */
mc_status mt_offload_open(mt_offload *o, mc_tensor stores_out[2]) MC_MUST_CHECK;
void mt_offload_close(mt_offload *o);

#ifdef __cplusplus
}
#endif
#endif
