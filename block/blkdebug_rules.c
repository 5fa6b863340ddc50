#include "blkdebug.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"

static const char *const event_names[EVENT_COUNT] = {
    [EVENT_NONE] = "none",
    [EVENT_L1_UPDATE] = "l1_update",
    [EVENT_L1_GROW_ALLOC_TABLE] = "l1_grow_alloc_table",
    [EVENT_L1_GROW_WRITE_TABLE] = "l1_grow_write_table",
    [EVENT_L1_GROW_ACTIVATE_TABLE] = "l1_grow_activate_table",
    [EVENT_L1_SHRINK_WRITE_TABLE] = "l1_shrink_write_table",
    [EVENT_L1_SHRINK_FREE_L2_CLUSTERS] = "l1_shrink_free_l2_clusters",
    [EVENT_L2_LOAD] = "l2_load",
    [EVENT_L2_UPDATE] = "l2_update",
    [EVENT_L2_UPDATE_COMPRESSED] = "l2_update_compressed",
    [EVENT_L2_ALLOC_COW_READ] = "l2_alloc_cow_read",
    [EVENT_L2_ALLOC_WRITE] = "l2_alloc_write",
    [EVENT_READ_AIO] = "read_aio",
    [EVENT_READ_BACKING_AIO] = "read_backing_aio",
    [EVENT_READ_COMPRESSED] = "read_compressed",
    [EVENT_WRITE_AIO] = "write_aio",
    [EVENT_WRITE_COMPRESSED] = "write_compressed",
    [EVENT_VMSTATE_LOAD] = "vmstate_load",
    [EVENT_VMSTATE_SAVE] = "vmstate_save",
    [EVENT_COW_READ] = "cow_read",
    [EVENT_COW_WRITE] = "cow_write",
    [EVENT_REFTABLE_LOAD] = "reftable_load",
    [EVENT_REFTABLE_GROW] = "reftable_grow",
    [EVENT_REFTABLE_UPDATE] = "reftable_update",
    [EVENT_REFBLOCK_LOAD] = "refblock_load",
    [EVENT_REFBLOCK_UPDATE] = "refblock_update",
    [EVENT_REFBLOCK_UPDATE_PART] = "refblock_update_part",
    [EVENT_REFBLOCK_ALLOC] = "refblock_alloc",
    [EVENT_REFBLOCK_ALLOC_HOOKUP] = "refblock_alloc_hookup",
    [EVENT_REFBLOCK_ALLOC_WRITE] = "refblock_alloc_write",
    [EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS] = "refblock_alloc_write_blocks",
    [EVENT_REFBLOCK_ALLOC_WRITE_TABLE] = "refblock_alloc_write_table",
    [EVENT_REFBLOCK_ALLOC_SWITCH_TABLE] = "refblock_alloc_switch_table",
    [EVENT_CLUSTER_ALLOC] = "cluster_alloc",
    [EVENT_CLUSTER_ALLOC_BYTES] = "cluster_alloc_bytes",
    [EVENT_CLUSTER_ALLOC_SPACE] = "cluster_alloc_space",
    [EVENT_CLUSTER_FREE] = "cluster_free",
    [EVENT_FLUSH_TO_OS] = "flush_to_os",
    [EVENT_FLUSH_TO_DISK] = "flush_to_disk",
    [EVENT_PWRITEV_RMW_HEAD] = "pwritev_rmw_head",
    [EVENT_PWRITEV_RMW_AFTER_HEAD] = "pwritev_rmw_after_head",
    [EVENT_PWRITEV_RMW_TAIL] = "pwritev_rmw_tail",
    [EVENT_PWRITEV_RMW_AFTER_TAIL] = "pwritev_rmw_after_tail",
    [EVENT_PWRITEV] = "pwritev",
    [EVENT_PWRITEV_ZERO] = "pwritev_zero",
    [EVENT_PWRITEV_DONE] = "pwritev_done",
    [EVENT_EMPTY_IMAGE_PREPARE] = "empty_image_prepare",
    [EVENT_COR_WRITE] = "cor_write",
};

int debug_event_by_name(const char *name)
{
    char plain[64];

    /* Older spellings group with dots: l1_grow.alloc_table */
    snprintf(plain, sizeof(plain), "%s", name ? name : "");
    for (char *c = plain; *c; c++)
        if (*c == '.')
            *c = '_';
    for (int i = 0; i < EVENT_COUNT; i++)
        if (!strcmp(event_names[i], plain))
            return i;
    return -1;
}

/* ---- one rule ------------------------------------------------------------------------------------- */

struct rule_options {
    char *event;
    uint64_t state, error, sector, new_state;
    bool sector_given, once, immediately;
    char *iotype;
};

#define AT(m) .at = offsetof(struct rule_options, m)

static const struct opt_def inject_table[] = {
    { .name = "event", .type = OPT_STRING, AT(event) },
    { .name = "state", .type = OPT_NUMBER, AT(state), .max = INT32_MAX },
    { .name = "iotype", .type = OPT_STRING, AT(iotype) },
    { .name = "errno", .type = OPT_NUMBER, AT(error), .def = "5", .max = 4095 },
    { .name = "sector",
      .type = OPT_NUMBER,
      AT(sector),
      .given = offsetof(struct rule_options, sector_given),
      .max = INT64_MAX / 512 },
    { .name = "once", .type = OPT_BOOL, AT(once), .def = "off" },
    { .name = "immediately", .type = OPT_BOOL, AT(immediately), .def = "off" },
    OPT_END,
};

