/* The commands of a CD drive: MMC-3, and SPC-3 for what all SCSI devices have. */
#include "ahci.h"
#include "padded.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/macros.h"

#include <errno.h>
#include <string.h>

enum {
    NO_SENSE = 0,
    NOT_READY = 2,
    MEDIUM_ERROR = 3,
    ILLEGAL_REQUEST = 5,
    UNIT_ATTENTION = 6,
};
enum {
    MSF_SECONDS = 2,     /* block 0 is two seconds into the disc */
    MOST_BLOCKS = 65535, /* of a read: so that a reset does not wait for ever */
};

/* ---- ends --------------------------------------------------------------------------------------------- */

/* CHECK CONDITION: the sense key stands in the error register, the rest waits for REQUEST SENSE. */
static bool check(struct ahci_request *q, uint8_t key, uint8_t code, uint8_t more)
{
    struct ide_drive *d = q->port->drive;

    d->sense_key = key;
    d->sense_code = code;
    d->sense_more = more;
    q->count = 3; /* the status phase */
    return ata_fail(q, (uint8_t)(key << 4 | (key == ILLEGAL_REQUEST ? ATA_E_ABORT : 0)));
}

static bool invalid_field(struct ahci_request *q)
{
    return check(q, ILLEGAL_REQUEST, 0x24, 0);
}

static bool ok(struct ahci_request *q)
{
    struct ide_drive *d = q->port->drive;

    d->sense_key = d->sense_code = d->sense_more = NO_SENSE;
    q->count = 3;
    return ata_ok(q);
}

/* n bytes, or the `allowed` ones that the guest has room for. */
static bool give(struct ahci_request *q, const void *from, size_t n, size_t allowed)
{
    ok(q);
    n = MIN(n, allowed);
    return n ? ata_give(q, from, n) : false;
}

/* ---- the medium --------------------------------------------------------------------------------------- */

static bool has_medium(const struct ide_drive *d)
{
    return blockdev_inserted(d->disk.blockdev) && !d->tray_open;
}

static uint64_t blocks_of(const struct ide_drive *d)
{
    return d->sectors / (ATAPI_BLOCK / ATA_SECTOR);
}

static bool no_medium(struct ahci_request *q)
{
    return check(q, NOT_READY, 0x3a, q->port->drive->tray_open ? 2 : 1);
}

static bool read_blocks(struct ahci_request *q, uint64_t block, uint64_t count)
{
    struct ide_drive *d = q->port->drive;

    if (!range_inside(block, count, blocks_of(d)))
        return check(q, ILLEGAL_REQUEST, 0x21, 0); /* address out of range */
    if (count > MOST_BLOCKS)
        return invalid_field(q);
    if (!count)
        return ok(q);
    int r = ahci_map(q, count * ATAPI_BLOCK, true, false);
    if (r < 0) {
        q->bus_error = r == -EFAULT;
        return check(q, ILLEGAL_REQUEST, 0x24, 0);
    }
    ok(q);
    q->d.r.op = BLOCKDEV_READ;
    q->d.r.offset = block * ATAPI_BLOCK;
    q->d.r.length = count * ATAPI_BLOCK;
    q->d.r.iov = q->data.iov;
    q->d.r.iovcnt = q->data.count;
    return true;
}

/* READ CD: the user data of mode 1 sectors, which is all an image holds. */
static bool read_cd(struct ahci_request *q)
{
    const uint8_t *c = q->packet;
    uint64_t count = (uint64_t)c[6] << 16 | load_be16(c + 7);

    if (!(c[9] & 0xf8))
        return ok(q);
    if ((c[9] & 0xf8) != 0x10)
        return invalid_field(q);
    return read_blocks(q, load_be32(c + 2), count);
}

static void ended(struct disk_request *r, int result)
{
    struct ahci_request *q = (struct ahci_request *)r;

    if (result < 0) {
        /* The sense is the port's; nothing else of it runs until this command has ended. */
        check(q, MEDIUM_ERROR, 0x11, 0);
    } else {
        dma_written(&q->data, r->r.length);
        q->moved = r->r.length;
    }
    ahci_end(q);
}

static bool read_capacity(struct ahci_request *q)
{
    uint64_t blocks = blocks_of(q->port->drive);
    uint8_t data[8];

    store_be32(data, (uint32_t)MIN(blocks ? blocks - 1 : 0, UINT64_C(0xffffffff)));
    store_be32(data + 4, ATAPI_BLOCK);
    return give(q, data, sizeof(data), sizeof(data));
}

