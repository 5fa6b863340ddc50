/* Making an image. The footer's copy comes last: what begins with it is whole. A fixed image is whole when the
 * footer is at its end. */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vpc.h"

enum {
    PIECE = 1 << 20,
    AT_HEADER = VPC_FOOTER, /* where it goes in a new image */
    AT_TABLE = VPC_FOOTER + VPC_HEADER,
    MIN_CREATE_BLOCK = 4096,
    SECONDS_TO_2000 = 946684800,
};

static const struct opt_choice subformats[] = {
    { "dynamic", VPC_DYNAMIC },
    { "fixed", VPC_FIXED },
    { NULL, 0 },
};

#define AT(member) offsetof(struct vpc_create, member)

const struct opt_def vpc_create_table[] = {
    { .name = "size", .type = OPT_SIZE, .at = AT(size), .help = "size of the disk" },
    { .name = "subformat",
      .type = OPT_ENUM,
      .at = AT(subformat),
      .choices = subformats,
      .help = "dynamic (the default) or fixed" },
    { .name = "force_size",
      .type = OPT_BOOL,
      .at = AT(force_size),
      .help = "the size as given rather than the next that cylinders, heads and sectors tell" },
    { .name = "align_size",
      .type = OPT_SIZE,
      .at = AT(align_size),
      .help = "round the size up to this (1M for Azure), and force it" },
    { .name = "block_size",
      .type = OPT_SIZE,
      .at = AT(block_size),
      .help = "size of blocks, 4k to 256M (2M, which not every reader can do without)" },
    { .name = "backing_file",
      .type = OPT_STRING,
      .at = AT(backing_file),
      .help = "VHD that holds what this one does not" },
    { .name = "backing_fmt",
      .type = OPT_STRING,
      .at = AT(backing_fmt),
      .help = "format of the backing file: vpc" },
    OPT_END,
};

struct layout {
    uint64_t size, blocks, block_size, table_bytes;
    uint64_t end; /* end: where the footer goes, without a parent's name */
    enum vpc_type type;
    bool force;
};

static int check_backing(const struct vpc_create *o, struct error **err)
{
    if (!o->backing_file || !o->backing_file[0])
        return 0;
    if (o->backing_fmt && strcmp(o->backing_fmt, "vpc") != 0)
        return error_set(err, EINVAL, "the parent of a VHD image must be vpc, not %s",
                         o->backing_fmt);
    if (o->subformat == VPC_FIXED)
        return error_set(err, EINVAL, "an image with a backing file cannot be fixed");
    return 0;
}

static int plan(const struct vpc_create *o, struct layout *l, struct error **err)
{
    bool diff = o->backing_file && o->backing_file[0];
    uint64_t align = o->align_size ? o->align_size : 512;
    struct vpc_chs g;

    *l = (struct layout){ .block_size = o->block_size ? o->block_size : VPC_BLOCK,
                          .type = o->subformat == VPC_FIXED ? VPC_FIXED
                                  : diff                    ? VPC_DIFFERENCING
                                                            : VPC_DYNAMIC };
    if (align % 512 || align > UINT64_C(1) << 40)
        return error_set(err, EINVAL, "align_size %" PRIu64 " is not whole sectors, 1 TiB at most",
                         align);
    if (!is_pow2(l->block_size) || l->block_size < MIN_CREATE_BLOCK ||
        l->block_size > VPC_MAX_BLOCK)
        return error_set(err, EINVAL,
                         "block_size %" PRIu64 " is not a power of two from 4096 to 256 MiB",
                         l->block_size);
    if (o->size > VPC_MAX_SECTORS * 512)
        return error_set(err, EFBIG, "the size %" PRIu64 " is above VHD's limit of 2040 GiB",
                         o->size);
    /* An overlay has its parent's size. */
    l->force = o->force_size || o->align_size || diff;
    l->size = round_up(o->size, align);
    if (!l->force)
        l->size = vpc_round_to_chs(l->size / 512, &g) * 512;
    if (l->size > VPC_MAX_SECTORS * 512)
        return error_set(err, EFBIG, "the size %" PRIu64 " is above VHD's limit of 2040 GiB",
                         l->size);
    l->blocks = div_round_up(l->size, l->block_size);
    if (l->blocks > BAT_MAX_ENTRIES)
        return error_set(err, EFBIG,
                         "a disk of %" PRIu64 " bytes has more than %u blocks of %" PRIu64
                         " bytes: use a larger block_size",
                         l->size, BAT_MAX_ENTRIES, l->block_size);
    l->table_bytes = round_up(l->blocks * 4, 512);
    l->end = l->type == VPC_FIXED ? l->size : AT_TABLE + l->table_bytes;
    return check_backing(o, err);
}

