/* One table: parsing and help come from it. */
#include "args.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/distance.h"
#include "base/macros.h"
#include "base/options.h"

typedef int take_fn(struct args *a, const char *value, struct error **err);

/* ---- what the values become -------------------------------------------------------------------------------- */

static int push_json(json_t *array, const char *text, const char *implied, struct error **err)
{
    json_t *o = text[0] == '{' ? opts_parse_json(text, err) : opts_parse_keyval(text, implied, err);

    if (!o)
        return -EINVAL;
    return json_array_append_new(array, o) < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

static int take_blockdev(struct args *a, const char *v, struct error **err)
{
    return push_json(a->blockdevs, v, "driver", err);
}

static int take_drive(struct args *a, const char *v, struct error **err)
{
    return push_json(a->drives, v, NULL, err);
}

static int take_device(struct args *a, const char *v, struct error **err)
{
    return push_json(a->machine.devices, v, "driver", err);
}

static int take_chardev(struct args *a, const char *v, struct error **err)
{
    return push_json(a->chardevs, v, "backend", err);
}

static int take_object(struct args *a, const char *v, struct error **err)
{
    return vector_push(&a->objects, v) < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

static int take_serial(struct args *a, const char *v, struct error **err)
{
    if (a->serials == MACHINE_SERIALS)
        return error_set(err, ENOSPC, "there are %d serial ports at most", MACHINE_SERIALS);
    a->serial[a->serials++] = v;
    return 0;
}

static int take_monitor(struct args *a, const char *v, struct error **err)
{
    if (a->monitor_count == MONITORS)
        return error_set(err, ENOSPC, "there are %d monitors at most", MONITORS);
    a->monitor[a->monitor_count++] = v;
    return 0;
}

static int take_hda(struct args *a, const char *v, struct error **err)
{
    return value_disk(a, 0, false, v, err);
}

static int take_hdb(struct args *a, const char *v, struct error **err)
{
    return value_disk(a, 1, false, v, err);
}

static int take_hdc(struct args *a, const char *v, struct error **err)
{
    return value_disk(a, 2, false, v, err);
}

static int take_hdd(struct args *a, const char *v, struct error **err)
{
    return value_disk(a, 3, false, v, err);
}

static int take_cdrom(struct args *a, const char *v, struct error **err)
{
    return value_disk(a, 2, true, v, err);
}

static int take_vga(struct args *a, const char *v, struct error **err)
{
    if (!strcmp(v, "none") || !strcmp(v, "std"))
        return json_object_set_new(a->machine.options, "vga", json_string(v));
    return error_set(err, ENOTSUP, "-vga %s: there are std and none", v);
}

static int take_no_network(struct args *a, const char *v, struct error **err)
{
    (void)a;
    return !strcmp(v, "none") ? 0 : error_set(err, ENOTSUP, "network cards are not there yet");
}

static int take_parallel(struct args *a, const char *v, struct error **err)
{
    (void)a;
    return !strcmp(v, "none") || !strcmp(v, "null")
               ? 0
               : error_set(err, ENOTSUP, "-parallel: there are no parallel ports");
}

static int take_kvm(struct args *a, const char *v, struct error **err)
{
    (void)v;
    return value_accel(a, "kvm", err);
}

static int take_no_hpet(struct args *a, const char *v, struct error **err)
{
    (void)v;
    (void)err;
    return json_object_set_new(a->machine.options, "hpet", json_string("off"));
}

/* ---- the table --------------------------------------------------------------------------------------------- */

#define TEXT(member) .at = offsetof(struct args, member)
#define FLAG(member) .flag = offsetof(struct args, member)
#define HEADING(text)   \
    {                   \
        .heading = text \
    }

static const struct row {
    const char *name, *value, *help; /* value NULL: it has none; help NULL: not shown */
    take_fn *take;
    size_t at;   /* of a const char * that the value goes to */
    size_t flag; /* of a bool that it sets */
    const char *heading;
} rows[] = {
    HEADING("The machine"),
    { "machine", "TYPE[,KEY=VALUE...]", "which one, and its options ('help': the list)",
      .take = value_machine },
    { "M", "TYPE[,KEY=VALUE...]", "the same", .take = value_machine },
    { "cpu", "MODEL[,FEATURE=on|off...]", "what the CPUs are ('help': the list)",
      TEXT(machine.cpu_model) },
    { "smp", "[cpus=]N[,cores=N...]", "how many CPUs (1)", .take = value_smp },
    { "m", "[size=]SIZE", "memory, in MiB unless it says (128)", .take = value_memory },
    { "accel", "NAME", "how guest code is run: tcg ('help': the list)", .take = value_accel },
    { "device", "TYPE[,KEY=VALUE...]", "one more device ('help': the list; TYPE,help: its options)",
      .take = take_device },
    { "global", "TYPE.KEY=VALUE", "a default for all devices of that type", .take = value_global },
    { "name", "TEXT", "of the machine", .take = value_name },
    { "uuid", "UUID", "what firmware says the machine is", .take = value_uuid },
    { "rtc", "base=utc", "what the machine's clock shows", .take = value_rtc },
    { "object", "TYPE,id=ID,...", "secrets and keys that disks refer to", .take = take_object },
    { "nodefaults", NULL, "no devices but those asked for", FLAG(no_defaults) },
    HEADING("Disks"),
    { "blockdev", "DRIVER,node-name=NAME,...", "a node of the block graph, also as JSON",
      .take = take_blockdev },
    { "drive", "file=FILE,if=TYPE,format=FORMAT,...", "a node and the device it is plugged in as",
      .take = take_drive },
    { "hda", "FILE", "the disk at the first port; FILE alone says the same", .take = take_hda },
    { "hdb", "FILE", "at the second", .take = take_hdb },
    { "hdc", "FILE", "at the third", .take = take_hdc },
    { "hdd", "FILE", "at the fourth", .take = take_hdd },
    { "cdrom", "FILE", "a CD at the third", .take = take_cdrom },
    { "snapshot", NULL, "writes go to temporary files and are lost in the end", FLAG(snapshot) },
    HEADING("What it boots"),
    { "boot", "order=LETTERS,menu=on|off", "c: disk, d: CD, n: network", .take = value_boot },
    { "bios", "FILE", "the firmware", TEXT(machine.firmware) },
    { "L", "FOLDER", "where firmware is looked for first", TEXT(machine.firmware_folders) },
    { "kernel", "FILE", "a Linux kernel, started directly", TEXT(machine.kernel) },
    { "initrd", "FILE", "its initial file system", TEXT(machine.initrd) },
    { "append", "TEXT", "its command line", TEXT(machine.append) },
    HEADING("What one sees"),
    { "nographic", NULL, "serial port and monitor on this terminal; Ctrl-a h helps",
      FLAG(no_graphic) },
    { "display", "none", "nothing", .take = value_display },
    { "vga", "std|none", "the graphics card (std)", .take = take_vga },
    { "serial", "CHARDEV",
      "the next serial port: stdio, pty, file:PATH, unix:PATH, tcp:HOST:PORT, none",
      .take = take_serial },
    { "monitor", "CHARDEV", "where the monitor is", .take = take_monitor },
    { "mon", "[chardev=]ID", "a monitor on a chardev", .take = value_mon },
    { "chardev", "BACKEND,id=ID,...", "a stream ('help': the list)", .take = take_chardev },
    { "parallel", "none", NULL, .take = take_parallel },
    HEADING("The run"),
    { "S", NULL, "stand still until 'cont'", FLAG(run.paused) },
    { "no-reboot", NULL, "end where the guest reboots", FLAG(run.no_reboot) },
    { "no-shutdown", NULL, "stop rather than end where the guest powers off",
      FLAG(run.no_shutdown) },
    { "action", "EVENT=WHAT", "reboot=reset|shutdown, shutdown=poweroff|pause",
      .take = value_action },
    { "daemonize", NULL, "go to the background once it runs", FLAG(daemonize) },
    { "pidfile", "FILE", "write the process id there", TEXT(pid_file) },
    { "enable-kvm", NULL, NULL, .take = take_kvm },
    { "no-hpet", NULL, NULL, .take = take_no_hpet },
    { "net", "none", NULL, .take = take_no_network },
    { "nic", "none", NULL, .take = take_no_network },
    { "no-user-config", NULL, NULL, .take = NULL },
    { "no-fd-bootchk", NULL, NULL, .take = NULL },
    { "mem-prealloc", NULL, NULL, .take = NULL },
    { "k", "LAYOUT", NULL, .take = NULL },
    { "msg", "timestamp=off", NULL, .take = NULL },
    { "overcommit", "mem-lock=off", NULL, .take = NULL },
    { "sandbox", "on|off", NULL, .take = NULL },
};

/* QEMU's, and what they would be for. */
static const struct {
    const char *name, *what;
} missing[] = {
    { "netdev", "network cards are not there yet" },
    { "qmp", "the machine protocol is not there yet; -monitor is for people" },
    { "qmp-pretty", "the machine protocol is not there yet; -monitor is for people" },
    { "vnc", "there is no VNC server yet; -nographic or -display none" },
    { "spice", "there is no SPICE server; -nographic or -display none" },
    { "full-screen", "there is no window yet; -nographic" },
    { "curses", "there is no window yet; -nographic" },
    { "gdb", "there is no gdb server yet" },
    { "s", "there is no gdb server yet" },
    { "usb", "there is no USB yet" },
    { "usbdevice", "there is no USB yet" },
    { "audio", "there is no sound" },
    { "audiodev", "there is no sound" },
    { "soundhw", "there is no sound" },
    { "fda", "there is no floppy drive" },
    { "fdb", "there is no floppy drive" },
    { "pflash", "there is no flash memory yet; -bios takes SeaBIOS" },
    { "sd", "there is no SD card" },
    { "mtdblock", "there is no flash memory" },
    { "loadvm", "machines cannot be saved yet" },
    { "incoming", "machines cannot migrate yet" },
    { "only-migratable", "machines cannot migrate yet" },
    { "numa", "memory is in one piece" },
    { "smbios", "SMBIOS says what -name and -uuid do, nothing more yet" },
    { "acpitable", "tables of one's own are not taken yet" },
    { "fw_cfg", "files of one's own for the firmware are not taken yet" },
    { "watchdog-action", "there is no watchdog" },
    { "watchdog", "there is no watchdog" },
    { "virtfs", "folders are not shared yet" },
    { "fsdev", "folders are not shared yet" },
    { "tpmdev", "there is no TPM" },
    { "icount", "guest instructions are not counted as time" },
    { "plugin", "there are no plug-ins" },
    { "trace", "there is nothing to trace yet" },
    { "d", "there is no log of that yet" },
    { "D", "there is no log of that yet" },
    { "readconfig", "options come from the command line only" },
    { "runas", "it runs as who starts it" },
    { "chroot", "it sees the folders of who starts it" },
    { "mem-path", "memory is the process's own" },
    { "debugcon", "the firmware's messages are not taken anywhere yet" },
    { "add-fd", "files are opened by name" },
    { "set", "options come from the command line only" },
};

static void help_print(void)
{
    printf("Usage: %s [OPTION]... [DISK]\nRun a virtual machine.\n", program);
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        const struct row *r = &rows[i];
        char left[80];
        if (r->heading)
            printf("\n%s:\n", r->heading);
        if (!r->help)
            continue;
        snprintf(left, sizeof(left), "-%s %s", r->name, r->value ? r->value : "");
        if (strlen(left) > 28)
            printf("  %s\n  %-28s  %s\n", left, "", r->help);
        else
            printf("  %-28s  %s\n", left, r->help);
    }
    printf("  %-28s  %s\n", "--follow=none|local|any",
           "what names stored in images may be followed to");
    printf("  %-28s  %s\n  %-28s  %s\n", "-version", "the version", "-help", "this text");
}

/* ---- parsing ------------------------------------------------------------------------------------------------ */

static const struct row *find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        if (rows[i].name && !strcmp(rows[i].name, name))
            return &rows[i];
    return NULL;
}

