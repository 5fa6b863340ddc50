/* The rules of a blkdebug node: read from options or a configuration file. */
#ifndef BLOCK_BLKDEBUG_H
#define BLOCK_BLKDEBUG_H

#include "base/vector.h"
#include "block/driver.h"

enum rule_kind { RULE_INJECT, RULE_SET_STATE };

enum io_type {
    IO_READ = 1 << 0,
    IO_WRITE = 1 << 1,
    IO_ZERO = 1 << 2,
    IO_DISCARD = 1 << 3,
    IO_FLUSH = 1 << 4,
    IO_STATUS = 1 << 5,
};

struct debug_rule {
    enum rule_kind kind;
    enum blk_event event;
    int state; /* only in this state; 0: any */
    /* inject */
    int error;      /* positive errno */
    unsigned types; /* enum io_type */
    int64_t offset; /* bytes; -1: anywhere */
    bool once;
    bool active, spent;
    /* set-state */
    int new_state;
};

typedef VECTOR(struct debug_rule) debug_rules;

/* NULL and the like: -1 */
int debug_event_by_name(const char *name);

/* Lists as in {"inject-error": [...], "set-state": [...]}; NULL is an empty one. */
int debug_rules_from_lists(debug_rules *rules, const json_t *inject, const json_t *set_state,
                           struct error **err);
/* A configuration file: [inject-error] and [set-state] groups of key = "value" lines. */
int debug_rules_from_file(debug_rules *rules, const char *path, struct error **err);

#endif
