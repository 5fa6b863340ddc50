/* Backends on terminals: the one the emulator was started from, and a pseudo terminal of its own. */
#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "internal.h"

static const struct opt_def stdio_options[] = {
    { .name = "signal",
      .type = OPT_BOOL,
      CHARDEV_AT(signal),
      .def = "on",
      .help = "Ctrl-C ends the emulator, rather than being typed to the guest" },
    CHARDEV_COMMON,
    OPT_END
};

static const struct opt_def pty_options[] = {
    { .name = "path", .type = OPT_STRING, CHARDEV_AT(path), .help = "a symbolic link to make" },
    CHARDEV_COMMON,
    OPT_END
};

/* A descriptor of our own for the same terminal, so that it can be non-blocking without the shell noticing. */
static int open_anew(int fd, int flags)
{
    char path[32];
    int mine = -1;

    if (isatty(fd)) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        mine = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    }
    return mine >= 0 ? mine : fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

static void make_raw(struct chardev *c)
{
    struct termios t;

    if (tcgetattr(STDIN_FILENO, &c->saved) < 0)
        return;
    t = c->saved;
    t.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    t.c_oflag |= OPOST;
    t.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN);
    if (!c->o.signal)
        t.c_lflag &= ~(tcflag_t)ISIG;
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    /* From the background this would stop us. */
    signal(SIGTTOU, SIG_IGN);
    c->restore = tcsetattr(STDIN_FILENO, TCSANOW, &t) == 0;
}

static int open_stdio(struct chardev *c, struct error **err)
{
    for (struct chardev *other = chardevs_first(); other; other = other->next)
        if (other->kind == &chardev_stdio)
            return error_set(err, EBUSY,
                             "chardev '%s': standard input and output belong to '%s' already; "
                             "mux=on there lets several use them",
                             c->id, other->id);
    c->in = open_anew(STDIN_FILENO, O_RDONLY);
    c->out = open_anew(STDOUT_FILENO, O_WRONLY);
    if (c->out < 0)
        return error_set(err, errno, "chardev '%s': standard output is closed", c->id);
    make_raw(c);
    return 0;
}

static void close_stdio(struct chardev *c)
{
    if (c->restore)
        (void)tcsetattr(STDIN_FILENO, TCSANOW, &c->saved);
}

/* Our own hold on the other side keeps the terminal alive while nobody has it open. */
static int open_pty(struct chardev *c, struct error **err)
{
    struct termios t;
    char name[128];
    int ours, theirs;

    if (openpty(&ours, &theirs, NULL, NULL, NULL) < 0)
        return error_set(err, errno, "chardev '%s': there is no pseudo terminal: %s", c->id,
                         strerror(errno));
    c->in = c->out = ours;
    c->listener = theirs; /* never polled, for it counts as connected */
    c->connected = true;
    if (tcgetattr(theirs, &t) == 0) {
        cfmakeraw(&t);
        (void)tcsetattr(theirs, TCSAFLUSH, &t);
    }
    (void)fcntl(ours, F_SETFL, O_NONBLOCK);
    (void)fcntl(ours, F_SETFD, FD_CLOEXEC);
    (void)fcntl(theirs, F_SETFD, FD_CLOEXEC);
    int ret = ptsname_r(ours, name, sizeof(name));
    if (ret != 0)
        return error_set(err, ret, "chardev '%s': the pseudo terminal has no name", c->id);
    if (c->o.path && symlink(name, c->o.path) < 0)
        return error_set(err, errno, "chardev '%s': cannot make the link '%s': %s", c->id,
                         c->o.path, strerror(errno));
    /* Programs look for just this line. */
    printf("char device redirected to %s (label %s)\n", name, c->id);
    fflush(stdout);
    return 0;
}

static void close_pty(struct chardev *c)
{
    if (c->o.path && c->in >= 0)
        unlink(c->o.path);
}

const struct chardev_kind chardev_stdio = {
    .name = "stdio",
    .help = "standard input and output",
    .options = stdio_options,
    .open = open_stdio,
    .close = close_stdio,
};

const struct chardev_kind chardev_pty = {
    .name = "pty",
    .help = "a new pseudo terminal",
    .options = pty_options,
    .open = open_pty,
    .close = close_pty,
};
