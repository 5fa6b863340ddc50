/* img chain: the images that an image rests on, seen together. */
#include "chain.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/human.h"
#include "base/json_text.h"

#include "args.h"
#include "image.h"
#include "img.h"
#include "layers.h"
#include "output.h"
#include "term.h"
#include "watch.h"

enum { CHAIN_SOUND = 0, CHAIN_FAILED = 1, CHAIN_FAULTY = 2, CHAIN_LEAKS = 3 };

struct options {
    const char *format, *output, *relocate, *progress;
    bool image_opts, verify, flatten, dry, share, quiet, percent;
};

static const struct arg_def args[] = {
    ARGS_FORMAT(struct options, format),
    ARGS_IMAGE_OPTS(struct options, image_opts),
    { .name = "verify",
      .kind = ARG_FLAG,
      .at = offsetof(struct options, verify),
      .help = "check each image, and whether the chain holds together" },
    { .name = "relocate",
      .kind = ARG_TEXT,
      .at = offsetof(struct options, relocate),
      .value = "WHERE",
      .hint = "@file",
      .help =
          "the images have moved: rewrite the names of backing files. OLD=NEW: names that begin "
          "with OLD begin with NEW; a folder: files that are there are meant" },
    { .name = "flatten",
      .kind = ARG_FLAG,
      .at = offsetof(struct options, flatten),
      .help = "copy all that FILENAME reads from below into it, so that it rests on nothing" },
    { .letter = 'n',
      .name = "dry-run",
      .kind = ARG_FLAG,
      .at = offsetof(struct options, dry),
      .help = "with --relocate: only say what would be rewritten" },
    ARGS_OUTPUT(struct options, output),
    ARGS_PROGRESS(struct options, percent, progress),
    ARGS_QUIET(struct options, quiet),
    ARGS_SHARE(struct options, share),
    ARGS_OBJECT,
    ARGS_END,
};

/* ---- faults ------------------------------------------------------------------------------------ */

/* What is wrong with layer i, one sentence after the other: *state goes from 0 on; NULL: no more. */
static const char *next_fault(const struct chain *c, size_t i, unsigned *state, char *buf,
                              size_t size)
{
    const struct layer *l = &c->layer[i];
    unsigned now;
    while ((now = (*state)++) < 4) {
        if (now == 0 && l->fault)
            return l->fault;
        if (now == 1 && i > 0 && !l->stated_format)
            return "the image above does not state its format, so it is guessed each time";
        if (now == 2 && l->checked && (l->check.corruptions || l->check.check_errors)) {
            snprintf(buf, size, "it is damaged: %" PRIu64 " errors, %" PRIu64 " places not checked",
                     l->check.corruptions, l->check.check_errors);
            return buf;
        }
        if (now == 3 && l->checked && l->check.leaks) {
            snprintf(buf, size, "%" PRIu64 " clusters are leaked", l->check.leaks);
            return buf;
        }
    }
    return NULL;
}

/* What of the layer below this one's end hides; 0: nothing. */
static uint64_t cut_off(const struct chain *c, size_t i)
{
    if (i + 1 >= c->n || !c->layer[i].node || !c->layer[i + 1].node)
        return 0;
    uint64_t size = c->layer[i].info.virtual_size, below = c->layer[i + 1].info.virtual_size;
    return below > size ? below - size : 0;
}

static bool only_leaks(const struct layer *l, bool top)
{
    return !l->fault && (top || l->stated_format) && !l->check.corruptions &&
           !l->check.check_errors;
}

static int verdict(const struct chain *c)
{
    int code = CHAIN_SOUND;
    for (size_t i = 0; i < c->n; i++) {
        const struct layer *l = &c->layer[i];
        if (!only_leaks(l, i == 0))
            return CHAIN_FAULTY;
        if (l->checked && l->check.leaks)
            code = CHAIN_LEAKS;
    }
    return code;
}

static void check_all(struct chain *c)
{
    for (size_t i = 0; i < c->n && c->layer[i].node && !watch_stopped(); i++) {
        struct layer *l = &c->layer[i];
        struct error *err = NULL;
        int r = blk_check(l->node, 0, &l->check, NULL, &err);
        l->checked = r == 0;
        if (r < 0 && r != -ENOTSUP && !l->fault)
            l->fault = strdup(blk_error_text(err));
        blk_error_free(err);
    }
}

/* ---- output ------------------------------------------------------------------------------------ */

static void add_number(json_t *o, const char *key, uint64_t n)
{
    output_add(o, key, json_integer((json_int_t)n));
}

static json_t *faults_json(const struct chain *c, size_t i)
{
    json_t *list = json_array();
    char buf[160];
    unsigned state = 0;
    for (const char *text; (text = next_fault(c, i, &state, buf, sizeof(buf)));)
        json_array_append_new(list, json_text(text));
    return list;
}

static json_t *layer_json(const struct chain *c, size_t i)
{
    const struct layer *l = &c->layer[i];
    json_t *o = json_object();
    output_add(o, "filename", json_text(l->node ? blk_filename(l->node) : l->name));
    add_number(o, "depth", i);
    if (l->node) {
        output_add(o, "format", json_text(l->info.format));
        add_number(o, "virtual-size", l->info.virtual_size);
        if (l->info.actual_size_known)
            add_number(o, "actual-size", l->info.actual_size);
        if (l->info.backing_filename)
            output_add(o, "backing-filename", json_text(l->info.backing_filename));
        if (l->info.backing_format)
            output_add(o, "backing-filename-format", json_text(l->info.backing_format));
        add_number(o, "data", l->data);
        add_number(o, "zero", l->zero);
        add_number(o, "hidden-data", l->hidden_data);
        add_number(o, "hidden-zero", l->hidden_zero);
    }
    output_add(o, "faults", faults_json(c, i));
    return o;
}

