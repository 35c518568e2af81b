/* Cuts input text into documents, and documents into pieces of bounded size that threads can encode in any order.
 *
 * A piece holds text and marks: mark i ends the text that begins where mark i - 1 ends; `ends_document` says whether a
 * document ends there, or goes on in the next piece. */
#ifndef DATASETS_DS_PIECES_H
#define DATASETS_DS_PIECES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "datasets/ds_stream.h"
#include "datasets/ds_tokenizer.h"
#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    DS_I_PIECE_BYTES = 1 << 20,
    DS_I_PIECE_MARKS = 1 << 14,
    DS_I_CUT_SEARCH_BYTES = 16 << 20, /* a tokenizer that finds no place to cut in this much gets a cut anywhere */
};
/* A JSON object is parsed whole. */
#define DS_I_JSON_LINE_BYTES ((size_t)1 << 30)

typedef enum { DS_I_PER_FILE, DS_I_PER_LINE, DS_I_PER_PARAGRAPH, DS_I_PER_JSON } ds_i_unit;

typedef struct ds_i_mark {
    size_t end;
    uint64_t line; /* of the file, 1-based: JSON only */
    bool ends_document;
} ds_i_mark;

typedef struct ds_i_piece {
    /* From the cutter. */
    unsigned char *text;
    size_t n_text, cap_text;
    ds_i_mark *marks; /* DS_I_PIECE_MARKS */
    size_t n_marks;
    bool json;
    const char *path;
    uint64_t raw_bytes; /* progress of the whole input, in bytes on the disk */
    uint64_t n_empty;   /* documents without text, left out */
    mc_status st;       /* not MC_OK: `why` tells, in place of what would follow the text */
    char why[DS_I_WHY_BYTES];
    /* From the encoder. */
    void *tokens; /* 2 or 4 bytes each */
    size_t n_tokens, cap_tokens;
    size_t *ends; /* tokens before each document's end */
    size_t n_ends, cap_ends;
    uint64_t text_bytes;
} ds_i_piece;

mc_status ds_i_piece_init(ds_i_piece *piece) MC_MUST_CHECK;
void ds_i_piece_fini(ds_i_piece *piece);
void ds_i_piece_reset(ds_i_piece *piece);
/* Room for n more bytes of text. */
mc_status ds_i_piece_room(ds_i_piece *piece, size_t n) MC_MUST_CHECK;

/* Gives an empty piece / takes a full one (and gives the next). NULL: stop. */
typedef struct ds_i_sink {
    ds_i_piece *(*next)(void *arg, ds_i_piece *full);
    void *arg;
} ds_i_sink;

typedef struct ds_i_cutter {
    const ds_tokenizer *tok;
    ds_i_sink sink;
    ds_i_piece *piece;
    ds_i_unit unit;
    const char *path;
    uint64_t line;           /* JSON: number of the line being read */
    uint64_t document_bytes; /* of the document being read */
    uint64_t raw_before;     /* bytes of the files before this one */
    const ds_i_stream *stream;
    bool held_cr;   /* a carriage return that is text only if no newline follows */
    bool break_due; /* paragraphs: a line break that is text only if the paragraph goes on */
    bool break_cr;
    bool line_blank; /* paragraphs: only white space in this line so far */
    unsigned char blank[4096];
    size_t n_blank; /* that white space */
} ds_i_cutter;

/* Cuts one stream to its end. Failures of the stream go into a piece; MC_STOPPED when the sink said stop. */
mc_status ds_i_cutter_run(ds_i_cutter *cutter, ds_i_stream *stream, const char *path, ds_i_unit unit) MC_MUST_CHECK;
/* Hands over the last piece; with st != MC_OK it carries that failure. */
void ds_i_cutter_end(ds_i_cutter *cutter, mc_status st, const char *why);

#ifdef __cplusplus
}
#endif
#endif
