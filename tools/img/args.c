#include "args.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/distance.h"
#include "base/error.h"
#include "base/options.h"
#include "base/strbuf.h"

#include "img.h"

enum {
    MAX_ARGS = 64,
    LONG_BASE = 256, /* getopt's answer for row i without a letter is LONG_BASE + i */
};

static bool takes_value(const struct arg_def *def)
{
    return def->kind != ARG_FLAG;
}

/* getopt's view of the table. */
static void getopt_tables(const struct arg_def *defs, char *letters, struct option *longs)
{
    *letters++ = ':';
    *letters++ = 'h';
    *longs++ = (struct option){ "help", no_argument, NULL, 'h' };
    for (int i = 0; defs[i].help; i++) {
        if (defs[i].letter) {
            *letters++ = defs[i].letter;
            if (takes_value(&defs[i]))
                *letters++ = ':';
        }
        if (defs[i].name) {
            int has = defs[i].kind == ARG_OPTIONAL ? optional_argument
                      : takes_value(&defs[i])      ? required_argument
                                                   : no_argument;
            *longs++ = (struct option){ defs[i].name, has, NULL, LONG_BASE + i };
        }
    }
    *letters = '\0';
    *longs = (struct option){ 0 };
}

static const struct arg_def *row_of(const struct arg_def *defs, int c)
{
    if (c >= LONG_BASE)
        return &defs[c - LONG_BASE];
    for (; defs->help; defs++) {
        if (defs->letter == c)
            return defs;
    }
    return NULL;
}

bool word_in(const char *word, const char *choices)
{
    size_t len = strlen(word);
    for (const char *p = choices; *p;) {
        size_t n = strcspn(p, "|");
        if (n == len && memcmp(p, word, n) == 0)
            return true;
        p += n + (p[n] == '|');
    }
    return false;
}

static const char *spelling(const struct arg_def *def, char *buf, size_t size)
{
    if (def->name)
        snprintf(buf, size, "--%s", def->name);
    else
        snprintf(buf, size, "-%c", def->letter);
    return buf;
}

static bool take_object(const char *spec)
{
    struct error *err = NULL;

    if (blk_object_add(spec, &err) == 0)
        return true;
    complain_error(&err, "--object");
    return false;
}

static bool store(const struct arg_def *def, const char *value, void *dst)
{
    void *at = (char *)dst + def->at;
    char name[64];
    switch (def->kind) {
    case ARG_FLAG:
        *(bool *)at = true;
        return true;
    case ARG_OPTIONAL:
        if (!value) {
            *(const char **)at = "";
            return true;
        }
        /* fall through */
    case ARG_CHOICE:
        if (def->hint[0] != '@' && !word_in(value, def->hint)) {
            complain("%s is '%s', but it may be one of %s", spelling(def, name, sizeof(name)),
                     value, def->hint);
            return false;
        }
        /* fall through */
    case ARG_TEXT:
        *(const char **)at = value;
        return true;
    case ARG_JOIN: {
        char **list = at;
        char *joined = NULL;
        if (asprintf(&joined, "%s%s%s", *list ? *list : "", *list ? "," : "", value) < 0) {
            complain("out of memory");
            return false;
        }
        free(*list);
        *list = joined;
        return true;
    }
    case ARG_SIZE:
        return parse_size(value, def->what, at);
    case ARG_NUMBER:
        return parse_number(value, def->what, at);
    case ARG_OBJECT:
        return take_object(value);
    case ARG_IGNORED:
        return true;
    }
    return false;
}

static void unknown_option(const struct command *cmd, const char *word)
{
    const char *bare = word;
    while (*bare == '-')
        bare++;
    _cleanup_free_ char *name = strndup(bare, strcspn(bare, "="));
    struct nearest best = nearest_begin(name ? name : bare);
    if (word[0] == '-' && word[1] == '-') {
        for (const struct arg_def *def = cmd->args; def->help; def++) {
            if (def->name)
                nearest_try(&best, def->name);
        }
    }
    if (best.name)
        complain("%s has no option '%s', did you mean '--%s'?", cmd->name, word, best.name);
    else
        complain("%s has no option '%s'", cmd->name, word);
    complain_usage(cmd->name);
}

