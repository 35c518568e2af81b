/* What inspect found, and its JSON form. */
#ifndef DATASETS_DS_REPORT_H
#define DATASETS_DS_REPORT_H

#include <stdio.h>

#include "datasets/ds_lengths.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ds_i_report {
    const char *path;
    uint64_t file_bytes;
    const ds_info *info;
    bool verified, has_checksums;
    ds_i_lengths lengths;
    int n_tokens;
    const int32_t *tokens;
    const char *text; /* printable: other bytes as \xNN */
} ds_i_report;

mc_status ds_i_report_json(const ds_i_report *report, FILE *out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
