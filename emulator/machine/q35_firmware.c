/* Firmware: where it is found, and what it is told by fw_cfg and CMOS. */
#include "q35.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/round.h"
#include "base/strbuf.h"
#include "tables.h"

#include <string.h>
#include <sys/stat.h>

static const char *const folders[] = { "/usr/share/seabios", "/usr/share/qemu" };

static char *try_file(const char *folder, size_t length, const char *name)
{
    char *path;
    if (asprintf(&path, "%.*s/%s", (int)length, folder, name) < 0)
        return NULL;
    if (access(path, R_OK) == 0)
        return path;
    free(path);
    return NULL;
}

/* In the user's folders, then in the usual ones; NULL: not there. */
char *q35_find_file(const struct machine_config *c, const char *name)
{
    const char *list = c->firmware_folders;
    while (list && *list) {
        size_t length = strcspn(list, ":");
        char *path = try_file(list, length, name);
        if (path)
            return path;
        list += length + (list[length] == ':');
    }
    for (unsigned i = 0; i < ARRAY_SIZE(folders); i++) {
        char *path = try_file(folders[i], strlen(folders[i]), name);
        if (path)
            return path;
    }
    return NULL;
}

int q35_load_firmware(struct q35 *q, struct error **err)
{
    const struct machine_config *c = q->m->config;
    const char *name = c->firmware ? c->firmware : "bios-256k.bin";
    bool path = strchr(name, '/') || (c->firmware && access(name, R_OK) == 0);
    _cleanup_free_ char *found = path ? strdup(name) : q35_find_file(c, name);
    if (!found)
        return error_set(
            err, ENOENT,
            "Firmware '%s' is not in %s; it is in Debian's package seabios, or name it "
            "by -bios",
            name, folders[0]);
    _cleanup_stream_ FILE *file = fopen(found, "rb");
    struct stat st;
    if (!file || fstat(fileno(file), &st))
        return error_set(err, errno, "Firmware '%s' cannot be opened: %s", found, strerror(errno));
    if (st.st_size < 65536 || st.st_size > 8 << 20 || st.st_size % 65536)
        return error_set(err, EINVAL,
                         "Firmware '%s' has %lld bytes; 64 KiB to 8 MiB in steps of 64 KiB fit",
                         found, (long long)st.st_size);
    q->firmware_size = (uint64_t)st.st_size;
    q->firmware = aligned_alloc(GUEST_PAGE_SIZE, q->firmware_size);
    if (!q->firmware)
        return error_set(err, ENOMEM, "No memory left for firmware '%s'", found);
    if (fread(q->firmware, 1, q->firmware_size, file) != q->firmware_size)
        return error_set(err, EIO, "Firmware '%s' cannot be read", found);
    int r = memory_add_ram(q->m->memory, Q35_HIGH - q->firmware_size, q->firmware_size, q->firmware,
                           MEMORY_ROM);
    return r ? error_set(err, -r, "No memory left for firmware '%s'", found) : 0;
}

/* ---- CMOS ----------------------------------------------------------------------------------- */

/* Letters of -boot order to the numbers SeaBIOS takes from CMOS. */
static unsigned boot_number(char letter)
{
    switch (letter) {
    case 'a':
    case 'b':
        return 1;
    case 'c':
        return 2;
    case 'd':
        return 3;
    case 'n':
        return 4;
    default:
        return 0;
    }
}

static void fill_cmos(struct q35 *q)
{
    const struct machine_config *c = q->m->config;
    const char *order = c->boot_order ? c->boot_order : "cdn";
    uint64_t below = MIN(q->low >> 10, (uint64_t)65535);
    uint64_t extended = MIN(q->low > 1 << 20 ? (q->low >> 10) - 1024 : 0, (uint64_t)65535);
    uint64_t above16 = MIN(q->low > 16 << 20 ? (q->low - (16 << 20)) >> 16 : 0, (uint64_t)65535);
    uint64_t high = q->high >> 16;
    unsigned boot[3] = { 0 };
    for (unsigned i = 0; i < 3 && order[i]; i++)
        boot[i] = boot_number(order[i]);
    below = MIN(below, (uint64_t)640);
    rtc_set_memory(q->rtc, 0x15, (uint8_t)below);
    rtc_set_memory(q->rtc, 0x16, (uint8_t)(below >> 8));
    for (unsigned at = 0x17; at <= 0x30; at += 0x30 - 0x17) {
        rtc_set_memory(q->rtc, at, (uint8_t)extended);
        rtc_set_memory(q->rtc, at + 1, (uint8_t)(extended >> 8));
    }
    rtc_set_memory(q->rtc, 0x34, (uint8_t)above16);
    rtc_set_memory(q->rtc, 0x35, (uint8_t)(above16 >> 8));
    for (unsigned i = 0; i < 3; i++)
        rtc_set_memory(q->rtc, 0x5b + i, (uint8_t)(high >> (8 * i)));
    rtc_set_memory(q->rtc, 0x5f, (uint8_t)(c->cpus - 1));
    rtc_set_memory(q->rtc, 0x14, 0x06); /* coprocessor, PS/2 mouse */
    rtc_set_memory(q->rtc, 0x3d, (uint8_t)(boot[1] << 4 | boot[0]));
    rtc_set_memory(q->rtc, 0x38, (uint8_t)(boot[2] << 4 | 1)); /* 1: floppies need no signature */
}

