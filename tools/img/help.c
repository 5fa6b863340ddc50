/* Help, all of it made from the tables. */
#include "img.h"

#include <stdio.h>
#include <string.h>

#include "base/strbuf.h"

#include "args.h"
#include "image.h"

enum { WIDTH = 96, OPTION_COLUMN = 32 };

/* Programs ask qemu-img for its version to know what it can do; this is the one whose options and
 * output are the model here. */
#define QEMU_IMG_LIKE "7.2.0"

void help_version(void)
{
    if (as_qemu)
        printf("qemu-img version %s (Platter %s)\n", QEMU_IMG_LIKE, PLATTER_VERSION);
    else
        printf("img (Platter) %s\n", PLATTER_VERSION);
}

/* One option as a synopsis shows it: "[-f FMT]", "[--output=OFMT]". */
static void add_synopsis(struct strbuf *s, const struct arg_def *def)
{
    /* Programs look into qemu-img's help for these words. */
    bool spell_out = as_qemu && def->name && word_in(def->name, "size|start-offset|max-length");
    if (def->letter && def->value && def->kind != ARG_OPTIONAL && !spell_out)
        strbuf_addf(s, "[-%c %s]", def->letter, def->value);
    else if (def->letter && !spell_out)
        strbuf_addf(s, "[-%c]", def->letter);
    else if (def->kind == ARG_OPTIONAL)
        strbuf_addf(s, "[--%s[=%s]]", def->name, def->value);
    else if (def->value)
        strbuf_addf(s, "[--%s=%s]", def->name, def->value);
    else
        strbuf_addf(s, "[--%s]", def->name);
}

/* "convert [-f FMT] ... SOURCE... TARGET", broken into lines of WIDTH where they are to be read. */
static void print_synopsis(const struct command *cmd, bool broken)
{
    size_t indent = strlen(cmd->name) + (broken ? strlen(program) + 10 : 3), used = indent;
    if (broken)
        printf("  usage: %s %s", program, cmd->name);
    else
        printf("  %s", cmd->name);
    for (const struct arg_def *def = cmd->args; def->help; def++) {
        struct strbuf part = STRBUF_INIT;
        add_synopsis(&part, def);
        if (broken && used + part.len + 1 > WIDTH) {
            printf("\n%*s", (int)indent, "");
            used = indent;
        }
        printf(" %s", strbuf_text(&part));
        used += part.len + 1;
        strbuf_free(&part);
    }
    if (broken && used + strlen(cmd->operands) + 1 > WIDTH)
        printf("\n%*s", (int)indent, "");
    printf(" %s\n", cmd->operands);
}

static void print_wrapped(const char *text, int indent)
{
    size_t width = (size_t)(WIDTH - indent), len = strlen(text);
    while (len > width) {
        size_t n = width;
        while (n > 0 && text[n] != ' ')
            n--;
        if (n == 0)
            break;
        printf("%.*s\n%*s", (int)n, text, indent, "");
        text += n + 1;
        len = strlen(text);
    }
    puts(text);
}

static void print_option(const struct arg_def *def)
{
    struct strbuf s = STRBUF_INIT;
    if (def->letter)
        strbuf_addf(&s, "-%c", def->letter);
    if (def->letter && def->name)
        strbuf_add(&s, ", ");
    if (def->name)
        strbuf_addf(&s, "--%s", def->name);
    if (def->kind == ARG_OPTIONAL)
        strbuf_addf(&s, "[=%s]", def->value);
    else if (def->value)
        strbuf_addf(&s, "%c%s", def->name ? '=' : ' ', def->value);
    printf("  %-*s", OPTION_COLUMN - 2, strbuf_text(&s));
    if (s.len > OPTION_COLUMN - 3)
        printf("\n%*s", OPTION_COLUMN, "");
    strbuf_free(&s);

    struct strbuf text = STRBUF_INIT;
    strbuf_add(&text, def->help);
    if (def->hint && def->hint[0] != '@') {
        strbuf_add(&text, " (");
        strbuf_add(&text, def->hint);
        strbuf_add(&text, ")");
    }
    print_wrapped(strbuf_text(&text), OPTION_COLUMN);
    strbuf_free(&text);
}

