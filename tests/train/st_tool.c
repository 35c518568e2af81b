/* Prints what the safetensors reader sees in a file: a line for each tensor, "name<TAB>dtype<TAB>dims<TAB>XXH3". Used
 * by test_checkpoint_py.py. */
#include <stdio.h>

#include "megac/base/alloc.h"
#include "megac/base/hash.h"
#include "megac/train/checkpoint/safetensors.h"

static mc_status print_tensor(const mt_st_file *f, const mt_st_tensor *t)
{
    char *data, hex[MC_HASH_HEX_BYTES];
    size_t bytes = (size_t)(t->end - t->begin);
    MC_TRY(mc_alloc(bytes, 1, "tensor", (void **)&data));
    mc_status st = mt_st_read(f, t, 0, data, bytes);
    if (st == MC_OK) {
        mc_hash_print(mc_hash(data, bytes), hex);
        printf("%s\t%s\t", t->name, mt_st_dtype_name(t->dtype));
        for (int d = 0; d < t->n_dims; d++) {
            printf("%s%lld", d ? "," : "", (long long)t->shape[d]);
        }
        printf("\t%s\n", hex);
    }
    mc_free(data);
    return st;
}

int main(int argc, char **argv)
{
    mt_st_file *f;
    if (argc != 2) {
        fprintf(stderr, "usage: st_tool FILE\n");
        return 2;
    }
    mc_status st = mt_st_open(argv[1], &f);
    if (st != MC_OK) {
        return mc_status_exit(st);
    }
    for (int i = 0; i < mt_st_count(f) && st == MC_OK; i++) {
        st = print_tensor(f, mt_st_at(f, i));
    }
    mt_st_close(f);
    return mc_status_exit(st);
}