/* ---- fw_cfg --------------------------------------------------------------------------------- */

static int by_boot_index(const void *a, const void *b)
{
    const struct device *const *x = a, *const *y = b;
    return ((*x)->boot_index > (*y)->boot_index) - ((*x)->boot_index < (*y)->boot_index);
}

static int tell_boot_order(struct q35 *q)
{
    _cleanup_strbuf_ struct strbuf text = STRBUF_INIT;
    size_t count = 0, n = 0;
    for (const struct device *d = q->m->devices; d; d = d->next)
        count += d->boot_index >= 0;
    if (!count)
        return 0;
    _cleanup_free_ struct device **list = calloc(count, sizeof(struct device *));
    if (!list)
        return -ENOMEM;
    for (struct device *d = q->m->devices; d; d = d->next) {
        if (d->boot_index >= 0)
            list[n++] = d;
    }
    qsort(list, count, sizeof(struct device *), by_boot_index);
    for (n = 0; n < count; n++) {
        _cleanup_free_ char *path = list[n]->type->boot_path(list[n]);
        if (path)
            strbuf_addf(&text, "%s%s", text.len ? "\n" : "", path);
    }
    const char *s = strbuf_text(&text);
    return text.failed ? -ENOMEM : fw_cfg_file(q->fw_cfg, "bootorder", s, strlen(s) + 1);
}

static int tell_e820(struct q35 *q)
{
    uint8_t map[2 * 20] = { 0 };
    store_le64(map + 8, q->low);
    store_le32(map + 16, 1);
    store_le64(map + 20, Q35_HIGH);
    store_le64(map + 28, q->high);
    store_le32(map + 36, 1);
    return fw_cfg_file(q->fw_cfg, "etc/e820", map, q->high ? 40 : 20);
}

static int tell_menu(struct q35 *q)
{
    const struct machine_config *c = q->m->config;
    uint8_t wait[2];
    int r = fw_cfg_number(q->fw_cfg, FW_CFG_BOOT_MENU, c->boot_menu);
    if (r || !c->boot_menu_timeout)
        return r;
    store_le16(wait, (uint16_t)MIN(c->boot_menu_timeout, (uint64_t)0xffff));
    return fw_cfg_file(q->fw_cfg, "etc/boot-menu-wait", wait, sizeof wait);
}

static int tell_tables(struct q35 *q)
{
    struct tables t;
    int r = tables_make(q, &t);
    if (!r)
        r = fw_cfg_file(q->fw_cfg, "etc/acpi/tables", t.acpi.at, t.acpi.len);
    if (!r)
        r = fw_cfg_file(q->fw_cfg, "etc/acpi/rsdp", t.rsdp.at, t.rsdp.len);
    if (!r)
        r = fw_cfg_file(q->fw_cfg, "etc/table-loader", t.loader.at, t.loader.len);
    if (!r)
        r = fw_cfg_file(q->fw_cfg, "etc/smbios/smbios-tables", t.smbios.at, t.smbios.len);
    if (!r)
        r = fw_cfg_file(q->fw_cfg, "etc/smbios/smbios-anchor", t.smbios_anchor.at,
                        t.smbios_anchor.len);
    tables_free(&t);
    return r;
}

int q35_tell_firmware(struct q35 *q, struct error **err)
{
    const struct machine_config *c = q->m->config;
    uint8_t ram[8];
    static const uint8_t no_uuid[16];
    fill_cmos(q);
    store_le64(ram, q->low);
    int r = fw_cfg_item(q->fw_cfg, FW_CFG_RAM_SIZE, ram, sizeof ram);
    if (!r)
        r = fw_cfg_number(q->fw_cfg, FW_CFG_NB_CPUS, (uint16_t)c->cpus);
    if (!r)
        r = fw_cfg_number(q->fw_cfg, FW_CFG_MAX_CPUS, (uint16_t)c->cpus);
    if (!r)
        r = fw_cfg_number(q->fw_cfg, FW_CFG_NOGRAPHIC, c->no_display);
    if (!r)
        r = fw_cfg_item(q->fw_cfg, FW_CFG_UUID, c->uuid ? c->uuid : no_uuid, 16);
    if (!r)
        r = tell_e820(q);
    if (!r)
        r = tell_boot_order(q);
    if (!r)
        r = tell_menu(q);
    if (!r)
        r = tell_tables(q);
    if (!r && c->no_display) /* SeaBIOS speaks and listens at the serial port */
        r = fw_cfg_file(q->fw_cfg, "etc/sercon-port",
                        (const uint8_t[]){ 0xf8, 3, 0, 0, 0, 0, 0, 0 }, 8);
    return r ? error_set(err, -r, "No memory left for what firmware is told") : 0;
}
