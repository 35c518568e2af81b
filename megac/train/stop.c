#include "megac/train/stop.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"

struct mt_stop {
    pthread_t thread;
    bool started;
    int signals, closing; /* signalfd; eventfd that ends the thread */
    int wanted;           /* number of signals seen */
};

static sigset_t watched(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGINT);
    return set;
}

void mt_stop_block(void)
{
    sigset_t set = watched();
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

void mt_stop_unblock(void)
{
    sigset_t set = watched();
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void *watch(void *arg)
{
    mt_stop *s = arg;
    struct pollfd fds[2] = {{.fd = s->signals, .events = POLLIN}, {.fd = s->closing, .events = POLLIN}};
    while (poll(fds, 2, -1) >= 0 || errno == EINTR) {
        struct signalfd_siginfo info;
        if (fds[1].revents) {
            break;
        }
        if (!(fds[0].revents & POLLIN) || read(s->signals, &info, sizeof info) != sizeof info) {
            continue;
        }
        int number = (int)info.ssi_signo;
        if (__atomic_add_fetch(&s->wanted, 1, __ATOMIC_SEQ_CST) > 1) {
            signal(number, SIG_DFL);
            mt_stop_unblock();
            raise(number);
        }
        MC_INFO("%s: finishing this step, then saving and stopping; a second signal stops at once",
                number == SIGINT    ? "SIGINT"
                : number == SIGTERM ? "SIGTERM"
                                    : "SIGUSR1");
    }
    return NULL;
}

mc_status mt_stop_open(mt_stop **stop_out)
{
    mt_stop *s;
    sigset_t set = watched();
    MC_TRY(MC_NEW(&s, "signal watcher"));
    s->signals = signalfd(-1, &set, SFD_CLOEXEC);
    s->closing = eventfd(0, EFD_CLOEXEC);
    int error = s->signals < 0 || s->closing < 0 ? errno : pthread_create(&s->thread, NULL, watch, s);
    if (error != 0) {
        mt_stop_close(s);
        return MC_FAIL(MC_IO, "cannot watch for signals: %s", strerror(error));
    }
    s->started = true;
    *stop_out = s;
    return MC_OK;
}

void mt_stop_close(mt_stop *s)
{
    if (!s) {
        return;
    }
    if (s->started) {
        eventfd_t one = 1;
        MC_ASSERT(write(s->closing, &one, sizeof one) == sizeof one);
        pthread_join(s->thread, NULL);
    }
    if (s->signals >= 0) {
        close(s->signals);
    }
    if (s->closing >= 0) {
        close(s->closing);
    }
    mc_free(s);
}

bool mt_stop_wanted(const mt_stop *s)
{
    return s && __atomic_load_n(&s->wanted, __ATOMIC_SEQ_CST) > 0;
}
