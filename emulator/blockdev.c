/* Disks of the machine: a list of named nodes, and requests on a pool.
 *
 * Threads: the list changes and is looked at under `list_lock`; entries live until blockdevs_close. A device's `lock`
 * guards how many requests are under way; nothing else of it changes while it is taken. A request is its caller's again as
 * soon as `done` is called.
 */
#include "blockdev.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/cores.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/macros.h"
#include "base/options.h"
#include "base/strbuf.h"
#include "block/block.h"
#include "blockdev_drive.h"
#include "tools/overlay.h"

enum {
    POOL_LEAST = 4,
    POOL_MOST = 8,
    INLINE_MOST = 64 << 10, /* longer reads are not worth a CPU's time */
    MERGE_MOST = 1 << 20,
};

struct blockdev {
    struct blockdev *next;
    char *name;
    struct blk_node *node; /* NULL: an empty drive */
    char *cache;           /* as it was asked for, for `info block`; NULL: writeback */
    char *users;           /* who took it last; NULL: nobody. Under list_lock, as are these: */
    unsigned readers;
    bool writer;

    pthread_mutex_t lock;
    pthread_cond_t idle;
    unsigned pending; /* under lock */
};

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct blockdev *list; /* under list_lock; the newest first */
static unsigned made_up;      /* names of drives without an id; under list_lock */
static struct pool *pool;     /* under list_lock until the first device is taken; then it stands */

/* ---- the list ------------------------------------------------------------------------------- */

static struct blockdev *find_locked(const char *name)
{
    for (struct blockdev *b = list; b; b = b->next)
        if (!strcmp(b->name, name) || (b->node && !strcmp(blk_node_name(b->node), name)))
            return b;
    return NULL;
}

static void free_blockdev(struct blockdev *b)
{
    pthread_cond_destroy(&b->idle);
    pthread_mutex_destroy(&b->lock);
    free(b->name);
    free(b->cache);
    free(b->users);
    free(b);
}

/* Takes the node over, also on failure. name NULL: one is made up. */
static int enter(const char *name, struct blk_node *node, const char *cache, struct blockdev **out,
                 struct error **err)
{
    struct blockdev *b = calloc(1, sizeof(*b));
    char made[32];
    int r = b ? 0 : error_set(err, ENOMEM, "out of memory");

    if (b) {
        pthread_mutex_init(&b->lock, NULL);
        pthread_cond_init(&b->idle, NULL);
        LOCK_SCOPE(&list_lock);
        snprintf(made, sizeof(made), "drive%u", made_up);
        b->node = node;
        b->name = strdup(name ? name : made);
        b->cache = cache ? strdup(cache) : NULL;
        if (!b->name || (cache && !b->cache)) {
            r = error_set(err, ENOMEM, "out of memory");
        } else if (find_locked(b->name)) {
            r = error_set(err, EEXIST, "the name '%s' is taken already: choose another", b->name);
        } else {
            made_up += !name;
            b->next = list;
            list = b;
        }
    }
    if (r < 0) {
        blk_close(node, NULL);
        if (b)
            free_blockdev(b);
        return r;
    }
    *out = b;
    return 0;
}

/* ---- opening -------------------------------------------------------------------------------- */

struct opening {
    const char *cache, *node_name;
    bool read_only, auto_read_only, unmap, snapshot;
};

static int open_once(json_t *description, const struct opening *how, bool write,
                     struct blk_node **out, struct error **err)
{
    unsigned flags = (write ? BLK_OPEN_RDWR : 0) | (how->unmap ? BLK_OPEN_UNMAP : 0);

    if (how->snapshot)
        return overlay_open(description, how->cache, flags, out, err);
    _cleanup_free_ char *text = json_dumps(description, JSON_COMPACT);
    if (!text)
        return error_set(err, ENOMEM, "out of memory, or a name that is not UTF-8");
    struct blk_open_args args = {
        .cache = how->cache, .node_name = how->node_name, .image_opts = true, .flags = flags
    };
    return blk_open(text, &args, out, err);
}

/* auto-read-only: what cannot be written to is opened all the same. */
static int open_node(json_t *description, const struct opening *how, struct blk_node **out,
                     struct error **err)
{
    struct error *first = NULL;
    int r = open_once(description, how, !how->read_only, out, &first);

    bool refused = r == -EACCES || r == -EROFS || r == -EPERM || r == -ENOTSUP;
    if (refused && how->auto_read_only && !how->read_only && !how->snapshot &&
        open_once(description, how, false, out, NULL) == 0) {
        error_free(first);
        return 0;
    }
    if (first)
        error_set(err, error_code(first), "%s", error_text(first));
    error_free(first);
    return r;
}

