/* What IDENTIFY DEVICE and IDENTIFY PACKET DEVICE say: ATA8-ACS sections 7.16 and 7.17, words of 16 bits. */
#include "ahci.h"

#include "base/bytes.h"
#include "base/macros.h"
#include "base/round.h"

#include <string.h>

static void set(uint8_t *id, unsigned word, uint64_t value)
{
    store_le16(id + 2 * word, (uint16_t)value);
}

static uint16_t get(const uint8_t *id, unsigned word)
{
    return load_le16(id + 2 * word);
}

/* The first character of each pair stands in the high byte. */
static void text(uint8_t *id, unsigned word, unsigned words, const char *from)
{
    size_t n = strlen(from);

    for (unsigned i = 0; i < 2 * words; i++)
        id[2 * word + (i ^ 1)] = i < n ? (uint8_t)from[i] : ' ';
}

static void names(const struct ide_drive *d, uint8_t *id)
{
    text(id, 10, 10, d->disk.o.serial ? d->disk.o.serial : "PL00001");
    text(id, 23, 4, d->firmware ? d->firmware : "1.0");
    text(id, 27, 20, d->model ? d->model : d->cd ? "Platter DVD-ROM" : "Platter HARDDISK");
}

/* DMA modes and cycle times, as a device of UDMA mode 5 has them. */
static void modes(uint8_t *id)
{
    set(id, 49, 0x0b00); /* IORDY, LBA, DMA */
    set(id, 53, 7);      /* words 54 to 58, 64 to 70 and 88 are valid */
    set(id, 63, 7);
    set(id, 64, 3);
    for (unsigned word = 65; word <= 68; word++)
        set(id, word, 120);
    set(id, 76, 2);
    set(id, 88, 0x203f);
}

void ata_identify(const struct ide_drive *d, uint8_t id[ATA_SECTOR])
{
    uint64_t cylinders = MIN(d->sectors / (16 * 63), UINT64_C(16383)), chs = cylinders * 16 * 63;
    unsigned physical = log2_floor(d->disk.o.physical / ATA_SECTOR);

    memset(id, 0, ATA_SECTOR);
    names(d, id);
    modes(id);
    set(id, 0, 0x0040);
    set(id, 1, cylinders);
    set(id, 3, 16);
    set(id, 6, 63);
    set(id, 47, 0x8000 | 16);
    set(id, 50, 0x4000);
    set(id, 54, cylinders);
    set(id, 55, 16);
    set(id, 56, 63);
    store_le32(id + 2 * 57, (uint32_t)chs);
    set(id, 59, d->multiple ? 0x100 | d->multiple : 0);
    store_le32(id + 2 * 60, (uint32_t)MIN(d->sectors, UINT64_C(0xfffffff)));
    set(id, 69, 0);
    set(id, 75, AHCI_SLOTS - 1);
    set(id, 76, get(id, 76) | 1 << 8); /* NCQ */
    set(id, 80, 0x1f0);
    /* supported: NOP, look-ahead, write cache, SMART; flushes, 48 bits; FUA, log pages */
    set(id, 82, 0x4061);
    set(id, 83, 0x7400);
    set(id, 84, 0x4060);
    set(id, 85, 0x4000 | d->look_ahead << 6 | d->write_cache << 5 | d->smart);
    set(id, 86, 0x3400);
    set(id, 87, 0x4060);
    store_le64(id + 2 * 100, d->sectors);
    set(id, 105, 8); /* blocks of TRIM ranges */
    set(id, 106, 0x4000 | (physical ? 0x2000 | physical : 0));
    set(id, 169, 1); /* TRIM */
    set(id, 222, 0x101f);
}

void atapi_identify(const struct ide_drive *d, uint8_t id[ATA_SECTOR])
{
    memset(id, 0, ATA_SECTOR);
    names(d, id);
    modes(id);
    set(id, 0, 0x85c0); /* a CD, removable, packets of 12 bytes */
    set(id, 80, 0x1f0);
    set(id, 82, 0x4210); /* NOP, DEVICE RESET, packets */
    set(id, 83, 0x4000);
    set(id, 84, 0x4000);
    set(id, 85, 0x4210);
    set(id, 87, 0x4000);
    set(id, 222, 0x101f);
}
