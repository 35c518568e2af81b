/* libcudart: streams and events. */
#include "tests/cuda/standin/machine_impl.h"

using namespace standin;

#define NEEDS_STREAM(stream) STANDIN_NEEDS(live_stream(stream), cudaErrorInvalidResourceHandle)
#define NEEDS_EVENT(event) STANDIN_NEEDS(machine().events.count(event), cudaErrorInvalidResourceHandle)

/* The host may not wait for a stream that is being captured. */
static bool spoils_capture(cudaStream_t stream)
{
    if (!capturing(stream))
        return false;
    resolve(stream)->capture->broken = true;
    return true;
}
#define NEEDS_NO_CAPTURE(stream) STANDIN_NEEDS(!spoils_capture(stream), cudaErrorStreamCaptureUnsupported)

static cudaError_t create_stream(cudaStream_t *stream_out, unsigned flags, int priority)
{
    Machine &m = machine();
    device_touch();
    STANDIN_NEEDS(stream_out && !(flags & ~static_cast<unsigned>(cudaStreamNonBlocking)), cudaErrorInvalidValue);
    int number = m.n_lanes++ - 1;
    *stream_out = new CUstream_st{number, flags, priority, nullptr, nullptr, {}, 0};
    m.streams.insert(*stream_out);
    return cudaSuccess;
}

STANDIN_API cudaStreamCreate(cudaStream_t *stream)
{
    STANDIN_ENTER(cudaStreamCreate);
    return create_stream(stream, cudaStreamDefault, 0);
}

STANDIN_API cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    STANDIN_ENTER(cudaStreamCreateWithFlags);
    return create_stream(stream, flags, 0);
}

STANDIN_API cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    STANDIN_ENTER(cudaStreamCreateWithPriority);
    return create_stream(stream, flags, priority);
}

STANDIN_API cudaStreamDestroy(cudaStream_t stream)
{
    STANDIN_ENTER(cudaStreamDestroy);
    NEEDS_STREAM(stream);
    STANDIN_NEEDS(resolve(stream) == stream, cudaErrorInvalidResourceHandle);
    if (stream->capture)
        misuse("stream %d is destroyed while it is being captured", stream->number);
    machine().streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

STANDIN_API cudaStreamGetFlags(cudaStream_t stream, unsigned *flags)
{
    STANDIN_ENTER(cudaStreamGetFlags);
    NEEDS_STREAM(stream);
    *flags = resolve(stream)->flags;
    return cudaSuccess;
}

STANDIN_API cudaStreamGetPriority(cudaStream_t stream, int *priority)
{
    STANDIN_ENTER(cudaStreamGetPriority);
    NEEDS_STREAM(stream);
    *priority = resolve(stream)->priority;
    return cudaSuccess;
}

STANDIN_API cudaStreamSynchronize(cudaStream_t stream)
{
    STANDIN_ENTER(cudaStreamSynchronize);
    NEEDS_STREAM(stream);
    NEEDS_NO_CAPTURE(stream);
    Machine &m = machine();
    std::vector<OpRef> ops{resolve(stream)->tail};
    for (CUstream_st *other : m.streams) {
        if (resolve(stream) == &m.legacy && !(other->flags & cudaStreamNonBlocking))
            ops.push_back(other->tail);
    }
    return set_error(force_all(ops));
}

STANDIN_API cudaStreamQuery(cudaStream_t stream)
{
    STANDIN_ENTER(cudaStreamQuery);
    NEEDS_STREAM(stream);
    NEEDS_NO_CAPTURE(stream);
    CUstream_st *s = resolve(stream);
    return set_error(poll(s->tail, s->queries) ? machine().lost : cudaErrorNotReady);
}

STANDIN_API cudaDeviceSynchronize()
{
    STANDIN_ENTER(cudaDeviceSynchronize);
    STANDIN_NEEDS(!breaks_capture(), cudaErrorStreamCaptureUnsupported);
    return set_error(force_everything());
}

STANDIN_API cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument)
{
    STANDIN_ENTER(cudaLaunchHostFunc);
    NEEDS_STREAM(stream);
    STANDIN_NEEDS(function, cudaErrorInvalidValue);
    enqueue({stream}, "host function", always([=] {
                in_host_function = true;
                memory_open(false);
                function(argument);
                in_host_function = false;
                memory_open(true);
                return Step::done;
            }));
    return cudaSuccess;
}

