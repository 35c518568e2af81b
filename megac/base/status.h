/* Result codes of every fallible function, and the four macros that handle them (CONVENTIONS, "Error idiom for C"). */
#ifndef MEGAC_BASE_STATUS_H
#define MEGAC_BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
#define MC_STATUS(name, exit_status, text) MC_##name,
#include "megac/base/status.def"
#undef MC_STATUS
    MC_STATUS_COUNT
} mc_status;

#define MC_MUST_CHECK __attribute__((warn_unused_result))
#define MC_PRINTF(fmt_index, first_arg) __attribute__((format(printf, fmt_index, first_arg)))

/* Name ("INVALID"), text and process exit status of a code; never fail. */
const char *mc_status_name(mc_status st);
const char *mc_status_text(mc_status st);
int mc_status_exit(mc_status st);

/* Logs one error line (see log.h) with its place. Use through MC_FAIL. */
void mc_fail_at(const char *file, int line, const char *fmt, ...) MC_PRINTF(3, 4);

/* Prints the broken invariant and aborts. Use through MC_ASSERT. */
void mc_assert_failed(const char *file, int line, const char *expr) __attribute__((noreturn));

/* First detector of a failure: logs what was seen and what to do about it, returns the code. */
#define MC_FAIL(st, ...) (mc_fail_at(__FILE__, __LINE__, __VA_ARGS__), (st))

/* Broken invariant of ours (never a user's mistake): always on. */
#define MC_ASSERT(expr) ((expr) ? (void)0 : mc_assert_failed(__FILE__, __LINE__, #expr))

/* Propagate silently: the first detector already spoke. */
#define MC_TRY(expr)                   \
    do {                               \
        mc_status mc_try_st_ = (expr); \
        if (mc_try_st_ != MC_OK) {     \
            return mc_try_st_;         \
        }                              \
    } while (0)

#define MC_TRY_GOTO(st, expr, label) \
    do {                             \
        (st) = (expr);               \
        if ((st) != MC_OK) {         \
            goto label;              \
        }                            \
    } while (0)

/* On a cleanup path: run `expr`, keep the first error. */
#define MC_KEEP_FIRST(st, expr)         \
    do {                                \
        mc_status mc_keep_st_ = (expr); \
        if ((st) == MC_OK) {            \
            (st) = mc_keep_st_;         \
        }                               \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
