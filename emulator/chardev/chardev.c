/* The chardevs by their ids: made, taken, let go, closed. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/distance.h"
#include "base/error.h"
#include "internal.h"

static struct {
    pthread_mutex_t lock;
    struct chardev *_Atomic first;
    void (*quit)(void *opaque);
    void *quit_opaque;
} all = { .lock = PTHREAD_MUTEX_INITIALIZER };

static const struct chardev_kind *const kinds[] = {
    &chardev_stdio, &chardev_socket, &chardev_file, &chardev_pipe,
    &chardev_pty,   &chardev_serial, &chardev_null,
};

static const struct chardev_kind *chardev_kind_at(unsigned i)
{
    return i < sizeof(kinds) / sizeof(*kinds) ? kinds[i] : NULL;
}

const struct opt_def *chardev_kind_options(unsigned i, const char **name, const char **help)
{
    const struct chardev_kind *kind = chardev_kind_at(i);

    *name = kind ? kind->name : NULL;
    *help = kind ? kind->help : NULL;
    return kind ? kind->options : NULL;
}

struct chardev *chardevs_first(void)
{
    return atomic_load(&all.first);
}

struct chardev *chardev_find(const char *id)
{
    for (struct chardev *c = chardevs_first(); c; c = c->next)
        if (!strcmp(c->id, id))
            return c;
    return NULL;
}

void chardevs_on_quit(void (*quit)(void *opaque), void *opaque)
{
    LOCK_SCOPE(&all.lock);
    all.quit = quit;
    all.quit_opaque = opaque;
}

void chardev_quit(void)
{
    void (*quit)(void *opaque);
    void *opaque;
    {
        LOCK_SCOPE(&all.lock);
        quit = all.quit;
        opaque = all.quit_opaque;
    }
    if (quit)
        quit(opaque);
}

/* ---- making ------------------------------------------------------------------------------------------------- */

/* Names that QEMU has beyond ours. */
static const char *const unoffered[] = {
    "vc",       "msmouse", "wctablet", "braille",   "testdev", "udp",     "ringbuf", "memory",
    "parallel", "parport", "spicevmc", "spiceport", "dbus",    "console", "hub",
};

static const struct chardev_kind *kind_of(const char *name, struct error **err)
{
    for (unsigned i = 0; chardev_kind_at(i); i++)
        if (!strcmp(chardev_kind_at(i)->name, name))
            return chardev_kind_at(i);
    if (!strcmp(name, "tty"))
        return &chardev_serial;
    for (size_t i = 0; i < sizeof(unoffered) / sizeof(*unoffered); i++)
        if (!strcmp(unoffered[i], name)) {
            error_set(err, ENOTSUP, "chardev: the backend '%s' is not offered", name);
            return NULL;
        }
    error_set(err, EINVAL, "chardev: there is no backend '%s'", name);
    return NULL;
}

static void free_chardev(struct chardev *c)
{
    if (c->kind->close)
        c->kind->close(c);
    if (c->out >= 0 && c->out != c->in)
        close(c->out);
    if (c->in >= 0)
        close(c->in);
    if (c->listener >= 0)
        close(c->listener);
    if (c->log >= 0)
        close(c->log);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->room);
    opts_free(c->kind->options, &c->o);
    free(c->id);
    free(c);
}

static struct chardev *new_chardev(const struct chardev_kind *kind, const char *id)
{
    struct chardev *c = calloc(1, sizeof(*c));
    pthread_condattr_t attributes;

    if (!c)
        return NULL;
    c->kind = kind;
    c->in = c->out = c->listener = c->log = -1;
    c->id = strdup(id);
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&c->room, &attributes);
    pthread_condattr_destroy(&attributes);
    if (!c->id) {
        free_chardev(c);
        return NULL;
    }
    return c;
}

static int open_log(struct chardev *c, struct error **err)
{
    if (!c->o.logfile)
        return 0;
    c->log = open(c->o.logfile,
                  O_WRONLY | O_CREAT | O_CLOEXEC | (c->o.logappend ? O_APPEND : O_TRUNC), 0666);
    return c->log >= 0 ? 0
                       : error_set(err, errno, "chardev '%s': cannot open the log file '%s': %s",
                                   c->id, c->o.logfile, strerror(errno));
}

static void append(struct chardev *c)
{
    LOCK_SCOPE(&all.lock);
    struct chardev *_Atomic *at = &all.first;

    while (atomic_load(at))
        at = &atomic_load(at)->next;
    atomic_store(at, c);
}