static const struct opt_def state_table[] = {
    { .name = "event", .type = OPT_STRING, AT(event) },
    { .name = "state", .type = OPT_NUMBER, AT(state), .max = INT32_MAX },
    { .name = "new_state", .type = OPT_NUMBER, AT(new_state), .max = INT32_MAX },
    OPT_END,
};

static int type_by_name(const char *name, unsigned *types)
{
    static const struct {
        const char *name;
        unsigned type;
    } known[] = {
        { "read", IO_READ },       { "write", IO_WRITE }, { "write-zeroes", IO_ZERO },
        { "discard", IO_DISCARD }, { "flush", IO_FLUSH }, { "block-status", IO_STATUS },
    };

    *types = IO_READ | IO_WRITE | IO_ZERO | IO_DISCARD | IO_FLUSH;
    if (!name)
        return 0;
    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (!strcmp(known[i].name, name)) {
            *types = known[i].type;
            return 0;
        }
    return -EINVAL;
}

static int add_rule(debug_rules *rules, enum rule_kind kind, const json_t *given,
                    struct error **err)
{
    const struct opt_def *table = kind == RULE_INJECT ? inject_table : state_table;
    const char *what = kind == RULE_INJECT ? "inject-error" : "set-state";
    struct rule_options o = { 0 };
    _cleanup_json_ json_t *copy = json_deep_copy(given);

    if (!json_is_object(copy))
        return error_set(err, EINVAL, "%s: a rule must be an object", what);
    json_object_del(copy, "id");
    int ret = opts_take(table, copy, &o, err);
    if (ret < 0)
        return ret;
    ret = opts_refuse_rest(table, copy, what, err);
    int event = debug_event_by_name(o.event);
    struct debug_rule rule = {
        .kind = kind,
        .event = (enum blk_event)event,
        .state = (int)o.state,
        .error = (int)o.error,
        .offset = o.sector_given ? (int64_t)o.sector * 512 : -1,
        .once = o.once,
        .new_state = (int)o.new_state,
    };
    if (ret == 0 && event < 0)
        ret = error_set(err, EINVAL, "%s: unknown event '%s'", what, o.event ? o.event : "");
    if (ret == 0 && type_by_name(o.iotype, &rule.types) < 0)
        ret = error_set(err, EINVAL, "%s: unknown iotype '%s'", what, o.iotype);
    if (ret == 0 && vector_push(rules, rule) < 0)
        ret = error_set(err, ENOMEM, "out of memory");
    opts_free(table, &o);
    return ret;
}

static int add_list(debug_rules *rules, enum rule_kind kind, const json_t *list, struct error **err)
{
    size_t i;
    json_t *rule;

    if (list && !json_is_array(list))
        return error_set(err, EINVAL, "inject-error and set-state are lists of rules");
    json_array_foreach(list, i, rule)
    {
        int ret = add_rule(rules, kind, rule, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int debug_rules_from_lists(debug_rules *rules, const json_t *inject, const json_t *set_state,
                           struct error **err)
{
    int ret = add_list(rules, RULE_INJECT, inject, err);
    return ret < 0 ? ret : add_list(rules, RULE_SET_STATE, set_state, err);
}

/* ---- configuration files ----------------------------------------------------------------------------- */

static char *trim(char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    size_t n = strlen(s);
    while (n && isspace((unsigned char)s[n - 1]))
        s[--n] = '\0';
    return s;
}

/* key = "value" into the rule. */
static int take_line(json_t *rule, char *line)
{
    char *eq = strchr(line, '=');

    if (!eq || !rule)
        return -EINVAL;
    *eq = '\0';
    char *key = trim(line), *value = trim(eq + 1);
    size_t n = strlen(value);
    if (n >= 2 && value[0] == '"' && value[n - 1] == '"') {
        value[n - 1] = '\0';
        value++;
    }
    return json_object_set_new(rule, key, json_string(value));
}

/* [inject-error], [set-state], with or without an id in quotes. */
static int begin_group(const char *line, enum rule_kind *kind)
{
    if (!strncmp(line, "[inject-error", 13))
        *kind = RULE_INJECT;
    else if (!strncmp(line, "[set-state", 10))
        *kind = RULE_SET_STATE;
    else
        return -EINVAL;
    return 0;
}

static int end_group(debug_rules *rules, enum rule_kind kind, json_t **rule, struct error **err)
{
    int ret = *rule ? add_rule(rules, kind, *rule, err) : 0;

    json_decref(*rule);
    *rule = NULL;
    return ret;
}

int debug_rules_from_file(debug_rules *rules, const char *path, struct error **err)
{
    _cleanup_stream_ FILE *f = fopen(path, "re");
    _cleanup_json_ json_t *rule = NULL;
    enum rule_kind kind = RULE_INJECT;
    char line[1024];
    int ret = 0;

    if (!f)
        return error_set(err, errno, "%s: %s", path, strerror(errno));
    for (unsigned number = 1; ret == 0 && fgets(line, sizeof(line), f); number++) {
        char *text = trim(line);
        int r = 0;
        if (!*text || *text == '#')
            continue;
        if (*text == '[') {
            ret = end_group(rules, kind, &rule, err);
            r = begin_group(text, &kind);
            rule = json_object();
        } else {
            r = take_line(rule, text);
        }
        if (ret == 0 && r < 0)
            ret = error_set(err, EINVAL,
                            "%s:%u: expected [inject-error], [set-state] or key = "
                            "\"value\"",
                            path, number);
    }
    return ret < 0 ? ret : end_group(rules, kind, &rule, err);
}
