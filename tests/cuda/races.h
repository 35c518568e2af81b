/* Counts the races that ThreadSanitizer reports while kernels run. Linked into a program with -fsanitize=thread. */
#ifndef TESTS_CUDA_RACES_H
#define TESTS_CUDA_RACES_H

#ifdef LY_ON_CPU_TSAN

#ifdef __cplusplus
extern "C" {
#endif

/* Forgets what was seen. With `quiet`, reports are counted and not printed. */
void races_reset(int quiet);
int races_seen(void);
/* "float_sum(float*), layers/sum_cuda.cu:12": the innermost frame of the first race that has a name. "" where none was
 * seen. */
const char *races_first(void);

#ifdef __cplusplus
}
#endif

#else /* no race is seen in other builds */

static inline void races_reset(int quiet)
{
    (void)quiet;
}
static inline int races_seen(void)
{
    return 0;
}
static inline const char *races_first(void)
{
    return "";
}

#endif
#endif
