/* The clock that waits and durations are measured by. */
#ifndef MEGAC_BASE_CLOCK_H
#define MEGAC_BASE_CLOCK_H

#ifdef __cplusplus
extern "C" {
#endif

/* Seconds; only goes forward. */
double mc_now(void);

#ifdef __cplusplus
}
#endif
#endif