int chardevs_start(struct error **err)
{
    return chardevs_first() ? loop_start(err) : 0;
}

static int take_options(struct chardev *c, json_t *o, struct error **err)
{
    int ret = opts_take(c->kind->options, o, &c->o, err);

    if (ret == 0) {
        ret = opts_refuse_rest(c->kind->options, o, c->kind->name, err);
        if (ret < 0)
            error_prefix(err, "chardev '%s'", c->id);
    }
    return ret;
}

int chardev_add(json_t *options, struct error **err)
{
    _cleanup_json_ json_t *o = json_deep_copy(options);
    const char *backend = json_string_value(json_object_get(options, "backend"));
    const char *id = json_string_value(json_object_get(options, "id"));

    if (!o)
        return error_set(err, ENOMEM, "out of memory");
    if (!backend)
        return error_set(err, EINVAL, "chardev: the backend is missing");
    if (!id || !*id)
        return error_set(err, EINVAL, "chardev %s: id= is missing", backend);
    if (chardev_find(id))
        return error_set(err, EEXIST, "chardev: the id '%s' is taken", id);
    const struct chardev_kind *kind = kind_of(backend, err);
    if (!kind)
        return -EINVAL;
    json_object_del(o, "backend");
    json_object_del(o, "id");

    struct chardev *c = new_chardev(kind, id);
    if (!c)
        return error_set(err, ENOMEM, "out of memory");
    int ret = take_options(c, o, err);
    if (ret == 0)
        ret = open_log(c, err);
    if (ret == 0)
        ret = kind->open(c, err);
    if (ret < 0) {
        free_chardev(c);
        return ret;
    }
    append(c);
    loop_wake();
    return 0;
}

/* ---- using -------------------------------------------------------------------------------------------------- */

int chardev_take(const char *name, const struct chardev_user *user, struct chardev **out,
                 struct error **err)
{
    struct chardev *c = chardev_find(name);

    if (!c)
        return error_set(err, ENOENT, "there is no chardev '%s'", name);
    {
        LOCK_SCOPE(dispatch_lock());
        unsigned n = 0;
        while (n < CHARDEV_USERS && c->taken[n])
            n++;
        if (n == CHARDEV_USERS || (n > 0 && !c->o.mux))
            return error_set(err, EBUSY, "chardev '%s' is in use%s", name,
                             c->o.mux ? "" : "; with mux=on it can have several users");
        c->users[n] = *user;
        c->taken[n] = true;
        *out = c;
        if (n == c->focus && c->out >= 0 && user->event)
            user->event(user->opaque, CHARDEV_OPENED);
    }
    loop_wake(); /* somebody reads now */
    return 0;
}

void chardev_release(struct chardev *c, const struct chardev_user *user)
{
    if (!c)
        return;
    LOCK_SCOPE(dispatch_lock());
    for (unsigned i = 0; i < CHARDEV_USERS; i++)
        if (c->taken[i] && c->users[i].opaque == user->opaque && c->users[i].input == user->input)
            c->taken[i] = false;
}

char *chardev_describe(unsigned i)
{
    struct chardev *c = chardevs_first();
    char *text = NULL;

    for (; c && i > 0; i--)
        c = c->next;
    if (!c)
        return NULL;
    LOCK_SCOPE(&c->lock);
    const char *place = c->o.path ? c->o.path : c->o.port ? c->o.port : "";
    const char *state = c->out < 0 && c->kind->connect ? ", disconnected" : "";
    return asprintf(&text, "%s: %s%s%s%s%s\n", c->id, c->kind->name, *place ? " " : "", place,
                    c->o.mux ? ", mux" : "", state) < 0
               ? NULL
               : text;
}

void chardev_more(struct chardev *c)
{
    if (c)
        loop_wake();
}

/* What is kept gets a moment to leave. */
static void drain(struct chardev *c)
{
    uint64_t until = chardev_milliseconds() + 1000;

    for (;;) {
        {
            LOCK_SCOPE(&c->lock);
            chardev_flush_some(c);
            if (c->out < 0 || c->pending_len == 0)
                return;
        }
        if (chardev_milliseconds() > until)
            return;
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
}

void chardevs_close(void)
{
    loop_stop();
    struct chardev *c = atomic_exchange(&all.first, NULL);
    while (c) {
        struct chardev *next = c->next;
        drain(c);
        free_chardev(c);
        c = next;
    }
}
