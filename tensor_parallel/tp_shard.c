#include "tensor_parallel/tp_shard.h"

#include "megac/base/status.h"

int64_t tp_padded_vocab(int64_t vocab, int64_t make_divisible_by, int tp)
{
    int64_t multiple = make_divisible_by * tp;
    return (vocab + multiple - 1) / multiple * multiple;
}

tp_heads tp_heads_of(int heads, int groups, int head_dim, int tp, int rank)
{
    MC_ASSERT(heads % tp == 0 && heads % groups == 0 && (groups % tp == 0 || tp % groups == 0));
    int per_group = heads / groups;
    int64_t group_rows = (int64_t)(per_group + 2) * head_dim;
    if (groups % tp == 0) {
        int local = groups / tp;
        return (tp_heads){
            .groups = local,
            .queries = per_group,
            .head0 = rank * local * per_group,
            .replicas = 1,
            .q_begin = rank * local * group_rows,
            .q_rows = local * group_rows,
        };
    }
    int replicas = tp / groups, group = rank / replicas, replica = rank % replicas, queries = heads / tp;
    int64_t begin = group * group_rows;
    return (tp_heads){
        .groups = 1,
        .queries = queries,
        .head0 = rank * queries,
        .replicas = replicas,
        .replica = replica,
        .q_begin = begin + (int64_t)replica * queries * head_dim,
        .q_rows = (int64_t)queries * head_dim,
        .kv_begin = begin + (int64_t)per_group * head_dim,
        .kv_rows = (int64_t)2 * head_dim,
    };
}
