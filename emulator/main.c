/* emulator: a virtual machine from a command line. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "args.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "chardev/chardev.h"
#include "emulator/blockdev.h"
#include "monitor/monitor.h"
#include "tools/daemon.h"
#include "tools/follow.h"

const char *program = "emulator";
bool as_qemu;

struct run {
    struct args args;
    struct machine *machine;
    struct monitor *monitors[MONITORS + 8];
    unsigned monitor_count;
    char names[MONITORS][32]; /* of the monitors' chardevs */
    sigset_t signals;
    pthread_t signal_thread;
    bool signal_thread_runs;
};

/* ---- signals ------------------------------------------------------------------------------------------------- */

static void quit(void *opaque)
{
    machine_request(opaque, MACHINE_QUIT);
}

static void *take_signals(void *arg)
{
    struct run *r = arg;
    int number;

    while (sigwait(&r->signals, &number) == 0) {
        if (number == SIGUSR2)
            return NULL; /* the end */
        fprintf(stderr, "%s: terminating on signal %d\n", program, number);
        quit(r->machine);
    }
    return NULL;
}

static void block_signals(sigset_t *set)
{
    static const int numbers[] = { SIGTERM, SIGINT, SIGHUP, SIGUSR2 };

    sigemptyset(set);
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
        sigaddset(set, numbers[i]);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error to report */
}

/* ---- streams -------------------------------------------------------------------------------------------------- */

static bool wants_monitor(const char *spelt)
{
    return !strncmp(spelt, "mon:", 4);
}

static int add_monitor(struct run *r, const char *chardev, struct error **err)
{
    if (r->monitor_count == ARRAY_SIZE(r->monitors))
        return error_set(err, ENOSPC, "there are too many monitors");
    return monitor_new(chardev, r->machine, r->args.machine.name, r->args.run.paused,
                       &r->monitors[r->monitor_count++], err);
}

/* What nobody said: serial port and monitor share the terminal, as nothing else is there to look at. */
static void default_streams(struct args *a)
{
    bool terminal = !a->no_defaults && (a->no_graphic || !a->display_given);

    if (a->no_defaults)
        return;
    if (a->serials == 0 && a->monitor_count == 0 && terminal)
        a->serial[a->serials++] = "mon:stdio";
    else if (a->serials == 0)
        a->serial[a->serials++] = a->no_graphic ? "stdio" : "null";
}

static int open_streams(struct run *r, struct error **err)
{
    struct args *a = &r->args;
    json_t *o;
    size_t i;
    int ret = 0;

    json_array_foreach(a->chardevs, i, o)
    {
        ret = chardev_add(o, err);
        if (ret < 0)
            return ret;
    }
    for (unsigned n = 0; n < a->serials && ret == 0; n++) {
        static const char *const ids[MACHINE_SERIALS] = { "serial0", "serial1", "serial2",
                                                          "serial3" };
        ret = chardev_add_legacy(a->serial[n], ids[n], &a->machine.serial[n], err);
    }
    return ret;
}

static int open_monitors(struct run *r, struct error **err)
{
    struct args *a = &r->args;
    json_t *o;
    size_t i;
    int ret = 0;

    for (unsigned n = 0; n < a->serials && ret == 0; n++)
        if (wants_monitor(a->serial[n]))
            ret = add_monitor(r, a->machine.serial[n], err);
    for (unsigned n = 0; n < a->monitor_count && ret == 0; n++) {
        const char *name;
        snprintf(r->names[n], sizeof(r->names[n]), "compat_monitor%u", n);
        ret = chardev_add_legacy(a->monitor[n], r->names[n], &name, err);
        if (ret == 0 && name)
            ret = add_monitor(r, name, err);
    }
    json_array_foreach(a->monitors, i, o)
    {
        if (ret == 0)
            ret = add_monitor(r, json_string_value(o), err);
    }
    return ret;
}

/* ---- from the beginning to the end ----------------------------------------------------------------------------- */

static int build(struct run *r, struct error **err)
{
    struct args *a = &r->args;
    int ret = 0;

    for (size_t i = 0; i < a->objects.len && ret == 0; i++)
        ret = blockdev_add_object(a->objects.at[i], err);
    default_streams(a);
    if (ret == 0)
        ret = open_streams(r, err);
    if (ret == 0)
        ret = drives_open(a, err);
    if (ret == 0)
        ret = globals_apply(a, err);
    a->machine.no_display = a->no_graphic || (!a->display_given && !a->no_defaults);
    if (ret == 0)
        ret = machine_new(&a->machine, &r->machine, err);
    if (ret == 0)
        ret = open_monitors(r, err);
    return ret;
}

static int start(struct run *r, struct error **err)
{
    int ret = pthread_create(&r->signal_thread, NULL, take_signals, r);

    if (ret != 0)
        return error_set(err, ret, "cannot start a thread: %s", strerror(ret));
    r->signal_thread_runs = true;
    chardevs_on_quit(quit, r->machine);
    ret = chardevs_start(err);
    if (ret < 0)
        return ret;
    return daemon_ready(r->args.pid_file, r->args.daemonize, err);
}

static int end(struct run *r, struct error **err)
{
    if (r->signal_thread_runs) {
        pthread_kill(r->signal_thread, SIGUSR2);
        pthread_join(r->signal_thread, NULL);
    }
    chardevs_on_quit(NULL, NULL);
    for (unsigned i = 0; i < r->monitor_count; i++)
        monitor_free(r->monitors[i]);
    machine_free(r->machine);
    int ret = blockdevs_close(err);
    chardevs_close();
    daemon_end();
    return ret;
}

static int run(struct run *r)
{
    struct error *err = NULL;
    int status = 1;

    int ret = r->args.daemonize ? daemon_begin(&err) : 0;
    block_signals(&r->signals); /* before there are threads */
    if (ret == 0)
        ret = build(r, &err);
    if (ret == 0)
        ret = start(r, &err);
    if (ret == 0)
        status = machine_run(r->machine, &r->args.run);
    int closed = end(r, ret < 0 ? NULL : &err);
    if (ret < 0 || closed < 0) {
        fprintf(stderr, "%s: %s\n", program, error_text(err));
        error_free(err);
        return 1;
    }
    return status;
}

int main(int argc, char **argv)
{
    struct run *r = calloc(1, sizeof(*r));
    const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
    int status = 1;

    as_qemu = !strncmp(name, "qemu-system-", 12);
    program = as_qemu ? name : program;
    const char *follow = follow_take(&argc, argv);
    if (follow)
        fprintf(stderr, "%s: --follow=%s: it is none, local or any\n", program, follow);
    if (r && !follow) {
        if (args_parse(argc, argv, &r->args, &status))
            status = run(r);
        args_free(&r->args);
    }
    free(r);
    return status;
}
