/* The interface of machine.h as the other stand-in libraries use it: operations that wait for somebody else, groups
 * over several streams, the thread that serves other processes, several host threads. Built a second time, with the
 * machine itself, under ThreadSanitizer. */
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "tests/cuda/standin/control.h"
#include "tests/cuda/standin/machine.h"

using standin::Step;

static void expect(bool good, const char *text, int line)
{
    if (!good) {
        fprintf(stderr, "test_machine.cpp:%d: %s is false\n", line, text);
        exit(1);
    }
}
#define EXPECT(condition) expect((condition), #condition, __LINE__)
#define OK(call) EXPECT((call) == cudaSuccess)

static cudaStream_t new_stream()
{
    cudaStream_t stream;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

/* An operation that is pending until `signal` is set. */
static standin::Maker waits_for(std::atomic<int> &signal)
{
    return standin::always([&signal] { return signal ? Step::done : Step::pending; });
}

/* While one thread waits for the operation, another one must be able to use the machine and to bring it about. */
static void waiting_lets_others_in()
{
    std::atomic<int> signal{0};
    cudaStream_t a = new_stream(), b = new_stream();
    standin::OpRef op;
    {
        standin::Lock lock(nullptr);
        op = standin::enqueue({a}, "wait", waits_for(signal));
        EXPECT(op && !standin::done(op));
    }
    std::thread other([&] {
        usleep(2000);
        {
            standin::Lock lock(nullptr);
            standin::force(standin::enqueue({b}, "signal", standin::always([&] {
                                                signal = 1;
                                                return Step::done;
                                            })));
        }
    });
    OK(cudaStreamSynchronize(a));
    other.join();
    standin::Lock lock(nullptr);
    EXPECT(standin::done(op));
    OK(cudaStreamDestroy(a));
    OK(cudaStreamDestroy(b));
}

/* A group waits for all its streams, and all of them wait for it. */
static void group_joins_streams()
{
    int order = 0, before[2] = {}, group = 0, after[2] = {};
    cudaStream_t streams[2] = {new_stream(), new_stream()};
    auto stamp = [&](int &when) {
        return standin::always([&] {
            when = ++order;
            return Step::done;
        });
    };
    standin::Lock lock(nullptr);
    for (int i = 0; i < 2; i++)
        standin::enqueue({streams[i]}, "before", stamp(before[i]));
    standin::enqueue({streams[0], streams[1]}, "group", stamp(group));
    for (int i = 0; i < 2; i++)
        standin::enqueue({streams[i]}, "after", stamp(after[i]));
    OK(cudaDeviceSynchronize());
    for (int i = 0; i < 2; i++) {
        EXPECT(before[i] && before[i] < group && group < after[i]);
        OK(cudaStreamDestroy(streams[i]));
    }
}

/* What another process asks for is run though this process waits for nothing; what it does not need is not. */
static void helper_serves_others()
{
    static std::atomic<int> asked{0}, n_served{0}, n_unneeded{0};
    static standin::OpRef wanted; /* guarded by the lock */
    cudaStream_t a = new_stream(), b = new_stream();
    {
        standin::Lock lock(nullptr);
        standin::add_demand_source([] { return asked ? wanted : nullptr; });
        auto count = [](std::atomic<int> &n) {
            return standin::always([&n] {
                n++;
                return Step::done;
            });
        };
        standin::enqueue({a}, "needed", count(n_served));
        wanted = standin::enqueue({a}, "wanted", count(n_served));
        standin::enqueue({b}, "unneeded", count(n_unneeded));
    }
    asked = 1;
    for (int i = 0; i < 20000 && n_served < 2; i++)
        usleep(500);
    EXPECT(n_served == 2);
    if (std::string(standin::env("STANDIN_POLICY", "late")) == "late")
        EXPECT(n_unneeded == 0);
    OK(cudaDeviceSynchronize());
    asked = 0;
    standin::Lock lock(nullptr);
    wanted = nullptr;
    OK(cudaStreamDestroy(a));
    OK(cudaStreamDestroy(b));
}

/* A graph makes its operations anew at each launch. */
static void makers_run_at_replay()
{
    int n_made = 0, n_run = 0;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStream_t a = new_stream();
    OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
    {
        standin::Lock lock(nullptr);
        EXPECT(standin::capturing(a));
        standin::OpRef op = standin::enqueue({a}, "numbered", [&] {
            int number = ++n_made;
            return [&n_run, number] {
                EXPECT(number == ++n_run);
                return Step::done;
            };
        });
        EXPECT(!op && n_made == 0);
    }
    OK(cudaStreamEndCapture(a, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphLaunch(exec, a));
    OK(cudaGraphLaunch(exec, a));
    OK(cudaStreamSynchronize(a));
    EXPECT(n_run == 2);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(graph));
    OK(cudaStreamDestroy(a));
}

/* Host threads with a stream each. */
static void threads_share_the_machine()
{
    enum { THREADS = 3, ROUNDS = 100 };
    std::thread threads[THREADS];
    std::atomic<int> n_wrong{0};
    for (int t = 0; t < THREADS; t++) {
        threads[t] = std::thread([t, &n_wrong] {
            cudaStream_t stream = new_stream();
            int *device, *host;
            OK(cudaMallocHost(reinterpret_cast<void **>(&host), 2 * sizeof *host));
            for (int round = 0; round < ROUNDS; round++) {
                OK(cudaMalloc(reinterpret_cast<void **>(&device), sizeof *device));
                host[0] = t * ROUNDS + round;
                OK(cudaMemcpyAsync(device, host, sizeof *host, cudaMemcpyHostToDevice, stream));
                OK(cudaMemcpyAsync(host + 1, device, sizeof *host, cudaMemcpyDeviceToHost, stream));
                OK(cudaStreamSynchronize(stream));
                n_wrong += host[1] != host[0];
                OK(cudaFree(device));
            }
            OK(cudaFreeHost(host));
            OK(cudaStreamDestroy(stream));
        });
    }
    for (std::thread &thread : threads)
        thread.join();
    EXPECT(n_wrong == 0);
}

static void ranges_are_checked()
{
    char *device, host[4];
    OK(cudaMalloc(reinterpret_cast<void **>(&device), 100));
    standin::Lock lock(nullptr);
    int n = standin_n_misuses();
    EXPECT(standin::check_range("test", device, 100, true) && standin::check_range("test", device + 99, 1, true));
    EXPECT(standin::check_range("test", host, 4, false));
    EXPECT(standin_n_misuses() == n);
    EXPECT(!standin::check_range("test", device, 101, true) && !standin::check_range("test", host, 4, true));
    EXPECT(standin_n_misuses() == n + 2);
    EXPECT(standin::describe(device + 8).find("live device allocation #") != std::string::npos);
    standin_forgive();
    OK(cudaFree(device));
}

/* In a process of its own: nobody brings the operation about. */
static void get_stuck()
{
    std::atomic<int> never{0};
    cudaStream_t a = new_stream();
    {
        standin::Lock lock(nullptr);
        standin::enqueue({a}, "abandoned", waits_for(never));
    }
    cudaStreamSynchronize(a);
}

static void a_wait_has_an_end()
{
    pid_t child = fork();
    if (child == 0) {
        setenv("STANDIN_DEADLINE", "0.1", 1);
        execl("/proc/self/exe", "test_machine", "stuck", static_cast<char *>(nullptr));
        _exit(99);
    }
    int status = 0;
    EXPECT(waitpid(child, &status, 0) == child);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 96);
}

int main(int argc, char **)
{
    if (argc > 1) {
        get_stuck();
        return 0;
    }
    a_wait_has_an_end();
    waiting_lets_others_in();
    group_joins_streams();
    helper_serves_others();
    makers_run_at_replay();
    threads_share_the_machine();
    ranges_are_checked();
    puts("ok");
    return 0;
}
