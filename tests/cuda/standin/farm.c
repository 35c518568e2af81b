/* Ranks as processes, for the tests of the stand-ins. */
#include "tests/cuda/standin/farm.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
}

static void must(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(99);
    }
}

static void set_number(const char *name, int value)
{
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    setenv(name, text, 1);
}

/* In the child: never returns. */
static void become_rank(const char *program, const char *mode, int rank, int n, const char *const *env, int area,
                        int said)
{
    dup2(said, STDOUT_FILENO);
    dup2(said, STDERR_FILENO);
    set_number("OMPI_COMM_WORLD_RANK", rank);
    set_number("OMPI_COMM_WORLD_LOCAL_RANK", rank);
    set_number("OMPI_COMM_WORLD_SIZE", n);
    set_number("FARM_AREA", area);
    for (; env && *env; env++) {
        must(putenv((char *)(uintptr_t)*env) == 0, "putenv");
    }
    execl(program, program, mode, (char *)NULL);
    perror(program);
    _exit(98);
}

static void collect(farm_result *out, int rank, int status, int said)
{
    out->status[rank] = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    ssize_t n = pread(said, out->text[rank], FARM_TEXT_CAP - 1, 0);
    out->text[rank][n > 0 ? n : 0] = '\0';
    close(said);
}

void farm_run(const char *program, const char *mode, int n, const char *const *env, double seconds, farm_result *out)
{
    pid_t pids[FARM_MAX_RANKS];
    int said[FARM_MAX_RANKS], area = memfd_create("farm", 0);
    must(n <= FARM_MAX_RANKS && area >= 0 && ftruncate(area, sizeof(farm_area)) == 0, "farm area");
    fflush(NULL);
    out->n_ranks = n;
    for (int r = 0; r < n; r++) {
        said[r] = memfd_create("said", MFD_CLOEXEC);
        pids[r] = fork();
        must(said[r] >= 0 && pids[r] >= 0, "fork");
        if (pids[r] == 0) {
            become_rank(program, mode, r, n, env, area, said[r]);
        }
    }
    bool killed = false;
    double end = seconds_now() + seconds;
    for (int left = n; left > 0;) {
        for (int r = 0; r < n; r++) {
            int status;
            if (pids[r] > 0 && waitpid(pids[r], &status, WNOHANG) == pids[r]) {
                collect(out, r, status, said[r]);
                pids[r] = 0;
                left--;
            }
        }
        for (int r = 0; !killed && seconds_now() > end && r < n; r++) {
            if (pids[r] > 0) {
                kill(pids[r], SIGKILL);
            }
        }
        killed = seconds_now() > end;
        nap();
    }
    close(area);
}

void farm_show(const farm_result *result)
{
    for (int r = 0; r < result->n_ranks; r++) {
        fprintf(stderr, "---- rank %d ended with %d and said:\n%s", r, result->status[r], result->text[r]);
    }
}

int farm_rank(void)
{
    const char *text = getenv("OMPI_COMM_WORLD_RANK");
    return text ? (int)strtol(text, NULL, 10) : 0;
}

int farm_ranks(void)
{
    const char *text = getenv("OMPI_COMM_WORLD_SIZE");
    return text ? (int)strtol(text, NULL, 10) : 1;
}

farm_area *farm_shared(void)
{
    static farm_area *area;
    if (!area) {
        const char *text = getenv("FARM_AREA");
        must(text != NULL, "FARM_AREA is not set: run me from the test");
        void *p = mmap(NULL, sizeof *area, PROT_READ | PROT_WRITE, MAP_SHARED, (int)strtol(text, NULL, 10), 0);
        must(p != MAP_FAILED, "mmap");
        area = p;
    }
    return area;
}

bool farm_barrier(double seconds)
{
    farm_area *area = farm_shared();
    int turn = atomic_load(&area->turn);
    if (atomic_fetch_add(&area->arrived, 1) + 1 == farm_ranks()) {
        atomic_store(&area->arrived, 0);
        atomic_fetch_add(&area->turn, 1);
        return true;
    }
    for (double end = seconds_now() + seconds; atomic_load(&area->turn) == turn; nap()) {
        if (seconds_now() > end) {
            return false;
        }
    }
    return true;
}