static void complain(const char *option, const char *value, struct error *err)
{
    fprintf(stderr, "%s: %s%s%s: %s\n", program, option, value ? " " : "", value ? value : "",
            error_text(err));
    error_free(err);
}

static void unknown(const char *name)
{
    struct nearest best = nearest_begin(name);

    for (size_t i = 0; i < ARRAY_SIZE(missing); i++)
        if (!strcmp(missing[i].name, name)) {
            fprintf(stderr, "%s: -%s: %s\n", program, name, missing[i].what);
            return;
        }
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        if (rows[i].help)
            nearest_try(&best, rows[i].name);
    fprintf(stderr, "%s: there is no option -%s%s%s%s\n", program, name,
            best.name ? "; is it -" : "", best.name ? best.name : "", best.name ? "?" : "");
}

static void set(struct args *a, const struct row *r, const char *value)
{
    if (r->at)
        memcpy((char *)a + r->at, &value, sizeof(value));
    if (r->flag)
        *((bool *)((char *)a + r->flag)) = true;
}

static bool one(struct args *a, const char *option, const struct row *r, const char *value,
                int *status)
{
    struct error *err = NULL;

    if (value && help_asked(r->name, value)) {
        *status = 0;
        return false;
    }
    set(a, r, value);
    if (!r->take || r->take(a, value, &err) == 0)
        return true;
    complain(option, value, err);
    return false;
}

