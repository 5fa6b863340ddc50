/* From -blockdev and -drive to open nodes, and from -drive to the devices they are plugged in as. */
#include "args.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "emulator/blockdev.h"

struct ports {
    bool taken[MACHINE_IDE_DRIVES];
};

static const char *text_of(json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static int small_number(json_t *drive, const char *key, int otherwise, int *out, struct error **err)
{
    const char *text = text_of(drive, key);

    *out = otherwise;
    if (!text)
        return 0;
    if (!isdigit((unsigned char)*text) || strlen(text) > 3 || text[strspn(text, "0123456789")])
        return error_set(err, EINVAL, "%s=%s: it is a small number", key, text);
    *out = atoi(text);
    return 0;
}

/* Each AHCI port is a bus of its own with one unit, so that index, and bus with unit 0, mean the port. */
static int find_port(json_t *drive, struct ports *ports, struct error **err)
{
    int index, bus, unit;

    if (small_number(drive, "index", -1, &index, err) < 0 ||
        small_number(drive, "bus", -1, &bus, err) < 0 ||
        small_number(drive, "unit", 0, &unit, err) < 0)
        return -EINVAL;
    if (unit != 0)
        return error_set(err, EINVAL, "unit=%d: each port has one drive, unit 0", unit);
    int port = index >= 0 ? index : bus;
    for (int i = 0; port < 0 && i < MACHINE_IDE_DRIVES; i++)
        if (!ports->taken[i])
            port = i;
    if (port < 0 || port >= MACHINE_IDE_DRIVES)
        return error_set(err, ENOSPC, "there are %d ports for drives, from 0", MACHINE_IDE_DRIVES);
    if (ports->taken[port])
        return error_set(err, EEXIST, "there is a drive at port %d already", port);
    ports->taken[port] = true;
    return port;
}

static json_t *device_for(json_t *drive, const char *type, const char *node)
{
    static const char *const copied[] = { "serial", "werror", "rerror", NULL };
    json_t *device = json_pack("{s:s, s:s}", "driver", type, "drive", node);

    for (const char *const *key = copied; device && *key; key++)
        if (json_object_get(drive, *key))
            json_object_set(device, *key, json_object_get(drive, *key));
    return device;
}

/* What a drive is plugged in as; type NULL: nothing. Judged before its image is opened. */
struct plug {
    const char *type;
    char bus[16];
};

static int find_plug(json_t *drive, struct ports *ports, struct plug *out, struct error **err)
{
    const char *interface = text_of(drive, "if"), *media = text_of(drive, "media");
    bool cd = media && !strcmp(media, "cdrom");

    *out = (struct plug){ .type = NULL };
    if (!interface || !strcmp(interface, "ide")) {
        int port = find_port(drive, ports, err);
        if (port < 0)
            return port;
        out->type = cd ? "ide-cd" : "ide-hd";
        snprintf(out->bus, sizeof(out->bus), "ide.%d", port);
    } else if (!strcmp(interface, "virtio")) {
        if (cd)
            return error_set(err, EINVAL, "if=virtio: a CD is plugged in with if=ide");
        out->type = "virtio-blk-pci";
    } else if (strcmp(interface, "none") != 0) {
        return error_set(err, ENOTSUP, "if=%s: there are ide, virtio and none", interface);
    }
    return 0;
}

static int open_drive(struct args *a, json_t *drive, struct ports *ports, struct error **err)
{
    const char *node;
    struct plug plug;
    int ret = find_plug(drive, ports, &plug, err);

    if (ret == 0)
        ret = blockdev_add_drive(drive, a->snapshot, &node, err);
    if (ret < 0 || !plug.type)
        return ret;
    json_t *device = device_for(drive, plug.type, node);
    if (device && plug.bus[0])
        json_object_set_new(device, "bus", json_string(plug.bus));
    if (!device || json_array_append_new(a->machine.devices, device) < 0)
        return error_set(err, ENOMEM, "out of memory");
    return 0;
}

static bool says_port(json_t *drive)
{
    return json_object_get(drive, "index") || json_object_get(drive, "bus");
}

/* Those that name their port come first, so that none of the others sits there. */
int drives_open(struct args *a, struct error **err)
{
    struct ports ports = { 0 };
    json_t *o;
    size_t i;

    json_array_foreach(a->blockdevs, i, o)
    {
        int ret = blockdev_add(o, err);
        if (ret < 0) {
            error_prefix(err, "-blockdev");
            return ret;
        }
    }
    for (int named = 1; named >= 0; named--)
        json_array_foreach(a->drives, i, o)
        {
            int ret = says_port(o) == named ? open_drive(a, o, &ports, err) : 0;
            if (ret < 0) {
                error_prefix(err, "-drive");
                return ret;
            }
        }
    return 0;
}

int globals_apply(struct args *a, struct error **err)
{
    json_t *global, *device;
    size_t i, j;

    json_array_foreach(a->globals, i, global) json_array_foreach(a->machine.devices, j, device)
    {
        const char *type = text_of(device, "driver"), *key = text_of(global, "property");
        if (!type || strcmp(type, text_of(global, "driver")) != 0 || json_object_get(device, key))
            continue;
        if (json_object_set(device, key, json_object_get(global, "value")) < 0)
            return error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}
