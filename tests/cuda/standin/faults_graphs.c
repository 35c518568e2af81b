/* Graphs made by capture, correct and not, `faults_graphs FAULT`. Prints "ok" or "WRONG", or the unexpected result of a
 * call. */
#include <stdbool.h>

#include "tests/cuda/standin/faults.h"

enum fault {
    NONE,
    CONSUMER_DOES_NOT_WAIT, /* for a launch of the graph */
    INPUT_OVERWRITTEN,      /* between a launch and its end */
    BRANCHES_COLLIDE,       /* two branches of the graph write the same memory */
    MEMORY_FREED,           /* between capture and launch */
    NOT_JOINED,             /* a stream that was forked off */
    HOST_WAITS,             /* for a stream that is being captured */
    ALLOCATES,              /* during a capture */
    ALLOCATES_RELAXED,      /* which a relaxed capture permits */
    FOREIGN_EVENT,          /* a wait for an event from outside the capture */
    ENDED_ELSEWHERE,        /* on a stream that did not begin the capture */
    CAPTURED_EVENT,         /* the host waits for an event of the capture */
    TWO_CAPTURES,           /* a stream waits for an event of another capture */
    LEGACY_CAPTURED,
    GRAPH_LEFT, /* never destroyed */
};

typedef struct run {
    enum fault fault;
    cudaStream_t a, b, c;
    cudaEvent_t fork, join, event;
    float *x, *y, *z, *in, *out;
} run;

/* The call must return this error. */
#define MUST_BE(error, call)                                                                            \
    do {                                                                                                \
        cudaError_t error_ = (call);                                                                    \
        if (error_ != (error)) {                                                                        \
            printf("%s = %s, expected %s\n", #call, cudaGetErrorName(error_), cudaGetErrorName(error)); \
            exit(FAULTS_ERROR);                                                                         \
        }                                                                                               \
    } while (0)

static void begin(run *r, enum fault fault)
{
    *r = (run){.fault = fault, .a = new_stream(), .b = new_stream(), .c = new_stream()};
    r->fork = new_event();
    r->join = new_event();
    r->event = new_event();
    r->x = new_device(FAULTS_BYTES);
    r->y = new_device(FAULTS_BYTES);
    r->z = new_device(FAULTS_BYTES);
    r->in = new_pinned(FAULTS_BYTES);
    r->out = new_pinned(FAULTS_BYTES);
}

static void end(run *r)
{
    MUST(cudaDeviceSynchronize());
    MUST(cudaFree(r->fault == MEMORY_FREED ? NULL : r->x));
    MUST(cudaFree(r->y));
    MUST(cudaFree(r->z));
    MUST(cudaFreeHost(r->in));
    MUST(cudaFreeHost(r->out));
    MUST(cudaStreamDestroy(r->a));
    MUST(cudaStreamDestroy(r->b));
    MUST(cudaStreamDestroy(r->c));
    MUST(cudaEventDestroy(r->fork));
    MUST(cudaEventDestroy(r->join));
    MUST(cudaEventDestroy(r->event));
}

/* x = in; then on a: y = -x, and beside it on b: z = 2 x; then z -= y, which makes 3 in. */
static cudaGraphExec_t make_graph(run *r)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    MUST(cudaStreamBeginCapture(r->a, cudaStreamCaptureModeGlobal));
    MUST(cudaMemcpyAsync(r->x, r->in, FAULTS_BYTES, cudaMemcpyHostToDevice, r->a));
    MUST(cudaEventRecord(r->fork, r->a));
    MUST(cudaStreamWaitEvent(r->b, r->fork, 0));
    MUST(cudaMemsetAsync(r->y, 0, FAULTS_BYTES, r->a));
    MUST(tk_subtract(r->y, r->x, FAULTS_N, 1, r->a));
    if (r->fault == BRANCHES_COLLIDE) {
        MUST(cudaMemsetAsync(r->z, 0, FAULTS_BYTES, r->a));
    }
    MUST(cudaMemsetAsync(r->z, 0, FAULTS_BYTES, r->b));
    MUST(tk_subtract(r->z, r->x, FAULTS_N, -2, r->b));
    MUST(cudaEventRecord(r->join, r->b));
    MUST(cudaStreamWaitEvent(r->a, r->join, 0));
    MUST(tk_subtract(r->z, r->y, FAULTS_N, 1, r->a));
    MUST(cudaStreamEndCapture(r->a, &graph));
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    MUST(cudaGraphDestroy(graph));
    return exec;
}

