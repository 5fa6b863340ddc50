/* The driver record; opening, closing and checking an image. */
#include "vpc.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"

#define MAX_BITMAP_CACHE (8 << 20)

static const struct opt_choice size_choices[] = {
    { "auto", SIZE_AUTO },
    { "chs", SIZE_CHS },
    { "current_size", SIZE_CURRENT },
    { NULL, 0 },
};

static const struct opt_def vpc_open_options[] = {
    { .name = "force_size_calc",
      .type = OPT_ENUM,
      .at = offsetof(struct vpc_options, size_calc),
      .choices = size_choices,
      .help = "which of the footer's sizes is meant: auto (by its creator), chs, current_size" },
    OPT_END,
};

/* ---- footers and header ------------------------------------------------------------------------------ */

static bool footer_sound(const uint8_t *f)
{
    return !memcmp(f, "conectix", 8) &&
           load_be32(f + AT_CHECKSUM) == vpc_checksum(f, VPC_FOOTER, AT_CHECKSUM);
}

/* 0 with a sound footer or not, or an error. */
static int read_footer(struct blk_node *file, uint64_t offset, uint8_t *f, bool *sound,
                       struct error **err)
{
    int ret = blk_read(file, offset, f, VPC_FOOTER, 0);

    *sound = ret == 0 && footer_sound(f);
    return ret < 0 ? error_set(err, -ret, "%s: could not read the footer: %s", blk_filename(file),
                               strerror(-ret))
                   : 0;
}

static bool is_dynamic(const uint8_t *f)
{
    uint32_t type = load_be32(f + AT_TYPE);
    return type == VPC_DYNAMIC || type == VPC_DIFFERENCING;
}

/* Which of the two footers is in force, and what is wrong with the other. */
static int choose_footer(struct vpc *v, struct error **err)
{
    struct blk_node *file = v->bat.file;
    uint64_t size = blk_size(file);
    uint8_t last[VPC_FOOTER];
    bool first_sound, last_sound;

    if (size < VPC_FOOTER)
        return error_set(err, EINVAL, "%s: this is no VHD image: it has only %" PRIu64 " bytes",
                         blk_filename(file), size);
    uint64_t end = size / 512 * 512;
    int ret = read_footer(file, 0, v->footer, &first_sound, err);
    if (ret == 0)
        ret = read_footer(file, end - VPC_FOOTER, last, &last_sound, err);
    if (ret < 0)
        return ret;
    v->bat.file_end = last_sound ? end - VPC_FOOTER : end;
    if (first_sound && is_dynamic(v->footer)) {
        v->footer_lost = !last_sound;
        v->footer_differs = last_sound && memcmp(v->footer, last, VPC_FOOTER) != 0;
        return 0;
    }
    if (!last_sound)
        return error_set(err, EINVAL,
                         "%s: this is no VHD image: there is no footer with a right checksum, at "
                         "the end or at the beginning",
                         blk_filename(file));
    memcpy(v->footer, last, VPC_FOOTER);
    v->copy_lost = is_dynamic(last);
    return 0;
}

static int refuse(struct vpc *v, int number, struct error **err, const char *what, uint64_t value)
{
    return error_set(err, number, "%s: the VHD %s is %" PRIu64 " (%#" PRIx64 ")",
                     blk_filename(v->bat.file), what, value, value);
}

static int read_header(struct vpc *v, struct error **err)
{
    uint64_t at = load_be64(v->footer + AT_HEADER_OFFSET);
    struct blk_node *file = v->bat.file;

    v->header_offset = at;
    if (at % 512 || at < VPC_FOOTER || !range_inside(at, VPC_HEADER, blk_size(file)))
        return refuse(v, EINVAL, err, "footer's offset of the dynamic header", at);
    int ret = blk_read(file, at, v->header, VPC_HEADER, 0);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the dynamic header: %s", blk_filename(file),
                         strerror(-ret));
    if (memcmp(v->header, "cxsparse", 8) != 0)
        return error_set(err, EINVAL, "%s: the VHD dynamic header at %" PRIu64 " is missing",
                         blk_filename(file), at);
    uint32_t want = vpc_checksum(v->header, VPC_HEADER, AT_HEADER_CHECKSUM);
    if (load_be32(v->header + AT_HEADER_CHECKSUM) != want)
        return error_set(err, EINVAL,
                         "%s: the VHD dynamic header's checksum is %#" PRIx32
                         ", of these bytes it would be %#" PRIx32,
                         blk_filename(file), load_be32(v->header + AT_HEADER_CHECKSUM), want);
    return 0;
}

