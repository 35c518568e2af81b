/* Statistics of document lengths, exact, in constant memory: a few passes over the document ends. */
#ifndef DATASETS_DS_LENGTHS_H
#define DATASETS_DS_LENGTHS_H

#include "datasets/ds.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DS_I_LENGTH_BINS = 65 };

typedef struct ds_i_lengths {
    uint64_t min, median, p90, max;
    double mean;
    uint64_t bins[DS_I_LENGTH_BINS]; /* bin 0: length 0; bin b: lengths [2^(b-1), 2^b) */
} ds_i_lengths;

/* Percentile p is the least length such that at least p % of the documents are no longer. */
mc_status ds_i_lengths_measure(const ds_file *file, ds_i_lengths *out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
