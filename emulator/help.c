/* "help" as a value, and "NAME,help". */
#include <stdio.h>
#include <string.h>

#include "args.h"
#include "base/macros.h"
#include "base/options.h"
#include "chardev/chardev.h"
#include "devices/device.h"
#include "emulator/blockdev.h"

static void print_options(const struct opt_def *o)
{
    static const char *const types[] = {
        [OPT_BOOL] = "bool",  [OPT_SIZE] = "size", [OPT_NUMBER] = "num",
        [OPT_STRING] = "str", [OPT_JSON] = "list",
    };
    for (; o && o->name; o++) {
        char left[80];
        int n = snprintf(left, sizeof(left), "  %s=<", o->name);
        if (o->type == OPT_ENUM) {
            for (const struct opt_choice *c = o->choices; c->name && n < (int)sizeof(left); c++)
                n += snprintf(left + n, sizeof(left) - (size_t)n, "%s%s",
                              c == o->choices ? "" : "|", c->name);
        } else {
            n += snprintf(left + n, sizeof(left) - (size_t)n, "%s", types[o->type]);
        }
        printf("%s>%*s", left, n < 32 ? 32 - n : 1, "");
        printf("%s%s", o->help ? "- " : "", o->help ? o->help : "");
        if (o->def)
            printf(" (default: %s)", o->def);
        putchar('\n');
    }
}

static void help_device(const char *name)
{
    const struct device_type *t = name ? device_type_find(name) : NULL;

    if (t) {
        printf("%s options:\n", t->name);
        print_options(t->options);
        return;
    }
    if (name)
        printf("There is no device '%s'.\n", name);
    for (unsigned i = 0; (t = device_type_at(i)); i++) {
        printf("name \"%s\"", t->name);
        if (t->bus)
            printf(", bus %s", t->bus);
        if (t->alias)
            printf(", alias \"%s\"", t->alias);
        printf("%s%s%s\n", t->help ? ", desc \"" : "", t->help ? t->help : "", t->help ? "\"" : "");
    }
}

static void help_machine(const char *name)
{
    const struct machine_type *t;

    (void)name;
    printf("Supported machines are:\n");
    for (unsigned i = 0; (t = machine_type_at(i)); i++) {
        printf("%-20s %s%s\n", t->name, t->help, i == 0 ? " (default)" : "");
        if (t->alias)
            printf("%-20s %s (alias of %s)\n", t->alias, t->help, t->name);
    }
}

static void help_cpu(const char *name)
{
    (void)name;
    machine_cpu_help();
}

static void help_accel(const char *name)
{
    (void)name;
    printf("Accelerators supported:\ntcg\n");
}

static void help_display(const char *name)
{
    (void)name;
    printf("Available display backend types:\nnone\n");
}

static void help_vga(const char *name)
{
    (void)name;
    printf("none                 no graphics card\n"
           "std                  standard VGA (default)\n");
}

static void help_chardev(const char *name)
{
    const char *kind, *help;
    const struct opt_def *options;

    if (!name)
        printf("Available chardev backend types:\n");
    for (unsigned i = 0; (options = chardev_kind_options(i, &kind, &help)); i++) {
        if (!name)
            printf("  %-10s %s\n", kind, help);
        else if (!strcmp(kind, name))
            print_options(options);
    }
}

static void help_blockdev(const char *name)
{
    blockdev_help(name);
}

bool help_asked(const char *option, const char *value)
{
    static const struct {
        const char *option;
        void (*print)(const char *name);
    } helps[] = {
        { "M", help_machine },   { "machine", help_machine }, { "cpu", help_cpu },
        { "accel", help_accel }, { "device", help_device },   { "display", help_display },
        { "vga", help_vga },     { "chardev", help_chardev }, { "blockdev", help_blockdev },
    };
    char name[64];
    size_t n = strcspn(value, ",");
    bool all = !strcmp(value, "help") || !strcmp(value, "?");
    bool of_one = value[n] && (!strcmp(value + n, ",help") || !strcmp(value + n, ",?"));

    if (!all && !of_one)
        return false;
    snprintf(name, sizeof(name), "%.*s", (int)n, value);
    for (size_t i = 0; i < ARRAY_SIZE(helps); i++)
        if (!strcmp(helps[i].option, option)) {
            helps[i].print(of_one ? name : NULL);
            return true;
        }
    return false;
}
