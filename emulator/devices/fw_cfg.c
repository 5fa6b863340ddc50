#include "fw_cfg.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "cpu/memory.h"
#include "ports.h"

#include <stdio.h>
#include <string.h>

enum { SIGNATURE = 0x00, ID = 0x01, DIRECTORY = 0x19, FILES = 64, ITEMS = FW_CFG_FILES + FILES };
enum { ID_TRADITIONAL = 1, ID_DMA = 2 };
enum { DMA_ERROR = 1, DMA_READ = 2, DMA_SKIP = 4, DMA_SELECT = 8, DMA_WRITE = 16 };
enum { NAME = 56, ENTRY = 64 };

struct item {
    uint8_t *bytes;
    size_t length;
};

struct fw_cfg {
    pthread_mutex_t lock;
    struct memory *memory;
    struct item items[ITEMS];
    char names[FILES][NAME];
    unsigned files;
    uint16_t selected;
    size_t at;
    uint32_t dma_high;
};

int fw_cfg_item(struct fw_cfg *f, uint16_t key, const void *bytes, size_t length)
{
    if (key >= ITEMS)
        return -EINVAL;
    uint8_t *copy = malloc(length ? length : 1);
    if (!copy)
        return -ENOMEM;
    if (length)
        memcpy(copy, bytes, length);
    LOCK_SCOPE(&f->lock);
    free(f->items[key].bytes);
    f->items[key] = (struct item){ copy, length };
    return 0;
}

int fw_cfg_number(struct fw_cfg *f, uint16_t key, uint16_t value)
{
    uint8_t bytes[2];
    store_le16(bytes, value);
    return fw_cfg_item(f, key, bytes, sizeof bytes);
}

static int update_directory(struct fw_cfg *f)
{
    uint8_t list[4 + FILES * ENTRY] = { 0 };
    store_be32(list, f->files);
    for (unsigned i = 0; i < f->files; i++) {
        uint8_t *e = list + 4 + i * ENTRY;
        store_be32(e, (uint32_t)f->items[FW_CFG_FILES + i].length);
        store_be16(e + 4, (uint16_t)(FW_CFG_FILES + i));
        memcpy(e + 8, f->names[i], NAME);
    }
    return fw_cfg_item(f, DIRECTORY, list, 4 + f->files * ENTRY);
}

int fw_cfg_file(struct fw_cfg *f, const char *name, const void *bytes, size_t length)
{
    unsigned i = 0;
    if (strlen(name) >= NAME || length > UINT32_MAX)
        return -EINVAL;
    while (i < f->files && strcmp(f->names[i], name))
        i++;
    if (i == FILES)
        return -ENOSPC;
    int r = fw_cfg_item(f, (uint16_t)(FW_CFG_FILES + i), bytes, length);
    if (r)
        return r;
    snprintf(f->names[i], sizeof f->names[i], "%s", name);
    f->files = MAX(f->files, i + 1);
    return update_directory(f);
}

/* ---- what the guest does -------------------------------------------------------------------- */

static const struct item *selected(const struct fw_cfg *f)
{
    static const struct item none = { NULL, 0 };
    uint16_t key =
        f->selected & 0xbfff; /* bit 14 asks to write; those of the architecture's own are empty */
    return key < ITEMS ? &f->items[key] : &none;
}

static void select_item(struct fw_cfg *f, uint16_t key)
{
    f->selected = key;
    f->at = 0;
}

static uint64_t select_read(void *opaque, uint64_t offset, unsigned size)
{
    struct fw_cfg *f = opaque;
    LOCK_SCOPE(&f->lock);
    if (offset == 0 || size != 1)
        return 0;
    const struct item *item = selected(f);
    return f->at < item->length ? item->bytes[f->at++] : 0;
}

static void select_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct fw_cfg *f = opaque;
    LOCK_SCOPE(&f->lock);
    if (offset == 0 && size == 2)
        select_item(f, (uint16_t)value);
}

/* Bytes of the item, zeroes behind its end. False: not RAM. */
static bool dma_read(struct fw_cfg *f, uint64_t address, uint32_t length)
{
    const struct item *item = selected(f);
    while (length) {
        uint64_t part = 0;
        uint8_t *host = memory_host(f->memory, address, true, &part);
        if (!host)
            return false;
        part = MIN(part, (uint64_t)length);
        uint64_t there = f->at < item->length ? MIN(part, (uint64_t)(item->length - f->at)) : 0;
        if (there)
            memcpy(host, item->bytes + f->at, there);
        memset(host + there, 0, part - there);
        memory_written(f->memory, address, part);
        f->at += there;
        address += part;
        length -= (uint32_t)part;
    }
    return true;
}

/* The guest's request: control, length, address, all big-endian. */
static void dma(struct fw_cfg *f, uint64_t at)
{
    uint8_t request[16];
    memory_read(f->memory, at, request, sizeof request);
    uint32_t control = load_be32(request), length = load_be32(request + 4), result = 0;
    uint64_t address = load_be64(request + 8);
    if (control & DMA_SELECT)
        select_item(f, (uint16_t)(control >> 16));
    if (control & DMA_READ) {
        if (!dma_read(f, address, length))
            result = DMA_ERROR;
    } else if (control & DMA_WRITE) {
        result = DMA_ERROR; /* nothing here is the guest's to change */
    } else if (control & DMA_SKIP) {
        size_t left = selected(f)->length - MIN(f->at, selected(f)->length);
        f->at += MIN((size_t)length, left);
    }
    store_be32(request, result);
    memory_write(f->memory, at, request, 4);
}

static uint64_t dma_port_read(void *opaque, uint64_t offset, unsigned size)
{
    static const char signature[] = "QEMU CFG";
    uint64_t value = 0;
    (void)opaque;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)(uint8_t)signature[(offset + i) & 7] << (8 * i);
    return value;
}

static void dma_port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct fw_cfg *f = opaque;
    LOCK_SCOPE(&f->lock);
    if (size != 4)
        return;
    uint32_t word = __builtin_bswap32((uint32_t)value); /* the register is big-endian */
    if (offset == 0) {
        f->dma_high = word;
    } else if (offset == 4) {
        uint64_t at = (uint64_t)f->dma_high << 32 | word;
        f->dma_high = 0;
        dma(f, at);
    }
}

static const struct memory_io select_io = { select_read, select_write };
static const struct memory_io dma_io = { dma_port_read, dma_port_write };

void fw_cfg_reset(struct fw_cfg *f)
{
    LOCK_SCOPE(&f->lock);
    select_item(f, 0);
    f->dma_high = 0;
}

struct fw_cfg *fw_cfg_new(struct ports *ports, struct memory *memory)
{
    struct fw_cfg *f = calloc(1, sizeof *f);
    uint8_t id[4];
    if (!f)
        return NULL;
    f->memory = memory;
    pthread_mutex_init(&f->lock, NULL);
    store_le32(id, ID_TRADITIONAL | ID_DMA);
    if (fw_cfg_item(f, SIGNATURE, "QEMU", 4) || fw_cfg_item(f, ID, id, 4) || update_directory(f) ||
        ports_add(ports, 0x510, 2, &select_io, f) || ports_add(ports, 0x514, 8, &dma_io, f)) {
        fw_cfg_free(f);
        return NULL;
    }
    return f;
}

void fw_cfg_free(struct fw_cfg *f)
{
    if (!f)
        return;
    for (unsigned i = 0; i < ITEMS; i++)
        free(f->items[i].bytes);
    pthread_mutex_destroy(&f->lock);
    free(f);
}
