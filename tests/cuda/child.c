#include "tests/cuda/child.h"

#include <sys/wait.h>

static void change_environment(const char *const *environment)
{
    for (; *environment; environment++) {
        char name[64];
        const char *value = strchr(*environment, '=');
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*environment, "="), *environment);
        if (value) {
            setenv(name, value + 1, 1);
        } else {
            unsetenv(name);
        }
    }
}

static void read_all(int fd, char *text)
{
    size_t used = 0;
    for (ssize_t n; used + 1 < CHILD_TEXT && (n = read(fd, text + used, CHILD_TEXT - 1 - used)) > 0;) {
        used += (size_t)n;
    }
    text[used] = '\0';
}

void child_run(const char *const *environment, int (*body)(const void *arg), const void *arg, child_end *end_out)
{
    int ends[2], status = 0;
    fflush(stdout);
    fflush(stderr);
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(ends[0]);
        dup2(ends[1], STDERR_FILENO);
        close(ends[1]);
        change_environment(environment);
        exit(body(arg)); /* with the handlers: libraries report leaks there */
    }
    close(ends[1]);
    read_all(ends[0], end_out->text);
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    end_out->exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

void child_said_once(const child_end *end, const char *level, const char *const *words)
{
    char head[64];
    snprintf(head, sizeof head, "megac: %s: ", level);
    const char *line = strstr(end->text, head), *stop = line ? strchr(line, '\n') : NULL;
    if (!line || !stop || strstr(stop, "megac: ")) {
        fail_msg("wanted one line \"%s...\", got:\n%s", head, end->text);
    }
    for (; *words; words++) {
        const char *at = strstr(line, *words);
        if (!at || at > stop) {
            fail_msg("\"%s\" is missing in: %s", *words, end->text);
        }
    }
}
