/* The stream machine: operations in a graph of dependencies, and the policies that choose which of them run when. */
#include <cstdlib>
#include <cstring>
#include <thread>
#include <unistd.h>

#include "tests/cuda/standin/machine_impl.h"

namespace standin
{

thread_local Op *running;
thread_local bool in_host_function;
thread_local cudaError_t last_error = cudaSuccess;

uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void read_failure(Failure &failure)
{
    std::string text = env("STANDIN_FAIL", "");
    size_t at = text.rfind('@'), colon = text.rfind(':');
    if (text.empty() || (at != std::string::npos && atoi(text.c_str() + at + 1) != rank()))
        return;
    failure.nth = colon == std::string::npos ? 0 : atoi(text.c_str() + colon + 1);
    if (failure.nth < 1)
        die(2, "STANDIN_FAIL=%s: must be NAME:N or NAME:N@RANK with N >= 1", text.c_str());
    failure.name = text.substr(0, colon);
}

static void read_policy(Machine &m)
{
    std::string text = env("STANDIN_POLICY", "late");
    const char *colon = strchr(text.c_str(), ':');
    std::string name = text.substr(0, text.find(':'));
    if (name != "eager" && name != "late" && name != "random")
        die(2, "STANDIN_POLICY=%s: must be eager, late or random:SEED", text.c_str());
    m.policy = name == "eager" ? Policy::eager : name == "random" ? Policy::random : Policy::late;
    m.seed = mix(colon ? strtoull(colon + 1, nullptr, 0) : 1) + mix(static_cast<uint64_t>(rank()) + 1);
}

static Machine *start()
{
    auto *m = new Machine;
    m->pid = getpid();
    read_policy(*m);
    read_failure(m->failure);
    m->race = atoi(env("STANDIN_RACE", "0")) != 0;
    m->host_guard = static_cast<HostGuard>(atoi(env("STANDIN_HOSTGUARD", "1")));
    m->trace = atoi(env("STANDIN_TRACE", "0")) != 0;
    m->stats = atoi(env("STANDIN_STATS", "0")) != 0;
    m->capacity = strtoull(env("STANDIN_MEM", "8589934592"), nullptr, 0);
    m->max_pending = strtoull(env("STANDIN_MAXPENDING", "4096"), nullptr, 0);
    m->deadline = strtod(env("STANDIN_DEADLINE", "20"), nullptr);
    m->host_clock = Clock(1);
    memory_start(*m);
    device_start(*m);
    report_start();
    return m;
}

Machine &machine()
{
    static Machine *m = start();
    return *m;
}

/* Before main, so that the handlers and the report at exit stand whatever is called first. */
__attribute__((constructor)) static void start_early()
{
    machine();
}

/* ---- the lock */

bool strikes(const char *name, const char *group)
{
    Failure &failure = machine().failure;
    bool matches =
        failure.name == group ||
        (strcmp(group, "launch") == 0 ? strstr(name, failure.name.c_str()) != nullptr : failure.name == name);
    return failure.nth && matches && ++failure.calls == failure.nth;
}

Lock::Lock(const char *api) : inject(false)
{
    Machine &m = machine();
    m.mutex.lock();
    m.depth++;
    if (!api)
        return;
    if (in_host_function)
        misuse("%s is called inside a host function", api);
    inject = strikes(api, "*");
    if (inject && (m.trace || m.stats))
        say("NOTE", "%s fails, as STANDIN_FAIL wants", api);
}

Lock::~Lock()
{
    Machine &m = machine();
    if (m.depth == 1 && !running)
        memory_open(false);
    m.depth--;
    m.mutex.unlock();
}

/* Lets other threads have the machine for a while, whatever the depth of this thread's locks. */
static void rest(unsigned microseconds)
{
    Machine &m = machine();
    int depth = m.depth;
    m.depth = 0;
    for (int i = 0; i < depth; i++)
        m.mutex.unlock();
    usleep(microseconds);
    for (int i = 0; i < depth; i++)
        m.mutex.lock();
    m.depth = depth;
}

cudaError_t set_error(cudaError_t error)
{
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

/* ---- running */

bool done(const OpRef &op)
{
    return !op || op->finished;
}

static void finish(const OpRef &op)
{
    Machine &m = machine();
    op->finished = true;
    op->finished_at = now();
    op->run = nullptr;
    op->deps.clear();
    m.pending.erase(op->place);
    m.n_run++;
}

/* Returns whether the operation is finished. */
static bool step(const OpRef &op)
{
    Machine &m = machine();
    running = op.get();
    bool fails = m.lost != cudaSuccess || strikes(op->what.c_str(), "async");
    Step result = fails ? Step::failed : op->run();
    if (result == Step::done) {
        for (const Access &a : op->accesses) {
            if (m.race && a.bytes)
                access(a.ptr, a.bytes, a.writes, nullptr);
            if (Memory *block = a.writes ? find_block(a.ptr) : nullptr)
                check_slack(*block);
        }
    }
    running = nullptr;
    if (result == Step::pending)
        return false;
    if (m.trace)
        say("RUN", "%s%s", op->what.c_str(), result == Step::failed ? " fails" : "");
    if (result == Step::failed && m.lost == cudaSuccess)
        m.lost = cudaErrorLaunchFailure;
    finish(op);
    return true;
}

/* The unfinished operations that `ops` need, themselves included. */
static std::vector<OpRef> cone_of(const std::vector<OpRef> &ops)
{
    Machine &m = machine();
    std::vector<OpRef> cone;
    m.mark++;
    auto add = [&](const OpRef &op) {
        if (op && !op->finished && op->mark != m.mark) {
            op->mark = m.mark;
            cone.push_back(op);
        }
    };
    for (const OpRef &op : ops)
        add(op);
    for (size_t i = 0; i < cone.size(); i++) {
        OpRef op = cone[i]; /* a copy: `cone` grows */
        for (const OpRef &dep : op->deps)
            add(dep);
    }
    return cone;
}

/* The ready operation of the greatest rank goes first. Late: the youngest. By number, not by a running generator: how
 * often an operation is pending depends on time. */
static uint64_t rank_of(const Op &op)
{
    Policy policy = machine().policy;
    return policy == Policy::late ? op.id : policy == Policy::random ? op.priority : ~op.id;
}

/* Steps the operations of the cone until `stop` or until none of them can go on. Dependencies outside the cone hold an
 * operation back. Returns whether something was finished. */
static bool sweep(const std::vector<OpRef> &cone, const std::function<bool()> &stop)
{
    using Ready = std::set<std::pair<uint64_t, const OpRef *>>;
    std::map<Op *, const OpRef *> refs;
    Ready ready, stalled;
    for (const OpRef &op : cone) {
        op->n_waits = 0;
        op->followers.clear();
        refs[op.get()] = &op;
    }
    for (const OpRef &op : cone) {
        for (const OpRef &dep : op->deps) {
            if (!dep->finished) {
                op->n_waits++;
                dep->followers.push_back(op.get());
            }
        }
        if (op->n_waits == 0)
            ready.insert({rank_of(*op), &op});
    }
    bool any = false;
    memory_open(true);
    while (!ready.empty() && !stop()) {
        auto best = std::prev(ready.end());
        const OpRef &op = *best->second;
        if (step(op)) {
            any = true;
            for (Op *follower : op->followers) {
                if (--follower->n_waits == 0)
                    ready.insert({rank_of(*follower), refs[follower]});
            }
            ready.insert(stalled.begin(), stalled.end());
            stalled.clear();
        } else {
            stalled.insert(*best);
        }
        ready.erase(best);
    }
    return any;
}

cudaError_t force_all(std::vector<OpRef> ops)
{
    Machine &m = machine();
    auto stop = [&] {
        for (const OpRef &op : ops) {
            if (!done(op))
                return false;
        }
        return true;
    };
    double since = now();
    for (int naps = 0; !stop();) {
        std::vector<OpRef> cone = cone_of(ops);
        if (sweep(cone, stop)) {
            naps = 0;
            since = now();
        } else if (now() - since > 3 * m.deadline) {
            die(96, "%s waits for another process for %.0f s", cone.back()->what.c_str(), now() - since);
        } else {
            rest(naps++ < 20 ? 20 : 200);
        }
    }
    for (const OpRef &op : ops)
        host_follows(op);
    return m.lost;
}

void force(const OpRef &op)
{
    force_all({op});
}

cudaError_t force_everything()
{
    Machine &m = machine();
    cudaError_t error = force_all({m.pending.begin(), m.pending.end()});
    clock_join(m.host_clock, m.issued);
    return error;
}

bool poll(const OpRef &op, int &queries)
{
    if (!done(op) && (machine().policy == Policy::eager || ++queries % 3 == 0))
        sweep(cone_of({op}), [&] { return op->finished; });
    if (done(op))
        host_follows(op);
    return done(op);
}

/* Random: under each seed about half of the streams run only when they are waited for. */
static bool lazy(int lane)
{
    return mix(machine().seed * 31 + static_cast<uint64_t>(lane)) & 1;
}

/* After each issue: what the policy lets run at once. */
static void run_some()
{
    Machine &m = machine();
    bool full = m.pending.size() >= m.max_pending;
    uint64_t n = UINT64_MAX; /* operations to run */
    if (full) {
        n = m.max_pending / 2;
    } else if (m.policy == Policy::late) {
        n = 0;
    } else if (m.policy == Policy::random) {
        uint64_t h = mix(m.seed ^ m.next_id * 77);
        n = h % 4 ? 0 : (h >> 8) % 5;
    }
    if (n == 0)
        return;
    std::vector<OpRef> cone;
    for (const OpRef &op : m.pending) {
        if (full || m.policy == Policy::eager || !lazy(op->lane))
            cone.push_back(op);
    }
    uint64_t first = m.n_run;
    sweep(cone, [&] { return m.n_run - first >= n; });
}

/* Serves other processes while the threads of this one do something else. */
static void help()
{
    Machine &m = machine();
    for (;;) {
        usleep(200);
        Lock lock(nullptr);
        bool was_open = memory_is_open();
        for (size_t i = 0; i < m.demand_sources.size(); i++) {
            if (OpRef op = m.demand_sources[i]())
                sweep(cone_of({op}), [&] { return op->finished; });
        }
        memory_open(was_open);
    }
}

void add_demand_source(std::function<OpRef()> source)
{
    Machine &m = machine();
    Lock lock(nullptr);
    m.demand_sources.push_back(std::move(source));
    if (!m.helper_runs) {
        m.helper_runs = true;
        std::thread(help).detach();
    }
}

/* ---- queueing */

Maker nothing()
{
    return always([] { return Step::done; });
}

CUstream_st *resolve(cudaStream_t stream)
{
    bool is_legacy = !stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
    return is_legacy ? &machine().legacy : stream;
}

bool live_stream(cudaStream_t stream)
{
    Machine &m = machine();
    if (resolve(stream) == &m.legacy || m.streams.count(stream))
        return true;
    misuse("%p is not a live stream", static_cast<void *>(stream));
    return false;
}

bool capturing(cudaStream_t stream)
{
    return resolve(stream)->capture != nullptr;
}

static OpRef make_op(int lane, int stream, const std::string &what, const Maker &make, std::vector<Access> accesses)
{
    Machine &m = machine();
    auto op = std::make_shared<Op>();
    op->id = m.next_id++;
    op->priority = mix(m.seed + op->id);
    op->lane = lane;
    op->run = make();
    op->accesses = std::move(accesses);
    op->what = what + " [op " + std::to_string(op->id) +
               (stream < 0 ? ", graph]" : ", stream " + std::to_string(stream) + "]");
    if (m.race)
        clock_start(*op);
    return op;
}

static void depend(Op &op, const OpRef &dep, Order order = Order::data)
{
    if (!dep)
        return;
    if (machine().race && order == Order::data)
        clock_join(op.clock, dep->clock);
    if (!dep->finished)
        op.deps.push_back(dep);
}

static void commit(const OpRef &op)
{
    Machine &m = machine();
    op->place = m.pending.insert(m.pending.end(), op);
    if (m.trace)
        say("ISSUE", "%s", op->what.c_str());
    run_some();
}

OpRef issue(int lane, const std::string &what, Maker make, std::vector<Access> accesses,
            const std::vector<OpRef> &after)
{
    OpRef op = make_op(lane, -1, what, make, std::move(accesses));
    for (const OpRef &dep : after)
        depend(*op, dep);
    if (machine().race)
        clock_stamp(*op, lane);
    commit(op);
    return op;
}

/* Adds a node to the graph that the streams are being captured into. */
static void capture(const Streams &streams, const std::string &what, Maker make, std::vector<Access> accesses)
{
    CUgraph_st *graph = nullptr;
    for (cudaStream_t s : streams)
        graph = resolve(s)->capture ? resolve(s)->capture : graph;
    Node node{what, std::move(make), {}, std::move(accesses), 0};
    for (cudaStream_t s : streams) {
        CUstream_st *stream = resolve(s);
        if (stream->capture != graph) {
            misuse("%s: stream %d is not part of the capture", what.c_str(), stream->number);
            graph->broken = true;
        }
        node.deps.insert(node.deps.end(), stream->capture_tail.begin(), stream->capture_tail.end());
    }
    int position = static_cast<int>(graph->nodes.size());
    graph->nodes.push_back(std::move(node));
    for (cudaStream_t s : streams)
        resolve(s)->capture_tail = {position};
}

OpRef enqueue(const Streams &streams, const std::string &what, Maker make, std::vector<Access> accesses,
              std::vector<OpRef> after, Order order)
{
    Machine &m = machine();
    device_touch();
    bool has_legacy = false, blocks = false, captures = false;
    for (cudaStream_t s : streams) {
        if (!live_stream(s))
            return nullptr;
        has_legacy |= resolve(s) == &m.legacy;
        blocks |= !(resolve(s)->flags & cudaStreamNonBlocking);
        captures |= capturing(s);
    }
    if (captures) {
        capture(streams, what, std::move(make), std::move(accesses));
        return nullptr;
    }
    CUstream_st *first = resolve(streams.at(0));
    OpRef op = make_op(first->number + 1, first->number, what, make, std::move(accesses));
    for (const OpRef &dep : after)
        depend(*op, dep, order);
    for (cudaStream_t s : streams)
        depend(*op, resolve(s)->tail);
    /* The legacy stream waits for all blocking streams, and they for it. */
    for (CUstream_st *s : m.streams) {
        if (has_legacy && !(s->flags & cudaStreamNonBlocking))
            depend(*op, s->tail);
    }
    if (blocks)
        depend(*op, m.last_legacy);
    for (cudaStream_t s : streams) {
        if (m.race)
            clock_stamp(*op, resolve(s)->number + 1);
        resolve(s)->tail = op;
    }
    if (has_legacy)
        m.last_legacy = op;
    commit(op);
    return op;
}

} // namespace standin
