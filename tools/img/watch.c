#include "watch.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/human.h"
#include "base/strbuf.h"

#include "img.h"
#include "term.h"

enum style { STYLE_NONE, STYLE_BAR, STYLE_QEMU, STYLE_JSON };

enum {
    TICK_MS = 200,
    BAR_AFTER_MS = 500,
    JSON_EVERY_MS = 500,
    GRACE_MS = 3000,
};

static struct {
    bool running;
    const char *verb;
    enum style style;
    FILE *percent_out; /* where the qemu style goes */
    pthread_t thread;
    int signals;        /* signalfd */
    int quit;           /* eventfd: watch_end wants the thread back */
    int stop;           /* eventfd: stays readable once a signal came */
    double began;       /* seconds */
    atomic_int stopped; /* the signal */
    atomic_uint_fast64_t total, done;
    void (*_Atomic leave)(void);

    pthread_mutex_t lock; /* for what stands on the screen */
    bool bar_shown;
    double last_percent; /* qemu style: what was printed last; < 0: nothing */
    double last_json;
} watch = { .lock = PTHREAD_MUTEX_INITIALIZER, .signals = -1, .quit = -1, .stop = -1 };

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

struct state {
    uint64_t done, total;
    double percent, elapsed, rate;
    double left; /* < 0: unknown */
};

static struct state look(void)
{
    struct state s = { .done = atomic_load(&watch.done), .total = atomic_load(&watch.total) };
    s.elapsed = now() - watch.began;
    s.percent = s.total ? 100.0 * (double)s.done / (double)s.total : 0;
    if (s.percent > 100)
        s.percent = 100;
    s.rate = s.elapsed > 0 ? (double)s.done / s.elapsed : 0;
    s.left = s.total && s.rate > 0 ? (double)(s.total - s.done) / s.rate : -1;
    return s;
}

