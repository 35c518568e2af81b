/* The bar of megac prepare. */
#include "datasets/ds_progress.h"

#include <stdio.h>
#include <unistd.h>

#include "megac/base/clock.h"

void ds_i_progress_begin(ds_i_progress *p, bool wanted, uint64_t total_bytes)
{
    double now = mc_now();
    *p = (ds_i_progress){wanted && isatty(STDERR_FILENO), total_bytes, now, now};
}

void ds_i_progress_show(ds_i_progress *p, uint64_t done_bytes, uint64_t n_tokens)
{
    double now = mc_now();
    if (!p->on || now - p->last < 0.2) {
        return;
    }
    p->last = now;
    double spent = now - p->start, rate = (double)done_bytes / spent;
    char line[160], bar[25];
    if (p->total_bytes) {
        double part = (double)done_bytes / (double)p->total_bytes;
        part = part > 1 ? 1 : part; /* a file may grow while it is read */
        for (int i = 0; i < 24; i++) {
            bar[i] = i < (int)(24 * part) ? '#' : '.';
        }
        bar[24] = '\0';
        double left = part > 0 ? spent / part - spent : 0;
        snprintf(line, sizeof line, "[%s] %3.0f %%  %.0f MB/s  %.1f M tokens  %d:%02d left", bar, 100 * part,
                 rate / 1e6, (double)n_tokens / 1e6, (int)(left / 60), (int)left % 60);
    } else {
        snprintf(line, sizeof line, "%.0f MB  %.0f MB/s  %.1f M tokens", (double)done_bytes / 1e6, rate / 1e6,
                 (double)n_tokens / 1e6);
    }
    fprintf(stderr, "\r\033[K%s", line);
    fflush(stderr);
}

void ds_i_progress_end(ds_i_progress *p)
{
    if (p->on) {
        fprintf(stderr, "\r\033[K");
        fflush(stderr);
    }
}
