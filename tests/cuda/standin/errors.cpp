/* libcudart: errors and their names. */
#include "tests/cuda/standin/machine_impl.h"

using namespace standin;

/* The names of enum cudaError without "cudaError". */
#define ERRORS(X)                                                                                                           \
    X(InvalidValue)                                                                                                         \
    X(MemoryAllocation)                                                                                                     \
    X(InitializationError)                                                                                                  \
    X(CudartUnloading)                                                                                                      \
    X(ProfilerDisabled)                                                                                                     \
    X(ProfilerNotInitialized) X(ProfilerAlreadyStarted) X(ProfilerAlreadyStopped) X(InvalidConfiguration) X(                \
        InvalidPitchValue) X(InvalidSymbol) X(InvalidHostPointer) X(InvalidDevicePointer) X(InvalidTexture)                 \
        X(InvalidTextureBinding) X(InvalidChannelDescriptor) X(InvalidMemcpyDirection) X(AddressOfConstant) X(              \
            TextureFetchFailed) X(TextureNotBound) X(SynchronizationError) X(InvalidFilterSetting) X(InvalidNormSetting)    \
            X(MixedDeviceExecution) X(NotYetImplemented) X(MemoryValueTooLarge) X(StubLibrary) X(InsufficientDriver) X(     \
                CallRequiresNewerDriver) X(InvalidSurface) X(DuplicateVariableName) X(DuplicateTextureName)                 \
                X(DuplicateSurfaceName) X(DevicesUnavailable) X(IncompatibleDriverContext) X(MissingConfiguration) X(       \
                    PriorLaunchFailure) X(LaunchMaxDepthExceeded) X(LaunchFileScopedTex) X(LaunchFileScopedSurf)            \
                    X(SyncDepthExceeded) X(LaunchPendingCountExceeded) X(InvalidDeviceFunction) X(NoDevice) X(              \
                        InvalidDevice) X(DeviceNotLicensed) X(SoftwareValidityNotEstablished) X(StartupFailure)             \
                        X(InvalidKernelImage) X(DeviceUninitialized) X(MapBufferObjectFailed) X(                            \
                            UnmapBufferObjectFailed) X(ArrayIsMapped) X(AlreadyMapped) X(NoKernelImageForDevice)            \
                            X(AlreadyAcquired) X(NotMapped) X(NotMappedAsArray) X(NotMappedAsPointer) X(                    \
                                ECCUncorrectable) X(UnsupportedLimit) X(DeviceAlreadyInUse) X(PeerAccessUnsupported)        \
                                X(InvalidPtx) X(InvalidGraphicsContext) X(NvlinkUncorrectable) X(JitCompilerNotFound) X(    \
                                    UnsupportedPtxVersion) X(JitCompilationDisabled) X(UnsupportedExecAffinity)             \
                                    X(UnsupportedDevSideSync) X(Contained) X(InvalidSource) X(FileNotFound) X(              \
                                        SharedObjectSymbolNotFound) X(SharedObjectInitFailed) X(OperatingSystem)            \
                                        X(InvalidResourceHandle) X(IllegalState) X(LossyQuery) X(SymbolNotFound) X(         \
                                            NotReady) X(IllegalAddress) X(LaunchOutOfResources) X(LaunchTimeout)            \
                                            X(LaunchIncompatibleTexturing) X(PeerAccessAlreadyEnabled) X(                   \
                                                PeerAccessNotEnabled) X(SetOnActiveProcess) X(ContextIsDestroyed)           \
                                                X(Assert) X(TooManyPeers) X(HostMemoryAlreadyRegistered) X(                 \
                                                    HostMemoryNotRegistered) X(HardwareStackError) X(IllegalInstruction)    \
                                                    X(MisalignedAddress) X(InvalidAddressSpace) X(InvalidPc) X(             \
                                                        LaunchFailure) X(CooperativeLaunchTooLarge) X(TensorMemoryLeak)     \
                                                        X(NotPermitted) X(NotSupported) X(SystemNotReady) X(                \
                                                            SystemDriverMismatch) X(CompatNotSupportedOnDevice)             \
                                                            X(MpsConnectionFailed) X(MpsRpcFailure) X(                      \
                                                                MpsServerNotReady) X(MpsMaxClientsReached)                  \
                                                                X(MpsMaxConnectionsReached) X(MpsClientTerminated) X(       \
                                                                    CdpNotSupported) X(CdpVersionMismatch)                  \
                                                                    X(StreamCaptureUnsupported) X(                          \
                                                                        StreamCaptureInvalidated) X(StreamCaptureMerge)     \
                                                                        X(StreamCaptureUnmatched) X(                        \
                                                                            StreamCaptureUnjoined)                          \
                                                                            X(StreamCaptureIsolation) X(                    \
                                                                                StreamCaptureImplicit) X(CapturedEvent)     \
                                                                                X(StreamCaptureWrongThread) X(              \
                                                                                    Timeout) X(GraphExecUpdateFailure)      \
                                                                                    X(ExternalDevice) X(                    \
                                                                                        InvalidClusterSize)                 \
                                                                                        X(FunctionNotLoaded) X(             \
                                                                                            InvalidResourceType)            \
                                                                                            X(InvalidResourceConfiguration) \
                                                                                                X(Unknown)

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
#define NAME(x)        \
    case cudaError##x: \
        return "cudaError" #x;
    switch (error) {
    case cudaSuccess:
        return "cudaSuccess";
        ERRORS(NAME)
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
