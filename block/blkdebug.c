/* Filter: makes requests fail, stop, and obey other limits, so that tests can look at what follows.
 *
 * Rules wait for an event, a named point in the work of the driver above (driver.h). When it comes,
 * inject-error rules of the current state become active, and requests that match an active rule
 * fail; set-state rules move the state machine. A break stops whoever comes to an event until it is resumed.
 * fail-request counts requests instead: the n-th fails, for tests that let each one fail in turn. When there were
 * fewer, a warning at the end says how many, so that a test knows where to stop.
 *
 * Threads: everything that changes is under `lock`; stopped threads sleep on `resumed`.
 */
#include "blkdebug.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "block/driver_leaves.h"
#include "filter.h"

struct debug_options {
    char *config;
    json_t *inject, *set_state;
    uint64_t align, max_transfer, opt_zero, max_zero, opt_discard, max_discard;
    uint64_t fail_request, fail_errno;
    bool fail_on;
};

/* A break that waits for its event, or after it the hold on the request that came. */
struct stop {
    char *tag;
    enum blk_event event;
    const void *holds; /* the request it stopped; NULL: none yet */
    struct stop *next;
};

struct debug_state {
    uint64_t max_zero, max_discard;

    pthread_mutex_t lock;
    pthread_cond_t resumed;
    /* under lock */
    debug_rules rules;
    int state;
    struct stop *stops;
    uint64_t requests;     /* so far */
    uint64_t fail_request; /* this one fails; 0: none */
    int fail_errno;
    bool fail_on; /* and all after it */
};

#define AT(m) .at = offsetof(struct debug_options, m)

static const struct opt_def debug_options[] = {
    { .name = "config", .type = OPT_STRING, AT(config), .help = "file with rules" },
    { .name = "inject-error",
      .type = OPT_JSON,
      AT(inject),
      .help = "rules: event, state, iotype, errno, sector, once" },
    { .name = "set-state",
      .type = OPT_JSON,
      AT(set_state),
      .help = "rules: event, state, new_state" },
    { .name = "align",
      .type = OPT_SIZE,
      AT(align),
      .max = 1 << 30,
      .help = "alignment of requests" },
    { .name = "max-transfer",
      .type = OPT_SIZE,
      AT(max_transfer),
      .max = 1 << 30,
      .help = "largest request" },
    { .name = "opt-write-zero",
      .type = OPT_SIZE,
      AT(opt_zero),
      .max = 1 << 30,
      .help = "accepted: alignment that zeroing likes" },
    { .name = "max-write-zero",
      .type = OPT_SIZE,
      AT(max_zero),
      .max = 1 << 30,
      .help = "largest zero operation" },
    { .name = "opt-discard",
      .type = OPT_SIZE,
      AT(opt_discard),
      .max = 1 << 30,
      .help = "accepted: alignment that discarding likes" },
    { .name = "max-discard",
      .type = OPT_SIZE,
      AT(max_discard),
      .max = 1 << 30,
      .help = "largest discard" },
    { .name = "fail-request",
      .type = OPT_NUMBER,
      AT(fail_request),
      .help = "the request with this number, from 1, fails" },
    { .name = "fail-errno",
      .type = OPT_NUMBER,
      AT(fail_errno),
      .def = "5",
      .max = 4095,
      .help = "and with this errno" },
    { .name = "fail-on", .type = OPT_BOOL, AT(fail_on), .def = "off", .help = "and all after it" },
    OPT_END,
};

/* ---- events ------------------------------------------------------------------------------------------ */

static void forget(struct debug_state *s, struct stop *stop)
{
    struct stop **p = &s->stops;

    while (*p != stop)
        p = &(*p)->next;
    *p = stop->next;
    free(stop->tag);
    free(stop);
}

static bool is_held(const struct debug_state *s, const void *request)
{
    const struct stop *stop = s->stops;

    while (stop && stop->holds != request)
        stop = stop->next;
    return stop;
}

/* All breaks of the event take hold of the request, and it goes on when the last has let go. */
static void stop_here(struct debug_state *s, enum blk_event event)
{
    const int request = 0; /* its address names the request */

    for (struct stop *stop = s->stops; stop; stop = stop->next)
        if (stop->event == event && !stop->holds)
            stop->holds = &request;
    while (is_held(s, &request))
        pthread_cond_wait(&s->resumed, &s->lock);
}

