/* libcudart: errors and their names. */
#include "tests/cuda/standin/machine_impl.h"

using namespace standin;

STANDIN_API cudaGetLastError()
{
    Lock lock(nullptr);
    cudaError_t error = device_error() != cudaSuccess ? device_error() : last_error;
    last_error = cudaSuccess;
    return error;
}

STANDIN_API cudaPeekAtLastError()
{
    Lock lock(nullptr);
    return device_error() != cudaSuccess ? device_error() : last_error;
}

extern "C" __attribute__((visibility("default"))) const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "cudaSuccess";
#define STANDIN_ERROR(name) \
    case cudaError##name:   \
        return "cudaError" #name;
#include "tests/cuda/standin/errors.def"
#undef STANDIN_ERROR
    default:
        return "unrecognized error code";
    }
}

/* In our own words, for the errors that the stand-in returns. */
extern "C" __attribute__((visibility("default"))) const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "an argument is not valid";
    case cudaErrorMemoryAllocation:
        return "the device is out of memory";
    case cudaErrorInvalidConfiguration:
        return "the dimensions of the launch are not valid";
    case cudaErrorInsufficientDriver:
        return "the driver is older than this runtime needs, or there is none";
    case cudaErrorNoDevice:
        return "no device is seen";
    case cudaErrorInvalidDevice:
        return "there is no device of this number";
    case cudaErrorNoKernelImageForDevice:
        return "the program holds no code for this device";
    case cudaErrorLaunchFailure:
        return "a kernel failed; the device is lost to this process";
    case cudaErrorNotReady:
        return "the work is not finished yet";
    default:
        return cudaGetErrorName(error);
    }
}