static bool version_or_help(const char *name, int *status)
{
    bool help = !strcmp(name, "h") || !strcmp(name, "help");

    if (!help && strcmp(name, "version") != 0)
        return false;
    if (help)
        help_print();
    else if (as_qemu) /* programs ask for it to know what they may say */
        printf("QEMU emulator version 7.2.0 (Platter %s)\n", PLATTER_VERSION);
    else
        printf("emulator (Platter) %s\n", PLATTER_VERSION);
    *status = 0;
    return true;
}

static bool prepare(struct args *a)
{
    a->blockdevs = json_array();
    a->drives = json_array();
    a->chardevs = json_array();
    a->monitors = json_array();
    a->globals = json_array();
    a->machine.devices = json_array();
    a->machine.options = json_object();
    a->machine.type = "q35";
    a->machine.ram = 128 << 20;
    a->machine.cpus = 1;
    return a->blockdevs && a->drives && a->chardevs && a->monitors && a->globals &&
           a->machine.devices && a->machine.options;
}

static bool check(const struct args *a)
{
    const char *wrong = NULL;

    if (a->kvm_only)
        wrong = "KVM is not there yet: -accel tcg runs every guest in software";
    else if (!a->machine.kernel && (a->machine.initrd || a->machine.append))
        wrong = "-initrd and -append go with -kernel";
    else if (a->daemonize && a->no_graphic)
        wrong = "-nographic needs the terminal that -daemonize leaves";
    if (wrong)
        fprintf(stderr, "%s: %s\n", program, wrong);
    return !wrong;
}

bool args_parse(int argc, char **argv, struct args *a, int *status)
{
    *status = 1;
    if (!prepare(a)) {
        fprintf(stderr, "%s: out of memory\n", program);
        return false;
    }
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *name = option + 1 + (option[0] && option[1] == '-');
        bool disk = option[0] != '-';
        if (!disk && version_or_help(name, status))
            return false;
        const struct row *r = find(disk ? "hda" : name);
        if (!r) {
            unknown(name);
            return false;
        }
        const char *value = disk ? option : NULL;
        if (!disk && r->value && !(value = argv[++i])) {
            fprintf(stderr, "%s: %s: a value is missing: %s\n", program, option, r->value);
            return false;
        }
        if (!one(a, option, r, value, status))
            return false;
    }
    return check(a);
}

void args_free(struct args *a)
{
    json_decref(a->blockdevs);
    json_decref(a->drives);
    json_decref(a->chardevs);
    json_decref(a->monitors);
    json_decref(a->globals);
    json_decref(a->machine.devices);
    json_decref(a->machine.options);
    for (unsigned i = 0; i < a->kept_count; i++)
        json_decref(a->kept[i]);
    vector_free(&a->objects);
}
