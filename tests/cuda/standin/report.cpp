/* What the stand-in says: misuse while the program runs, leaks and unfinished work at its end; and the environment. */
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <unistd.h>

#include "tests/cuda/standin/machine_impl.h"

namespace standin
{

static constexpr int MAX_REPORTS = 20, MISUSE_STATUS = 97;

double now()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

const char *env(const char *name, const char *preset)
{
    const char *value = getenv(name);
    return value && *value ? value : preset;
}

int rank()
{
    static const int r = atoi(env("OMPI_COMM_WORLD_RANK", env("PMI_RANK", env("SLURM_PROCID", env("RANK", "0")))));
    return r;
}

int local_rank()
{
    static const int r = atoi(env("OMPI_COMM_WORLD_LOCAL_RANK", env("SLURM_LOCALID", env("LOCAL_RANK", "0"))));
    return r;
}

static void vsay(const char *tag, const char *format, va_list arguments)
{
    char line[2000];
    int n = snprintf(line, sizeof line, "standin[%d] %s: ", rank(), tag);
    vsnprintf(line + n, sizeof line - static_cast<size_t>(n) - 1, format, arguments);
    size_t length = strlen(line);
    line[length++] = '\n';
    if (write(STDERR_FILENO, line, length) < 0)
        return; /* nobody listens */
}

void say(const char *tag, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsay(tag, format, arguments);
    va_end(arguments);
}

void misuse(const char *format, ...)
{
    if (++machine().n_misuses > MAX_REPORTS)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsay("MISUSE", format, arguments);
    va_end(arguments);
}

void die(int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsay("FATAL", format, arguments);
    va_end(arguments);
    _exit(status);
}

static void report_leaks(Machine &m)
{
    int n = 0;
    size_t bytes = 0;
    const Memory *first = nullptr;
    for (auto &[address, block] : m.blocks) {
        if (!block.live)
            continue;
        check_slack(block);
        n++;
        bytes += block.bytes;
        first = first && first->number < block.number ? first : &block;
    }
    if (!atoi(env("STANDIN_LEAKS", "1")))
        return;
    if (first) {
        misuse("%d allocations leaked (%zu bytes); the first is %s allocation #%d (%zu bytes)", n, bytes,
               kind_name(first->kind), first->number, first->bytes);
    }
    size_t n_graphs = m.graphs.size() + m.execs.size();
    if (m.streams.size() + m.events.size() + n_graphs)
        misuse("never destroyed: %zu streams, %zu events, %zu graphs", m.streams.size(), m.events.size(), n_graphs);
}

/* The lock stays taken: the helper's thread does nothing more. A program that ends with an error of its own, or whose
 * device is lost, need not have tidied up. */
static void report_exit(int status, void *)
{
    Machine &m = machine();
    if (getpid() != m.pid)
        return;
    m.mutex.lock();
    memory_open(true);
    if (status == 0 && m.lost == cudaSuccess) {
        if (!m.pending.empty())
            misuse("%zu operations never ran; the first is %s", m.pending.size(), m.pending.front()->what.c_str());
        report_leaks(m);
    }
    if (m.failure.nth > m.failure.calls) {
        say("NOTE", "STANDIN_FAIL=%s:%d was not reached, %d calls", m.failure.name.c_str(), m.failure.nth,
            m.failure.calls);
    }
    if (m.n_misuses > MAX_REPORTS)
        say("NOTE", "%d more reports were left out", m.n_misuses - MAX_REPORTS);
    if (m.stats) {
        say("STATS", "%llu operations, %llu device allocations, peak %zu bytes, %llu switches of the guard, %d misuses",
            static_cast<unsigned long long>(m.n_run), static_cast<unsigned long long>(m.n_allocations), m.peak,
            static_cast<unsigned long long>(m.n_switches), m.n_misuses);
    }
    if (m.n_misuses) {
        fflush(nullptr);
        _exit(MISUSE_STATUS);
    }
}

void report_start()
{
    on_exit(report_exit, nullptr);
}

} // namespace standin

/* For tests: control.h. */
#include "tests/cuda/standin/control.h"

extern "C" {

uint64_t standin_n_allocations(void)
{
    standin::Lock lock(nullptr);
    return standin::machine().n_allocations;
}

uint64_t standin_n_operations(void)
{
    standin::Lock lock(nullptr);
    return standin::machine().n_run;
}

int standin_n_misuses(void)
{
    standin::Lock lock(nullptr);
    return standin::machine().n_misuses;
}

void standin_forgive(void)
{
    standin::Lock lock(nullptr);
    standin::machine().n_misuses = 0;
}

void standin_host_access(const void *ptr, size_t bytes, int writes)
{
    standin::access(ptr, bytes, writes != 0, __builtin_return_address(0));
}
}
