/* Options of a subcommand, from one table: parsing, help and completion.
 *
 * A row says where in the command's struct its value goes. Defaults are what the struct holds
 * before parsing.
 */
#ifndef IMG_ARGS_H
#define IMG_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct command;

enum arg_kind {
    ARG_FLAG,     /* bool */
    ARG_TEXT,     /* const char *, part of argv */
    ARG_CHOICE,   /* const char *, one of hint's words */
    ARG_JOIN,     /* char *, allocated: several are joined with commas */
    ARG_SIZE,     /* uint64_t, with suffixes */
    ARG_NUMBER,   /* uint64_t */
    ARG_IGNORED,  /* taken and forgotten */
    ARG_OBJECT,   /* for blk_object_add */
    ARG_OPTIONAL, /* as ARG_CHOICE, but --name alone gives "" */
};

struct arg_def {
    char letter;      /* 0: only long */
    const char *name; /* NULL: only short */
    enum arg_kind kind;
    size_t at;         /* offsetof the member */
    const char *value; /* how help calls the value; NULL for flags */
    const char *hint;  /* for completion: "@format", "@file", "@cache", "@options" or "a|b|c" */
    const char *help;
    const char *what; /* sizes and numbers: how a complaint calls it */
};

/* Parses argv[1...] of a subcommand. True: go on, with the operands in argv[*first..argc-1].
 * False: the exit code is in *code (help was asked and given, or a complaint was printed). */
bool args_parse(const struct command *cmd, int argc, char **argv, void *dst, int *first, int *code);

/* Takes name=value out of a text of comma separated options; the value, to be freed, or NULL.
 * The last one counts. */
char *options_take(char *list, const char *name);
/* "help" or "?" stands in it. */
bool options_ask_help(const char *list);

/* One of the words of "a|b|c". */
bool word_in(const char *word, const char *choices);

/* "64k", "1.5G". A complaint when it is not a size: "invalid WHAT 'TEXT'". */
bool parse_size(const char *text, const char *what, uint64_t *out);
/* "1000", "0x10" */
bool parse_number(const char *text, const char *what, uint64_t *out);

/* Rows that several commands have. */
#define ARGS_OBJECT                                                                        \
    {                                                                                      \
        .name = "object", .kind = ARG_OBJECT, .value = "OBJECTDEF",                        \
        .help = "something that descriptions name by its id: tls-creds-x509,id=tls0,dir=." \
    }
#define ARGS_FORMAT(type, member)                                                                \
    {                                                                                            \
        .letter = 'f', .name = "format", .kind = ARG_TEXT, .at = offsetof(type, member),         \
        .value = "FMT", .hint = "@format", .help = "format of the image; guessed when not given" \
    }
#define ARGS_IMAGE_OPTS(type, member)                                              \
    {                                                                              \
        .name = "image-opts", .kind = ARG_FLAG, .at = offsetof(type, member),      \
        .help = "FILENAME is a description: driver=qcow2,file.filename=disk.qcow2" \
    }
#define ARGS_SHARE(type, member)                                                              \
    {                                                                                         \
        .letter = 'U', .name = "force-share", .kind = ARG_FLAG, .at = offsetof(type, member), \
        .help = "open it although others may be writing to it"                                \
    }
#define ARGS_QUIET(type, member)                                                        \
    {                                                                                   \
        .letter = 'q', .name = "quiet", .kind = ARG_FLAG, .at = offsetof(type, member), \
        .help = "print nothing but errors"                                              \
    }
#define ARGS_OUTPUT(type, member)                                                            \
    {                                                                                        \
        .name = "output", .kind = ARG_CHOICE, .at = offsetof(type, member), .value = "OFMT", \
        .hint = "human|json", .help = "print for people or as JSON"                          \
    }
#define ARGS_PROGRESS(type, flag, mode)                                                       \
    { .letter = 'p',                                                                          \
      .kind = ARG_FLAG,                                                                       \
      .at = offsetof(type, flag),                                                             \
      .help = "show progress in percent, as qemu-img does" },                                 \
    {                                                                                         \
        .name = "progress", .kind = ARG_OPTIONAL, .at = offsetof(type, mode), .value = "HOW", \
        .hint = "bar|qemu|json|none", .help = "how progress is shown; -p when HOW is missing" \
    }
#define ARGS_END     \
    {                \
        .help = NULL \
    }

#endif
