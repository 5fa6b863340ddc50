/* The commands of an ATA disk, ATA8-ACS section 7, and those that a CD drive shares with it. */
#include "ahci.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/macros.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEVICE_LBA = 0x40,
    DEVICE_FUA = 0x80, /* of queued commands */
    TRIM_RANGE = 8,
    TRIM_BLOCKS = 8, /* as IDENTIFY says */
    SMART_SIGNATURE = 0xc24f,
    LOG_DIRECTORY = 0,
    LOG_QUEUED_ERROR = 0x10,
};

/* ---- ends ------------------------------------------------------------------------------------- */

bool ata_ok(struct ahci_request *q)
{
    q->status = ATA_READY;
    q->error = 0;
    return false;
}

bool ata_fail(struct ahci_request *q, uint8_t error)
{
    q->status = ATA_READY | ATA_ERR;
    q->error = error;
    return false;
}

bool ata_abort(struct ahci_request *q)
{
    return ata_fail(q, ATA_E_ABORT);
}

static bool unmapped(struct ahci_request *q, int r)
{
    q->bus_error = r == -EFAULT;
    return ata_abort(q);
}

bool ata_give(struct ahci_request *q, const void *from, size_t n)
{
    int r = ahci_map(q, n, true, true);

    if (r < 0)
        return unmapped(q, r);
    q->moved = dma_write(&q->data, from, n);
    return ata_ok(q);
}

void ata_ended(struct disk_request *d, int result)
{
    struct ahci_request *q = (struct ahci_request *)d;

    if (result < 0) {
        ata_fail(q, d->r.op == BLOCKDEV_READ || d->r.op == BLOCKDEV_WRITE ? ATA_E_UNCORRECTABLE
                                                                          : ATA_E_ABORT);
    } else {
        ata_ok(q);
        if (d->r.op == BLOCKDEV_READ)
            dma_written(&q->data, d->r.length);
        if (d->r.op == BLOCKDEV_READ || d->r.op == BLOCKDEV_WRITE)
            q->moved = d->r.length;
    }
    ahci_end(q);
}

/* ---- reading and writing ---------------------------------------------------------------------------- */

enum { SHORT, EXTENDED, QUEUED }; /* 28 bits, 48 bits, NCQ */
enum { F_WRITE = 1, F_PIO = 2, F_FUA = 4, F_NO_DATA = 8 };

static uint64_t address_of(const struct ahci_request *q, int form)
{
    const uint8_t *f = q->fis;
    uint64_t low = f[4] | (uint64_t)f[5] << 8 | (uint64_t)f[6] << 16;

    if (form != SHORT)
        return low | (uint64_t)f[8] << 24 | (uint64_t)f[9] << 32 | (uint64_t)f[10] << 40;
    if (f[7] & DEVICE_LBA)
        return low | (uint64_t)(f[7] & 15) << 24;
    /* cylinder, head and sector; sectors count from 1, and 0 is found nowhere */
    return f[4] ? ((f[5] | (uint64_t)f[6] << 8) * 16 + (f[7] & 15)) * 63 + f[4] - 1 : UINT64_MAX;
}

static uint64_t count_of(const struct ahci_request *q, int form)
{
    const uint8_t *f = q->fis;
    unsigned n = form == QUEUED     ? f[3] | (unsigned)f[11] << 8
                 : form == EXTENDED ? f[12] | (unsigned)f[13] << 8
                                    : f[12];
    return n ? n : form == SHORT ? 256 : 65536;
}