static void print_json(const struct chain *c)
{
    json_t *o = json_object(), *list = json_array();
    for (size_t i = 0; i < c->n; i++)
        json_array_append_new(list, layer_json(c, i));
    output_add(o, "layers", list);
    output_add(o, "sound", json_boolean(verdict(c) == CHAIN_SOUND));
    output_json(o);
    json_decref(o);
}

static void print_amount(const char *what, uint64_t bytes, uint64_t hidden)
{
    printf("%s %s", human_size(bytes).s, what);
    if (hidden)
        printf(" (%s hidden above)", human_size(hidden).s);
}

static void indent(size_t i)
{
    printf("%*s", (int)(i < 20 ? 3 * i : 60), "");
}

static void print_layer(const struct chain *c, size_t i)
{
    const struct layer *l = &c->layer[i];
    char buf[160];
    unsigned state = 0;
    if (i > 0) {
        indent(i - 1);
        fputs(term_utf8() ? "\u2514\u2500 " : "`- ", stdout);
    }
    printf("%s", l->node ? blk_filename(l->node) : l->name);
    if (l->node) {
        printf("  %s, %s", l->info.format, human_size(l->info.virtual_size).s);
        if (l->info.actual_size_known)
            printf(", %s on the disk", human_size(l->info.actual_size).s);
        putchar('\n');
        indent(i + 1);
        print_amount("data", l->data, l->hidden_data);
        fputs(", ", stdout);
        print_amount("zeroes", l->zero, l->hidden_zero);
    }
    putchar('\n');
    if (cut_off(c, i)) {
        indent(i + 1);
        printf("ends earlier than the image below, and hides %s of it\n",
               human_size(cut_off(c, i)).s);
    }
    for (const char *text; (text = next_fault(c, i, &state, buf, sizeof(buf)));) {
        indent(i + 1);
        printf("! %s\n", text);
    }
}

static int show(const struct options *o, const char *filename)
{
    struct chain c = { 0 };
    struct chain_how how = {
        .format = o->format, .image_opts = o->image_opts, .share = o->share, .repair = o->verify
    };
    int code = CHAIN_FAILED;
    if (chain_open(&c, &how, filename) && chain_measure(&c) == 0) {
        if (o->verify)
            check_all(&c);
        watch_hide();
        code = o->verify || c.layer[c.n - 1].fault ? verdict(&c) : CHAIN_SOUND;
        if (o->output && strcmp(o->output, "json") == 0)
            print_json(&c);
        else if (!o->quiet)
            for (size_t i = 0; i < c.n; i++)
                print_layer(&c, i);
    }
    chain_close(&c);
    return watch_stopped() ? CHAIN_FAILED : code;
}

static int flatten(const struct options *o, const char *filename)
{
    struct image_spec spec = {
        .name = filename,
        .format = o->format,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_RDWR | BLK_OPEN_UNMAP | (o->share ? BLK_OPEN_SHARED : 0) |
                 (o->quiet ? BLK_OPEN_QUIET : 0),
    };
    struct blk_node *top = image_open(&spec);
    if (!top)
        return CHAIN_FAILED;
    struct layer_exchange x = { .overlay = top };
    bool ok = true;
    if (blk_child(top, "backing"))
        ok = layer_copy_up(&x) == 0 && !watch_stopped() && layer_rename(top, NULL, NULL);
    return image_close(top) && ok ? 0 : CHAIN_FAILED;
}

/* ---- the command ------------------------------------------------------------------------------- */

static bool options_agree(const struct options *o)
{
    if (o->verify + o->flatten + (o->relocate != NULL) > 1)
        complain("--verify, --relocate and --flatten exclude each other");
    else if (o->dry && !o->relocate)
        complain("-n goes with --relocate");
    else if (o->output && (o->flatten || o->relocate))
        complain("--output is for showing the chain");
    else
        return image_opts_alone(o->image_opts, o->format) &&
               (!o->format || format_known(o->format));
    return false;
}

static int chain(const struct options *o, const char *filename)
{
    struct chain_move move = {
        .rule = o->relocate,
        .format = o->format,
        .image_opts = o->image_opts,
        .dry = o->dry,
        .quiet = o->quiet,
    };
    if (o->relocate)
        return chain_relocate(&move, filename);
    return o->flatten ? flatten(o, filename) : show(o, filename);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct options o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 1) {
        complain("chain needs one file name");
        complain_usage("chain");
        return CHAIN_FAILED;
    }
    if (!options_agree(&o))
        return CHAIN_FAILED;
    struct watch_how how = { .percent = o.percent, .mode = o.progress, .quiet = o.quiet };
    watch_begin("chain", &how);
    return output_end(watch_end(chain(&o, argv[first])));
}

const struct command cmd_chain = {
    .name = "chain",
    .summary = "show, verify, move or flatten what an image rests on",
    .operands = "FILENAME",
    .args = args,
    .exit_codes = "  0  done; with --verify: the chain is sound\n"
                  "  1  not done\n"
                  "  2  the chain is broken or an image in it is damaged\n"
                  "  3  with --verify: an image has leaked clusters, nothing worse\n",
    .example = "chain --verify overlay.qcow2",
    .run = run,
};
