/* `img __complete WORD...`: candidates for the last word, for the shell's completion script.
 * "@file" asks the shell for file names. */
#include "img.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#include "args.h"

static void offer(const char *prefix, const char *word, const char *candidate, const char *tail)
{
    if (strncmp(candidate, word, strlen(word)) == 0)
        printf("%s%s%s\n", prefix, candidate, tail);
}

static void offer_choices(const char *word, const char *choices)
{
    while (*choices) {
        size_t n = strcspn(choices, "|");
        _cleanup_free_ char *one = strndup(choices, n);
        if (one)
            offer("", word, one, "");
        choices += n + (choices[n] == '|');
    }
}

static void offer_formats(const char *word)
{
    struct blk_driver_info info;
    for (unsigned i = 0; blk_driver_at(i, &info) == 0; i++) {
        if (info.kind & BLK_FORMAT)
            offer("", word, info.name, "");
    }
}

/* word: "cluster_size=64k,la"; the shell breaks words at '=', so only what follows the last one is
 * its word, and candidates begin with that. */
static void offer_driver_options(const char *format, const char *word, bool amend)
{
    const char *comma = strrchr(word, ',');
    const char *last = comma ? comma + 1 : word;
    const char *equals = strchr(last, '=');
    struct blk_option_info option;
    for (unsigned i = 0; (amend ? blk_driver_amend_option_at(format, i, &option)
                                : blk_driver_option_at(format, true, i, &option)) == 0;
         i++) {
        if (!equals) {
            const char *shell_word = strrchr(word, '=');
            shell_word = shell_word ? shell_word + 1 : word;
            _cleanup_free_ char *before = strndup(shell_word, (size_t)(last - shell_word));
            offer(before ? before : "", last, option.name, "=");
        } else if (strlen(option.name) == (size_t)(equals - last) &&
                   memcmp(option.name, last, (size_t)(equals - last)) == 0) {
            bool is_bool = strcmp(option.type, "bool") == 0;
            if (is_bool || strchr(option.type, '|'))
                offer_choices(equals + 1, is_bool ? "on|off" : option.type);
        }
    }
}

static void offer_value(const struct arg_def *def, const char *format, const char *word)
{
    if (!def->hint)
        return;
    if (strcmp(def->hint, "@format") == 0)
        offer_formats(word);
    else if (strcmp(def->hint, "@cache") == 0)
        offer_choices(word, "none|writeback|writethrough|directsync|unsafe");
    else if (strcmp(def->hint, "@options") == 0)
        offer_driver_options(format, word, false);
    else if (strcmp(def->hint, "@amend") == 0)
        offer_driver_options(format, word, true);
    else if (def->hint[0] == '@')
        puts(def->hint);
    else
        offer_choices(word, def->hint);
}

static const struct arg_def *find(const struct command *cmd, const char *word, size_t len)
{
    for (const struct arg_def *def = cmd->args; def->help; def++) {
        if (len == 2 && word[0] == '-' && word[1] == def->letter)
            return def;
        if (def->name && len == strlen(def->name) + 2 && word[0] == '-' && word[1] == '-' &&
            memcmp(word + 2, def->name, len - 2) == 0)
            return def;
    }
    return NULL;
}

static void offer_options(const struct command *cmd, const char *word)
{
    char text[80];
    for (const struct arg_def *def = cmd->args; def->help; def++) {
        if (def->letter) {
            snprintf(text, sizeof(text), "-%c", def->letter);
            offer("", word, text, "");
        }
        if (def->name) {
            snprintf(text, sizeof(text), "--%s", def->name);
            offer("", word, text, def->value && def->kind != ARG_OPTIONAL ? "=" : "");
        }
    }
    offer("", word, "--help", "");
}

static void offer_dd_operands(const char *word)
{
    static const char *const names[] = {
        "if", "of", "bs", "count", "skip", "seek", "conv", "status"
    };
    const char *equals = strchr(word, '=');
    if (equals && strncmp(word, "conv=", 5) == 0)
        offer_choices(equals + 1, "notrunc|fsync|fdatasync|sparse|nocreat|excl");
    else if (equals && strncmp(word, "status=", 7) == 0)
        offer_choices(equals + 1, "none|noxfer|progress");
    else if (equals)
        puts("@file");
    for (size_t i = 0; !equals && i < sizeof(names) / sizeof(names[0]); i++)
        offer("", word, names[i], "=");
}

/* The shell hands "--output", "=", "js" for --output=js; puts such words together again. */
static int join_words(int argc, char **argv, char **words)
{
    int n = 0;
    for (int i = 0; i < argc; i++) {
        bool glue = n > 0 && (strcmp(argv[i], "=") == 0 ||
                              (words[n - 1][0] && words[n - 1][strlen(words[n - 1]) - 1] == '=' &&
                               i > 0 && strcmp(argv[i - 1], "=") == 0));
        char *joined = NULL;
        if (asprintf(&joined, "%s%s", glue ? words[n - 1] : "", argv[i]) < 0)
            break;
        if (glue)
            free(words[--n]);
        words[n++] = joined;
    }
    return n;
}

/* The target's format as far as it is typed, else the image's. */
static const char *typed_format(const struct command *cmd, char **words, int n)
{
    const char *format = NULL;
    for (int i = 1; i + 1 < n; i++) {
        const struct arg_def *def = find(cmd, words[i], strlen(words[i]));
        if (def && def->hint && strcmp(def->hint, "@format") == 0 &&
            (def->letter == 'O' || (def->letter == 'f' && !format)))
            format = words[i + 1];
    }
    return format ? format : "raw";
}

static void complete_words(char **words, int n)
{
    const char *word = n > 0 ? words[n - 1] : "";
    if (n <= 1) {
        for (const struct command *const *cmd = commands; *cmd; cmd++)
            offer("", word, (*cmd)->name, "");
        offer("", word, "help", "");
        offer("", word, "--help", "");
        offer("", word, "--version", "");
        return;
    }
    if (strcmp(words[0], "help") == 0) {
        for (const struct command *const *cmd = commands; *cmd; cmd++)
            offer("", word, (*cmd)->name, "");
        return;
    }
    const struct command *cmd = command_find(words[0]);
    if (!cmd)
        return;
    const char *format = typed_format(cmd, words, n);
    const struct arg_def *before = n > 2 ? find(cmd, words[n - 2], strlen(words[n - 2])) : NULL;
    size_t name_len = strcspn(word, "=");
    if (before && before->value && before->kind != ARG_OPTIONAL) {
        offer_value(before, format, word);
    } else if (word[0] == '-' && word[1] == '-' && word[name_len] == '=') {
        const struct arg_def *def = find(cmd, word, name_len);
        if (def && def->value)
            offer_value(def, format, word + name_len + 1);
    } else if (word[0] == '-') {
        offer_options(cmd, word);
    } else if (strcmp(cmd->name, "dd") == 0) {
        offer_dd_operands(word);
    } else {
        puts("@file");
    }
}

int complete(int argc, char **argv)
{
    char **words = calloc((size_t)argc + 1, sizeof(char *));
    if (!words)
        return 1;
    int n = join_words(argc, argv, words);
    complete_words(words, n);
    for (int i = 0; i < n; i++)
        free(words[i]);
    free(words);
    return 0;
}