static void address(uint8_t *to, uint64_t block, bool msf)
{
    uint64_t frames = block + MSF_SECONDS * 75;

    store_be32(to, (uint32_t)block);
    if (msf) {
        to[0] = 0;
        to[1] = (uint8_t)(frames / (75 * 60));
        to[2] = (uint8_t)(frames / 75 % 60);
        to[3] = (uint8_t)(frames % 75);
    }
}

/* MMC-3 section 6.26: one data track and the lead-out behind it. */
static bool read_toc(struct ahci_request *q)
{
    const uint8_t *c = q->packet;
    bool msf = c[1] & 2;
    uint64_t blocks = blocks_of(q->port->drive);
    uint8_t toc[48] = { 0, 0, 1, 1 };
    size_t n = 4;

    switch (c[2] & 15 ? c[2] & 15 : c[9] >> 6) {
    case 0:
        if (c[6] > 1 && c[6] != 0xaa)
            return invalid_field(q);
        for (unsigned track = c[6] == 0xaa ? 2 : 1; track <= 2; track++, n += 8) {
            toc[n + 1] = 0x14; /* data, not to be copied */
            toc[n + 2] = track == 1 ? 1 : 0xaa;
            address(toc + n + 4, track == 1 ? 0 : blocks, msf);
        }
        break;
    case 1: /* sessions: one */
        toc[n + 1] = 0x14;
        toc[n + 2] = 1;
        address(toc + n + 4, 0, msf);
        n += 8;
        break;
    case 2: /* raw: first track, last track, lead-out, and the track itself */
        for (unsigned i = 0; i < 4; i++, n += 11) {
            toc[n] = 1;
            toc[n + 1] = 0x14;
            toc[n + 3] = (uint8_t)(i < 3 ? 0xa0 + i : 1);
            toc[n + 8] = 1;
            if (i >= 2)
                address(toc + n + 7, i == 2 ? blocks : 0, true);
        }
        break;
    default:
        return invalid_field(q);
    }
    store_be16(toc, (uint16_t)(n - 2));
    return give(q, toc, n, load_be16(c + 7));
}

/* MMC-3 section 6.22. */
static bool disc_information(struct ahci_request *q)
{
    uint8_t data[34] = { 0, 32, 0x0e /* complete, not erasable */, 1, 1, 1, 1, 0x20 };

    return give(q, data, sizeof(data), load_be16(q->packet + 7));
}

/* ---- what the drive is ------------------------------------------------------------------------------------ */

static bool inquiry(struct ahci_request *q)
{
    const struct ide_drive *d = q->port->drive;
    uint8_t data[36] = { 5 /* a CD */, 0x80 /* removable */, 0, 0x21, 31 };

    if (q->packet[1] & 1)
        return invalid_field(q); /* no pages of vital data */
    padded(data + 8, 8, "PLATTER");
    padded(data + 16, 16, d->model ? d->model : "Platter DVD-ROM");
    padded(data + 32, 4, d->firmware ? d->firmware : "1.0");
    return give(q, data, sizeof(data), load_be16(q->packet + 3));
}

static bool request_sense(struct ahci_request *q)
{
    const struct ide_drive *d = q->port->drive;
    uint8_t data[18] = { 0x70, 0, d->sense_key };

    data[7] = 10;
    data[12] = d->sense_code;
    data[13] = d->sense_more;
    return give(q, data, sizeof(data), q->packet[4]);
}

/* Pages 01 (errors) and 2A (what it can do), MMC-3 section 5.3. */
static bool mode_sense(struct ahci_request *q)
{
    const struct ide_drive *d = q->port->drive;
    uint8_t data[8 + 8 + 20] = { 0 };
    unsigned page = q->packet[2] & 0x3f, n = 8;

    if (q->packet[2] >> 6 == 3)
        return check(q, ILLEGAL_REQUEST, 0x39, 0); /* nothing is saved */
    if (page != 1 && page != 0x2a && page != 0x3f)
        return invalid_field(q);
    data[2] = has_medium(d) ? 0x12 : d->tray_open ? 0x71 : 0x70;
    if (page != 0x2a) {
        data[n] = 1;
        data[n + 1] = 6;
        data[n + 3] = 5; /* retries */
        n += 8;
    }
    if (page != 1) {
        data[n] = 0x2a;
        data[n + 1] = 18;
        data[n + 2] = 0x3b; /* reads CDs and DVDs of all kinds */
        data[n + 4] = 0x70;
        data[n + 5] = 3;
        data[n + 6] = (uint8_t)(0x29 | d->locked << 1); /* a tray that can be locked */
        store_be16(data + n + 8, 706);                  /* kB/s, four times */
        store_be16(data + n + 10, 2);
        store_be16(data + n + 12, 512);
        store_be16(data + n + 14, 706);
        n += 20;
    }
    store_be16(data, (uint16_t)(n - 2));
    return give(q, data, n, load_be16(q->packet + 7));
}

