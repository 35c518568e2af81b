/* One process, two streams, a small chain of work that crosses streams, host and pinned memory: `faults_streams FAULT`.
 * Fault 0 is the correct program; each other number leaves out or misplaces one order. Prints "ok" or "WRONG". */
#include "tests/cuda/standin/faults.h"

enum fault {
    NONE,
    CONSUMER_DOES_NOT_WAIT, /* read after write */
    OVERWRITTEN_WHILE_READ, /* write after read */
    HOST_READS_EARLY,       /* pinned memory, before the stream is waited for */
    COPY_ORDERED_BY_PARENT, /* harmless: another wait already covers it */
    EVENT_BEFORE_WORK,      /* recorded too early */
    WAIT_BEFORE_RECORD,
    LEGACY_STREAM,    /* cudaMemset does not order with streams that do not block */
    SHARED_WORKSPACE, /* of two streams */
    NO_JOIN,
};

typedef struct run {
    enum fault fault;
    cudaStream_t a, b;
    cudaEvent_t copied, produced, consumed;
    float *x, *y, *z, *c, *d, *workspaces[2], *in, *out, *out2;
} run;

static void begin(run *r, enum fault fault)
{
    float **device[] = {&r->x, &r->y, &r->z, &r->c, &r->d, &r->workspaces[0], &r->workspaces[1]};
    for (int i = 0; i < 7; i++) {
        *device[i] = new_device(FAULTS_BYTES);
    }
    float **pinned[] = {&r->in, &r->out, &r->out2};
    for (int i = 0; i < 3; i++) {
        *pinned[i] = new_pinned(FAULTS_BYTES);
    }
    r->fault = fault;
    r->a = new_stream();
    r->b = new_stream();
    r->copied = new_event();
    r->produced = new_event();
    r->consumed = new_event();
}

static void end(run *r)
{
    MUST(cudaDeviceSynchronize());
    float *device[] = {r->x, r->y, r->z, r->c, r->d, r->workspaces[0], r->workspaces[1]};
    for (int i = 0; i < 7; i++) {
        MUST(cudaFree(device[i]));
    }
    float *pinned[] = {r->in, r->out, r->out2};
    for (int i = 0; i < 3; i++) {
        MUST(cudaFreeHost(pinned[i]));
    }
    MUST(cudaStreamDestroy(r->a));
    MUST(cudaStreamDestroy(r->b));
    MUST(cudaEventDestroy(r->copied));
    MUST(cudaEventDestroy(r->produced));
    MUST(cudaEventDestroy(r->consumed));
}

/* Stream a: x = in, y = 2 x. Stream b: z = y. */
static void produce(run *r, int round)
{
    if (round && r->fault != COPY_ORDERED_BY_PARENT) {
        MUST(cudaEventSynchronize(r->copied));
    }
    set_all(r->in, (float)(round + 1));
    MUST(cudaMemcpyAsync(r->x, r->in, FAULTS_BYTES, cudaMemcpyHostToDevice, r->a));
    MUST(cudaEventRecord(r->copied, r->a));
    if (r->fault == LEGACY_STREAM) {
        MUST(cudaMemset(r->y, 0, FAULTS_BYTES));
    } else {
        MUST(cudaMemsetAsync(r->y, 0, FAULTS_BYTES, r->a));
    }
    if (r->fault == EVENT_BEFORE_WORK) {
        MUST(cudaEventRecord(r->produced, r->a));
    }
    if (r->fault == WAIT_BEFORE_RECORD) {
        MUST(cudaStreamWaitEvent(r->b, r->produced, 0));
    }
    MUST(tk_subtract(r->y, r->x, FAULTS_N, -2.0f, r->a));
    if (r->fault != EVENT_BEFORE_WORK) {
        MUST(cudaEventRecord(r->produced, r->a));
    }
    if (r->fault != CONSUMER_DOES_NOT_WAIT && r->fault != WAIT_BEFORE_RECORD) {
        MUST(cudaStreamWaitEvent(r->b, r->produced, 0));
    }
    MUST(cudaMemcpyAsync(r->z, r->y, FAULTS_BYTES, cudaMemcpyDeviceToDevice, r->b));
    MUST(cudaEventRecord(r->consumed, r->b));
}

/* Stream a: y = x. Stream b: z = 3 x, out = z, out2 = y^2. */
static void consume(run *r)
{
    if (r->fault != OVERWRITTEN_WHILE_READ) {
        MUST(cudaStreamWaitEvent(r->a, r->consumed, 0));
    }
    MUST(tk_subtract(r->y, r->x, FAULTS_N, 1.0f, r->a));
    MUST(cudaEventRecord(r->produced, r->a));
    if (r->fault != NO_JOIN) {
        MUST(cudaStreamWaitEvent(r->b, r->produced, 0));
    }
    MUST(tk_subtract(r->z, r->y, FAULTS_N, -1.0f, r->b));
    MUST(cudaMemcpyAsync(r->out, r->z, FAULTS_BYTES, cudaMemcpyDeviceToHost, r->b));
    MUST(tk_square(r->c, r->x, r->workspaces[0], FAULTS_N, r->a));
    MUST(tk_square(r->d, r->y, r->workspaces[r->fault != SHARED_WORKSPACE], FAULTS_N, r->b));
    MUST(cudaMemcpyAsync(r->out2, r->d, FAULTS_BYTES, cudaMemcpyDeviceToHost, r->b));
    MUST(cudaEventRecord(r->consumed, r->b)); /* the next round starts after both streams */
    MUST(cudaStreamWaitEvent(r->a, r->consumed, 0));
    if (r->fault != HOST_READS_EARLY) {
        MUST(cudaStreamSynchronize(r->b));
    }
}

int main(int argc, char **argv)
{
    run r;
    int wrong = 0;
    begin(&r, argc > 1 ? (enum fault)atoi(argv[1]) : NONE);
    for (int round = 0; round < 3; round++) {
        float x = (float)(round + 1);
        produce(&r, round);
        consume(&r);
        wrong |= differs(r.out, 3 * x) | differs(r.out2, x * x);
    }
    end(&r);
    puts(wrong ? "WRONG" : "ok");
    return wrong ? FAULTS_WRONG : 0;
}