static void clock_text(double seconds, char *buf, size_t size)
{
    if (seconds < 0) {
        snprintf(buf, size, "--:--");
        return;
    }
    unsigned long s = (unsigned long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(buf, size, "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(buf, size, "%lu:%02lu", s / 60, s % 60);
}

static void draw_bar(void)
{
    struct state s = look();
    _cleanup_strbuf_ struct strbuf tail = STRBUF_INIT;
    if (s.total) {
        char left[32];
        clock_text(s.left, left, sizeof(left));
        strbuf_addf(&tail, " %5.1f%%  %s/s  %s left", s.percent, human_size((uint64_t)s.rate).s,
                    left);
    } else {
        strbuf_addf(&tail, "%s  %s/s", human_size(s.done).s, human_size((uint64_t)s.rate).s);
    }
    unsigned columns = term_columns(STDERR_FILENO);
    size_t used = strlen(watch.verb) + 1 + tail.len + 1;
    size_t width = columns > used + 4 ? columns - used : 4;
    if (width > 60)
        width = 60;
    size_t full = (size_t)((double)width * s.percent / 100);
    const char *on = term_utf8() ? "\u2588" : "#", *off = term_utf8() ? "\u2591" : "-";
    fprintf(stderr, "\r%s ", watch.verb);
    for (size_t i = 0; s.total && i < width; i++)
        fputs(i < full ? on : off, stderr);
    fprintf(stderr, "%s\033[K", strbuf_text(&tail));
    fflush(stderr);
    watch.bar_shown = true;
}

static void print_json(const char *state)
{
    struct state s = look();
    fprintf(stderr,
            "{\"command\": \"%s\", \"state\": \"%s\", \"done\": %llu, \"total\": %llu, "
            "\"percent\": %.2f, \"elapsed\": %.2f, \"rate\": %.0f",
            watch.verb, state, (unsigned long long)s.done, (unsigned long long)s.total, s.percent,
            s.elapsed, s.rate);
    if (s.left >= 0)
        fprintf(stderr, ", \"left\": %.1f", s.left);
    fputs("}\n", stderr);
    fflush(stderr);
}

static void print_percent(double percent)
{
    fprintf(watch.percent_out, "    (%3.2f/100%%)\r", percent);
    fflush(watch.percent_out);
    watch.last_percent = percent;
}

static void print_line(void)
{
    struct state s = look();
    char left[32];
    clock_text(s.left, left, sizeof(left));
    if (s.total) {
        tell("%s: %s: %.2f%% of %s, %s/s, %s left", program, watch.verb, s.percent,
             human_size(s.total).s, human_size((uint64_t)s.rate).s, left);
    } else {
        tell("%s: %s: %s done, %s/s", program, watch.verb, human_size(s.done).s,
             human_size((uint64_t)s.rate).s);
    }
}

static void tick(void)
{
    LOCK_SCOPE(&watch.lock);
    double t = now();
    if (watch.style == STYLE_BAR && t - watch.began >= BAR_AFTER_MS / 1000.0 - 0.01) {
        draw_bar();
    } else if (watch.style == STYLE_JSON && t - watch.last_json >= JSON_EVERY_MS / 1000.0 - 0.01) {
        print_json("running");
        watch.last_json = t;
    }
}

static void leave_in_haste(int signo)
{
    void (*leave)(void) = atomic_load(&watch.leave);
    if (leave)
        leave();
    if (watch.style == STYLE_BAR)
        fputs("\r\033[K", stderr);
    _exit(128 + signo);
}

/* Returns when watch_end calls. */
static void *watcher(void *arg)
{
    (void)arg;
    double deadline = 0;
    for (;;) {
        struct pollfd fds[] = {
            { .fd = watch.quit, .events = POLLIN },
            { .fd = watch.signals, .events = POLLIN },
        };
        int r = poll(fds, 2, TICK_MS);
        if (r > 0 && fds[0].revents)
            return NULL;
        if (r > 0 && fds[1].revents) {
            struct signalfd_siginfo info;
            if (read(watch.signals, &info, sizeof(info)) == sizeof(info)) {
                int signo = (int)info.ssi_signo;
                if (signo == SIGUSR1) {
                    print_line();
                    continue;
                }
                if (atomic_load(&watch.stopped))
                    leave_in_haste(signo);
                atomic_store(&watch.stopped, signo);
                (void)!write(watch.stop, &(uint64_t){ 1 }, sizeof(uint64_t));
                deadline = now() + GRACE_MS / 1000.0;
            }
        }
        if (deadline > 0 && now() > deadline)
            leave_in_haste(atomic_load(&watch.stopped));
        tick();
    }
}

static enum style choose(const struct watch_how *how)
{
    if (how->mode && strcmp(how->mode, "none") == 0)
        return STYLE_NONE;
    if (how->mode && strcmp(how->mode, "json") == 0)
        return STYLE_JSON;
    if (how->mode && strcmp(how->mode, "bar") == 0)
        return STYLE_BAR;
    /* As in qemu-img, -q silences -p. */
    if (how->quiet)
        return STYLE_NONE;
    if (how->percent || how->mode)
        return STYLE_QEMU;
    return isatty(STDERR_FILENO) ? STYLE_BAR : STYLE_NONE;
}

void watch_begin(const char *verb, const struct watch_how *how)
{
    watch.verb = verb;
    watch.style = choose(how);
    watch.percent_out = how->busy_stdout ? stderr : stdout;
    watch.began = now();
    watch.last_json = watch.began;
    watch.last_percent = -1;

    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR1);
    watch.signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    watch.quit = eventfd(0, EFD_CLOEXEC);
    watch.stop = eventfd(0, EFD_CLOEXEC);
    if (watch.signals < 0 || watch.quit < 0 || watch.stop < 0)
        return; /* no progress and no clean stop, but the work can be done */
    sigset_t old;
    pthread_sigmask(SIG_BLOCK, &set, &old);
    watch.running = pthread_create(&watch.thread, NULL, watcher, NULL) == 0;
    if (!watch.running)
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (watch.style == STYLE_QEMU) {
        LOCK_SCOPE(&watch.lock);
        print_percent(0);
    }
}

void watch_total(uint64_t total)
{
    atomic_store(&watch.total, total);
}

void watch_done(uint64_t done)
{
    uint_fast64_t old = atomic_load(&watch.done);
    while (old < done && !atomic_compare_exchange_weak(&watch.done, &old, done)) {
    }
    if (watch.style != STYLE_QEMU)
        return;
    double percent = look().percent;
    LOCK_SCOPE(&watch.lock);
    if (percent >= watch.last_percent + 1 || (percent >= 100 && watch.last_percent < 100))
        print_percent(percent);
}

bool watch_stopped(void)
{
    return atomic_load(&watch.stopped) != 0;
}

int watch_stop_fd(void)
{
    return watch.stop;
}

void watch_guard(void (*leave)(void))
{
    atomic_store(&watch.leave, leave);
}

int watch_step(void *opaque, uint64_t done, uint64_t total)
{
    (void)total;
    watch_done(*(const uint64_t *)opaque + done);
    return watch_stopped();
}

void watch_hide(void)
{
    LOCK_SCOPE(&watch.lock);
    if (watch.bar_shown) {
        fputs("\r\033[K", stderr);
        watch.bar_shown = false;
    }
}

int watch_end(int code)
{
    if (watch.running) {
        (void)!write(watch.quit, &(uint64_t){ 1 }, sizeof(uint64_t));
        pthread_join(watch.thread, NULL);
        watch.running = false;
    }
    int signo = atomic_load(&watch.stopped);
    watch_hide();
    if (watch.style == STYLE_QEMU) {
        if (code == 0 && !signo)
            print_percent(100);
        fputc('\n', watch.percent_out);
    } else if (watch.style == STYLE_JSON) {
        if (code == 0 && !signo && atomic_load(&watch.total))
            atomic_store(&watch.done, atomic_load(&watch.total));
        print_json(signo ? "stopped" : code ? "failed" : "finished");
    }
    watch.style = STYLE_NONE;
    /* A signal that came when all was done does not undo it. */
    if (!signo || code == 0)
        return code;
    return 128 + signo;
}