static int replay(run *r)
{
    int wrong = 0;
    cudaGraphExec_t exec = make_graph(r);
    for (int round = 1; round <= 3; round++) {
        set_all(r->in, (float)round);
        if (r->fault == MEMORY_FREED && round == 1) {
            MUST(cudaFree(r->x));
        }
        MUST(cudaGraphLaunch(exec, r->c));
        if (r->fault == INPUT_OVERWRITTEN) {
            set_all(r->in, -1);
        }
        MUST(cudaEventRecord(r->event, r->c));
        if (r->fault != CONSUMER_DOES_NOT_WAIT) {
            MUST(cudaStreamWaitEvent(r->a, r->event, 0));
        }
        MUST(cudaMemcpyAsync(r->out, r->z, FAULTS_BYTES, cudaMemcpyDeviceToHost, r->a));
        MUST(cudaStreamSynchronize(r->a));
        wrong |= differs(r->out, 3.0f * (float)round);
        MUST(cudaStreamSynchronize(r->c));
    }
    if (r->fault != GRAPH_LEFT) {
        MUST(cudaGraphExecDestroy(exec));
    }
    return wrong;
}

/* Captures that must fail: each ends with an error, and streams that can be used again. */
static void capture_faults(run *r)
{
    cudaGraph_t graph = NULL;
    void *ptr = NULL;
    bool relaxed = r->fault == ALLOCATES_RELAXED;
    cudaError_t at_end = cudaErrorStreamCaptureInvalidated;
    MUST(cudaEventRecord(r->event, r->c));
    if (r->fault == LEGACY_CAPTURED) {
        MUST_BE(cudaErrorStreamCaptureUnsupported, cudaStreamBeginCapture(NULL, cudaStreamCaptureModeGlobal));
        return;
    }
    MUST(cudaStreamBeginCapture(r->a, relaxed ? cudaStreamCaptureModeRelaxed : cudaStreamCaptureModeGlobal));
    MUST(cudaMemsetAsync(r->y, 0, FAULTS_BYTES, r->a));
    if (r->fault == NOT_JOINED || r->fault == CAPTURED_EVENT || r->fault == ENDED_ELSEWHERE) {
        MUST(cudaEventRecord(r->fork, r->a));
        MUST(cudaStreamWaitEvent(r->b, r->fork, 0));
        at_end = cudaSuccess;
    }
    if (r->fault == NOT_JOINED) {
        MUST(cudaMemsetAsync(r->z, 0, FAULTS_BYTES, r->b));
        at_end = cudaErrorStreamCaptureUnjoined;
    } else if (r->fault == HOST_WAITS) {
        MUST_BE(cudaErrorStreamCaptureUnsupported, cudaStreamSynchronize(r->a));
    } else if (r->fault == ALLOCATES) {
        MUST_BE(cudaErrorStreamCaptureUnsupported, cudaMalloc(&ptr, 4));
    } else if (relaxed) {
        MUST(cudaFree(new_device(4)));
        at_end = cudaSuccess;
    } else if (r->fault == FOREIGN_EVENT) {
        MUST_BE(cudaErrorStreamCaptureIsolation, cudaStreamWaitEvent(r->a, r->event, 0));
    } else if (r->fault == ENDED_ELSEWHERE) {
        MUST_BE(cudaErrorStreamCaptureUnmatched, cudaStreamEndCapture(r->b, &graph));
    } else if (r->fault == CAPTURED_EVENT) {
        MUST_BE(cudaErrorCapturedEvent, cudaEventSynchronize(r->fork));
    } else if (r->fault == TWO_CAPTURES) {
        MUST(cudaEventRecord(r->fork, r->a));
        MUST(cudaStreamBeginCapture(r->c, cudaStreamCaptureModeGlobal));
        MUST_BE(cudaErrorStreamCaptureMerge, cudaStreamWaitEvent(r->c, r->fork, 0));
        MUST(cudaStreamEndCapture(r->c, &graph));
        MUST(cudaGraphDestroy(graph));
        at_end = cudaSuccess;
    }
    MUST_BE(at_end, cudaStreamEndCapture(r->a, &graph));
    if (at_end == cudaSuccess) {
        MUST(cudaGraphDestroy(graph));
    }
}

int main(int argc, char **argv)
{
    run r;
    begin(&r, argc > 1 ? (enum fault)atoi(argv[1]) : NONE);
    if (r.fault >= NOT_JOINED && r.fault != GRAPH_LEFT) {
        capture_faults(&r);
    }
    int wrong = replay(&r);
    end(&r);
    puts(wrong ? "WRONG" : "ok");
    return wrong ? FAULTS_WRONG : 0;
}