static bool transfer(struct ahci_request *q, int form, unsigned flags)
{
    struct ide_drive *drive = q->port->drive;
    uint64_t lba = address_of(q, form), count = count_of(q, form);
    bool write = flags & F_WRITE;

    if (form == QUEUED && q->fis[7] & DEVICE_FUA)
        flags |= F_FUA;
    if (!range_inside(lba, count, drive->sectors))
        return ata_fail(q, ATA_E_NOT_FOUND);
    if (flags & F_NO_DATA)
        return ata_ok(q);
    int r = ahci_map(q, count * ATA_SECTOR, !write, false);
    if (r < 0)
        return unmapped(q, r);
    if (flags & F_PIO && !write)
        q->end = AHCI_END_PIO;
    q->d.r.op = write ? BLOCKDEV_WRITE : BLOCKDEV_READ;
    q->d.r.flags = write && (flags & F_FUA || !drive->write_cache) ? BLOCKDEV_FUA : 0;
    q->d.r.offset = lba * ATA_SECTOR;
    q->d.r.length = count * ATA_SECTOR;
    q->d.r.iov = q->data.iov;
    q->d.r.iovcnt = q->data.count;
    return true;
}

static bool flush(struct ahci_request *q)
{
    q->d.r.op = BLOCKDEV_FLUSH;
    return true;
}

/* ---- TRIM: ranges are given back one after the other ------------------------------------------------- */

static bool next_range(struct ahci_request *q)
{
    while (q->at < q->ranges) {
        uint64_t entry = load_le64(q->buffer + (size_t)TRIM_RANGE * q->at++);
        q->d.r.offset = (entry & 0xffffffffffff) * ATA_SECTOR;
        q->d.r.length = (entry >> 48) * ATA_SECTOR;
        if (q->d.r.length)
            return true;
    }
    return false;
}

static void trim_ended(struct disk_request *d, int result)
{
    struct ahci_request *q = (struct ahci_request *)d;

    if (result == 0 && next_range(q)) {
        disk_submit(&q->port->drive->disk, d);
        return;
    }
    if (result < 0)
        ata_abort(q);
    else
        ata_ok(q);
    ahci_end(q);
}

static bool trim(struct ahci_request *q)
{
    unsigned blocks = q->fis[12] | (unsigned)q->fis[13] << 8;
    size_t bytes = (size_t)blocks * ATA_SECTOR;

    if (!(q->fis[3] & 1) || !blocks || blocks > TRIM_BLOCKS)
        return ata_abort(q);
    int r = ahci_map(q, bytes, false, false);
    if (r < 0)
        return unmapped(q, r);
    q->buffer = malloc(bytes);
    if (!q->buffer)
        return ata_abort(q);
    dma_read(&q->data, q->buffer, bytes);
    q->ranges = (unsigned)(bytes / TRIM_RANGE);
    for (unsigned i = 0; i < q->ranges; i++) {
        uint64_t entry = load_le64(q->buffer + (size_t)TRIM_RANGE * i);
        if (!range_inside(entry & 0xffffffffffff, entry >> 48, q->port->drive->sectors))
            return ata_fail(q, ATA_E_NOT_FOUND);
    }
    q->moved = bytes;
    q->d.r.op = BLOCKDEV_DISCARD;
    q->d.done = trim_ended;
    return next_range(q) || ata_ok(q);
}

/* ---- settings, logs, SMART ---------------------------------------------------------------------------- */

static bool set_features(struct ahci_request *q)
{
    struct ide_drive *drive = q->port->drive;

    switch (q->fis[3]) {
    case 0x02:
        drive->write_cache = true;
        return ata_ok(q);
    case 0x82: /* what was written so far is to be durable */
        drive->write_cache = false;
        return drive->cd ? ata_ok(q) : flush(q);
    case 0xaa:
    case 0x55:
        drive->look_ahead = q->fis[3] == 0xaa;
        return ata_ok(q);
    case 0x03: /* transfer mode: all are the same here */
    case 0x05:
    case 0x85:
    case 0x66:
    case 0xcc:
    case 0x10: /* features of the link, none of which changes anything */
    case 0x90:
        return ata_ok(q);
    }
    return ata_abort(q);
}

static uint8_t checksum(const uint8_t *page)
{
    unsigned sum = 0;
    for (unsigned i = 0; i < ATA_SECTOR - 1; i++)
        sum += page[i];
    return (uint8_t)-sum;
}

