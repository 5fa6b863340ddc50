/* Options whose values are lists of their own: -machine, -smp, -boot ... */
#include "args.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "base/options.h"

/* The parsed list, kept as long as the arguments: what is taken out of it may be pointed to. */
static json_t *parse(struct args *a, const char *text, const char *implied, struct error **err)
{
    if (a->kept_count == ARRAY_SIZE(a->kept)) {
        error_set(err, E2BIG, "this option stands there too often");
        return NULL;
    }
    json_t *o = opts_parse_keyval(text, implied, err);
    if (o)
        a->kept[a->kept_count++] = o;
    return o;
}

static const char *text_of(json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

/* 0 when it is not there. */
static int number_of(json_t *o, const char *key, unsigned *out, struct error **err)
{
    const char *text = text_of(o, key);
    char *end;

    *out = 0;
    if (!text)
        return 0;
    errno = 0;
    unsigned long n = strtoul(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno || n == 0 || n > 65536)
        return error_set(err, EINVAL, "%s '%s': it is a number from 1 to 65536", key, text);
    *out = (unsigned)n;
    return 0;
}

static int refuse_others(json_t *o, const char *const *known, struct error **err)
{
    const char *key;
    json_t *value;

    json_object_foreach(o, key, value)
    {
        const char *const *k = known;
        while (*k && strcmp(*k, key) != 0)
            k++;
        if (!*k)
            return error_set(err, EINVAL, "there is no '%s'", key);
    }
    return 0;
}

/* ---- the machine ------------------------------------------------------------------------------------------- */

int value_accel(struct args *a, const char *text, struct error **err)
{
    size_t n = strcspn(text, ",:");
    bool tcg = n == 3 && !strncmp(text, "tcg", 3);

    if (!tcg && !(n == 3 && !strncmp(text, "kvm", 3)))
        return error_set(err, EINVAL, "the accelerator '%.*s' is not offered; tcg is", (int)n,
                         text);
    if (tcg)
        a->kvm_only = false; /* another one to take where there is no KVM */
    else if (!json_object_get(a->machine.options, "accel"))
        a->kvm_only = true;
    if (tcg)
        json_object_set_new(a->machine.options, "accel", json_string("tcg"));
    return text[n] == ':' ? value_accel(a, text + n + 1, err) : 0;
}

int value_machine(struct args *a, const char *text, struct error **err)
{
    /* What programs say by habit, and what changes nothing here. */
    static const char *const habits[] = {
        "kernel-irqchip", "kernel_irqchip",  "usb",  "vmport",   "dump-guest-core",
        "mem-merge",      "suppress-vmdesc", "smm",  "smbus",    "sata",
        "igd-passthru",   "nvdimm",          "hmat", "graphics", "pflash0",
    };
    json_t *o = parse(a, text, "type", err), *value;
    const char *key;
    void *safe;

    if (!o)
        return -EINVAL;
    if (text_of(o, "type"))
        a->machine.type = text_of(o, "type");
    const char *accel = text_of(o, "accel");
    if (accel) {
        int ret = value_accel(a, accel, err);
        if (ret < 0)
            return ret;
    }
    for (size_t i = 0; i < ARRAY_SIZE(habits); i++)
        if (json_object_get(o, habits[i]) && strcmp(habits[i], "pflash0") != 0)
            json_object_del(o, habits[i]);
    json_object_foreach_safe(o, safe, key, value)
    {
        if (strcmp(key, "type") != 0 && strcmp(key, "accel") != 0)
            json_object_set(a->machine.options, key, value);
    }
    return 0;
}

int value_memory(struct args *a, const char *text, struct error **err)
{
    static const char *const known[] = { "size", "slots", "maxmem", NULL };
    json_t *o = parse(a, text, "size", err);
    char mib[32];

    if (!o || refuse_others(o, known, err) < 0)
        return -EINVAL;
    const char *size = text_of(o, "size");
    if (text_of(o, "slots") || text_of(o, "maxmem"))
        return error_set(err, ENOTSUP, "memory cannot be added to a running machine");
    if (!size)
        return error_set(err, EINVAL, "the size is missing");
    if (isdigit((unsigned char)size[strlen(size) - 1]) && strlen(size) < 20) {
        snprintf(mib, sizeof(mib), "%sM", size);
        size = mib;
    }
    int ret = opts_parse_size(size, &a->machine.ram, err);
    if (ret == 0 && (a->machine.ram < (1 << 20) || a->machine.ram > (uint64_t)1 << 40))
        return error_set(err, EINVAL, "memory is from 1 MiB to 1 TiB");
    a->machine.ram &= ~(uint64_t)4095;
    return ret;
}

int value_smp(struct args *a, const char *text, struct error **err)
{
    static const char *const parts[] = { "drawers",  "books", "sockets", "dies",
                                         "clusters", "cores", "threads", NULL };
    static const char *const known[] = { "cpus", "maxcpus",  "drawers", "books",   "sockets",
                                         "dies", "clusters", "cores",   "threads", NULL };
    json_t *o = parse(a, text, "cpus", err);
    unsigned cpus, most, product = 1;

    if (!o || refuse_others(o, known, err) < 0 || number_of(o, "cpus", &cpus, err) < 0 ||
        number_of(o, "maxcpus", &most, err) < 0)
        return -EINVAL;
    for (const char *const *p = parts; *p; p++) {
        unsigned n;
        if (number_of(o, *p, &n, err) < 0)
            return -EINVAL;
        product *= n ? n : 1;
        if (product > 65536)
            return error_set(err, EINVAL, "that are more than 65536 CPUs");
    }
    if (!cpus)
        cpus = most ? most : product;
    if (most > cpus || (product > 1 && product > cpus && product != most))
        return error_set(err, ENOTSUP, "CPUs cannot be added to a running machine: %u of %u", cpus,
                         MAX(most, product));
    if (product > 1 && cpus % product != 0)
        return error_set(err, EINVAL, "%u CPUs are not whole sockets of %u", cpus, product);
    a->machine.cpus = cpus;
    return 0;
}

int value_rtc(struct args *a, const char *text, struct error **err)
{
    static const char *const known[] = { "base", "clock", "driftfix", NULL };
    json_t *o = parse(a, text, "base", err);

    if (!o || refuse_others(o, known, err) < 0)
        return -EINVAL;
    const char *base = text_of(o, "base");
    if (base && strcmp(base, "utc") != 0)
        return error_set(err, ENOTSUP, "the clock shows UTC; base=%s is not offered yet", base);
    return 0;
}

/* ---- booting ----------------------------------------------------------------------------------------------- */

int value_boot(struct args *a, const char *text, struct error **err)
{
    static const char *const known[] = { "order", "once", "menu", "splash-time", "strict", NULL };
    json_t *o = parse(a, text, "order", err);

    if (!o || refuse_others(o, known, err) < 0)
        return -EINVAL;
    const char *order = text_of(o, "once") ? text_of(o, "once") : text_of(o, "order");
    const char *menu = text_of(o, "menu"), *time = text_of(o, "splash-time");
    if (order && strspn(order, "acdn") != strlen(order))
        return error_set(err, EINVAL, "the order '%s' has letters other than c, d, n", order);
    if (order)
        a->machine.boot_order = order;
    if (menu && opts_parse_bool(menu, &a->machine.boot_menu) < 0)
        return error_set(err, EINVAL, "menu=%s: it is on or off", menu);
    if (time)
        return opts_parse_size(time, &a->machine.boot_menu_timeout, err);
    return 0;
}

int value_name(struct args *a, const char *text, struct error **err)
{
    static const char *const known[] = { "guest", "process", "debug-threads", NULL };
    json_t *o = parse(a, text, "guest", err);

    if (!o || refuse_others(o, known, err) < 0)
        return -EINVAL;
    a->machine.name = text_of(o, "guest");
    return 0;
}

int value_uuid(struct args *a, const char *text, struct error **err)
{
    const char *at = text;

    for (unsigned i = 0; i < sizeof(a->uuid); i++) {
        unsigned byte;
        at += *at == '-' && (i == 4 || i == 6 || i == 8 || i == 10);
        if (!isxdigit((unsigned char)at[0]) || !isxdigit((unsigned char)at[1]) ||
            sscanf(at, "%2x", &byte) != 1)
            return error_set(err, EINVAL, "it is of the form 12345678-1234-1234-1234-123456789abc");
        a->uuid[i] = (uint8_t)byte;
        at += 2;
    }
    if (*at)
        return error_set(err, EINVAL, "it is of the form 12345678-1234-1234-1234-123456789abc");
    a->machine.uuid = a->uuid;
    return 0;
}

/* ---- the rest ----------------------------------------------------------------------------------------------- */

int value_display(struct args *a, const char *text, struct error **err)
{
    if (strcmp(text, "none") != 0)
        return error_set(err, ENOTSUP, "there is no window yet: 'none', or -nographic");
    a->display_given = true;
    return 0;
}

int value_action(struct args *a, const char *text, struct error **err)
{
    static const char *const known[] = { "reboot", "shutdown", "panic", "watchdog", NULL };
    json_t *o = parse(a, text, NULL, err);

    if (!o || refuse_others(o, known, err) < 0)
        return -EINVAL;
    const char *reboot = text_of(o, "reboot"), *shutdown = text_of(o, "shutdown");
    if (reboot && strcmp(reboot, "reset") != 0 && strcmp(reboot, "shutdown") != 0)
        return error_set(err, EINVAL, "reboot=%s: it is reset or shutdown", reboot);
    if (shutdown && strcmp(shutdown, "poweroff") != 0 && strcmp(shutdown, "pause") != 0)
        return error_set(err, EINVAL, "shutdown=%s: it is poweroff or pause", shutdown);
    if (reboot)
        a->run.no_reboot = !strcmp(reboot, "shutdown");
    if (shutdown)
        a->run.no_shutdown = !strcmp(shutdown, "pause");
    return 0;
}

/* "TYPE.KEY=VALUE" or "driver=TYPE,property=KEY,value=VALUE". */
int value_global(struct args *a, const char *text, struct error **err)
{
    const char *dot = strchr(text, '.'), *equals = strchr(text, '=');
    json_t *o;

    if (dot && equals && dot < equals)
        o = json_pack("{s:s%, s:s%, s:s}", "driver", text, (size_t)(dot - text), "property",
                      dot + 1, (size_t)(equals - dot - 1), "value", equals + 1);
    else
        o = opts_parse_keyval(text, NULL, err);
    if (!o || !text_of(o, "driver") || !text_of(o, "property") || !text_of(o, "value")) {
        json_decref(o);
        return error_set(err, EINVAL, "it is of the form TYPE.KEY=VALUE");
    }
    return json_array_append_new(a->globals, o);
}

int value_mon(struct args *a, const char *text, struct error **err)
{
    static const char *const known[] = { "chardev", "mode", "pretty", NULL };
    json_t *o = parse(a, text, "chardev", err);

    if (!o || refuse_others(o, known, err) < 0)
        return -EINVAL;
    const char *mode = text_of(o, "mode");
    if (!text_of(o, "chardev"))
        return error_set(err, EINVAL, "chardev= is missing");
    if (mode && strcmp(mode, "readline") != 0)
        return error_set(err, ENOTSUP, "mode=%s is not there yet; readline is", mode);
    return json_array_append(a->monitors, json_object_get(o, "chardev"));
}

int value_disk(struct args *a, unsigned index, bool cd, const char *file, struct error **err)
{
    json_t *o = json_pack("{s:s, s:s}", "if", "ide", "media", cd ? "cdrom" : "disk");
    char number[8];

    snprintf(number, sizeof(number), "%u", index);
    if (!o || json_object_set_new(o, "index", json_string(number)) < 0 ||
        json_object_set_new(o, "file", json_string(file)) < 0) {
        json_decref(o);
        return error_set(err, EINVAL, "the name is not UTF-8");
    }
    return json_array_append_new(a->drives, o);
}
