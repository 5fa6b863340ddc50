/* nbd: serves images. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "nbd.h"
#include "tools/daemon.h"
#include "tools/follow.h"

/* ---- signals -------------------------------------------------------------------------------------------- */

/* One thread takes all signals: SIGTERM, SIGINT and SIGHUP stop the server, twice at once; SIGUSR1 asks how it is. */
struct signals {
    struct nbd_server *server;
    sigset_t set;
    pthread_t thread;
};

static void print_stats(struct nbd_server *s)
{
    _cleanup_json_ json_t *stats = nbd_server_stats(s);
    _cleanup_free_ char *text = stats ? json_dumps(stats, JSON_INDENT(4)) : NULL;

    if (text)
        fprintf(stderr, "%s\n", text);
}

static void *take_signals(void *arg)
{
    struct signals *sig = arg;
    int number;

    while (sigwait(&sig->set, &number) == 0) {
        if (number == SIGUSR2)
            return NULL; /* the end */
        if (number == SIGUSR1)
            print_stats(sig->server);
        else
            nbd_server_stop(sig->server);
    }
    return NULL;
}

static void block_signals(struct signals *sig)
{
    static const int numbers[] = { SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 };

    sigemptyset(&sig->set);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
        sigaddset(&sig->set, numbers[i]);
    pthread_sigmask(SIG_BLOCK, &sig->set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error to report */
}

static int run_server(struct nbd_server *s, struct signals *sig, struct error **err)
{
    sig->server = s;
    int ret = pthread_create(&sig->thread, NULL, take_signals, sig);
    if (ret != 0)
        return error_set(err, ret, "cannot start a thread: %s", strerror(ret));
    ret = nbd_server_run(s);
    pthread_kill(sig->thread, SIGUSR2);
    pthread_join(sig->thread, NULL);
    return ret < 0 ? error_set(err, -ret, "cannot serve: %s", strerror(-ret)) : 0;
}

/* A descriptor for each client. */
static void allow_many_files(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit); /* else as many as there are */
}

/* ---- serving ---------------------------------------------------------------------------------------------- */

static bool allow(void *opaque, const char *peer)
{
    return allow_peer(opaque, peer);
}

static void tell(void *opaque, const char *text)
{
    (void)opaque;
    complain("%s", text);
}

static int make_server(struct nbd_server **out, struct args *a, struct objects *o,
                       struct error **err)
{
    struct nbd_config config = {
        .threads = a->threads,
        .max_clients = a->shared,
        .handshake_sec = a->handshake_sec,
        .persistent = a->persistent,
        .memory = a->memory,
        .tls = objects_tls(o),
        .tls_optional = a->tls_optional,
        .allow = a->allow.len ? allow : NULL,
        .log = a->verbose ? tell : NULL,
        .opaque = a,
    };
    int ret = allow_check(a, err);
    if (ret == 0)
        ret = nbd_server_new(out, &config, err);
    if (ret == 0)
        ret = exports_add(*out, a, err);
    if (ret == 0)
        ret = a->connect ? kernel_serve(*out, a->connect, a->export_name, err)
                         : listen_all(*out, a, err);
    return ret;
}

static int serve(struct args *a, struct error **err)
{
    struct nbd_server *s = NULL;
    struct objects *o = NULL;
    struct signals sig = { 0 };
    bool forked = a->fork || (a->connect && !a->verbose);

    int ret = forked ? daemon_begin(err) : 0;
    block_signals(&sig); /* before there are threads */
    allow_many_files();
    if (ret == 0)
        ret = objects_new(&o, a, err);
    if (ret == 0)
        ret = make_server(&s, a, o, err);
    if (ret == 0)
        ret = daemon_ready(a->pid_file, forked, err);
    if (ret == 0)
        ret = run_server(s, &sig, err);
    if (a->stats && s)
        print_stats(s);
    listen_cleanup();
    int r = nbd_server_free(s, ret < 0 ? NULL : err);
    objects_free(o);
    daemon_end();
    return ret < 0 ? ret : r;
}

static int run(struct args *a)
{
    struct error *err = NULL;
    int ret;

    if (a->list)
        return list_exports(a);
    ret = a->disconnect ? kernel_disconnect(a->disconnect, &err) : serve(a, &err);
    if (ret < 0)
        complain_error(&err, "error");
    return ret < 0 ? 1 : 0;
}

int main(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    struct args args = { 0 };
    int code;

    if (argc > 0 && strcmp(slash ? slash + 1 : argv[0], "qemu-nbd") == 0) {
        program = "qemu-nbd";
        as_qemu = true;
    }
    const char *bad = follow_take(&argc, argv);
    if (bad) {
        complain("--follow=%s: it is none, local or any", bad);
        return 1;
    }
    if (argc > 1 && !as_qemu && strcmp(argv[1], "serve") == 0) {
        args.serve = true;
        argc--;
        argv++;
    }
    if (args_parse(argc, argv, &args, &code))
        code = run(&args);
    args_free(&args);
    return code;
}