/* ---- events */

static cudaError_t create_event(cudaEvent_t *event_out, unsigned flags)
{
    STANDIN_NEEDS(event_out, cudaErrorInvalidValue);
    device_touch();
    *event_out = new CUevent_st{flags, nullptr, nullptr, {}, 0};
    machine().events.insert(*event_out);
    return cudaSuccess;
}

STANDIN_API cudaEventCreate(cudaEvent_t *event)
{
    STANDIN_ENTER(cudaEventCreate);
    return create_event(event, cudaEventDefault);
}

STANDIN_API cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    STANDIN_ENTER(cudaEventCreateWithFlags);
    return create_event(event, flags);
}

STANDIN_API cudaEventDestroy(cudaEvent_t event)
{
    STANDIN_ENTER(cudaEventDestroy);
    STANDIN_NEEDS(machine().events.erase(event), cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}

STANDIN_API cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    STANDIN_ENTER(cudaEventRecord);
    NEEDS_STREAM(stream);
    NEEDS_EVENT(event);
    CUstream_st *s = resolve(stream);
    event->queries = 0;
    event->capture = s->capture;
    event->capture_nodes = s->capture_tail;
    event->op = s->capture ? nullptr : enqueue({stream}, "event record", nothing());
    return cudaSuccess;
}

/* A wait inside a capture: the stream joins the capture of the event. */
static cudaError_t wait_captured(CUstream_st *stream, cudaEvent_t event)
{
    if (event->capture) {
        STANDIN_NEEDS(machine().captures.count(event->capture), cudaErrorInvalidResourceHandle);
        STANDIN_NEEDS(!stream->capture || stream->capture == event->capture, cudaErrorStreamCaptureMerge);
        stream->capture = event->capture;
        event->capture->joined.insert(stream);
        stream->capture_tail.insert(stream->capture_tail.end(), event->capture_nodes.begin(),
                                    event->capture_nodes.end());
    } else if (event->op) {
        stream->capture->broken = true;
        return set_error(cudaErrorStreamCaptureIsolation);
    }
    return cudaSuccess;
}

STANDIN_API cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    STANDIN_ENTER(cudaStreamWaitEvent);
    NEEDS_STREAM(stream);
    NEEDS_EVENT(event);
    if (event->capture || capturing(stream))
        return wait_captured(resolve(stream), event);
    /* The race detector needs the wait for a finished event too: it carries the event's clock. */
    if (event->op && (machine().race || !event->op->finished))
        enqueue({stream}, "wait event", nothing(), {}, {event->op});
    return cudaSuccess;
}

STANDIN_API cudaEventSynchronize(cudaEvent_t event)
{
    STANDIN_ENTER(cudaEventSynchronize);
    NEEDS_EVENT(event);
    STANDIN_NEEDS(!event->capture, cudaErrorCapturedEvent);
    return set_error(force_all({event->op}));
}

STANDIN_API cudaEventQuery(cudaEvent_t event)
{
    STANDIN_ENTER(cudaEventQuery);
    NEEDS_EVENT(event);
    STANDIN_NEEDS(!event->capture, cudaErrorCapturedEvent);
    return set_error(poll(event->op, event->queries) ? machine().lost : cudaErrorNotReady);
}

STANDIN_API cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    STANDIN_ENTER(cudaEventElapsedTime);
    NEEDS_EVENT(begin);
    NEEDS_EVENT(end);
    STANDIN_NEEDS(!((begin->flags | end->flags) & cudaEventDisableTiming), cudaErrorInvalidResourceHandle);
    STANDIN_NEEDS(begin->op && end->op, cudaErrorInvalidResourceHandle);
    STANDIN_NEEDS(begin->op->finished && end->op->finished, cudaErrorNotReady);
    *milliseconds = static_cast<float>((end->op->finished_at - begin->op->finished_at) * 1e3);
    return cudaSuccess;
}
