/* Cutting of input text; ds_pieces.h tells what a piece is. */
#include "datasets/ds_pieces.h"

#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"

mc_status ds_i_piece_init(ds_i_piece *piece)
{
    *piece = (ds_i_piece){0};
    piece->cap_text = DS_I_PIECE_BYTES;
    MC_TRY(MC_NEW_N(&piece->text, piece->cap_text, "input piece"));
    mc_status st = MC_NEW_N(&piece->marks, DS_I_PIECE_MARKS, "input marks");
    if (st != MC_OK) {
        ds_i_piece_fini(piece);
    }
    return st;
}

void ds_i_piece_fini(ds_i_piece *piece)
{
    mc_free(piece->text);
    mc_free(piece->marks);
    mc_free(piece->tokens);
    mc_free(piece->ends);
    *piece = (ds_i_piece){0};
}

void ds_i_piece_reset(ds_i_piece *piece)
{
    piece->n_text = piece->n_marks = piece->n_tokens = piece->n_ends = 0;
    piece->n_empty = 0;
    piece->st = MC_OK;
    piece->why[0] = '\0';
}

mc_status ds_i_piece_room(ds_i_piece *piece, size_t n)
{
    size_t want = piece->n_text + n, cap = piece->cap_text;
    if (want <= cap) {
        return MC_OK;
    }
    while (cap < want) {
        cap += cap / 2;
    }
    MC_TRY(MC_MORE(&piece->text, piece->n_text, cap, "input piece"));
    piece->cap_text = cap;
    return MC_OK;
}

static void mark(ds_i_cutter *c, bool ends_document)
{
    ds_i_piece *p = c->piece;
    p->marks[p->n_marks++] = (ds_i_mark){p->n_text, c->line, ends_document};
}

static size_t open_start(const ds_i_piece *p)
{
    return p->n_marks ? p->marks[p->n_marks - 1].end : 0;
}

/* Hands the piece over, less the last `keep` bytes, which begin the next one. */
static mc_status hand_over(ds_i_cutter *c, size_t keep)
{
    ds_i_piece *full = c->piece;
    full->n_text -= keep;
    if (full->n_text > open_start(full)) {
        mark(c, false);
    }
    full->json = c->unit == DS_I_PER_JSON;
    full->path = c->path;
    full->raw_bytes = c->raw_before + (c->stream ? ds_i_stream_raw_bytes(c->stream) : 0);
    unsigned char *tail = NULL; /* a copy: once handed over, the piece may be gone at any time */
    if (keep) {
        MC_TRY(mc_alloc(1, keep, "piece tail", (void **)&tail));
        memcpy(tail, full->text + full->n_text, keep);
    }
    c->piece = c->sink.next(c->sink.arg, full);
    mc_status st = c->piece ? MC_OK : MC_STOPPED;
    if (st == MC_OK && keep) {
        st = ds_i_piece_room(c->piece, keep);
        if (st == MC_OK) {
            memcpy(c->piece->text, tail, keep);
            c->piece->n_text = keep;
        }
    }
    mc_free(tail);
    return st;
}

/* A full piece in the middle of a document: cut where the tokenizer allows. */
static mc_status cut_document(ds_i_cutter *c)
{
    ds_i_piece *p = c->piece;
    size_t from = open_start(p), open = p->n_text - from;
    size_t safe = ds_tokenizer_cut(c->tok, p->text + from, open);
    if (safe == 0 && from == 0) {
        if (open < DS_I_CUT_SEARCH_BYTES) {
            return ds_i_piece_room(p, DS_I_PIECE_BYTES);
        }
        safe = open;
    }
    return hand_over(c, open - safe);
}

/* Appends text of the current document. JSON lines stay whole. */
static mc_status put(ds_i_cutter *c, const unsigned char *text, size_t n)
{
    if (c->unit == DS_I_PER_JSON) {
        if (c->document_bytes + n > DS_I_JSON_LINE_BYTES) {
            char why[DS_I_WHY_BYTES];
            snprintf(why, sizeof why, "%s:%llu: this line is longer than %zu bytes; is it JSON lines? (--input-format)",
                     c->path, (unsigned long long)c->line, DS_I_JSON_LINE_BYTES);
            ds_i_cutter_end(c, MC_INPUT, why);
            return MC_STOPPED;
        }
        MC_TRY(ds_i_piece_room(c->piece, n));
    }
    c->document_bytes += n;
    while (n > 0) {
        if (c->piece->n_text == c->piece->cap_text) {
            MC_TRY(cut_document(c));
        }
        size_t room = c->piece->cap_text - c->piece->n_text, take = n < room ? n : room;
        memcpy(c->piece->text + c->piece->n_text, text, take);
        c->piece->n_text += take;
        text += take;
        n -= take;
    }
    return MC_OK;
}

static mc_status end_document(ds_i_cutter *c)
{
    if (c->document_bytes == 0) {
        c->piece->n_empty += c->unit == DS_I_PER_FILE || c->unit == DS_I_PER_LINE;
        return MC_OK;
    }
    mark(c, true);
    c->document_bytes = 0;
    /* One mark is kept free for an open document at the hand-over. */
    bool full = c->piece->n_text >= DS_I_PIECE_BYTES || c->piece->n_marks >= DS_I_PIECE_MARKS - 1;
    return full ? hand_over(c, 0) : MC_OK;
}