/* The directory of logs, and what a queued command died of. */
static bool read_log(struct ahci_request *q, bool pio)
{
    const struct ide_drive *d = q->port->drive;
    uint8_t page[ATA_SECTOR] = { 0 };
    unsigned blocks = q->fis[12] | (unsigned)q->fis[13] << 8;

    if (blocks != 1 || q->fis[5] || q->fis[9])
        return ata_abort(q);
    if (q->fis[4] == LOG_DIRECTORY) {
        store_le16(page, 1);
        store_le16(page + 2 * LOG_QUEUED_ERROR, 1);
    } else if (q->fis[4] == LOG_QUEUED_ERROR) {
        page[0] = d->failed_tag;
        page[2] = d->failed_status;
        page[3] = d->failed_error;
    } else {
        return ata_abort(q);
    }
    if (q->fis[4] == LOG_QUEUED_ERROR)
        page[ATA_SECTOR - 1] = checksum(page);
    if (pio)
        q->end = AHCI_END_PIO;
    return ata_give(q, page, sizeof(page));
}

/* Attributes that never change: the disk is as well as its file. */
static void smart_page(uint8_t page[ATA_SECTOR], bool thresholds)
{
    static const uint8_t attributes[] = { 1, 3, 4, 5, 9, 12, 190 };

    memset(page, 0, ATA_SECTOR);
    store_le16(page, 1);
    for (unsigned i = 0; i < sizeof(attributes); i++) {
        uint8_t *a = page + 2 + 12 * i;
        a[0] = attributes[i];
        if (thresholds) {
            a[1] = 0;
        } else {
            a[1] = 3; /* flags */
            a[3] = a[4] = 100;
        }
    }
    if (!thresholds)
        page[367] = 0x10; /* self-tests cannot be asked for; tests end by themselves */
    page[ATA_SECTOR - 1] = checksum(page);
}

static bool smart(struct ahci_request *q)
{
    struct ide_drive *d = q->port->drive;
    uint8_t page[ATA_SECTOR];
    uint8_t what = q->fis[3];

    if ((q->fis[5] | q->fis[6] << 8) != SMART_SIGNATURE || (!d->smart && what != 0xd8))
        return ata_abort(q);
    switch (what) {
    case 0xd0: /* attributes, their thresholds */
    case 0xd1:
        smart_page(page, what == 0xd1);
        q->end = AHCI_END_PIO;
        return ata_give(q, page, sizeof(page));
    case 0xd2: /* saving by itself */
        return ata_ok(q);
    case 0xd8:
    case 0xd9:
        d->smart = what == 0xd8;
        return ata_ok(q);
    case 0xda: /* no threshold is exceeded */
        return ata_ok(q);
    }
    return ata_abort(q);
}

static bool identify(struct ahci_request *q)
{
    uint8_t id[ATA_SECTOR];

    ata_identify(q->port->drive, id);
    q->end = AHCI_END_PIO;
    return ata_give(q, id, sizeof(id));
}

static bool identify_packet(struct ahci_request *q)
{
    uint8_t id[ATA_SECTOR];

    atapi_identify(q->port->drive, id);
    q->end = AHCI_END_PIO;
    return ata_give(q, id, sizeof(id));
}

static bool set_multiple(struct ahci_request *q)
{
    uint8_t n = q->fis[12];

    if (n > 16 || (n & (n - 1)))
        return ata_abort(q);
    q->port->drive->multiple = n;
    return ata_ok(q);
}

static bool native_size(struct ahci_request *q, bool extended)
{
    uint64_t last = q->port->drive->sectors - 1;

    if (!extended)
        last = MIN(last, UINT64_C(0xffffffe));
    for (unsigned i = 0; i < 6; i++)
        q->lba[i] = (uint8_t)(last >> (8 * i));
    if (!extended) {
        q->fis[7] = (uint8_t)((q->fis[7] & 0xf0) | (last >> 24 & 15));
        q->lba[3] = 0;
    }
    return ata_ok(q);
}

/* ---- tables of commands ------------------------------------------------------------------------------------ */

