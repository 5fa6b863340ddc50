/* A virtual machine: made from a description, run, stopped, reset, ended.
 *
 * The kinds of machine are a table (machine/registry.c), so another guest architecture is another row. Threads: the
 * functions below may be called from any thread but a CPU's or a device callback's, one at a time; machine_request() from
 * everywhere, it only notes the wish and wakes machine_run().
 */
#ifndef MACHINE_MACHINE_H
#define MACHINE_MACHINE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct machine;

enum { MACHINE_SERIALS = 4, MACHINE_IDE_DRIVES = 8 };

/* All pointers stay the caller's and live as long as the machine. */
struct machine_config {
    const char *type;      /* "q35"; with options taken off */
    const char *cpu_model; /* NULL: the machine's default */
    uint64_t ram;          /* bytes */
    unsigned cpus;
    const char *firmware;         /* -bios: a path; NULL: searched for as "bios-256k.bin" */
    const char *firmware_folders; /* -L, separated by ':' ; before the usual places */
    const char *kernel, *initrd, *append;
    const char *boot_order; /* "cdn"; NULL: the machine's default */
    bool boot_menu;
    uint64_t boot_menu_timeout; /* milliseconds; 0: the firmware's */
    const char *name;
    const uint8_t *uuid;                 /* 16 bytes, or NULL */
    const char *serial[MACHINE_SERIALS]; /* ids of chardevs, NULL: none */
    bool no_display;                     /* no VGA: firmware speaks to the serial port */
    json_t *devices; /* array of what -device said, in order: {"driver": ..., ...} */
    json_t *options; /* object: what -M said behind the type, -global and the like; may be NULL */
};

struct machine_type {
    const char *name, *alias, *help;
    int (*create)(struct machine *m, const struct machine_config *c, struct error **err);
    /* ... the rest is machine/internal.h's */
};
const struct machine_type *machine_type_at(unsigned i); /* NULL past the last */

int machine_new(const struct machine_config *config, struct machine **out, struct error **err);
void machine_free(struct machine *m);

enum machine_state { MACHINE_PAUSED, MACHINE_RUNNING, MACHINE_SHUT_DOWN, MACHINE_IO_ERROR };
enum machine_request {
    MACHINE_STOP, /* CPUs and clock stand still, devices are drained */
    MACHINE_CONT,
    MACHINE_RESET, /* the reset button */
    MACHINE_POWER_BUTTON,
    MACHINE_QUIT,
    /* by the guest: */
    MACHINE_GUEST_RESET,
    MACHINE_GUEST_OFF,
    MACHINE_GUEST_EXIT, /* isa-debug-exit; the status goes to machine_exit_status */
    MACHINE_ERROR_STOP, /* werror=stop */
};
void machine_request(struct machine *m, enum machine_request what);

struct machine_run_args {
    bool paused;      /* -S */
    bool no_reboot;   /* a guest's reset ends the machine */
    bool no_shutdown; /* power off stops it only */
};
/* Carries out requests until the machine is to end; the exit status of the process. On the main thread. */
int machine_run(struct machine *m, const struct machine_run_args *args);
enum machine_state machine_state(struct machine *m);

/* For -cpu help: prints the models and the features that the host architecture's guests may have. */
void machine_cpu_help(void);

/* For the monitor; text to be freed, NULL: no memory. CPUs are stopped for a moment. */
char *machine_registers(struct machine *m);
char *machine_memory_tree(struct machine *m);
char *machine_pci(struct machine *m);
/* The text on the screen, lines ended by newlines; "" without a text mode. */
char *machine_screen_text(struct machine *m);
/* As if typed: names of keys joined by '-', "ctrl-alt-delete". -EINVAL: an unknown key. */
int machine_send_key(struct machine *m, const char *keys, struct error **err);

#endif
