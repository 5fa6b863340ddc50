/* `info WHAT`. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "emulator/blockdev.h"
#include "internal.h"
#include "machine/machine.h"

static void say(struct monitor *m, char *text)
{
    monitor_print(m, text ? text : "out of memory\n");
    free(text);
}

static void status(struct monitor *m)
{
    static const char *const names[] = {
        [MACHINE_PAUSED] = "paused",
        [MACHINE_RUNNING] = "running",
        [MACHINE_SHUT_DOWN] = "paused (shutdown)",
        [MACHINE_IO_ERROR] = "paused (io-error)",
    };
    enum machine_state s = machine_state(m->machine);
    monitor_printf(m, "VM status: %s%s\n", names[s],
                   s == MACHINE_PAUSED && m->prelaunch ? " (prelaunch)" : "");
}

static void block(struct monitor *m)
{
    struct blockdev *b;

    for (unsigned i = 0; (b = blockdev_at(i)); i++)
        say(m, blockdev_describe(b));
}

static void chardevs(struct monitor *m)
{
    char *text;
    for (unsigned i = 0; (text = chardev_describe(i)); i++)
        say(m, text);
}

static void registers(struct monitor *m)
{
    say(m, machine_registers(m->machine));
}

static void memory_tree(struct monitor *m)
{
    say(m, machine_memory_tree(m->machine));
}

static void pci(struct monitor *m)
{
    say(m, machine_pci(m->machine));
}

static void screen(struct monitor *m)
{
    say(m, machine_screen_text(m->machine));
}

static void name(struct monitor *m)
{
    if (m->name)
        monitor_printf(m, "%s\n", m->name);
}

static void version(struct monitor *m)
{
    monitor_print(m, "Platter " PLATTER_VERSION "\n");
}

static void kvm(struct monitor *m)
{
    monitor_print(m, "kvm support: disabled\n");
}

static const struct {
    const char *name, *help;
    void (*run)(struct monitor *m);
} subjects[] = {
    { "block", "the disks", block },
    { "chardev", "the streams", chardevs },
    { "kvm", "whether KVM runs the guest", kvm },
    { "mtree", "what lies where in the guest's memory", memory_tree },
    { "name", "the name that -name gave", name },
    { "pci", "the PCI devices", pci },
    { "registers", "the CPUs' registers", registers },
    { "screen", "the text on the screen", screen },
    { "status", "whether the machine runs", status },
    { "version", "of the emulator", version },
};

const char *info_name(unsigned i)
{
    return i < ARRAY_SIZE(subjects) ? subjects[i].name : NULL;
}

const char *info_help(unsigned i)
{
    return subjects[i].help;
}

void info_run(struct monitor *m, const char *what)
{
    for (size_t i = 0; i < ARRAY_SIZE(subjects); i++)
        if (!strcmp(what, subjects[i].name)) {
            subjects[i].run(m);
            return;
        }
    if (*what)
        monitor_printf(m, "info: there is nothing about '%s'\n", what);
    for (size_t i = 0; i < ARRAY_SIZE(subjects); i++)
        monitor_printf(m, "info %s -- %s\n", subjects[i].name, subjects[i].help);
}