/* MMC-3 section 6.6: profiles, core, removable medium. */
static bool get_configuration(struct ahci_request *q)
{
    uint8_t data[40] = { 0 };
    bool medium = has_medium(q->port->drive);
    /* more than 700 MB make a DVD */
    uint16_t profile = !medium ? 0 : blocks_of(q->port->drive) > 400000 ? 0x10 : 0x08;
    unsigned n = 8;

    if ((q->packet[1] & 3) == 3)
        return invalid_field(q);
    store_be16(data + 6, profile);
    data[n + 2] = 3; /* feature 0, persistent and current */
    data[n + 3] = 8;
    store_be16(data + n + 4, 0x10);
    data[n + 6] = profile == 0x10;
    store_be16(data + n + 8, 0x08);
    data[n + 10] = profile == 0x08;
    n += 12;
    store_be16(data + n, 1); /* core, over ATAPI */
    data[n + 2] = 3;
    data[n + 3] = 4;
    store_be32(data + n + 4, 2);
    n += 8;
    store_be16(data + n, 3); /* removable medium: a tray */
    data[n + 2] = 3;
    data[n + 3] = 4;
    data[n + 4] = 0x29;
    n += 8;
    store_be32(data, n - 4);
    return give(q, data, n, load_be16(q->packet + 7));
}

/* MMC-3 section 6.7: only of the medium, only when asked (polled). */
static bool event_status(struct ahci_request *q)
{
    struct ide_drive *d = q->port->drive;
    uint8_t data[8] = { 0, 6, 4, 1 << 4 };

    if (!(q->packet[1] & 1))
        return invalid_field(q);
    if (!(q->packet[4] & 1 << 4)) {
        store_be16(data, 2);
        data[2] = 0x80; /* none of these */
        return give(q, data, 4, load_be16(q->packet + 7));
    }
    data[4] = d->medium_changed ? 2 : 0;
    data[5] = (uint8_t)(has_medium(d) << 1 | d->tray_open);
    d->medium_changed = false;
    return give(q, data, sizeof(data), load_be16(q->packet + 7));
}

/* Opening and closing the tray. */
static bool start_stop(struct ahci_request *q)
{
    struct ide_drive *d = q->port->drive;
    bool load = q->packet[4] & 1;

    if (q->packet[4] & 2) {
        if (!load && d->locked)
            return check(q, has_medium(d) ? ILLEGAL_REQUEST : NOT_READY, 0x53, 2);
        d->medium_changed |= d->tray_open && load;
        d->tray_open = !load;
    }
    return ok(q);
}

static bool mechanism_status(struct ahci_request *q)
{
    uint8_t data[8] = { 0 };

    data[1] = (uint8_t)(q->port->drive->tray_open << 4);
    data[5] = 1;
    return give(q, data, sizeof(data), load_be16(q->packet + 8));
}

/* ---- the table --------------------------------------------------------------------------------------------- */

static bool wants_medium(uint8_t command)
{
    static const uint8_t some[] = { 0x00, 0x25, 0x28, 0x2b, 0x43, 0x51, 0xa8, 0xbe };
    return memchr(some, command, sizeof(some));
}

bool atapi_packet(struct ahci_request *q)
{
    struct ide_drive *d = q->port->drive;
    const uint8_t *c = q->packet;

    q->d.done = ended;
    q->count = 3;
    if (wants_medium(c[0]) && !has_medium(d))
        return no_medium(q);
    switch (c[0]) {
    case 0x00: /* TEST UNIT READY */
    case 0x2b: /* SEEK */
    case 0xbb: /* SET CD SPEED */
        return ok(q);
    case 0x03:
        return request_sense(q);
    case 0x12:
        return inquiry(q);
    case 0x1b:
        return start_stop(q);
    case 0x1e: /* PREVENT ALLOW MEDIUM REMOVAL */
        d->locked = c[4] & 1;
        return ok(q);
    case 0x25:
        return read_capacity(q);
    case 0x28:
        return read_blocks(q, load_be32(c + 2), load_be16(c + 7));
    case 0x43:
        return read_toc(q);
    case 0x46:
        return get_configuration(q);
    case 0x4a:
        return event_status(q);
    case 0x51:
        return disc_information(q);
    case 0x5a:
        return mode_sense(q);
    case 0xa8:
        return read_blocks(q, load_be32(c + 2), load_be32(c + 6));
    case 0xbd:
        return mechanism_status(q);
    case 0xbe:
        return read_cd(q);
    }
    return check(q, ILLEGAL_REQUEST, 0x20, 0); /* no such command */
}
