/* What the chardevs' core and the backends share.
 *
 * Threads: the list changes before the loop's thread exists or under `lock` of it (chardev.c). A chardev's descriptors are
 * changed by the loop only, under the chardev's lock, which writers take to use `out`. Callbacks of users run under the
 * dispatch lock and no other, so that chardev_release can wait for them.
 */
#ifndef CHARDEV_INTERNAL_H
#define CHARDEV_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <termios.h>

#include "base/options.h"
#include "chardev.h"

enum { CHARDEV_USERS = 4, CHARDEV_PENDING = 64 << 10, CHARDEV_INPUT = 4096 };

/* All kinds' options; a kind's table names those it has. */
struct chardev_options {
    char *path, *input_path, *host, *port, *logfile;
    bool server, wait, telnet, nodelay, append, signal, logappend, mux, ipv4, ipv6;
    uint64_t reconnect; /* seconds; 0: never again */
    uint64_t fd;        /* with fd_given: a socket that is there already */
    bool fd_given;
};

struct chardev_kind {
    const char *name, *help;
    const struct opt_def *options;
    /* Sets in, out, listener. */
    int (*open)(struct chardev *c, struct error **err);
    /* listener has somebody, or it is time to try again: sets in and out; false: not yet. */
    bool (*connect)(struct chardev *c);
    /* Bytes that came: takes out what is the protocol's own; how many are left. NULL: all. */
    size_t (*filter)(struct chardev *c, uint8_t *data, size_t length);
    void (*close)(struct chardev *c); /* beyond the descriptors; may be NULL */
};

struct chardev {
    const struct chardev_kind *kind;
    struct chardev *_Atomic next; /* the list only grows */
    char *id;
    struct chardev_options o;
    struct termios saved; /* stdio */
    unsigned telnet;      /* where in a telnet command the input stands */
    bool restore;
    int log; /* -1: none */

    pthread_mutex_t lock;
    pthread_cond_t room;
    int in, out, listener; /* -1: none; in and out may be one */
    bool connected;
    bool tty;       /* write() to it never blocks, for it was opened anew */
    bool stuck;     /* nobody read for a while: what does not fit is dropped */
    uint64_t retry; /* milliseconds of the monotonic clock; 0: not waiting */
    uint8_t pending[CHARDEV_PENDING];
    size_t pending_at, pending_len; /* a ring */

    /* of the loop's thread */
    uint8_t input[CHARDEV_INPUT];
    size_t input_at, input_len;
    bool escape; /* Ctrl-a was typed */

    /* under the dispatch lock */
    struct chardev_user users[CHARDEV_USERS];
    bool taken[CHARDEV_USERS];
    unsigned focus;
};

extern const struct chardev_kind chardev_null, chardev_stdio, chardev_file, chardev_pipe,
    chardev_serial, chardev_socket, chardev_pty;

struct chardev *chardev_find(const char *id);
uint64_t chardev_milliseconds(void);

/* loop.c */
int loop_start(struct error **err);
void loop_wake(void);
void loop_stop(void);
bool loop_is_me(void);
struct chardev *chardevs_first(void);
pthread_mutex_t *dispatch_lock(void);

/* mux.c: hands on what was read, as far as there is room. */
void chardev_deliver(struct chardev *c);
void chardev_tell(struct chardev *c, enum chardev_event event); /* all users */

/* out.c */
void chardev_put(struct chardev *c, const void *data, size_t length);
void chardev_flush_some(struct chardev *c); /* with the lock held */
void chardev_disconnect(struct chardev *c); /* from the loop */
void chardev_quit(void);                    /* Ctrl-a x */

/* Telnet, RFC 854: the greeting, and commands taken out of the input. */
void telnet_greet(struct chardev *c);
size_t telnet_filter(struct chardev *c, uint8_t *data, size_t length);

#define CHARDEV_AT(member) .at = offsetof(struct chardev_options, member)
#define CHARDEV_COMMON                                                                     \
    { .name = "mux", .type = OPT_BOOL, CHARDEV_AT(mux), .help = "several users" },         \
        { .name = "logfile",                                                               \
          .type = OPT_STRING,                                                              \
          CHARDEV_AT(logfile),                                                             \
          .help = "a file that gets what the guest writes, too" },                         \
    {                                                                                      \
        .name = "logappend", .type = OPT_BOOL, CHARDEV_AT(logappend), .help = "at its end" \
    }

#endif
