/* Option tables: how text becomes a typed struct, once, at the edge.
 *
 * A driver states its options as a table; each row names a member of the struct that the parser
 * fills. All spellings (key=value,..., dotted keys, JSON, json:{...}, command line flags) become
 * one jansson object first, and that object becomes the struct here. Nothing behind this edge sees
 * a key.
 */
#ifndef BASE_OPTIONS_H
#define BASE_OPTIONS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum opt_type {
    OPT_BOOL,   /* bool: on/off, yes/no, true/false */
    OPT_SIZE,   /* uint64_t bytes: 4096, 64k, 1.5G (powers of 1024) */
    OPT_NUMBER, /* uint64_t */
    OPT_STRING, /* char *, allocated; NULL when absent */
    OPT_ENUM,   /* int, one of choices */
    OPT_JSON,   /* json_t *: a list or an object, for what no row can say; NULL when absent */
};

struct opt_choice {
    const char *name;
    int value;
};

struct opt_def {
    const char *name;
    enum opt_type type;
    size_t at;         /* offsetof the member */
    size_t given;      /* offsetof a bool that says whether the user gave it; 0: not wanted */
    const char *def;   /* the default, spelt as the user would; NULL: 0, false or NULL */
    const char *help;  /* one line for `-o help`; NULL: not shown */
    uint64_t min, max; /* OPT_SIZE and OPT_NUMBER; max 0: no limit */
    const struct opt_choice *choices; /* OPT_ENUM, ends with a NULL name */
};

/* A table ends with a row whose name is NULL. */
#define OPT_END      \
    {                \
        .name = NULL \
    }

/* Fills *dst (zeroed by the caller) from the object and takes the keys it knows out of it.
 * Values may be JSON of the right kind or strings spelt as on a command line.
 * On failure *dst holds nothing that needs freeing. */
int opts_take(const struct opt_def *table, json_t *object, void *dst, struct error **err);

/* Fails, with a did-you-mean from the table, when a key is left over. `what` names the owner:
 * "driver qcow2", "qcow2 create options". */
int opts_refuse_rest(const struct opt_def *table, json_t *object, const char *what,
                     struct error **err);

/* Frees the strings in *dst. */
void opts_free(const struct opt_def *table, void *dst);

/* "a=1,b.c=x,,y" -> {"a": "1", "b": {"c": "x,y"}}. A first part without '=' gets implied_key
 * (NULL: refused), later ones mean key=on (and "nokey" key=off is not guessed).
 * NULL and an error when it cannot be parsed. The caller owns the object. */
json_t *opts_parse_keyval(const char *text, const char *implied_key, struct error **err);

/* JSON object text with dotted keys unfolded, as in json:{"file.filename": "x"}. */
json_t *opts_parse_json(const char *text, struct error **err);

/* "64k", "1.5G", "0x200": bytes. Fails on sign, overflow, rest. */
int opts_parse_size(const char *text, uint64_t *out, struct error **err);
/* The same with a message of the caller's: only 0 or -EINVAL/-ERANGE. */
int opts_parse_bool(const char *text, bool *out);

#endif