static int check_header(struct vpc *v, struct error **err)
{
    uint32_t block = load_be32(v->header + AT_BLOCK_SIZE);
    uint32_t entries = load_be32(v->header + AT_ENTRIES);
    uint64_t table = load_be64(v->header + AT_TABLE_OFFSET), bytes = (uint64_t)entries * 4;

    if (!is_pow2(block) || block < VPC_MIN_BLOCK || block > VPC_MAX_BLOCK)
        return refuse(v, EINVAL, err, "block size, a power of two from 512 to 256 MiB,", block);
    if (entries > BAT_MAX_ENTRIES)
        return refuse(v, EFBIG, err, "number of table entries, at most 268435456,", entries);
    if (v->size > (uint64_t)entries * block)
        return error_set(err, EINVAL,
                         "%s: the VHD's disk size %" PRIu64 " is more than its %" PRIu32
                         " blocks of %" PRIu32 " bytes hold",
                         blk_filename(v->bat.file), v->size, entries, block);
    if (table % 512 || table < VPC_FOOTER || !range_inside(table, bytes, blk_size(v->bat.file)))
        return error_set(err, EINVAL,
                         "%s: the VHD's block table of %" PRIu64 " bytes at %" PRIu64
                         " does not lie inside the file, on whole sectors",
                         blk_filename(v->bat.file), bytes, table);
    return 0;
}

void vpc_set_geometry(struct vpc *v)
{
    struct bat *b = &v->bat;

    b->block_size = load_be32(v->header + AT_BLOCK_SIZE);
    b->prefix = vpc_bitmap_bytes(b->block_size);
    b->stride = (uint64_t)b->prefix + b->block_size;
    b->table_offset = load_be64(v->header + AT_TABLE_OFFSET);
    b->all_entries = load_be32(v->header + AT_ENTRIES);
    b->entries = (uint32_t)div_round_up(v->size, b->block_size);
    b->factor = 512;
    b->data_start = VPC_FOOTER;
}

/* Parts that the image is made of and that lie inside the file. */
static void add_fixed(struct vpc *v, uint64_t offset, uint64_t length, const char *what)
{
    struct bat *b = &v->bat;

    if (length > 0 && range_inside(offset, length, blk_size(b->file)))
        b->fixed[b->fixed_count++] = (struct bat_fixed){ offset, round_up(length, 512), what };
}

int vpc_note_fixed(struct vpc *v, struct error **err)
{
    struct bat *b = &v->bat;

    b->fixed_count = 0;
    add_fixed(v, v->header_offset, VPC_HEADER, "the dynamic header");
    add_fixed(v, b->table_offset, (uint64_t)b->all_entries * 4, "the block table");
    if (b->fixed_count == 2 && b->fixed[0].offset < b->fixed[1].offset + b->fixed[1].length &&
        b->fixed[1].offset < b->fixed[0].offset + VPC_HEADER)
        return error_set(err, EINVAL, "%s: the VHD's block table overlaps its dynamic header",
                         blk_filename(b->file));
    for (unsigned i = 0; i < VPC_LOCATORS && v->type == VPC_DIFFERENCING; i++) {
        const uint8_t *l = v->header + AT_LOCATOR + (size_t)i * LOCATOR_BYTES;
        if (load_be32(l + LOC_CODE))
            add_fixed(v, load_be64(l + LOC_OFFSET), load_be32(l + LOC_LENGTH), "a parent's name");
    }
    return 0;
}

/* ---- records ---------------------------------------------------------------------------------------------- */

static int vpc_reserve(struct bat *b, uint64_t to)
{
    struct vpc *v = (struct vpc *)b;

    if (!b->grows)
        return to + VPC_FOOTER <= blk_size(b->file) ? 0 : -ENOSPC;
    return blk_write(b->file, to, v->footer, VPC_FOOTER, 0);
}

static int vpc_prepare(struct bat *b, uint64_t record)
{
    uint8_t bits[VPC_MAX_BLOCK / 512 / 8];
    struct vpc *v = (struct vpc *)b;

    table_cache_drop(b->inner, record, b->prefix);
    memset(bits, v->type == VPC_DIFFERENCING ? 0 : 0xff, b->prefix);
    return blk_write(b->file, record, bits, b->prefix, 0);
}

static int vpc_trim(struct bat *b)
{
    struct vpc *v = (struct vpc *)b;
    int ret = 0;

    if (b->grows)
        ret = blk_write(b->file, b->end, v->footer, VPC_FOOTER, 0);
    if (ret == 0)
        ret = blk_flush(b->file);
    if (ret == 0 && b->grows && blk_size(b->file) > b->end + VPC_FOOTER)
        ret = blk_resize(b->file, b->end + VPC_FOOTER, BLK_PREALLOC_OFF, NULL);
    b->reserved = b->grows ? b->end : b->file_end;
    v->footer_lost = v->footer_differs = false;
    return ret;
}