int vpc_check_create(const void *options, struct error **err)
{
    struct layout l;
    return plan(options, &l, err);
}

static int fill_footer(uint8_t *f, const struct layout *l)
{
    memset(f, 0, VPC_FOOTER);
    memcpy(f, "conectix", 8);
    store_be32(f + AT_FEATURES, 2);
    store_be32(f + AT_VERSION, 0x00010000);
    store_be64(f + AT_HEADER_OFFSET, l->type == VPC_FIXED ? UINT64_MAX : AT_HEADER);
    store_be32(f + AT_TIME, (uint32_t)(time(NULL) - SECONDS_TO_2000));
    /* QEMU's names: they say which of the sizes is meant, and everybody knows them. */
    memcpy(f + AT_CREATOR, l->force ? "qem2" : "qemu", 4);
    store_be16(f + AT_CREATOR_VERSION, 5);
    store_be16(f + AT_CREATOR_VERSION + 2, 3);
    memcpy(f + AT_CREATOR_OS, "Wi2k", 4);
    store_be64(f + AT_ORIGINAL_SIZE, l->size);
    store_be32(f + AT_TYPE, l->type);
    if (getrandom(f + AT_UUID, VPC_UUID, 0) != VPC_UUID)
        return -EIO;
    f[AT_UUID + 6] = (f[AT_UUID + 6] & 0x0f) | 0x40;
    f[AT_UUID + 8] = (f[AT_UUID + 8] & 0x3f) | 0x80;
    vpc_set_size(f, l->size, l->force);
    return 0;
}

static void fill_header(uint8_t *h, const struct layout *l)
{
    memset(h, 0, VPC_HEADER);
    memcpy(h, "cxsparse", 8);
    store_be64(h + AT_NEXT, UINT64_MAX);
    store_be64(h + AT_TABLE_OFFSET, AT_TABLE);
    store_be32(h + AT_HEADER_VERSION, 0x00010000);
    store_be32(h + AT_ENTRIES, (uint32_t)l->blocks);
    store_be32(h + AT_BLOCK_SIZE, (uint32_t)l->block_size);
}

static int write_table(struct blk_node *file, const struct layout *l)
{
    _cleanup_free_ uint8_t *piece = malloc(PIECE);
    int ret = piece ? 0 : -ENOMEM;

    if (piece)
        memset(piece, 0xff, PIECE);
    for (uint64_t at = 0; at < l->table_bytes && ret == 0; at += PIECE)
        ret = blk_write(file, AT_TABLE + at, piece,
                        (size_t)MIN(l->table_bytes - at, (uint64_t)PIECE), 0);
    return ret;
}

static int clear_old(struct blk_node *file, uint64_t end)
{
    uint64_t size = blk_size(file);
    int ret = 0;

    if (size == 0)
        return 0;
    ret = blk_zero(file, 0, MIN(size, (uint64_t)VPC_FOOTER), 0);
    if (ret == 0)
        ret = blk_flush(file);
    return ret == 0 ? blk_zero(file, 0, MIN(size, end), BLK_MAY_UNMAP) : ret;
}

