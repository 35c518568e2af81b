/* What libcudart's functions do when they are used as they should be. Linked with NVIDIA's library and run with the
 * stand-in, under each policy. */
#include <cuda_runtime_api.h>

#include "tests/cuda/standin/kernels.h"
#include "tests/unit.h"

enum { N = 64, PITCH = 7, WIDTH = 5, ROWS = 6 };

#define OK(call) assert_int_equal((call), cudaSuccess)

typedef struct fixture {
    cudaStream_t a, b;
    cudaEvent_t event;
    float *x, *y, *host;
} fixture;

static int set_up(void **state)
{
    static fixture f;
    OK(cudaStreamCreateWithFlags(&f.a, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&f.b, cudaStreamNonBlocking));
    OK(cudaEventCreate(&f.event));
    OK(cudaMalloc((void **)&f.x, N * sizeof(float)));
    OK(cudaMalloc((void **)&f.y, N * sizeof(float)));
    OK(cudaMallocHost((void **)&f.host, N * sizeof(float)));
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    OK(cudaDeviceSynchronize());
    OK(cudaStreamDestroy(f->a));
    OK(cudaStreamDestroy(f->b));
    OK(cudaEventDestroy(f->event));
    OK(cudaFree(f->x));
    OK(cudaFree(f->y));
    OK(cudaFreeHost(f->host));
    return 0;
}

static void queries_come_true(void **state)
{
    fixture *f = *state;
    int n_asked = 0;
    OK(cudaEventQuery(f->event)); /* never recorded */
    OK(cudaMemsetAsync(f->x, 0, N * sizeof(float), f->a));
    OK(cudaEventRecord(f->event, f->a));
    cudaError_t said;
    while ((said = cudaEventQuery(f->event)) == cudaErrorNotReady) {
        assert_int_equal(cudaGetLastError(), cudaErrorNotReady);
        assert_in_range(++n_asked, 0, 100);
    }
    assert_int_equal(said, cudaSuccess);
    OK(cudaGetLastError());
    OK(cudaMemsetAsync(f->x, 0, N * sizeof(float), f->b));
    while ((said = cudaStreamQuery(f->b)) == cudaErrorNotReady) {
        assert_in_range(++n_asked, 0, 100);
    }
    assert_int_equal(said, cudaSuccess);
    cudaGetLastError();
}

static void time_passes(void **state)
{
    fixture *f = *state;
    float ms = -1;
    cudaEvent_t end, silent;
    OK(cudaEventCreate(&end));
    OK(cudaEventCreateWithFlags(&silent, cudaEventDisableTiming));
    OK(cudaEventRecord(f->event, f->a));
    OK(cudaMemsetAsync(f->x, 0, N * sizeof(float), f->a));
    OK(cudaEventRecord(end, f->a));
    OK(cudaEventRecord(silent, f->a));
    OK(cudaEventSynchronize(end));
    OK(cudaEventElapsedTime(&ms, f->event, end));
    assert_true(ms >= 0);
    OK(cudaEventSynchronize(silent));
    assert_int_equal(cudaEventElapsedTime(&ms, f->event, silent), cudaErrorInvalidResourceHandle);
    cudaGetLastError();
    OK(cudaEventDestroy(end));
    OK(cudaEventDestroy(silent));
}

/* Two dimensions, there and back, with different pitches; what lies between the rows stays. */
static void areas_are_copied(void **state)
{
    fixture *f = *state;
    unsigned char *from = (unsigned char *)f->host, *to = from + 128;
    size_t n_wrong = 0;
    for (int i = 0; i < 128; i++) {
        from[i] = (unsigned char)i;
        to[i] = 200;
    }
    OK(cudaMemset2DAsync(f->x, WIDTH + 4, 9, WIDTH + 4, ROWS, f->a));
    OK(cudaMemcpy2DAsync(f->x, WIDTH + 4, from, PITCH, WIDTH, ROWS, cudaMemcpyHostToDevice, f->a));
    OK(cudaMemcpy2DAsync(to, WIDTH + 3, f->x, WIDTH + 4, WIDTH + 1, ROWS, cudaMemcpyDeviceToHost, f->a));
    OK(cudaStreamSynchronize(f->a));
    for (int row = 0; row < ROWS; row++) {
        for (int column = 0; column < WIDTH + 3; column++) {
            int expected = column < WIDTH ? row * PITCH + column : column == WIDTH ? 9 : 200;
            n_wrong += to[row * (WIDTH + 3) + column] != expected;
        }
    }
    assert_int_equal(n_wrong, 0);
    assert_int_equal(cudaMemcpy2DAsync(to, WIDTH - 1, f->x, WIDTH, WIDTH, ROWS, cudaMemcpyDeviceToHost, f->a),
                     cudaErrorInvalidPitchValue);
    cudaGetLastError();
}