static void vpc_moved(struct bat *b, uint64_t record)
{
    WRLOCK_SCOPE(&b->lock);
    table_cache_drop(b->inner, record, b->prefix);
}

static const struct bat_format vpc_format = {
    .reserve = vpc_reserve,
    .prepare = vpc_prepare,
    .trim = vpc_trim,
    .lower = vpc_lower,
    .moved = vpc_moved,
};

/* ---- open ---------------------------------------------------------------------------------------------------- */

static int open_fixed(struct vpc *v, struct error **err)
{
    uint64_t room = v->bat.file_end;

    if (v->size > room)
        return error_set(err, EINVAL,
                         "%s: the VHD's disk size is %" PRIu64 ", but the file holds %" PRIu64
                         " bytes before the footer: was it truncated?",
                         blk_filename(v->bat.file), v->size, room);
    node_limits(v->bat.node)->unit = 512;
    return 0;
}

static int make_bitmap_cache(struct vpc *v)
{
    struct bat *b = &v->bat;
    uint64_t whole = (uint64_t)b->entries * (b->prefix / BAT_SECTOR);
    uint64_t count = MAX(MIN(whole, (uint64_t)MAX_BITMAP_CACHE / BAT_SECTOR), UINT64_C(64));

    return table_cache_new(&b->inner, b->file, &b->lock, BAT_SECTOR, (unsigned)count,
                           EVENT_REFBLOCK_LOAD, EVENT_REFBLOCK_UPDATE_PART);
}

static int open_dynamic(struct vpc *v, struct error **err)
{
    struct bat *b = &v->bat;
    bool writes = node_writable(b->node) && !(node_open_flags(b->node) & BLK_OPEN_REPAIR);

    if (v->copy_lost && writes)
        return error_set(err, EACCES,
                         "%s: the copy of the footer at the beginning of the file is lost: repair "
                         "it with img check -r all",
                         blk_filename(b->file));
    int ret = read_header(v, err);
    if (ret == 0)
        ret = check_header(v, err);
    if (ret < 0)
        return ret;
    vpc_set_geometry(v);
    ret = vpc_note_fixed(v, err);
    if (ret == 0 && make_bitmap_cache(v) < 0)
        ret = error_set(err, ENOMEM, "out of memory for the metadata cache");
    if (ret == 0)
        ret = vpc_find_parent(v, err);
    if (ret == 0)
        ret = bat_open(b, err);
    if (ret < 0)
        return ret;
    node_limits(b->node)->unit = b->block_size;
    b->grown = v->footer_lost || v->footer_differs; /* closing writes it again */
    return 0;
}

static int vpc_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct vpc_options *o = options;
    struct vpc *v = node_state(n);
    struct bat *b = &v->bat;

    b->node = n;
    b->file = node_child(n, EDGE_FILE);
    b->format = &vpc_format;
    b->grows = node_grows(b->file);
    b->big_endian = true;
    b->free_mark = b->zero_mark = b->mark_from = VPC_FREE;
    v->size_calc = o->size_calc;
    bat_init_locks(b);
    int ret = choose_footer(v, err);
    if (ret == 0) {
        uint32_t type = load_be32(v->footer + AT_TYPE);
        v->type = (enum vpc_type)type;
        v->size = vpc_footer_size(v->footer, v->size_calc) / 512 * 512;
        if (v->size > INT64_MAX)
            ret = refuse(v, EFBIG, err, "footer's disk size", v->size);
        else if (type == VPC_FIXED)
            ret = open_fixed(v, err);
        else if (is_dynamic(v->footer))
            ret = open_dynamic(v, err);
        else
            ret = refuse(v, ENOTSUP, err, "footer's disk type, 2, 3 or 4,", type);
    }
    if (ret < 0)
        bat_free(b);
    else
        node_set_size(n, v->size);
    return ret;
}

static int vpc_close(struct blk_node *n, struct error **err)
{
    struct vpc *v = node_state(n);

    if (v->type != VPC_FIXED)
        return bat_close(&v->bat, err);
    bat_free(&v->bat);
    return 0;
}

static int vpc_flush(struct blk_node *n)
{
    struct vpc *v = node_state(n);
    return v->type == VPC_FIXED ? blk_flush(v->bat.file) : bat_flush(n);
}