/* Text of a line, possibly not all of it: a carriage return at its end is held back. */
static mc_status put_line_part(ds_i_cutter *c, const unsigned char *text, size_t n)
{
    if (n == 0) {
        return MC_OK;
    }
    if (c->held_cr) {
        c->held_cr = false;
        MC_TRY(put(c, (const unsigned char *)"\r", 1));
    }
    c->held_cr = text[n - 1] == '\r';
    return put(c, text, n - c->held_cr);
}

static mc_status cut_lines(ds_i_cutter *c, const unsigned char *text, size_t n)
{
    while (n > 0) {
        const unsigned char *nl = memchr(text, '\n', n);
        size_t part = nl ? (size_t)(nl - text) : n;
        MC_TRY(put_line_part(c, text, part));
        if (nl) {
            c->held_cr = false;
            MC_TRY(end_document(c));
            c->line++;
            part++;
        }
        text += part;
        n -= part;
    }
    return MC_OK;
}

/* The first byte that is not white space has come: the line belongs to the paragraph, and so does the break before. */
static mc_status open_text_line(ds_i_cutter *c)
{
    c->line_blank = false;
    if (c->break_due) {
        c->break_due = false;
        MC_TRY(c->break_cr ? put(c, (const unsigned char *)"\r\n", 2) : put(c, (const unsigned char *)"\n", 1));
    }
    size_t n = c->n_blank;
    c->n_blank = 0;
    return put_line_part(c, c->blank, n);
}

static mc_status end_paragraph_line(ds_i_cutter *c)
{
    if (c->line_blank) {
        c->break_due = false;
        MC_TRY(end_document(c));
    } else {
        c->break_due = true;
        c->break_cr = c->held_cr;
    }
    c->held_cr = false;
    c->line_blank = true;
    c->n_blank = 0;
    return MC_OK;
}

static mc_status cut_paragraphs(ds_i_cutter *c, const unsigned char *text, size_t n)
{
    while (n > 0) {
        if (*text == '\n') {
            MC_TRY(end_paragraph_line(c));
            text++, n--;
            continue;
        }
        if (c->line_blank) {
            bool white = *text == ' ' || *text == '\t' || *text == '\r';
            if (white && c->n_blank < sizeof c->blank) {
                c->blank[c->n_blank++] = *text;
                text++, n--;
                continue;
            }
            MC_TRY(open_text_line(c)); /* or more white space than can be held: it is text then */
        }
        const unsigned char *nl = memchr(text, '\n', n);
        size_t part = nl ? (size_t)(nl - text) : n;
        MC_TRY(put_line_part(c, text, part));
        text += part;
        n -= part;
    }
    return MC_OK;
}

/* End of a file ends its last document, with or without a newline. */
static mc_status end_file(ds_i_cutter *c)
{
    bool unfinished_line = c->unit == DS_I_PER_FILE || c->document_bytes > 0 || c->held_cr;
    if (c->held_cr) {
        c->held_cr = false;
        MC_TRY(put(c, (const unsigned char *)"\r", 1));
    }
    return unfinished_line ? end_document(c) : MC_OK;
}

mc_status ds_i_cutter_run(ds_i_cutter *cutter, ds_i_stream *stream, const char *path, ds_i_unit unit)
{
    ds_i_cutter *c = cutter;
    if (c->path && (c->unit == DS_I_PER_JSON) != (unit == DS_I_PER_JSON)) {
        MC_TRY(hand_over(c, 0)); /* a piece is JSON or text, not both */
    } else if (unit == DS_I_PER_JSON && c->piece->n_text) {
        MC_TRY(hand_over(c, 0)); /* and of one JSON file, so that its lines can be named */
    }
    c->stream = stream;
    c->path = path;
    c->unit = unit;
    c->line = 1;
    c->held_cr = c->break_due = false;
    c->line_blank = true;
    c->n_blank = 0;
    for (;;) {
        const unsigned char *text;
        size_t n;
        char why[DS_I_WHY_BYTES];
        mc_status st = ds_i_stream_next(stream, &text, &n, why);
        if (st != MC_OK) {
            ds_i_cutter_end(c, st, why);
            return MC_STOPPED;
        }
        if (n == 0) {
            st = end_file(c);
            c->raw_before += ds_i_stream_raw_bytes(stream);
            c->stream = NULL;
            return st;
        }
        st = unit == DS_I_PER_FILE        ? put(c, text, n)
             : unit == DS_I_PER_PARAGRAPH ? cut_paragraphs(c, text, n)
                                          : cut_lines(c, text, n);
        MC_TRY(st);
    }
}

void ds_i_cutter_end(ds_i_cutter *cutter, mc_status st, const char *why)
{
    ds_i_piece *p = cutter->piece;
    if (!p) {
        return;
    }
    p->st = st;
    if (st != MC_OK) {
        snprintf(p->why, sizeof p->why, "%s", why);
        p->n_text = open_start(p); /* the part of a document before the failure is not wanted */
    }
    p->json = cutter->unit == DS_I_PER_JSON;
    p->path = cutter->path;
    p->raw_bytes = cutter->raw_before;
    cutter->piece = NULL;
    cutter->sink.next(cutter->sink.arg, p);
}
