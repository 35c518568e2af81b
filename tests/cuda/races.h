/* Counts the races that ThreadSanitizer reports while kernels run. Linked into a program with -fsanitize=thread. */
#ifndef TESTS_CUDA_RACES_H
#define TESTS_CUDA_RACES_H

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
#endif
