/* Kernels are compiled with -fsanitize=alignment,bounds, and these are the functions that g++ then calls: an access
 * that a GPU would answer with "misaligned address", or an index outside an array, ends the launch with its place. In a
 * build under the sanitizers their own library does it. */
#include "tests/cuda/on_cpu/runtime.h"

#if !defined(__SANITIZE_ADDRESS__)

namespace
{

/* As gcc lays them out (libsanitizer/ubsan/ubsan_value.h describes the interface). */
struct source {
    const char *file;
    uint32_t line, column;
};
struct type_name {
    uint16_t kind, info;
    char name[1];
};
struct mismatch {
    source at;
    const type_name *type;
    unsigned char log_alignment, access;
};
struct bounds {
    source at;
    const type_name *array, *index;
};

} // namespace

extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(const mismatch *data,
                                                                                      void *address)
{
    ly_on_cpu::fail("misaligned address %p at %s:%u: %s needs %u bytes of alignment", address, data->at.file,
                    data->at.line, data->type->name, 1u << data->log_alignment);
}

extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds(const bounds *data, void *index)
{
    ly_on_cpu::fail("index %lld is outside %s at %s:%u", static_cast<long long>(reinterpret_cast<intptr_t>(index)),
                    data->array->name, data->at.file, data->at.line);
}

#endif