/* Those that any drive knows; *known says whether it was one. */
static bool common_command(struct ahci_request *q, bool *known)
{
    *known = true;
    switch (q->fis[2]) {
    case 0x90: /* EXECUTE DEVICE DIAGNOSTIC: passed */
        ata_ok(q);
        q->error = 1;
        return false;
    case 0xef:
        return set_features(q);
    case 0xe5: /* CHECK POWER MODE: active */
        q->count = 0xff;
        return ata_ok(q);
    case 0xe0: /* STANDBY, IDLE, SLEEP: it wakes up by itself */
    case 0xe1:
    case 0xe2:
    case 0xe3:
    case 0xe6:
        return ata_ok(q);
    }
    *known = false;
    return false;
}

static bool cd_command(struct ahci_request *q)
{
    switch (q->fis[2]) {
    case 0x08: /* DEVICE RESET */
        return ata_ok(q);
    case 0xa0:
        return atapi_packet(q);
    case 0xa1:
        return identify_packet(q);
    case 0xec: /* aborted, with the signature of a packet device (7.16.3) */
        q->lba[1] = 0x14;
        q->lba[2] = 0xeb;
        return ata_abort(q);
    }
    return ata_abort(q);
}

static bool data_command(struct ahci_request *q, bool *known)
{
    static const struct {
        uint8_t code, form, flags;
    } table[] = {
        { 0x20, SHORT, F_PIO },
        { 0x21, SHORT, F_PIO },
        { 0x24, EXTENDED, F_PIO },
        { 0x25, EXTENDED, 0 },
        { 0x29, EXTENDED, F_PIO },
        { 0x30, SHORT, F_WRITE | F_PIO },
        { 0x31, SHORT, F_WRITE | F_PIO },
        { 0x34, EXTENDED, F_WRITE | F_PIO },
        { 0x35, EXTENDED, F_WRITE },
        { 0x39, EXTENDED, F_WRITE | F_PIO },
        { 0x3d, EXTENDED, F_WRITE | F_FUA },
        { 0x40, SHORT, F_NO_DATA },
        { 0x41, SHORT, F_NO_DATA },
        { 0x42, EXTENDED, F_NO_DATA },
        { 0x60, QUEUED, 0 },
        { 0x61, QUEUED, F_WRITE },
        { 0xc4, SHORT, F_PIO },
        { 0xc5, SHORT, F_WRITE | F_PIO },
        { 0xc8, SHORT, 0 },
        { 0xc9, SHORT, 0 },
        { 0xca, SHORT, F_WRITE },
        { 0xcb, SHORT, F_WRITE },
        { 0xce, EXTENDED, F_WRITE | F_PIO | F_FUA },
    };

    *known = true;
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++)
        if (table[i].code == q->fis[2])
            return transfer(q, table[i].form, table[i].flags);
    *known = false;
    return false;
}

static bool disk_command(struct ahci_request *q)
{
    switch (q->fis[2]) {
    case 0x06: /* DATA SET MANAGEMENT */
        return trim(q);
    case 0x27:
    case 0xf8: /* READ NATIVE MAX ADDRESS */
        return native_size(q, q->fis[2] == 0x27);
    case 0x2f: /* READ LOG */
    case 0x47:
        return read_log(q, q->fis[2] == 0x2f);
    case 0x70: /* SEEK, RECALIBRATE, INITIALIZE DEVICE PARAMETERS of old drivers */
    case 0x10:
    case 0x91:
        return ata_ok(q);
    case 0xb0:
        return smart(q);
    case 0xc6:
        return set_multiple(q);
    case 0xe7:
    case 0xea:
        return flush(q);
    case 0xec:
        return identify(q);
    }
    return ata_abort(q);
}

bool ata_command(struct ahci_request *q)
{
    bool known;

    q->d.done = ata_ended;
    q->count = q->fis[12];
    memcpy(q->lba, q->fis + 4, 3);
    memcpy(q->lba + 3, q->fis + 8, 3);
    bool begun = common_command(q, &known);
    if (known)
        return begun;
    if (q->port->drive->cd)
        return cd_command(q);
    begun = data_command(q, &known);
    return known ? begun : disk_command(q);
}
