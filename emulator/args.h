/* The command line, as QEMU's. */
#ifndef EMULATOR_ARGS_H
#define EMULATOR_ARGS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/vector.h"
#include "machine/machine.h"

extern const char *program;
extern bool as_qemu; /* called qemu-system-x86_64 */

enum { MONITORS = 4 };

/* Texts belong to argv, JSON to this. */
struct args {
    struct machine_config machine; /* devices as -device says; drives.c adds those of -drive */
    struct machine_run_args run;
    json_t *blockdevs, *drives, *chardevs; /* arrays, in order */
    json_t *monitors;                      /* ids of chardevs that -mon names */
    json_t *globals;                       /* of {"driver", "property", "value"} */
    VECTOR(const char *) objects;
    const char *serial[MACHINE_SERIALS], *monitor[MONITORS]; /* as spelt */
    unsigned serials, monitor_count;
    bool snapshot, no_defaults, no_graphic, display_given, daemonize, kvm_only;
    const char *pid_file;
    uint8_t uuid[16];
    json_t *kept[8]; /* objects that texts in `machine` belong to */
    unsigned kept_count;
};

/* false: *status is the exit status, and everything has been said. */
bool args_parse(int argc, char **argv, struct args *a, int *status);
void args_free(struct args *a);

/* args_values.c: options whose values are lists of their own. 0 or a negative errno and an error. */
int value_machine(struct args *a, const char *text, struct error **err);
int value_accel(struct args *a, const char *text, struct error **err);
int value_memory(struct args *a, const char *text, struct error **err);
int value_smp(struct args *a, const char *text, struct error **err);
int value_boot(struct args *a, const char *text, struct error **err);
int value_name(struct args *a, const char *text, struct error **err);
int value_uuid(struct args *a, const char *text, struct error **err);
int value_rtc(struct args *a, const char *text, struct error **err);
int value_display(struct args *a, const char *text, struct error **err);
int value_action(struct args *a, const char *text, struct error **err);
int value_global(struct args *a, const char *text, struct error **err);
int value_mon(struct args *a, const char *text, struct error **err);
int value_disk(struct args *a, unsigned index, bool cd, const char *file, struct error **err);

/* help.c: "help" and "NAME,help" of an option; false: it is no such question. */
bool help_asked(const char *option, const char *value);

/* drives.c: opens what -blockdev and -drive name and adds the devices that drives are plugged in as. */
int drives_open(struct args *a, struct error **err);
/* What -global says goes to the devices it speaks of. */
int globals_apply(struct args *a, struct error **err);

#endif
