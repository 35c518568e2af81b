/* What every C test includes: cmocka with the headers that it needs before it, and the capture of standard error. */
#ifndef TESTS_UNIT_H
#define TESTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* Runs the statement and leaves what it wrote to standard error in `text` (an array), cut to its size. */
#define UNIT_CAPTURE(text, statement)                        \
    do {                                                     \
        int unit_saved_ = unit_capture_begin();              \
        statement;                                           \
        unit_capture_end(unit_saved_, (text), sizeof(text)); \
    } while (0)

/* Returns the descriptor of the true standard error; until unit_capture_end, descriptor 2 is a nameless file. */
static inline int unit_capture_begin(void)
{
    fflush(stderr);
    int saved = dup(STDERR_FILENO);
    FILE *file = tmpfile();
    if (saved < 0 || !file || dup2(fileno(file), STDERR_FILENO) < 0) {
        fail_msg("cannot capture standard error");
    }
    fclose(file);
    return saved;
}

static inline void unit_capture_end(int saved, char *text, size_t cap)
{
    fflush(stderr);
    lseek(STDERR_FILENO, 0, SEEK_SET);
    size_t used = 0;
    for (ssize_t n; used + 1 < cap && (n = read(STDERR_FILENO, text + used, cap - 1 - used)) > 0;) {
        used += (size_t)n;
    }
    text[used] = '\0';
    dup2(saved, STDERR_FILENO);
    close(saved);
}

#endif
