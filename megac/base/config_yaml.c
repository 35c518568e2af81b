/* Options from a YAML file, over libyaml. */
#include <errno.h>
#include <string.h>
#include <strings.h>
#include <yaml.h>

#include "megac/base/alloc.h"
#include "megac/base/config_impl.h"
#include "megac/base/log.h"

enum { MAX_DEPTH = 8, PLACE_BYTES = 4096 + MC_I_WORD_BYTES };

typedef struct file_reader {
    mc_config *config;
    yaml_document_t *doc;
    const char *path;
} file_reader;

static const char *scalar_text(const yaml_node_t *node)
{
    return (const char *)node->data.scalar.value;
}

/* An unquoted null, ~ or nothing. */
static bool is_null(const yaml_node_t *node)
{
    if (node->type != YAML_SCALAR_NODE || node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) {
        return false;
    }
    const char *text = scalar_text(node);
    return text[0] == '\0' || strcmp(text, "~") == 0 || strcasecmp(text, "null") == 0;
}

/* "run.yaml:7: lr" */
static void place_of(const file_reader *r, const yaml_node_t *key, char *out, size_t cap)
{
    snprintf(out, cap, "%s:%zu: %s", r->path, key->start_mark.line + 1, scalar_text(key));
}

/* "no-x: true" sets x false, and so does "x: false": the field's name means the field. */
static bool key_is_field(const mc_option *row, const char *key)
{
    return row->kind == MC_OPTION_OFF && mc_i_same_key(row->field, key);
}

static mc_status set_scalar(file_reader *r, const mc_option *row, const yaml_node_t *key, const char *text)
{
    char place[PLACE_BYTES];
    place_of(r, key, place, sizeof place);
    if (key_is_field(row, scalar_text(key))) {
        bool off = strcasecmp(text, "false") == 0 || strcasecmp(text, "no") == 0 || strcasecmp(text, "off") == 0;
        bool on = strcasecmp(text, "true") == 0 || strcasecmp(text, "yes") == 0 || strcasecmp(text, "on") == 0;
        text = off ? "true" : on ? "false" : text;
    }
    return mc_config_set(r->config, row, place, 1, &text, MC_FROM_FILE);
}

static mc_status set_sequence(file_reader *r, const mc_option *row, const yaml_node_t *key, const yaml_node_t *value)
{
    char place[PLACE_BYTES];
    place_of(r, key, place, sizeof place);
    if (mc_i_option_arity(row) != MC_ARITY_MANY) {
        return MC_FAIL(MC_INVALID, "%s: takes one value, not a list", place);
    }
    int n = (int)(value->data.sequence.items.top - value->data.sequence.items.start);
    if (n == 0) {
        return MC_OK; /* an empty list gives nothing */
    }
    const char **texts;
    MC_TRY(mc_config_alloc(r->config, (size_t)n * sizeof *texts, (void **)&texts));
    for (int i = 0; i < n; i++) {
        const yaml_node_t *item = yaml_document_get_node(r->doc, value->data.sequence.items.start[i]);
        if (item->type != YAML_SCALAR_NODE) {
            return MC_FAIL(MC_INVALID, "%s: element %d is not a single value", place, i + 1);
        }
        texts[i] = scalar_text(item);
    }
    return mc_config_set(r->config, row, place, n, texts, MC_FROM_FILE);
}

static mc_status read_map(file_reader *r, const yaml_node_t *map, int depth);

static mc_status read_pair(file_reader *r, const yaml_node_t *key, const yaml_node_t *value, int depth)
{
    char place[PLACE_BYTES], flag[MC_I_WORD_BYTES];
    if (key->type != YAML_SCALAR_NODE) {
        return MC_FAIL(MC_INVALID, "%s:%zu: a key must be an option's name", r->path, key->start_mark.line + 1);
    }
    const mc_option *row = mc_option_find_key(r->config->table, scalar_text(key));
    place_of(r, key, place, sizeof place);
    if (value->type == YAML_MAPPING_NODE) {
        if (row) {
            return MC_FAIL(MC_INVALID, "%s: takes a value, not a map", place);
        }
        return read_map(r, value, depth + 1);
    }
    if (!row) {
        snprintf(flag, sizeof flag, "--%s", scalar_text(key));
        return mc_i_config_unknown(r->config->table, place, flag);
    }
    if (row->bits & MC_OPTION_META) {
        return MC_FAIL(MC_INVALID, "%s: belongs on the command line, not in a file", place);
    }
    if (is_null(value)) {
        return MC_OK;
    }
    return value->type == YAML_SEQUENCE_NODE ? set_sequence(r, row, key, value)
                                             : set_scalar(r, row, key, scalar_text(value));
}

static mc_status read_map(file_reader *r, const yaml_node_t *map, int depth)
{
    if (depth > MAX_DEPTH) {
        return MC_FAIL(MC_INVALID, "%s:%zu: groups nested deeper than %d", r->path, map->start_mark.line + 1,
                       MAX_DEPTH);
    }
    for (yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top; p++) {
        MC_TRY(read_pair(r, yaml_document_get_node(r->doc, p->key), yaml_document_get_node(r->doc, p->value), depth));
    }
    return MC_OK;
}

static mc_status read_document(mc_config *config, yaml_parser_t *parser, const char *path)
{
    yaml_document_t doc;
    if (!yaml_parser_load(parser, &doc)) {
        return MC_FAIL(MC_INVALID, "--config %s:%zu: not YAML: %s%s%s", path, parser->problem_mark.line + 1,
                       parser->context ? parser->context : "", parser->context ? ", " : "",
                       parser->problem ? parser->problem : "unreadable");
    }
    file_reader r = {.config = config, .doc = &doc, .path = path};
    const yaml_node_t *root = yaml_document_get_root_node(&doc);
    mc_status st = MC_OK;
    if (root && root->type == YAML_MAPPING_NODE) {
        st = read_map(&r, root, 0);
    } else if (root && !is_null(root)) {
        st = MC_FAIL(MC_INVALID, "--config %s:%zu: must hold \"name: value\" lines", path, root->start_mark.line + 1);
    }
    yaml_document_delete(&doc);
    return st;
}

mc_status mc_config_file(mc_config *config, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        return MC_FAIL(errno == ENOENT ? MC_NOTFOUND : MC_INVALID, "--config %s: %s; give a readable YAML file", path,
                       strerror(errno));
    }
    yaml_parser_t parser;
    mc_status st;
    if (yaml_parser_initialize(&parser)) {
        yaml_parser_set_input_file(&parser, file);
        st = read_document(config, &parser, path);
        yaml_parser_delete(&parser);
    } else {
        st = MC_FAIL(MC_NOMEM, "--config %s: no memory for the YAML reader", path);
    }
    (void)fclose(file); /* nothing was written */
    return st;
}
