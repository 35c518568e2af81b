/* The last operations of a world, kept for reports of failures. */
#include <stdio.h>
#include <string.h>

#include "megac/base/clock.h"
#include "megac/base/comm_impl.h"

void mc_i_ledger_init(mc_i_ledger *ledger)
{
    *ledger = (mc_i_ledger){.opened_s = mc_now(), .next_id = 1};
}

void mc_i_ledger_begun(mc_i_ledger *ledger, mc_request *req)
{
    req->ledger_id = ledger->next_id++;
    ledger->rows[req->ledger_id % MC_I_LEDGER_OPS] = (mc_i_ledger_row){
        .id = req->ledger_id,
        .group = req->comm->name,
        .kind = req->kind,
        .peer = req->peer,
        .seq = req->seq,
        .bytes = mc_i_request_bytes(req),
        .begun_s = mc_now() - ledger->opened_s,
    };
}

void mc_i_ledger_done(mc_i_ledger *ledger, const mc_request *req)
{
    mc_i_ledger_row *row = &ledger->rows[req->ledger_id % MC_I_LEDGER_OPS];
    if (row->id == req->ledger_id) {
        row->done_s = mc_now() - ledger->opened_s;
    }
}

static int format_row(const mc_i_ledger_row *row, const char *separator, char *text, size_t cap)
{
    char peer[24] = "", done[32] = "under way";
    if (row->peer >= 0) {
        snprintf(peer, sizeof peer, " %s %d", row->kind == MC_I_SEND ? "to" : "from", row->peer);
    }
    if (row->done_s > 0) {
        snprintf(done, sizeof done, "took %.6f s", row->done_s - row->begun_s);
    }
    return snprintf(text, cap, "%s #%llu %s%s, %llu bytes, at %.3f s, %s%s", row->group, (unsigned long long)row->seq,
                    mc_i_kind_name(row->kind), peer, (unsigned long long)row->bytes, row->begun_s, done, separator);
}

void mc_i_ledger_text(const mc_i_ledger *ledger, int max_rows, const char *separator, char *text_out, size_t cap)
{
    if (cap == 0) {
        return;
    }
    uint64_t end = ledger->next_id, begin = end;
    size_t used = 0;
    while (begin > 1 && end - begin < (uint64_t)max_rows && end - begin < MC_I_LEDGER_OPS) {
        int n = format_row(&ledger->rows[(begin - 1) % MC_I_LEDGER_OPS], separator, NULL, 0);
        if (used + (size_t)n + 1 > cap) {
            break;
        }
        used += (size_t)n;
        begin--;
    }
    used = 0;
    text_out[0] = '\0';
    for (uint64_t id = begin; id < end; id++) {
        used += (size_t)format_row(&ledger->rows[id % MC_I_LEDGER_OPS], separator, text_out + used, cap - used);
    }
}
