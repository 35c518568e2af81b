/* A growing text: what metadata and headers are built in. Appends after a failure do nothing, so that a builder checks
 * once, at the end. */
#ifndef MEGAC_TRAIN_CHECKPOINT_CKPT_TEXT_H
#define MEGAC_TRAIN_CHECKPOINT_CKPT_TEXT_H

#include <stddef.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_text {
    char *data; /* NUL after `bytes`; NULL while empty */
    size_t bytes, cap;
    mc_status st; /* first failure */
} mt_text;

void mt_text_fini(mt_text *t);
void mt_text_add(mt_text *t, const char *data, size_t bytes);
void mt_text_printf(mt_text *t, const char *fmt, ...) MC_PRINTF(2, 3);
/* As a JSON string with its quotes. JSON is UTF-8: a byte that is not becomes U+FFFD. */
void mt_text_json(mt_text *t, const char *data, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