static void print_dd_operands(void)
{
    static const char *const rows[][2] = {
        { "if=FILE, of=FILE", "the source and the target; - for a pipe" },
        { "bs=BYTES", "what count, skip and seek count in (512)" },
        { "count=N", "copy so many blocks at most" },
        { "skip=N", "leave out so many blocks of the source" },
        { "seek=N", "begin so many blocks into the target" },
        { "conv=WORDS",
          "notrunc: change a part of an existing target; nocreat, excl: the target must "
          "exist, must not exist; sparse, fsync, fdatasync: leave zeroes out, bring it to "
          "the disk (both are always done)" },
        { "status=HOW", "none, noxfer or progress" },
    };
    puts("\nOperands:");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        printf("  %-*s", OPTION_COLUMN - 2, rows[i][0]);
        print_wrapped(rows[i][1], OPTION_COLUMN);
    }
}

void help_command(const struct command *cmd)
{
    printf("%s %s: %s\n\n", program, cmd->name, cmd->summary);
    print_synopsis(cmd, true);
    if (cmd->args->help)
        puts("\nOptions:");
    for (const struct arg_def *def = cmd->args; def->help; def++)
        print_option(def);
    if (strcmp(cmd->name, "dd") == 0)
        print_dd_operands();
    puts("\nExit codes:");
    fputs(cmd->exit_codes ? cmd->exit_codes : "  0  done\n  1  not done\n", stdout);
    if (cmd->example)
        printf("\nExample:\n  %s %s\n", program, cmd->example);
}

static void print_formats(void)
{
    struct blk_driver_info info;
    fputs("Supported formats:", stdout);
    for (unsigned i = 0; blk_driver_at(i, &info) == 0; i++)
        printf(" %s", info.name);
    putchar('\n');
}

void help_overview(void)
{
    help_version();
    printf("usage: %s COMMAND [OPTIONS] ...\n"
           "Makes, copies, inspects and mends disk images.\n\n",
           program);
    if (as_qemu) {
        puts("    '-h', '--help'       show this\n"
             "    '-V', '--version'    show the version\n\n"
             "Command syntax:");
        for (const struct command *const *cmd = commands; *cmd; cmd++)
            print_synopsis(*cmd, false);
    } else {
        puts("Commands:");
        for (const struct command *const *cmd = commands; *cmd; cmd++)
            printf("  %-10s %s\n", (*cmd)->name, (*cmd)->summary);
        printf("\n  help COMMAND, COMMAND --help   show a command's options\n"
               "  create -f FORMAT -o help       show the options of a format\n"
               "  -V, --version                  show the version\n");
    }
    printf("\nSizes are in bytes; k, M, G, T, P and E behind a number are powers of 1024.\n"
           "- stands for standard input or output in convert and dd.\n"
           "--follow=none|local|any says what names stored in images may be followed to\n"
           "(local: plain names of files and block devices).\n\n");
    print_formats();
}

static void print_driver_option(const struct blk_option_info *option)
{
    char name[160];
    bool choice = strchr(option->type, '|') != NULL;
    snprintf(name, sizeof(name), "%s=<%s>", option->name,
             choice                              ? "str"
             : strcmp(option->type, "bool") == 0 ? "bool (on/off)"
                                                 : option->type);
    printf("  %-22s - %s", name, option->help ? option->help : "");
    if (choice)
        printf(" (%s)", option->type);
    if (option->def)
        printf(" (default: %s)", option->def);
    putchar('\n');
}

int help_create_options(const char *format)
{
    if (!format_known(format))
        return 1;
    struct blk_option_info option;
    printf("Supported %s options:\n", format);
    for (unsigned i = 0; blk_driver_option_at(format, true, i, &option) == 0; i++)
        print_driver_option(&option);
    return 0;
}

int help_amend_options(const char *format)
{
    struct blk_driver_info info;
    if (!format_known(format))
        return 1;
    if (!format_find(format, &info) || !info.can_amend) {
        complain("images of format '%s' have no options that can be changed", format);
        return 1;
    }
    struct blk_option_info option;
    printf("Amend options for '%s':\n", format);
    for (unsigned i = 0; blk_driver_amend_option_at(format, i, &option) == 0; i++)
        print_driver_option(&option);
    return 0;
}