/* The footer goes to the end of what does not grow, too. */
static uint64_t footer_place(struct blk_node *file, uint64_t end)
{
    return node_grows(file) ? end : round_down(blk_size(file), 512) - VPC_FOOTER;
}

static int create_dynamic(struct blk_node *file, const struct vpc_create *o, const struct layout *l,
                          const uint8_t *footer, struct error **err)
{
    struct blk_node *below = node_create_backing(file);
    const struct vpc *parent = below ? node_state_as(below, &vpc_driver) : NULL;
    _cleanup_free_ uint8_t *locator = NULL;
    uint8_t header[VPC_HEADER];
    size_t bytes = 0;
    int ret = 0;

    if (l->type == VPC_DIFFERENCING && !parent)
        return error_set(err, EINVAL, "the backing file is not vpc");
    fill_header(header, l);
    if (parent) {
        memcpy(header + AT_PARENT_UUID, parent->footer + AT_UUID, VPC_UUID);
        memcpy(header + AT_PARENT_TIME, parent->footer + AT_TIME, 4);
        ret = vpc_name_parent(header, o->backing_file, l->end, &locator, &bytes, err);
        if (ret < 0)
            return ret;
    }
    vpc_sign(header, sizeof(header), AT_HEADER_CHECKSUM);
    ret = write_table(file, l);
    if (ret == 0 && bytes)
        ret = blk_write(file, l->end, locator, bytes, 0);
    if (ret == 0)
        ret = blk_write(file, AT_HEADER, header, sizeof(header), 0);
    if (ret == 0)
        ret = blk_write(file, footer_place(file, l->end + bytes), footer, VPC_FOOTER, 0);
    if (ret == 0)
        ret = blk_flush(file);
    if (ret == 0)
        ret = blk_write(file, 0, footer, VPC_FOOTER, 0);
    return ret < 0 ? error_set(err, -ret, "could not write: %s", strerror(-ret)) : 0;
}

int vpc_create(struct blk_node *file, const void *options, struct error **err)
{
    const struct vpc_create *o = options;
    uint8_t footer[VPC_FOOTER];
    struct layout l;
    int ret = plan(o, &l, err);

    if (ret < 0)
        return ret;
    if (!node_grows(file) && blk_size(file) < l.end + VPC_FOOTER)
        return error_set(err, ENOSPC, "the device has %" PRIu64 " bytes, the image needs %" PRIu64,
                         blk_size(file), l.end + VPC_FOOTER);
    ret = fill_footer(footer, &l);
    if (ret == 0)
        ret = clear_old(file, l.end);
    if (ret < 0)
        return error_set(err, -ret, "could not clear what was there before: %s", strerror(-ret));
    if (l.type != VPC_FIXED)
        return create_dynamic(file, o, &l, footer, err);
    ret = blk_write(file, footer_place(file, l.end), footer, VPC_FOOTER, 0);
    return ret < 0 ? error_set(err, -ret, "could not write: %s", strerror(-ret)) : 0;
}

/* ---- measure -------------------------------------------------------------------------------------------- */

int vpc_measure(const void *options, uint64_t size, struct blk_node *src, struct blk_measure *out,
                struct error **err)
{
    struct vpc_create o = *(const struct vpc_create *)options;
    uint64_t count = 0;
    struct layout l;

    o.size = size;
    int ret = plan(&o, &l, err);
    if (ret < 0)
        return ret;
    if (src && l.type != VPC_FIXED)
        ret = bat_measure(src, size, l.block_size, &count);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not tell what holds data: %s", blk_filename(src),
                         strerror(-ret));
    uint64_t stride = l.block_size + vpc_bitmap_bytes((uint32_t)l.block_size);
    out->fully_allocated = l.end + VPC_FOOTER + (l.type == VPC_FIXED ? 0 : l.blocks * stride);
    out->required = l.end + VPC_FOOTER + count * stride;
    return 0;
}
