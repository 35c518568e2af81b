/* libcudart: graphs made by capture of streams. A graph keeps the makers of its operations; a launch queues new ones.
 */
#include "tests/cuda/standin/machine_impl.h"

using namespace standin;

bool standin::breaks_capture()
{
    bool breaks = false;
    for (CUgraph_st *graph : machine().captures) {
        bool forbids = graph->mode != cudaStreamCaptureModeRelaxed;
        graph->broken |= forbids;
        breaks |= forbids;
    }
    return breaks;
}

STANDIN_API cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    STANDIN_ENTER(cudaStreamBeginCapture);
    STANDIN_NEEDS(live_stream(stream), cudaErrorInvalidResourceHandle);
    CUstream_st *s = resolve(stream);
    STANDIN_NEEDS(s != &machine().legacy, cudaErrorStreamCaptureUnsupported);
    STANDIN_NEEDS(!s->capture, cudaErrorIllegalState);
    s->capture = new CUgraph_st{{}, stream, mode, {}, false};
    s->capture_tail.clear();
    machine().captures.insert(s->capture);
    return cudaSuccess;
}

/* Which nodes those at `tail` depend on, themselves included. */
static std::vector<bool> nodes_before(const CUgraph_st &graph, std::vector<int> tail)
{
    std::vector<bool> before(graph.nodes.size());
    while (!tail.empty()) {
        auto i = static_cast<size_t>(tail.back());
        tail.pop_back();
        if (!before[i]) {
            before[i] = true;
            tail.insert(tail.end(), graph.nodes[i].deps.begin(), graph.nodes[i].deps.end());
        }
    }
    return before;
}

/* Takes the streams out of the capture. Returns whether one of them has work that the origin does not wait for. */
static bool release_streams(CUgraph_st &graph)
{
    Machine &m = machine();
    bool unjoined = false;
    std::vector<bool> before = nodes_before(graph, graph.origin->capture_tail);
    graph.joined.insert(graph.origin);
    for (cudaStream_t s : graph.joined) {
        if (!m.streams.count(s) || s->capture != &graph)
            continue;
        for (int node : s->capture_tail)
            unjoined |= !before[static_cast<size_t>(node)];
        s->capture = nullptr;
        s->capture_tail.clear();
    }
    m.captures.erase(&graph);
    return unjoined;
}

STANDIN_API cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph_out)
{
    STANDIN_ENTER(cudaStreamEndCapture);
    STANDIN_NEEDS(live_stream(stream), cudaErrorInvalidResourceHandle);
    CUgraph_st *graph = resolve(stream)->capture;
    STANDIN_NEEDS(graph, cudaErrorIllegalState);
    STANDIN_NEEDS(graph->origin == stream, cudaErrorStreamCaptureUnmatched);
    *graph_out = nullptr;
    bool unjoined = release_streams(*graph), broken = graph->broken;
    if (unjoined || broken) {
        misuse("stream capture: %s", broken ? "something in it may not be captured" : "a stream was not joined again");
        delete graph;
        return set_error(broken ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined);
    }
    machine().graphs.insert(graph);
    *graph_out = graph;
    return cudaSuccess;
}

STANDIN_API cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    STANDIN_ENTER(cudaStreamIsCapturing);
    STANDIN_NEEDS(live_stream(stream), cudaErrorInvalidResourceHandle);
    const CUgraph_st *graph = resolve(stream)->capture;
    *status = !graph          ? cudaStreamCaptureStatusNone
              : graph->broken ? cudaStreamCaptureStatusInvalidated
                              : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

STANDIN_API cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n_nodes)
{
    STANDIN_ENTER(cudaGraphGetNodes);
    STANDIN_NEEDS(machine().graphs.count(graph) && !nodes, cudaErrorInvalidValue); /* their number only */
    *n_nodes = graph->nodes.size();
    return cudaSuccess;
}

static cudaError_t instantiate(cudaGraphExec_t *exec_out, cudaGraph_t graph)
{
    Machine &m = machine();
    STANDIN_NEEDS(m.graphs.count(graph), cudaErrorInvalidValue);
    *exec_out = new CUgraphExec_st{graph->nodes, nullptr};
    for (Node &node : (*exec_out)->nodes)
        node.lane = m.n_lanes++;
    m.execs.insert(*exec_out);
    return cudaSuccess;
}

STANDIN_API cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    STANDIN_ENTER(cudaGraphInstantiate);
    return instantiate(exec, graph);
}

STANDIN_API cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    STANDIN_ENTER(cudaGraphInstantiateWithFlags);
    return instantiate(exec, graph);
}

/* Memory that was freed since the capture. */
static void check_node(const Node &node)
{
    for (const Access &access : node.accesses) {
        const Memory *block = find_block(access.ptr);
        if (block && !block->live)
            misuse("cudaGraphLaunch: %s uses %s", node.what.c_str(), describe(access.ptr).c_str());
    }
}

STANDIN_API cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    STANDIN_ENTER(cudaGraphLaunch);
    STANDIN_NEEDS(live_stream(stream), cudaErrorInvalidResourceHandle);
    STANDIN_NEEDS(machine().execs.count(exec), cudaErrorInvalidValue);
    STANDIN_NEEDS(!capturing(stream), cudaErrorStreamCaptureUnsupported);
    OpRef begin = enqueue({stream}, "graph begin", nothing(), {}, {exec->last});
    std::vector<OpRef> ops;
    for (const Node &node : exec->nodes) {
        check_node(node);
        std::vector<OpRef> after{begin};
        for (int dep : node.deps)
            after.push_back(ops[static_cast<size_t>(dep)]);
        ops.push_back(issue(node.lane, node.what, node.make, node.accesses, after));
    }
    exec->last = enqueue({stream}, "graph end", nothing(), {}, ops);
    return cudaSuccess;
}

STANDIN_API cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    STANDIN_ENTER(cudaGraphUpload);
    STANDIN_NEEDS(live_stream(stream), cudaErrorInvalidResourceHandle);
    STANDIN_NEEDS(machine().execs.count(exec), cudaErrorInvalidValue);
    return cudaSuccess;
}

STANDIN_API cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    STANDIN_ENTER(cudaGraphExecDestroy);
    STANDIN_NEEDS(machine().execs.erase(exec), cudaErrorInvalidValue);
    delete exec;
    return cudaSuccess;
}

STANDIN_API cudaGraphDestroy(cudaGraph_t graph)
{
    STANDIN_ENTER(cudaGraphDestroy);
    STANDIN_NEEDS(machine().graphs.erase(graph), cudaErrorInvalidValue);
    delete graph;
    return cudaSuccess;
}
