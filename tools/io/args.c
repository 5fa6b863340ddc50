/* One table: parsing and help come from it. */
#include "args.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "io.h"

/* Programs ask qemu-io for its version to know what it can do; this is the one whose commands and
 * output are the model here. */
#define QEMU_IO_LIKE "7.2.0"

enum { OBJECT = 256, IMAGE_OPTS };

static const struct {
    int c;
    const char *name, *value, *help;
} rows[] = {
    { 'c', "cmd", "STRING", "run this command; may be given many times" },
    { 'f', "format", "FMT", "format of the image, 'help' for a list; guessed when not given" },
    { 'r', "read-only", NULL, "open it read-only" },
    { 's', "snapshot", NULL, "writes go to a temporary file and are lost in the end" },
    { 'n', "nocache", NULL, "bypass the page cache, the same as -t none" },
    { 'C', "copy-on-read", NULL, "copy what is read from backing files into the image" },
    { 'm', "misalign", NULL, "buffers that are not aligned as O_DIRECT wants them" },
    { 'k', "native-aio", NULL, "the old spelling of -i native" },
    { 'i', "aio", "MODE", "threads, native or io_uring; the requests are the same" },
    { 't', "cache", "MODE", "none, writeback, writethrough, directsync or unsafe" },
    { 'd', "discard", "MODE", "what discards do: ignore (off) or unmap (on)" },
    { 'T', "trace", "SPEC", "accepted for the sake of scripts; there is nothing to trace" },
    { 'U', "force-share", NULL, "open it although others may be writing to it; needs -r" },
    { IMAGE_OPTS, "image-opts", NULL,
      "FILE is a description: driver=qcow2,file.filename=disk.qcow2" },
    { OBJECT, "object", "OBJECTDEF", "something that descriptions name by its id" },
    { 'h', "help", NULL, "this text" },
    { 'V', "version", NULL, "the version" },
};
enum { ROWS = sizeof(rows) / sizeof(rows[0]) };

static void print_help(void)
{
    printf("Usage: %s [OPTIONS]... [-c STRING]... [FILE]\n"
           "Read, write and otherwise exercise a disk image.\n\n",
           program);
    for (int i = 0; i < ROWS; i++) {
        char left[64], letter[5] = "";
        if (rows[i].c < OBJECT)
            snprintf(letter, sizeof(letter), "-%c, ", rows[i].c);
        snprintf(left, sizeof(left), "%s--%s%s%s", letter, rows[i].name, rows[i].value ? "=" : "",
                 rows[i].value ? rows[i].value : "");
        printf("  %-24s  %s\n", left, rows[i].help);
    }
    printf("  %-24s  %s\n", "--follow=none|local|any",
           "what names stored in images may be followed to");
    printf("\nWithout -c, commands are read from standard input.\n"
           "'%s -c help' lists them, '%s -c \"help NAME\"' explains one.\n",
           program, program);
}

static void print_version(void)
{
    if (as_qemu)
        printf("qemu-io version %s (Platter %s)\n", QEMU_IO_LIKE, PLATTER_VERSION);
    else
        printf("io (Platter) %s\n", PLATTER_VERSION);
}

static void print_formats(void)
{
    struct blk_driver_info driver;
    for (unsigned i = 0; blk_driver_at(i, &driver) == 0; i++)
        puts(driver.name);
}

static void getopt_tables(char *letters, struct option *longs)
{
    for (int i = 0; i < ROWS; i++) {
        longs[i] = (struct option){ rows[i].name, rows[i].value ? required_argument : no_argument,
                                    NULL, rows[i].c };
        if (rows[i].c >= OBJECT)
            continue;
        *letters++ = (char)rows[i].c;
        if (rows[i].value)
            *letters++ = ':';
    }
    *letters = '\0';
    longs[ROWS] = (struct option){ 0 };
}

static bool take_object(const char *spec)
{
    struct error *err = NULL;

    if (blk_object_add(spec, &err) == 0)
        return true;
    complain_error(&err, "--object");
    return false;
}

/* One that has a value, with its value. */
static bool take_value(int c, const char *value, struct args *args)
{
    switch (c) {
    case 'c':
        return vector_push(&args->commands, value) == 0;
    case 'f':
        args->spec.format = value;
        return true;
    case 'i':
        return image_aio_valid(value, &args->spec.native_aio);
    case 't':
        args->spec.cache = value;
        return image_cache_valid(value);
    case 'd':
        return image_discard_valid(value, &args->spec.ignore_discard);
    case OBJECT:
        return take_object(value);
    default:
        return true; /* --trace: nothing to do */
    }
}

static void take_switch(int c, struct args *args)
{
    struct image_spec *spec = &args->spec;
    if (c == 'n')
        spec->cache = "none";
    bool *at = c == 'r'          ? &spec->read_only
               : c == 's'        ? &spec->snapshot
               : c == 'C'        ? &spec->copy_on_read
               : c == 'm'        ? &args->misalign
               : c == 'k'        ? &spec->native_aio
               : c == 'U'        ? &spec->share
               : c == IMAGE_OPTS ? &spec->image_opts
                                 : NULL;
    if (at)
        *at = true;
}

/* What can only be seen when all options are known. */
static bool finish(int argc, char **argv, struct args *args, int *code)
{
    if (args->spec.format && strcmp(args->spec.format, "help") == 0) {
        print_formats();
        *code = 0;
        return false;
    }
    if (argc - optind > 1) {
        print_help();
        return false;
    }
    if (args->spec.image_opts && args->spec.format) {
        complain("--image-opts and -f are mutually exclusive");
        return false;
    }
    args->spec.name = argc > optind ? argv[optind] : NULL;
    return true;
}

bool args_parse(int argc, char **argv, struct args *args, int *code)
{
    char letters[2 * ROWS + 1];
    struct option longs[ROWS + 1];
    getopt_tables(letters, longs);
    *code = 1;
    for (int c; (c = getopt_long(argc, argv, letters, longs, NULL)) != -1;) {
        if (c == '?' || c == 'h') {
            print_help();
            *code = c == '?';
            return false;
        }
        if (c == 'V') {
            print_version();
            *code = 0;
            return false;
        }
        if (!optarg)
            take_switch(c, args);
        else if (!take_value(c, optarg, args))
            return false;
    }
    return finish(argc, argv, args, code);
}