/* A switch of the outermost node, on or off in any spelling; taken out of the description. */
static int take_switch(json_t *description, const char *key, bool *on, struct error **err)
{
    json_t *value = json_object_get(description, key);
    const char *text = json_string_value(value);

    *on = json_is_true(value);
    if (!value)
        return 0;
    if (!json_is_boolean(value) && (!text || opts_parse_bool(text, on) < 0))
        return error_set(err, EINVAL, "%s is not on or off", key);
    json_object_del(description, key);
    return 0;
}

int blockdev_add(json_t *options, struct error **err)
{
    _cleanup_json_ json_t *description = json_deep_copy(options);
    const char *name = json_string_value(json_object_get(options, "node-name"));
    const char *driver = json_string_value(json_object_get(options, "driver"));
    const char *discard = json_string_value(json_object_get(options, "discard"));
    struct blk_node *node;
    struct blockdev *b;

    if (!description)
        return error_set(err, ENOMEM, "out of memory");
    if (!driver)
        return error_set(err, EINVAL, "blockdev: nothing says which driver: give driver=NAME");
    if (!name || !name[0])
        return error_set(err, EINVAL,
                         "blockdev: nothing says what it is called: give node-name=NAME");
    struct opening how = { .unmap =
                               discard && (!strcmp(discard, "unmap") || !strcmp(discard, "on")) };
    int r = take_switch(description, "read-only", &how.read_only, err);
    if (r == 0)
        r = take_switch(description, "auto-read-only", &how.auto_read_only, err);
    if (r == 0)
        r = open_node(description, &how, &node, err);
    if (r < 0)
        return error_prefix(err, "blockdev %s", name), r;
    return enter(name, node, NULL, &b, err);
}

int blockdev_add_drive(json_t *options, bool snapshot, const char **name, struct error **err)
{
    struct drive drive;
    struct blk_node *node = NULL;
    struct blockdev *b = NULL;

    int r = drive_parse(options, &drive, err);
    if (r < 0)
        return error_prefix(err, "drive"), r;
    if (drive.description) {
        /* A disk image that is only read needs nothing kept of what is written. */
        struct opening how = { .cache = drive.cache,
                               .read_only = drive.read_only,
                               .auto_read_only = true,
                               .unmap = drive.unmap,
                               .snapshot = (drive.snapshot || snapshot) && !drive.read_only };
        r = open_node(drive.description, &how, &node, err);
    }
    if (r == 0)
        r = enter(drive.id, node, drive.cache, &b, err);
    if (r == 0)
        *name = b->name;
    else
        error_prefix(err, "drive %s", drive.id ? drive.id : "without an id");
    drive_free(&drive);
    return r;
}

struct blockdev *blockdev_at(unsigned i)
{
    unsigned count = 0;

    LOCK_SCOPE(&list_lock);
    for (struct blockdev *b = list; b; b = b->next)
        count++;
    if (i >= count)
        return NULL;
    struct blockdev *b = list;
    for (unsigned from_end = count - 1 - i; from_end > 0; from_end--)
        b = b->next;
    return b;
}

char *blockdev_describe(struct blockdev *b)
{
    struct strbuf text = STRBUF_INIT;

    LOCK_SCOPE(&list_lock);
    strbuf_add(&text, b->name);
    if (!b->node) {
        strbuf_add(&text, ": [not inserted]\n");
    } else {
        if (blk_node_name(b->node)[0] && strcmp(blk_node_name(b->node), b->name) != 0)
            strbuf_addf(&text, " (%s)", blk_node_name(b->node));
        strbuf_addf(&text, ": %s (%s%s)\n", blk_filename(b->node), blk_format(b->node),
                    blk_read_only(b->node) ? ", read-only" : "");
    }
    if (b->users)
        strbuf_addf(&text, "    Attached to:      %s\n", b->users);
    if (b->node)
        strbuf_addf(&text, "    Cache mode:       %s\n", b->cache ? b->cache : "writeback");
    struct blk_node *backing = b->node ? blk_child(b->node, "backing") : NULL;
    if (backing)
        strbuf_addf(&text, "    Backing file:     %s\n", blk_filename(backing));
    return strbuf_take(&text);
}

int blockdevs_close(struct error **err)
{
    int r = 0;

    LOCK_SCOPE(&list_lock);
    pool_destroy(pool);
    pool = NULL;
    while (list) {
        struct blockdev *b = list;
        struct error *mine = NULL;
        list = b->next;
        int failed = blk_close(b->node, &mine);
        if (failed < 0 && r == 0) {
            r = failed;
            error_set(err, -failed, "%s: %s", b->name, error_text(mine));
        }
        error_free(mine);
        free_blockdev(b);
    }
    made_up = 0;
    return r;
}

