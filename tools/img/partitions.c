/* img partitions: what a disk is divided into. */
#include "img.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/human.h"
#include "base/json_text.h"
#include "partitions/partitions.h"

#include "args.h"
#include "image.h"
#include "output.h"

struct options {
    const char *format, *output, *snapshot;
    bool image_opts, share;
};

static const struct arg_def args[] = {
    ARGS_FORMAT(struct options, format),
    ARGS_IMAGE_OPTS(struct options, image_opts),
    { .letter = 'l',
      .name = "snapshot",
      .kind = ARG_TEXT,
      .at = offsetof(struct options, snapshot),
      .value = "SNAPSHOT",
      .help = "of this internal snapshot: its id or name" },
    ARGS_OUTPUT(struct options, output),
    ARGS_SHARE(struct options, share),
    ARGS_END,
};

static void probe(struct blk_node *node, const struct partition *p, struct partition_content *c)
{
    *c = (struct partition_content){ 0 };
    if (p->extended || p->outside)
        return;
    int r = partition_probe(node, p->start, p->size, c);
    if (r < 0)
        complain("cannot look into partition %u: %s", p->number, strerror(-r));
}

static void add_text(json_t *o, const char *key, const char *text)
{
    if (text[0])
        output_add(o, key, json_text(text));
}

static json_t *partition_json(struct blk_node *node, const struct partition *p)
{
    struct partition_content c;
    json_t *o = json_object();

    probe(node, p, &c);
    output_add(o, "number", json_integer(p->number));
    output_add(o, "start", json_integer((json_int_t)p->start));
    output_add(o, "size", json_integer((json_int_t)p->size));
    if (p->type_guid[0]) {
        output_add(o, "type", json_text(p->type_guid));
    } else {
        char type[8];
        snprintf(type, sizeof(type), "0x%02x", p->type);
        output_add(o, "type", json_text(type));
    }
    output_add(o, "type-name", json_text(partition_type_name(p)));
    add_text(o, "label", p->label);
    add_text(o, "guid", p->guid);
    if (p->active)
        output_add(o, "active", json_true());
    if (p->extended)
        output_add(o, "extended", json_true());
    if (p->outside)
        output_add(o, "outside", json_true());
    add_text(o, "filesystem", c.type);
    add_text(o, "filesystem-label", c.label);
    add_text(o, "filesystem-uuid", c.uuid);
    return o;
}

static void print_json(struct blk_node *node, const struct partition_table *t)
{
    _cleanup_json_ json_t *o = json_object(), *list = json_array(), *warnings = json_array();

    for (size_t i = 0; i < t->count; i++)
        json_array_append_new(list, partition_json(node, &t->at[i]));
    for (const char *w = t->warnings; w && *w; w += strcspn(w, "\n") + 1) {
        _cleanup_free_ char *line = strndup(w, strcspn(w, "\n"));
        if (line)
            json_array_append_new(warnings, json_text(line));
    }
    output_add(o, "table", json_text(partition_scheme_name(t->scheme)));
    add_text(o, "id", t->id);
    if (t->sector)
        output_add(o, "sector-size", json_integer(t->sector));
    output_add(o, "partitions", json_incref(list));
    output_add(o, "warnings", json_incref(warnings));
    output_json(o);
}

static void print_human(struct blk_node *node, const struct partition_table *t)
{
    if (t->scheme == PARTITION_NONE) {
        puts("no partition table");
        return;
    }
    printf("partition table: %s%s%s\n", partition_scheme_name(t->scheme), t->id[0] ? " " : "",
           t->id);
    if (t->count)
        printf("%4s %16s %10s  %-22s %-10s %s\n", "", "start", "size", "type", "content", "label");
    for (size_t i = 0; i < t->count; i++) {
        const struct partition *p = &t->at[i];
        struct partition_content c;
        char number[16];
        probe(node, p, &c);
        snprintf(number, sizeof(number), "p%u", p->number);
        printf("%-4s %16" PRIu64 " %10s  %-22s %-10s %s%s%s\n", number, p->start,
               human_size(p->size).s, partition_type_name(p), c.type[0] ? c.type : "-",
               c.label[0] ? c.label : p->label, p->active ? " (active)" : "",
               p->outside ? " (outside of the disk)" : "");
    }
    for (const char *w = t->warnings; w && *w; w += strcspn(w, "\n") + 1)
        complain("warning: %.*s", (int)strcspn(w, "\n"), w);
}

static int list(const struct options *o, const char *name)
{
    struct image_spec spec = {
        .name = name,
        .format = o->format,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_QUIET | (o->share ? BLK_OPEN_SHARED : 0),
        .snapshot = o->snapshot,
    };
    _cleanup_image_ struct blk_node *node = image_open(&spec);
    struct partition_table table;
    struct error *err = NULL;

    if (!node)
        return 1;
    if (partitions_read(node, &table, &err) < 0) {
        complain_error(&err, NULL);
        return 1;
    }
    if (o->output && strcmp(o->output, "json") == 0)
        print_json(node, &table);
    else
        print_human(node, &table);
    partitions_free(&table);
    return output_end(0);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct options o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 1) {
        complain("partitions needs one file name");
        complain_usage("partitions");
        return 1;
    }
    return image_opts_alone(o.image_opts, o.format) ? list(&o, argv[first]) : 1;
}

const struct command cmd_partitions = {
    .name = "partitions",
    .summary = "list what a disk is divided into",
    .operands = "FILENAME",
    .args = args,
    .example = "partitions vm.qcow2",
    .run = run,
};