/* The legacy stream and streams that block: each waits for the other. */
static void legacy_stream_orders(void **state)
{
    fixture *f = *state;
    cudaStream_t blocking;
    OK(cudaStreamCreate(&blocking));
    for (int i = 0; i < N; i++) {
        f->host[i] = 3;
    }
    OK(cudaMemcpyAsync(f->x, f->host, N * sizeof(float), cudaMemcpyHostToDevice, blocking));
    OK(cudaMemset(f->y, 0, N * sizeof(float)));
    OK(tk_subtract(f->y, f->x, N, 2, NULL));
    OK(tk_subtract(f->y, f->x, N, 1, blocking));
    OK(cudaMemcpy(f->host, f->y, N * sizeof(float), cudaMemcpyDeviceToHost));
    for (int i = 0; i < N; i++) {
        assert_true(f->host[i] == -9);
    }
    OK(cudaStreamDestroy(blocking));
}

static void CUDART_CB double_first(void *host)
{
    *(float *)host *= 2;
}

static void host_functions_take_turns(void **state)
{
    fixture *f = *state;
    f->host[0] = 5;
    OK(cudaLaunchHostFunc(f->a, double_first, f->host));
    OK(cudaMemcpyAsync(f->x, f->host, sizeof(float), cudaMemcpyHostToDevice, f->a));
    OK(cudaLaunchHostFunc(f->a, double_first, f->host));
    OK(cudaMemcpyAsync(f->host + 1, f->x, sizeof(float), cudaMemcpyDeviceToHost, f->a));
    OK(cudaStreamSynchronize(f->a));
    assert_true(f->host[0] == 20 && f->host[1] == 10);
}

static void memory_is_known(void **state)
{
    fixture *f = *state;
    static float mine[N];
    struct cudaPointerAttributes about;
    size_t before, after, total;
    void *ptr, *alias;
    OK(cudaPointerGetAttributes(&about, f->x + 3));
    assert_int_equal(about.type, cudaMemoryTypeDevice);
    OK(cudaPointerGetAttributes(&about, f->host));
    assert_int_equal(about.type, cudaMemoryTypeHost);
    OK(cudaPointerGetAttributes(&about, mine));
    assert_int_equal(about.type, cudaMemoryTypeUnregistered);
    OK(cudaHostRegister(mine, sizeof mine, cudaHostRegisterDefault));
    assert_int_equal(cudaHostRegister(mine + 1, 4, cudaHostRegisterDefault), cudaErrorHostMemoryAlreadyRegistered);
    OK(cudaPointerGetAttributes(&about, mine));
    assert_int_equal(about.type, cudaMemoryTypeHost);
    OK(cudaHostGetDevicePointer(&alias, mine, 0));
    assert_ptr_equal(alias, mine);
    OK(cudaHostUnregister(mine));
    assert_int_equal(cudaHostUnregister(mine), cudaErrorHostMemoryNotRegistered);
    cudaGetLastError();
    OK(cudaMemGetInfo(&before, &total));
    OK(cudaMalloc(&ptr, 1000));
    assert_int_equal((uintptr_t)ptr % 256, 0);
    OK(cudaMemGetInfo(&after, &total));
    assert_int_equal(before - after, 1024);
    OK(cudaFree(ptr));
    OK(cudaMemGetInfo(&after, &total));
    assert_int_equal(before, after);
}

/* Memory that a stream takes and gives back. */
static void stream_owns_memory(void **state)
{
    fixture *f = *state;
    float *own;
    OK(cudaMallocAsync((void **)&own, N * sizeof(float), f->a));
    OK(cudaMemsetAsync(own, 0, N * sizeof(float), f->a));
    OK(cudaMemcpyAsync(f->host, own, N * sizeof(float), cudaMemcpyDeviceToHost, f->a));
    OK(cudaFreeAsync(own, f->a));
    OK(cudaStreamSynchronize(f->a));
    assert_true(f->host[N - 1] == 0);
}

static void fresh_memory_is_poisoned(void **state)
{
    fixture *f = *state;
    for (int i = 0; i < N; i++) {
        assert_true(f->host[i] != f->host[i]);
    }
    OK(cudaMemcpy(f->host, f->x, N * sizeof(float), cudaMemcpyDeviceToHost));
    for (int i = 0; i < N; i++) {
        assert_true(f->host[i] != f->host[i]);
    }
}

static void streams_tell_what_they_are(void **state)
{
    fixture *f = *state;
    int least, greatest, priority;
    unsigned flags;
    cudaStream_t urgent;
    OK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    assert_true(greatest < least);
    OK(cudaStreamCreateWithPriority(&urgent, cudaStreamNonBlocking, greatest));
    OK(cudaStreamGetPriority(urgent, &priority));
    OK(cudaStreamGetFlags(f->a, &flags));
    assert_int_equal(priority, greatest);
    assert_int_equal(flags, cudaStreamNonBlocking);
    OK(cudaStreamDestroy(urgent));
    assert_int_equal(cudaStreamCreateWithFlags(&urgent, 64), cudaErrorInvalidValue);
    cudaGetLastError();
}

int main(void)
{
#define CASE(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(queries_come_true),          CASE(time_passes),
        CASE(areas_are_copied),           CASE(legacy_stream_orders),
        CASE(host_functions_take_turns),  CASE(memory_is_known),
        CASE(stream_owns_memory),         CASE(fresh_memory_is_poisoned),
        CASE(streams_tell_what_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