static bool parse(const struct command *cmd, int argc, char **argv, void *dst, int *first,
                  int *code)
{
    char letters[2 * MAX_ARGS + 4];
    struct option longs[MAX_ARGS + 2];
    getopt_tables(cmd->args, letters, longs);
    optind = 0; /* glibc: start afresh */
    opterr = 0;
    *code = 1;
    for (;;) {
        int at = optind ? optind : 1;
        int c = getopt_long(argc, argv, letters, longs, NULL);
        if (c < 0)
            break;
        if (c == 'h') {
            help_command(cmd);
            *code = 0;
            return false;
        }
        if (c == ':') {
            complain("%s needs a value behind option '%s'", cmd->name, argv[optind - 1]);
            complain_usage(cmd->name);
            return false;
        }
        const struct arg_def *def = c == '?' ? NULL : row_of(cmd->args, c);
        if (!def) {
            /* In the middle of -abc optind still stands on that word. */
            unknown_option(cmd, argv[optind > at ? optind - 1 : at]);
            return false;
        }
        if (!store(def, optarg, dst))
            return false;
    }
    *first = optind;
    return true;
}

bool args_parse(const struct command *cmd, int argc, char **argv, void *dst, int *first, int *code)
{
    if (parse(cmd, argc, argv, dst, first, code))
        return true;
    for (const struct arg_def *def = cmd->args; def->help; def++) {
        char **at = (char **)(void *)((char *)dst + def->at);
        if (def->kind != ARG_JOIN)
            continue;
        free(*at);
        *at = NULL;
    }
    return false;
}

/* Length of the option that begins here: up to a comma that stands alone. */
static size_t option_length(const char *p)
{
    size_t n = 0;
    while (p[n]) {
        if (p[n] == ',') {
            if (p[n + 1] != ',')
                break;
            n++;
        }
        n++;
    }
    return n;
}

static char *undouble(const char *p, size_t len)
{
    char *out = malloc(len + 1), *q = out;
    if (!out)
        return NULL;
    for (size_t i = 0; i < len; i++) {
        *q++ = p[i];
        if (p[i] == ',' && i + 1 < len && p[i + 1] == ',')
            i++;
    }
    *q = '\0';
    return out;
}

char *options_take(char *list, const char *name)
{
    if (!list)
        return NULL;
    char *value = NULL, *to = list;
    size_t name_len = strlen(name);
    for (char *p = list; *p;) {
        size_t n = option_length(p);
        size_t step = n + (p[n] == ',');
        if (n > name_len && memcmp(p, name, name_len) == 0 && p[name_len] == '=') {
            free(value);
            value = undouble(p + name_len + 1, n - name_len - 1);
        } else {
            if (to != list)
                *to++ = ',';
            memmove(to, p, n);
            to += n;
        }
        p += step;
    }
    *to = '\0';
    return value;
}

bool options_ask_help(const char *list)
{
    while (list && *list) {
        size_t n = option_length(list);
        if ((n == 4 && memcmp(list, "help", 4) == 0) || (n == 1 && *list == '?'))
            return true;
        list += n + (list[n] == ',');
    }
    return false;
}

bool parse_size(const char *text, const char *what, uint64_t *out)
{
    _cleanup_error_ struct error *err = NULL;
    if (opts_parse_size(text, out, &err) < 0 || *out > INT64_MAX) {
        complain("invalid %s '%s': it is a number of bytes, with k, M, G, T, P or E behind it for "
                 "powers of 1024",
                 what, text);
        return false;
    }
    return true;
}

bool parse_number(const char *text, const char *what, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 0);
    if (errno || end == text || *end || strchr(text, '-')) {
        complain("invalid %s '%s': it is a whole number", what, text);
        return false;
    }
    *out = n;
    return true;
}
