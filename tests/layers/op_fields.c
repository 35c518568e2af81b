#include "tests/layers/op_fields.h"

#define I32(op, field) {#op, #field, offsetof(ly_##op, field), FIELD_INT, sizeof(((ly_##op *)0)->field)},
#define F32(op, field) {#op, #field, offsetof(ly_##op, field), FIELD_FLOAT, sizeof(float)},
#define TEN(op, field) {#op, #field, offsetof(ly_##op, field), FIELD_TENSOR, sizeof(mc_tensor)},
#define DROPOUT(op)       \
    F32(op, dropout.p)    \
    I32(op, dropout.seed) \
    I32(op, dropout.stream) I32(op, dropout.sample0) I32(op, dropout.row0) I32(op, dropout.seq_len)
#define SEGMENTS(op)                                                                      \
    {#op, "segments", offsetof(ly_##op, segments), FIELD_SEGMENTS, sizeof(ly_segment *)}, \
        {#op, "n_segments", offsetof(ly_##op, n_segments), FIELD_N_SEGMENTS, sizeof(int)},

const op_field op_fields[] = {
    /* clang-format off */
    TEN(gemm, a) TEN(gemm, b) TEN(gemm, c) TEN(gemm, bias) I32(gemm, trans_a) I32(gemm, trans_b) F32(gemm, beta)
    TEN(bias_grad, dy) TEN(bias_grad, dbias)
    I32(norm_fwd, kind) I32(norm_fwd, one_plus_gamma) F32(norm_fwd, eps) TEN(norm_fwd, x) TEN(norm_fwd, y)
    TEN(norm_fwd, y_bias) TEN(norm_fwd, h) TEN(norm_fwd, gamma) TEN(norm_fwd, beta) TEN(norm_fwd, out)
    TEN(norm_fwd, stats) DROPOUT(norm_fwd)
    I32(norm_bwd, kind) I32(norm_bwd, one_plus_gamma) TEN(norm_bwd, dout) TEN(norm_bwd, h) TEN(norm_bwd, stats)
    TEN(norm_bwd, gamma) TEN(norm_bwd, beta) TEN(norm_bwd, dskip) TEN(norm_bwd, dh) TEN(norm_bwd, dy)
    TEN(norm_bwd, out) TEN(norm_bwd, dgamma) TEN(norm_bwd, dbeta) TEN(norm_bwd, dy_bias) DROPOUT(norm_bwd)
    I32(head_norm_fwd, kind) I32(head_norm_fwd, one_plus_gamma) F32(head_norm_fwd, eps) TEN(head_norm_fwd, x)
    TEN(head_norm_fwd, gamma) TEN(head_norm_fwd, beta) TEN(head_norm_fwd, out) TEN(head_norm_fwd, stats)
    I32(head_norm_bwd, kind) I32(head_norm_bwd, one_plus_gamma) TEN(head_norm_bwd, dout) TEN(head_norm_bwd, x)
    TEN(head_norm_bwd, stats) TEN(head_norm_bwd, gamma) TEN(head_norm_bwd, dx) TEN(head_norm_bwd, dgamma)
    TEN(head_norm_bwd, dbeta)
    I32(act_fwd, kind) TEN(act_fwd, x) TEN(act_fwd, out)
    I32(act_bwd, kind) TEN(act_bwd, x) TEN(act_bwd, dout) TEN(act_bwd, dx) TEN(act_bwd, out)
    TEN(rope, x) TEN(rope, cos) TEN(rope, sin) I32(rope, seq_len) I32(rope, pos0) I32(rope, interleaved)
    I32(rope, inverse)
    TEN(attention_fwd, q) TEN(attention_fwd, k) TEN(attention_fwd, v) TEN(attention_fwd, out) TEN(attention_fwd, lse)
    I32(attention_fwd, seq_len) F32(attention_fwd, scale) I32(attention_fwd, window_left) I32(attention_fwd, head0)
    DROPOUT(attention_fwd)
    TEN(attention_bwd, q) TEN(attention_bwd, k) TEN(attention_bwd, v) TEN(attention_bwd, out) TEN(attention_bwd, lse)
    TEN(attention_bwd, dout) TEN(attention_bwd, delta) TEN(attention_bwd, dq) TEN(attention_bwd, dk)
    TEN(attention_bwd, dv) I32(attention_bwd, seq_len) F32(attention_bwd, scale) I32(attention_bwd, window_left)
    I32(attention_bwd, head0) DROPOUT(attention_bwd)
    TEN(kv_store, k) TEN(kv_store, v) TEN(kv_store, places) TEN(kv_store, k_cache) TEN(kv_store, v_cache)
    TEN(attention_decode, q) TEN(attention_decode, places) TEN(attention_decode, k_cache)
    TEN(attention_decode, v_cache) TEN(attention_decode, out) F32(attention_decode, scale)
    I32(attention_decode, window_left)
    TEN(embedding_fwd, tokens) TEN(embedding_fwd, table) TEN(embedding_fwd, out) I32(embedding_fwd, vocab0)
    TEN(embedding_bwd, tokens) TEN(embedding_bwd, dout) TEN(embedding_bwd, dtable) I32(embedding_bwd, vocab0)
    TEN(embed_finish_fwd, x) TEN(embed_finish_fwd, positions) TEN(embed_finish_fwd, h) DROPOUT(embed_finish_fwd)
    TEN(embed_finish_bwd, dh) TEN(embed_finish_bwd, dx) TEN(embed_finish_bwd, dpositions) DROPOUT(embed_finish_bwd)
    TEN(xent_stats, logits) TEN(xent_stats, targets) TEN(xent_stats, stats) I32(xent_stats, vocab0)
    I32(xent_stats, vocab_valid)
    TEN(xent_grad, logits) TEN(xent_grad, targets) TEN(xent_grad, all_stats) TEN(xent_grad, losses)
    TEN(xent_grad, weights) I32(xent_grad, vocab0) I32(xent_grad, vocab_valid) F32(xent_grad, scale)
    I32(xent_grad, write_grad)
    TEN(adamw, model) I32(adamw, clear_grad) TEN(sgd, model) TEN(xent_grad, dlogits)
    TEN(adamw, param) TEN(adamw, grad) TEN(adamw, m) TEN(adamw, v) F32(adamw, lr) F32(adamw, beta1) F32(adamw, beta2)
    F32(adamw, eps) F32(adamw, weight_decay) F32(adamw, grad_scale) I32(adamw, step) SEGMENTS(adamw)
    TEN(sgd, param) TEN(sgd, grad) TEN(sgd, m) F32(sgd, lr) F32(sgd, momentum) F32(sgd, weight_decay)
    F32(sgd, grad_scale) SEGMENTS(sgd)
    TEN(sq_norm, x) TEN(sq_norm, out) SEGMENTS(sq_norm)
    TEN(add, a) TEN(add, b) TEN(add, out)
    TEN(fill, x) F32(fill, value)
    TEN(cast, x) TEN(cast, out) F32(cast, scale) I32(cast, accumulate)
    /* clang-format on */
};

const int op_n_fields = sizeof op_fields / sizeof *op_fields;
