/* Messages to standard error. The logger owns one of the two pieces of mutable file-scope state of the program (the
 * other is the allocation counter of alloc.c); everything else is passed.
 *
 *   megac: error: --lr: "fast" is not a number; give a value such as 3e-4 (config.c:88)
 *   megac[rank 3]: warning: ...
 *
 * While held (start-up), messages of ranks other than 0 are kept back: every rank parses the same command line, and the
 * user wants one message. Rank 0 prints at once; the others print at mc_log_flush_held(), which main calls after a
 * short delay, so that a mistake seen by one of them only is still told. */
#ifndef MEGAC_BASE_LOG_H
#define MEGAC_BASE_LOG_H

#include <stdarg.h>
#include <stdbool.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MC_LOG_ERROR, MC_LOG_WARN, MC_LOG_INFO, MC_LOG_DEBUG } mc_log_level;

/* Rank shown in messages; -1 (the start value) shows none. */
void mc_log_set_rank(int rank);
/* Most verbose level printed; MC_LOG_INFO at start. */
void mc_log_set_level(mc_log_level level);
/* Start or stop keeping back the messages of ranks > 0. */
void mc_log_hold(bool hold);
/* Print what was kept back. True when there was something. */
bool mc_log_flush_held(void);
/* Every rank of a job that started well has said much the same: rank 0 copies out what it printed while held (zeros
 * behind), and the others forget those of their messages that it has too. */
enum { MC_LOG_HELD_BYTES = 8192 };
void mc_log_copy_held(char text_out[MC_LOG_HELD_BYTES]);
void mc_log_drop_held(const char said[MC_LOG_HELD_BYTES]);

void mc_log(mc_log_level level, const char *file, int line, const char *fmt, ...) MC_PRINTF(4, 5);
void mc_log_v(mc_log_level level, const char *file, int line, const char *fmt, va_list ap) MC_PRINTF(4, 0);

#define MC_WARN(...) mc_log(MC_LOG_WARN, __FILE__, __LINE__, __VA_ARGS__)
#define MC_INFO(...) mc_log(MC_LOG_INFO, __FILE__, __LINE__, __VA_ARGS__)
#define MC_DEBUG(...) mc_log(MC_LOG_DEBUG, __FILE__, __LINE__, __VA_ARGS__)

#ifdef __cplusplus
}
#endif
#endif