/* ---- taking --------------------------------------------------------------------------------- */

/* `node` stands somewhere below `top`. */
static bool is_below(struct blk_node *top, const struct blk_node *node, unsigned depth)
{
    const char *edge;

    for (unsigned i = 0; depth > 0; i++) {
        struct blk_node *child = blk_child_at(top, i, &edge);
        if (!child)
            return false;
        if (child == node || is_below(child, node, depth - 1))
            return true;
    }
    return false;
}

/* Somebody else would see, or not see, what is written. */
static int may_take(const struct blockdev *b, const struct blockdev_user *user, bool write,
                    struct error **err)
{
    enum { DEEPEST = 64 }; /* as descriptions are nested */

    if (b->writer || (write && b->readers))
        return error_set(err, EBUSY, "%s: drive '%s' is in use by %s already", user->device,
                         b->name, b->users);
    if (!b->node || !write)
        return 0;
    for (struct blockdev *other = list; other; other = other->next)
        if (other != b && other->node && is_below(other->node, b->node, DEEPEST))
            return error_set(err, EBUSY,
                             "%s: node '%s' rests on '%s', which must not change below it",
                             user->device, other->name, b->name);
    return 0;
}

static int start_pool(struct error **err)
{
    unsigned threads = MIN(MAX(usable_cores() * 2, (unsigned)POOL_LEAST), (unsigned)POOL_MOST);

    int r = pool ? 0 : pool_create(&pool, threads, "disk");
    return r < 0 ? error_set(err, -r, "could not start threads for disks: %s", strerror(-r)) : 0;
}

int blockdev_take(const char *name, const struct blockdev_user *user, struct blockdev **out,
                  struct error **err)
{
    LOCK_SCOPE(&list_lock);
    struct blockdev *b = find_locked(name);
    if (!b)
        return error_set(err, ENOENT, "%s: no drive or node is named '%s'", user->device, name);
    bool write = user->write && b->node && !blk_read_only(b->node);
    int r = may_take(b, user, write, err);
    if (r == 0)
        r = start_pool(err);
    if (r < 0)
        return r;
    char *users = strdup(user->device);
    if (!users)
        return error_set(err, ENOMEM, "out of memory");
    free(b->users);
    b->users = users;
    b->writer = write;
    b->readers += !write;
    *out = b;
    return 0;
}

void blockdev_release(struct blockdev *b)
{
    blockdev_drain(b);
    LOCK_SCOPE(&list_lock);
    if (b->writer)
        b->writer = false;
    else
        b->readers--;
    if (!b->readers) {
        free(b->users);
        b->users = NULL;
    }
}

bool blockdev_inserted(struct blockdev *b)
{
    return b->node;
}

uint64_t blockdev_size(struct blockdev *b)
{
    return b->node ? blk_size(b->node) : 0;
}

bool blockdev_read_only(struct blockdev *b)
{
    return !b->node || blk_read_only(b->node);
}

/* ---- requests ------------------------------------------------------------------------------- */

static int perform(const struct blockdev_request *r, const struct iovec *iov, int iovcnt,
                   uint64_t length, unsigned extra)
{
    struct blk_node *node = r->device->node;
    unsigned fua = r->flags & BLOCKDEV_FUA ? BLK_FUA : 0;

    switch (r->op) {
    case BLOCKDEV_READ:
        return blk_readv(node, r->offset, iov, iovcnt, extra);
    case BLOCKDEV_WRITE:
        return blk_writev(node, r->offset, iov, iovcnt, fua);
    case BLOCKDEV_ZERO:
        return blk_zero(node, r->offset, length,
                        fua | (r->flags & BLOCKDEV_UNMAP ? BLK_MAY_UNMAP : 0));
    case BLOCKDEV_DISCARD:
        return blk_discard(node, r->offset, length);
    case BLOCKDEV_FLUSH:
        return blk_flush(node);
    }
    return -EINVAL;
}

static int merged_count(const struct blockdev_request *r, uint64_t *length)
{
    int count = 0;

    *length = 0;
    for (; r; r = r->next) {
        count += r->iovcnt;
        *length += r->length;
    }
    return count;
}

static int perform_merged(const struct blockdev_request *first, unsigned extra)
{
    if (!first->merged)
        return perform(first, first->iov, first->iovcnt, first->length, extra);
    uint64_t length;
    int count = merged_count(first, &length);
    return perform(first, first->merged, count, length, extra);
}

/* Ends the request and those merged with it. When together they failed, each is asked on its own, so that an error
 * hits those it belongs to. */