static int vpc_make_empty(struct blk_node *n, struct error **err)
{
    struct vpc *v = node_state(n);

    if (v->type != VPC_DIFFERENCING)
        return error_set(err, ENOTSUP, "%s: only differencing images can be emptied",
                         blk_filename(n));
    int ret = bat_unmap(&v->bat, 0, blk_size(n), true);
    if (ret == 0)
        ret = bat_settle(&v->bat);
    return ret < 0
               ? error_set(err, -ret, "%s: could not empty it: %s", blk_filename(n), strerror(-ret))
               : 0;
}

/* ---- check and info --------------------------------------------------------------------------------------- */

static int put_footer(struct vpc *v, uint64_t offset, struct error **err)
{
    int ret = blk_write(v->bat.file, offset, v->footer, VPC_FOOTER, 0);

    if (ret == 0)
        ret = blk_flush(v->bat.file);
    return ret < 0 ? error_set(err, -ret, "%s: could not write the footer: %s",
                               blk_filename(v->bat.node), strerror(-ret))
                   : 0;
}

static int check_copy(struct vpc *v, struct bat_report *r, struct error **err)
{
    if (!v->copy_lost)
        return 0;
    bat_say(r, "%s the copy of the footer at the beginning of the file is lost",
            r->fix & BLK_FIX_ERRORS ? "Repairing" : "ERROR");
    if (!bat_found(r, false, 1))
        return 0;
    int ret = put_footer(v, 0, err);
    v->copy_lost = ret < 0;
    return ret;
}

/* It costs nothing: the copy says the same, and a power cut may leave it so (P3). */
static int check_footer(struct vpc *v, struct bat_report *r, struct error **err)
{
    if (!v->footer_lost && !v->footer_differs)
        return 0;
    bat_say(r, "Leaked: the footer at the end of the file %s its copy at the beginning",
            v->footer_lost ? "is lost, there is only" : "is older than");
    if (!bat_found(r, true, 1) || !v->bat.grows)
        return 0;
    int ret = put_footer(v, MAX(v->bat.file_end, r->out->image_end_offset), err);
    if (ret == 0)
        v->footer_lost = v->footer_differs = false;
    return ret;
}

static int vpc_check(struct blk_node *n, unsigned fix, struct blk_check *out,
                     const struct blk_check_hooks *hooks, struct error **err)
{
    struct vpc *v = node_state(n);
    struct bat_report r = { .fix = fix, .out = out, .hooks = hooks };

    if (v->type == VPC_FIXED) {
        out->image_end_offset = v->size;
        return 0; /* without a footer it would not have opened, and there is nothing else */
    }
    bool lost = v->footer_lost, differs = v->footer_differs;
    int ret = check_copy(v, &r, err);
    if (ret == 0)
        ret = bat_check(&v->bat, &r, err);
    if (ret < 0 || out->corruptions)
        return ret;
    if (lost && !v->footer_lost) /* mended on the way */
        bat_found(&r, true, 1);
    else if (differs && !v->footer_differs)
        bat_found(&r, true, 1);
    return check_footer(v, &r, err);
}

static int vpc_info(struct blk_node *n, struct blk_info *out, struct error **err)
{
    struct vpc *v = node_state(n);

    (void)err;
    out->cluster_size = v->type == VPC_FIXED ? 0 : v->bat.block_size;
    out->corrupt = atomic_load(&v->bat.corrupt);
    return 0;
}

/* A fixed image begins with what the guest wrote, so it is never guessed: it must be said. */
static int vpc_probe(const uint8_t *buf, size_t len, const char *filename)
{
    (void)filename;
    return len >= 8 && !memcmp(buf, "conectix", 8) ? 100 : 0;
}

const struct driver vpc_driver = {
    .name = "vpc",
    .kind = BLK_FORMAT,
    .flags = DRIVER_PARALLEL | DRIVER_BACKING | DRIVER_UNMAP_ZERO | DRIVER_NEW_ZERO |
             DRIVER_KNOWS_BACKING,
    .state_size = sizeof(struct vpc),
    .options = vpc_open_options,
    .options_size = sizeof(struct vpc_options),
    .create_options = vpc_create_table,
    .create_options_size = sizeof(struct vpc_create),
    .probe = vpc_probe,
    .open = vpc_open,
    .backing_opened = vpc_backing_opened,
    .close = vpc_close,
    .check_create = vpc_check_create,
    .create = vpc_create,
    .flush = vpc_flush,
    .map_read = vpc_map_read,
    .write_begin = vpc_write_begin,
    .write_end = vpc_write_end,
    .zero_range = vpc_zero_range,
    .discard_range = vpc_discard_range,
    .resize = vpc_resize,
    .change_backing = vpc_change_backing,
    .make_empty = vpc_make_empty,
    .check = vpc_check,
    .info = vpc_info,
    .measure = vpc_measure,
};
