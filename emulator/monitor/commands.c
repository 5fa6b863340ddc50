/* The table of commands. */
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/macros.h"
#include "internal.h"
#include "machine/machine.h"

static void help(struct monitor *m, const char *args);

static void request(struct monitor *m, enum machine_request what)
{
    machine_request(m->machine, what);
}

/* So that the next command finds it done. A guest may keep it waiting for a moment, but not for ever. */
static void request_and_wait(struct monitor *m, enum machine_request what, bool running)
{
    enum { PATIENCE_MS = 5000 };

    request(m, what);
    for (int i = 0; i < PATIENCE_MS; i++) {
        if ((machine_state(m->machine) == MACHINE_RUNNING) == running)
            return;
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
}

static void quit(struct monitor *m, const char *args)
{
    (void)args;
    request(m, MACHINE_QUIT);
}

static void stop(struct monitor *m, const char *args)
{
    (void)args;
    request_and_wait(m, MACHINE_STOP, false);
}

static void cont(struct monitor *m, const char *args)
{
    (void)args;
    m->prelaunch = false;
    request_and_wait(m, MACHINE_CONT, true);
}

static void reset(struct monitor *m, const char *args)
{
    (void)args;
    request(m, MACHINE_RESET);
}

static void powerdown(struct monitor *m, const char *args)
{
    (void)args;
    request(m, MACHINE_POWER_BUTTON);
}

static void info(struct monitor *m, const char *args)
{
    info_run(m, args);
}

static void sendkey(struct monitor *m, const char *args)
{
    _cleanup_error_ struct error *err = NULL;

    if (!*args)
        monitor_print(m, "which keys? sendkey ctrl-alt-delete\n");
    else if (machine_send_key(m->machine, args, &err) < 0)
        monitor_printf(m, "%s\n", error_text(err));
}

static const struct {
    const char *name, *also, *args, *help;
    void (*run)(struct monitor *m, const char *args);
} commands[] = {
    { "cont", "c", "", "go on", cont },
    { "help", "?", "[COMMAND]", "this list", help },
    { "info", NULL, "[WHAT]", "tell about the machine", info },
    { "quit", "q", "", "end the emulator", quit },
    { "sendkey", NULL, "KEYS", "as if typed: ctrl-alt-f1", sendkey },
    { "stop", "s", "", "CPUs and clock stand still until 'cont'", stop },
    { "system_powerdown", NULL, "", "the power button", powerdown },
    { "system_reset", NULL, "", "the reset button", reset },
};

static void help(struct monitor *m, const char *args)
{
    bool known = !*args;

    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (*args && strcmp(args, commands[i].name) != 0)
            continue;
        known = true;
        monitor_printf(m, "%s%s%s %s -- %s\n", commands[i].name, commands[i].also ? "|" : "",
                       commands[i].also ? commands[i].also : "", commands[i].args,
                       commands[i].help);
    }
    if (!known)
        monitor_printf(m, "unknown command: '%s'\n", args);
    if (!*args || !strcmp(args, "info"))
        for (unsigned i = 0; info_name(i); i++)
            monitor_printf(m, "info %s -- %s\n", info_name(i), info_help(i));
}

void command_run(struct monitor *m, char *line)
{
    line += strspn(line, " \t");
    line[strcspn(line, "#")] = '\0';
    for (size_t n = strlen(line); n > 0 && strchr(" \t\r", line[n - 1]); n--)
        line[n - 1] = '\0';
    if (!*line)
        return;
    size_t n = strcspn(line, " \t");
    const char *args = line + n + strspn(line + n, " \t");
    line[n] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        if (!strcmp(line, commands[i].name) ||
            (commands[i].also && !strcmp(line, commands[i].also))) {
            commands[i].run(m, args);
            return;
        }
    monitor_printf(m, "unknown command: '%s'\n", line);
}

static const char *any_name(bool of_info, unsigned i)
{
    return of_info ? info_name(i) : i < ARRAY_SIZE(commands) ? commands[i].name : NULL;
}

const char *command_completion(const char *begun, unsigned i)
{
    bool of_info = !strncmp(begun, "info ", 5);
    const char *name;

    if (of_info)
        begun += 5;
    for (unsigned n = 0; (name = any_name(of_info, n)); n++)
        if (!strncmp(name, begun, strlen(begun)) && i-- == 0)
            return name;
    return NULL;
}