static void finish(struct blockdev_request *first, int result)
{
    struct blockdev *b = first->device;
    bool alone = first->merged && result < 0;
    unsigned ended = 0;

    free(first->merged);
    for (struct blockdev_request *r = first, *next; r; r = next) {
        next = r->next;
        int mine = alone ? perform(r, r->iov, r->iovcnt, r->length, 0) : result;
        r->done(r, mine);
        ended++;
    }
    LOCK_SCOPE(&b->lock);
    b->pending -= ended;
    if (!b->pending)
        pthread_cond_broadcast(&b->idle);
}

static void work(void *arg)
{
    struct blockdev_request *r = arg;
    finish(r, perform_merged(r, 0));
}

static int judge(struct blockdev *b, const struct blockdev_request *r)
{
    if (!b->node)
        return -ENOMEDIUM;
    if (r->op == BLOCKDEV_FLUSH)
        return 0;
    if (!range_inside(r->offset, r->length, blk_size(b->node)))
        return -EINVAL;
    if (r->op != BLOCKDEV_READ && blk_read_only(b->node))
        return -EROFS;
    return 0;
}

/* `first` and what was merged with it: at once if that needs no waiting, else on the pool. */
static void start(struct blockdev_request *first)
{
    if (first->op == BLOCKDEV_READ && first->length <= INLINE_MOST) {
        int result = perform_merged(first, BLK_NOWAIT);
        if (result != -EAGAIN) {
            finish(first, result);
            return;
        }
    }
    first->job = (struct pool_job){ .fn = work, .arg = first };
    pool_submit(pool, &first->job);
}

/* Chains the requests behind r[0] that go on where the one before ends; how many they are with it. */
static unsigned merge(struct blockdev_request **r, unsigned count)
{
    const struct blockdev_request *first = r[0];
    uint64_t length = first->length;
    int pieces = first->iovcnt;
    unsigned n = 1;

    if (first->op != BLOCKDEV_READ && first->op != BLOCKDEV_WRITE)
        return 1;
    while (n < count && r[n]->op == first->op && r[n]->flags == first->flags &&
           r[n]->offset == first->offset + length &&
           r[n]->length <= MERGE_MOST - MIN(length, (uint64_t)MERGE_MOST) &&
           r[n]->iovcnt <= IOV_MAX - MIN(pieces, IOV_MAX)) {
        length += r[n]->length;
        pieces += r[n]->iovcnt;
        n++;
    }
    struct iovec *all = n > 1 ? malloc((size_t)pieces * sizeof(*all)) : NULL;
    if (!all)
        return 1;
    r[0]->merged = all;
    for (unsigned i = 0; i < n; i++) {
        memcpy(all, r[i]->iov, (size_t)r[i]->iovcnt * sizeof(*all));
        all += r[i]->iovcnt;
        r[i]->next = i + 1 < n ? r[i + 1] : NULL;
    }
    return n;
}

static void begin(struct blockdev *b, struct blockdev_request *r)
{
    r->device = b;
    r->next = NULL;
    r->merged = NULL;
    LOCK_SCOPE(&b->lock);
    b->pending++;
}

void blockdev_submit(struct blockdev *b, struct blockdev_request *r)
{
    blockdev_submit_all(b, &r, 1);
}

void blockdev_submit_all(struct blockdev *b, struct blockdev_request **r, unsigned count)
{
    unsigned good = 0;

    /* Those that are refused end here; the others move together. */
    for (unsigned i = 0; i < count; i++) {
        struct blockdev_request *one = r[i];
        begin(b, one);
        int refused = judge(b, one);
        if (refused < 0)
            finish(one, refused);
        else
            r[good++] = one;
    }
    for (unsigned i = 0, n; i < good; i += n) {
        struct blockdev_request *first = r[i];
        n = merge(r + i, good - i);
        start(first);
    }
}

void blockdev_drain(struct blockdev *b)
{
    LOCK_SCOPE(&b->lock);
    while (b->pending)
        pthread_cond_wait(&b->idle, &b->lock);
}

/* ---- for the command line ------------------------------------------------------------------- */

int blockdev_add_object(const char *spec, struct error **err)
{
    return blk_object_add(spec, err);
}

void blockdev_help(const char *driver)
{
    struct blk_driver_info info;
    struct blk_option_info o;

    for (unsigned i = 0; !driver && blk_driver_at(i, &info) == 0; i++)
        printf("%s\n", info.name);
    for (unsigned i = 0; driver && blk_driver_option_at(driver, false, i, &o) == 0; i++)
        printf("  %s=<%s>%*s%s%s\n", o.name, o.type,
               (int)MAX(1, 26 - (int)strlen(o.name) - (int)strlen(o.type)), "", o.help ? "- " : "",
               o.help ? o.help : "");
}
