/* Runs a function in a child process with other environment variables: CUDA's libraries, and what stands in for them,
 * read the environment when they are loaded, and a process loads them once. */
#ifndef TESTS_CUDA_CHILD_H
#define TESTS_CUDA_CHILD_H

#include "tests/unit.h"

enum { CHILD_TEXT = 8192 };

typedef struct child_end {
    int exit_status;       /* 256 + signal where one ended it */
    char text[CHILD_TEXT]; /* its standard error */
} child_end;

/* `environment`: "NAME=value" strings up to a NULL; "NAME" alone removes the variable. `body` returns the exit status;
 * cmocka's assertions do not work in it. */
void child_run(const char *const *environment, int (*body)(const void *arg), const void *arg, child_end *end_out);

/* Fails unless the child printed exactly one line of megac's, with `level` ("error", "warning") and all of `words` (up
 * to a NULL). */
void child_said_once(const child_end *end, const char *level, const char *const *words);

#endif
