#include "megac/train/commands/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/clock.h"
#include "megac/base/log.h"

/* Until the others are asked to end, and then made to. The first is shorter than what ranks that say the same as rank 0
 * keep back (mt_let_rank_0_speak). */
static const double SPEAK_S = 0.15, DIE_S = 5;
/* The same where a rank was ended by a signal: it has said nothing, and the others look for it every tenth of a second.
 */
static const double REPORT_S = 1;

/* The ranks that run, and what has become of the others. */
typedef struct watch {
    pid_t *pids; /* by local rank; 0: ended */
    int n, n_running, first_rank;
    mc_status st;    /* of the first that failed */
    double killed_s; /* when the next, harder signal is due; 0: nothing failed */
    int next_signal;
    sigset_t signals, old;
} watch;

/* ---- the child's side ---- */

static void set_number(const char *name, int value)
{
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    setenv(name, text, 1);
}

/* torchrun's variables, and no other launcher's: this process may be a rank of theirs. */
static void set_environment(const mt_launch *l, int local_rank)
{
    static const char *const others[] = {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                                         "SLURM_PROCID",         "SLURM_STEP_NUM_TASKS",
                                         "MEGAC_MASTER_FD",      "TORCHELASTIC_USE_AGENT_STORE"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        unsetenv(others[i]);
    }
    set_number("RANK", l->node_rank * l->n_local + local_rank);
    set_number("WORLD_SIZE", l->n_nodes * l->n_local);
    set_number("LOCAL_RANK", local_rank);
    set_number("LOCAL_WORLD_SIZE", l->n_local);
    setenv("MASTER_ADDR", l->master_addr, 1);
    set_number("MASTER_PORT", l->master_port);
    if (local_rank == 0 && l->master_fd >= 0) {
        set_number("MEGAC_MASTER_FD", l->master_fd);
    }
}

/* Returns only on failure, in the child. */
static mc_status become_rank(const mt_launch *l, int local_rank, const sigset_t *mask, pid_t launcher)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* ranks do not outlive their launcher */
    if (getppid() != launcher) {
        return MC_FAIL(MC_COMM, "the launcher is gone");
    }
    sigprocmask(SIG_SETMASK, mask, NULL);
    set_environment(l, local_rank);
    if (l->master_fd >= 0) {
        fcntl(l->master_fd, F_SETFD, local_rank == 0 ? 0 : FD_CLOEXEC);
    }
    execvp(l->program, l->argv);
    return MC_FAIL(MC_INVALID, "cannot start %s: %s; see --program", l->program, strerror(errno));
}

/* ---- the launcher's side ---- */

static void signal_all(const watch *w, int number)
{
    for (int i = 0; i < w->n; i++) {
        if (w->pids[i] > 0) {
            kill(w->pids[i], number);
        }
    }
}

static mc_status status_of(int rank, int code)
{
    if (WIFSIGNALED(code)) {
        return MC_FAIL(MC_COMM, "rank %d was ended by signal %d (%s)", rank, WTERMSIG(code), strsignal(WTERMSIG(code)));
    }
    static const mc_status known[] = {MC_OK, MC_STOPPED, MC_INVALID};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) { /* it has said why itself */
        if (WEXITSTATUS(code) == mc_status_exit(known[i])) {
            return known[i];
        }
    }
    return MC_COMM;
}

/* Ranks that ended. One that stopped after saving is not alone in that: the others do the same. */
static void collect(watch *w)
{
    int code;
    for (int i = 0; i < w->n; i++) {
        if (w->pids[i] <= 0 || waitpid(w->pids[i], &code, WNOHANG) != w->pids[i]) {
            continue;
        }
        w->pids[i] = 0;
        w->n_running--;
        if (w->next_signal == SIGKILL) {
            continue; /* this process ended it */
        }
        mc_status st = status_of(w->first_rank + i, code);
        if (w->killed_s > 0) {
            continue; /* not the first */
        }
        w->st = w->st == MC_OK || (w->st == MC_STOPPED && st != MC_OK) ? st : w->st;
        if (st != MC_OK && st != MC_STOPPED) {
            /* those that see it, too, can say so */
            w->killed_s = mc_now() + (WIFSIGNALED(code) ? REPORT_S : SPEAK_S);
            w->next_signal = SIGTERM;
        }
    }
}

static void hurry(watch *w)
{
    if (w->killed_s > 0 && mc_now() >= w->killed_s) {
        signal_all(w, w->next_signal);
        signal_all(w, SIGCONT); /* a stopped rank gets no other signal, SIGKILL apart */
        w->killed_s = mc_now() + DIE_S;
        w->next_signal = SIGKILL;
    }
}

/* A terminal has sent its signals to the ranks as well. */
static void pass_on(const watch *w, const siginfo_t *info)
{
    if (info->si_signo != SIGCHLD && info->si_code <= 0) {
        signal_all(w, info->si_signo);
    }
}

static void attend(watch *w)
{
    while (w->n_running > 0) {
        siginfo_t info;
        double left = w->killed_s > 0 ? w->killed_s - mc_now() : 3600;
        left = left > 0 ? left : 0;
        struct timespec wait = {.tv_sec = (time_t)left, .tv_nsec = (long)((left - (double)(time_t)left) * 1e9)};
        if (sigtimedwait(&w->signals, &info, &wait) > 0) {
            pass_on(w, &info);
        }
        collect(w);
        hurry(w);
    }
}

static void block_signals(watch *w)
{
    static const int all[] = {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};
    sigemptyset(&w->signals);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        sigaddset(&w->signals, all[i]);
    }
    sigprocmask(SIG_BLOCK, &w->signals, &w->old);
    signal(SIGCHLD, SIG_DFL); /* where it is ignored, children leave no status to wait for */
}

mc_status mt_launch_run(const mt_launch *l)
{
    watch w = {.n = l->n_local, .first_rank = l->node_rank * l->n_local};
    MC_TRY(MC_NEW_N(&w.pids, l->n_local, "processes of ranks"));
    block_signals(&w);
    pid_t launcher = getpid();
    for (int i = 0; i < l->n_local; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            mc_free(w.pids);
            return become_rank(l, i, &w.old, launcher);
        }
        if (pid < 0) {
            w.st = MC_FAIL(MC_UNSUPPORTED, "cannot start rank %d: fork: %s", w.first_rank + i, strerror(errno));
            w.killed_s = mc_now();
            w.next_signal = SIGTERM;
            break;
        }
        w.pids[i] = pid;
        w.n_running++;
    }
    if (l->master_fd >= 0) {
        close(l->master_fd); /* rank 0's now: when it ends, nobody answers */
    }
    attend(&w);
    sigprocmask(SIG_SETMASK, &w.old, NULL);
    mc_free(w.pids);
    return w.st;
}