/* Rules that were active give way to those that this event calls up. */
static void debug_event(struct blk_node *n, enum blk_event event)
{
    struct debug_state *s = node_state(n);
    bool called = false;

    LOCK_SCOPE(&s->lock);
    int before = s->state, after = s->state;
    for (size_t i = 0; i < s->rules.len; i++) {
        struct debug_rule *r = &s->rules.at[i];
        if (r->event != event || (r->state && r->state != before))
            continue;
        if (r->kind == RULE_SET_STATE) {
            after = r->new_state;
            continue;
        }
        for (size_t k = 0; !called && k < s->rules.len; k++)
            s->rules.at[k].active = false;
        called = true;
        r->active = true;
    }
    s->state = after;
    stop_here(s, event);
}

static int set_break(struct debug_state *s, const char *event, const char *tag)
{
    int e = debug_event_by_name(event);
    struct stop *stop = e < 0 ? NULL : calloc(1, sizeof(*stop));

    if (!stop)
        return e < 0 ? -ENOENT : -ENOMEM;
    stop->tag = strdup(tag);
    if (!stop->tag) {
        free(stop);
        return -ENOMEM;
    }
    stop->event = (enum blk_event)e;
    stop->next = s->stops;
    s->stops = stop;
    return 0;
}

/* The newest with this tag that holds a request, or that does not yet. */
static struct stop *find_stop(struct debug_state *s, const char *tag, bool holding)
{
    struct stop *stop = s->stops;

    while (stop && (strcmp(stop->tag, tag) || (stop->holds != NULL) != holding))
        stop = stop->next;
    return stop;
}

static int resume(struct debug_state *s, const char *tag)
{
    struct stop *stop = find_stop(s, tag, true);

    if (!stop)
        return -ENOENT;
    forget(s, stop);
    pthread_cond_broadcast(&s->resumed);
    return 0;
}

/* Of all breaks with the tag. Requests they hold go on, but a break that came to hold one is none any more:
 * -ENOENT if there was no other. */
static int remove_breaks(struct debug_state *s, const char *tag)
{
    int ret = -ENOENT;

    for (struct stop *stop; (stop = find_stop(s, tag, false)); ret = 0)
        forget(s, stop);
    while (resume(s, tag) == 0) {
    }
    return ret;
}

static int debug_call(struct blk_node *n, enum blk_debug_call call, const char *event,
                      const char *tag)
{
    struct debug_state *s = node_state(n);

    LOCK_SCOPE(&s->lock);
    if (call == BLK_DEBUG_BREAK)
        return set_break(s, event, tag);
    if (call == BLK_DEBUG_IS_SUSPENDED)
        return find_stop(s, tag, true) != NULL;
    return call == BLK_DEBUG_RESUME ? resume(s, tag) : remove_breaks(s, tag);
}

/* ---- requests ----------------------------------------------------------------------------------------- */

static bool hits(const struct debug_rule *r, unsigned type, uint64_t off, uint64_t len)
{
    if (r->kind != RULE_INJECT || !r->active || r->spent || !(r->types & type))
        return false;
    return r->offset < 0 || ((uint64_t)r->offset >= off && (uint64_t)r->offset - off < len);
}

static int verdict(struct blk_node *n, unsigned type, uint64_t off, uint64_t len)
{
    struct debug_state *s = node_state(n);

    LOCK_SCOPE(&s->lock);
    if (type != IO_STATUS) {
        uint64_t number = ++s->requests;
        if (s->fail_request &&
            (number == s->fail_request || (s->fail_on && number > s->fail_request)))
            return -s->fail_errno;
    }
    for (size_t i = 0; i < s->rules.len; i++) {
        struct debug_rule *r = &s->rules.at[i];
        if (!hits(r, type, off, len))
            continue;
        r->spent = r->once;
        return -r->error;
    }
    return 0;
}

static int debug_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                        uint64_t len, unsigned flags)
{
    int ret = verdict(n, IO_READ, off, len);
    return ret < 0 ? ret : filter_preadv(n, off, iov, iovcnt, len, flags);
}

static int debug_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                         uint64_t len, unsigned flags)
{
    int ret = verdict(n, IO_WRITE, off, len);
    return ret < 0 ? ret : filter_pwritev(n, off, iov, iovcnt, len, flags);
}

