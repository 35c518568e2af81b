#include "megac/train/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

mc_status mt_metrics_open(mt_metrics *m, const char *path, bool speaks)
{
    m->speaks = speaks;
    m->file = NULL;
    if (!speaks || !path) {
        return MC_OK;
    }
    m->file = fopen(path, "a");
    if (!m->file) {
        return MC_FAIL(MC_INVALID, "--metrics-file %s: %s; give a path in an existing, writable directory", path,
                       strerror(errno));
    }
    setvbuf(m->file, NULL, _IOLBF, 0);
    return MC_OK;
}

mc_status mt_metrics_close(mt_metrics *m)
{
    FILE *f = m->file;
    m->file = NULL;
    if (f && fclose(f) != 0) {
        return MC_FAIL(MC_IO, "the metrics file could not be written: %s", strerror(errno));
    }
    return MC_OK;
}

static mc_status check_file(const mt_metrics *m)
{
    if (m->file && ferror(m->file)) {
        return MC_FAIL(MC_IO, "the metrics file could not be written: %s", strerror(errno));
    }
    return MC_OK;
}

/* A JSON number with 17 significant digits; JSON has no NaN and no infinity, so these become null. */
static void put_number(FILE *f, const char *key, double value)
{
    if (isfinite(value)) {
        fprintf(f, ",\"%s\":%.17g", key, value);
    } else {
        fprintf(f, ",\"%s\":null", key);
    }
}

static void write_step(const mt_metrics *m, const mt_metrics_step *s)
{
    double rate = (double)s->tokens / s->seconds, flops = rate * m->flops_per_token_causal;
    fprintf(m->file, "{\"iteration\":%" PRId64 ",\"consumed_samples\":%" PRIu64 ",\"consumed_tokens\":%" PRIu64,
            s->iteration, s->consumed_samples, s->consumed_tokens);
    put_number(m->file, "lm_loss", s->loss);
    put_number(m->file, "learning_rate", s->learning_rate);
    put_number(m->file, "grad_norm", s->grad_norm);
    put_number(m->file, "loss_scale", s->loss_scale);
    put_number(m->file, "iteration_time_ms", s->seconds * 1e3);
    put_number(m->file, "tokens_per_second", rate);
    put_number(m->file, "model_tflops", flops * 1e-12);
    put_number(m->file, "mfu", m->peak_flops > 0 ? flops / m->peak_flops : NAN);
    put_number(m->file, "mfu_full_attention", m->peak_flops > 0 ? rate * m->flops_per_token_full / m->peak_flops : NAN);
    if (s->finding) {
        fprintf(m->file, ",\"finding\":\"%s\",\"decision\":\"%s\"", s->finding, s->decision);
    }
    fprintf(m->file, ",\"skipped\":%s}\n", s->skipped ? "true" : "false");
}

static void print_progress(const mt_metrics *m, const mt_metrics_step *s)
{
    double rate = (double)m->window_tokens / m->window_seconds;
    int64_t trained = m->window_steps - m->window_skipped;
    char of[32] = "", left[48] = "", mfu[64] = "", skipped[48] = "", scale[40] = "";
    if (m->total_iterations > 0) {
        int64_t seconds =
            (int64_t)((double)(m->total_iterations - s->iteration) * m->window_seconds / (double)m->window_steps);
        snprintf(of, sizeof of, "/%" PRId64, m->total_iterations);
        snprintf(left, sizeof left, " | %" PRId64 ":%02d:%02d left", seconds / 3600, (int)(seconds / 60 % 60),
                 (int)(seconds % 60));
    }
    if (m->peak_flops > 0) {
        snprintf(mfu, sizeof mfu, " | MFU %.1f %% (causal half), %.1f %% (full attention)",
                 100 * rate * m->flops_per_token_causal / m->peak_flops,
                 100 * rate * m->flops_per_token_full / m->peak_flops);
    }
    if (m->scaled) {
        snprintf(scale, sizeof scale, " | loss scale %.6g", s->loss_scale);
    }
    if (m->window_skipped > 0) {
        snprintf(skipped, sizeof skipped, " | skipped %" PRId64 " of %" PRId64, m->window_skipped, m->window_steps);
    }
    printf("iteration %" PRId64 "%s | loss %.6f | lr %.3e | grad norm %.4f%s | %.0f tokens/s | %.3g TFLOP/s%s%s%s\n",
           s->iteration, of, trained > 0 ? m->window_loss / (double)trained : NAN, s->learning_rate, s->grad_norm,
           scale, rate, rate * m->flops_per_token_causal * 1e-12, mfu, left, skipped);
    fflush(stdout);
}

mc_status mt_metrics_step_done(mt_metrics *m, const mt_metrics_step *s)
{
    if (!m->speaks) {
        return MC_OK;
    }
    m->window_seconds += s->seconds;
    m->window_tokens += s->tokens;
    m->window_loss += s->skipped ? 0 : s->loss;
    m->window_skipped += s->skipped;
    m->window_steps++;
    if (m->file) {
        write_step(m, s);
    }
    if (s->iteration % m->log_interval == 0 || s->iteration == m->total_iterations) {
        print_progress(m, s);
        m->window_seconds = m->window_loss = 0;
        m->window_tokens = m->window_steps = m->window_skipped = 0;
    }
    return check_file(m);
}

mc_status mt_metrics_eval_done(mt_metrics *m, int64_t iteration, const char *name, double loss, double tokens)
{
    if (!m->speaks) {
        return MC_OK;
    }
    printf("iteration %" PRId64 " | %s loss %.6f | perplexity %.4f | over %.0f tokens\n", iteration, name, loss,
           exp(loss), tokens);
    fflush(stdout);
    if (m->file) {
        fprintf(m->file, "{\"iteration\":%" PRId64, iteration);
        char key[32];
        snprintf(key, sizeof key, "%s_loss", name);
        put_number(m->file, key, loss);
        snprintf(key, sizeof key, "%s_ppl", name);
        put_number(m->file, key, exp(loss));
        fprintf(m->file, "}\n");
    }
    return check_file(m);
}