static int debug_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct debug_state *s = node_state(n);
    int ret = 0;

    while (len > 0 && ret == 0) {
        uint64_t piece = s->max_zero ? MIN(len, s->max_zero) : len;
        ret = verdict(n, IO_ZERO, off, piece);
        if (ret == 0)
            ret = filter_zero(n, off, piece, flags);
        off += piece;
        len -= piece;
    }
    return ret;
}

static int debug_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct debug_state *s = node_state(n);
    int ret = 0;

    while (len > 0 && ret == 0) {
        uint64_t piece = s->max_discard ? MIN(len, s->max_discard) : len;
        ret = verdict(n, IO_DISCARD, off, piece);
        if (ret == 0)
            ret = filter_discard(n, off, piece);
        off += piece;
        len -= piece;
    }
    return ret;
}

static int debug_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                         struct blk_extent *out)
{
    int ret = verdict(n, IO_STATUS, off, len);
    return ret < 0 ? ret : filter_extents(n, off, len, flags, out);
}

static int debug_flush(struct blk_node *n)
{
    int ret = verdict(n, IO_FLUSH, 0, 0);
    return ret < 0 ? ret : blk_flush(filter_below(n));
}

/* ---- open, close ---------------------------------------------------------------------------------------- */

/* "blkdebug:CONFIG:IMAGE"; CONFIG may be empty. */
static json_t *debug_describe(const char *filename, struct error **err)
{
    const char *config = strchr(filename, ':') + 1, *image = strchr(config, ':');

    if (!image) {
        error_set(err, EINVAL, "%s: expected blkdebug:CONFIG:IMAGE; CONFIG may be empty", filename);
        return NULL;
    }
    json_t *below = describe_file(image + 1, err);
    if (!below)
        return NULL;
    return json_pack("{s:s, s:o, s:o}", "driver", "blkdebug", "config",
                     json_stringn_nocheck(config, (size_t)(image - config)), "image", below);
}

static int set_limits(struct blk_node *n, const struct debug_options *o, struct error **err)
{
    struct debug_state *s = node_state(n);

    if (o->align && !is_pow2(o->align))
        return error_set(err, EINVAL, "blkdebug: align is not a power of two");
    if (o->align)
        node_limits(n)->align = (uint32_t)o->align;
    if (o->max_transfer && o->max_transfer % node_limits(n)->align)
        return error_set(err, EINVAL, "blkdebug: max-transfer is not a multiple of align");
    node_limits(n)->max_transfer = o->max_transfer;
    s->max_zero = o->max_zero;
    s->max_discard = o->max_discard;
    return 0;
}

static int debug_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct debug_options *o = options;
    struct debug_state *s = node_state(n);
    int ret = set_limits(n, o, err);

    if (ret == 0)
        ret = debug_rules_from_lists(&s->rules, o->inject, o->set_state, err);
    if (ret == 0 && o->config && o->config[0])
        ret = debug_rules_from_file(&s->rules, o->config, err);
    if (ret < 0) {
        vector_free(&s->rules);
        return ret;
    }
    s->state = 1;
    s->fail_request = o->fail_request;
    s->fail_errno = (int)o->fail_errno;
    s->fail_on = o->fail_on;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->resumed, NULL);
    filter_adopt(n);
    debug_event(n, EVENT_NONE);
    return 0;
}

static int debug_close(struct blk_node *n, struct error **err)
{
    struct debug_state *s = node_state(n);

    (void)err;
    if (s->fail_request > s->requests)
        node_warn(n, "request %" PRIu64 " did not fail: there were %" PRIu64, s->fail_request,
                  s->requests);
    while (s->stops)
        forget(s, s->stops);
    pthread_cond_destroy(&s->resumed);
    pthread_mutex_destroy(&s->lock);
    vector_free(&s->rules);
    return 0;
}

const struct driver blkdebug_driver = {
    .name = "blkdebug",
    .kind = BLK_FILTER,
    .flags = DRIVER_PARALLEL | DRIVER_GROWS,
    .state_size = sizeof(struct debug_state),
    .options = debug_options,
    .options_size = sizeof(struct debug_options),
    .first_edge = "image",
    .describe = debug_describe,
    .open = debug_open,
    .close = debug_close,
    .preadv = debug_preadv,
    .pwritev = debug_pwritev,
    .zero = debug_zero,
    .discard = debug_discard,
    .extents = debug_extents,
    .flush = debug_flush,
    .resize = filter_resize,
    .event = debug_event,
    .debug = debug_call,
};
