/* Making an image: extents first, then what names them. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "base/strbuf.h"
#include "vmdk.h"

enum subformat { MONO_SPARSE, MONO_FLAT, SPLIT_SPARSE, SPLIT_FLAT, STREAM };

enum { GRAIN = 128, DESC_AT = 1, DESC_SECTORS = 20, GT_ENTRIES = 512 };

#define SPLIT (UINT64_C(2) << 30)
/* Places are sectors in 32 bits, and what is allocated comes on top of the tables. */
#define MAX_SPARSE ((UINT64_C(1) << 51))

/* ---- options ---------------------------------------------------------------------------------------- */

static const struct opt_choice subformats[] = {
    { "monolithicSparse", MONO_SPARSE },
    { "monolithicFlat", MONO_FLAT },
    { "twoGbMaxExtentSparse", SPLIT_SPARSE },
    { "twoGbMaxExtentFlat", SPLIT_FLAT },
    { "streamOptimized", STREAM },
    { NULL, 0 },
};

static const struct opt_choice preallocations[] = {
    { "off", BLK_PREALLOC_OFF },
    { "falloc", BLK_PREALLOC_FALLOC },
    { "full", BLK_PREALLOC_FULL },
    { NULL, 0 },
};

#define AT(member) offsetof(struct vmdk_create_options, member)

/* In the order in which qemu-img sums them up. */
const struct opt_def vmdk_create_table[] = {
    { .name = "size", .type = OPT_SIZE, .at = AT(size), .help = "size of the disk" },
    { .name = "adapter_type",
      .type = OPT_STRING,
      .at = AT(adapter_type),
      .help = "adapter of the machine: ide (default), lsilogic, buslogic or legacyESX" },
    { .name = "backing_file",
      .type = OPT_STRING,
      .at = AT(backing_file),
      .help = "image that holds what this one does not" },
    { .name = "backing_fmt",
      .type = OPT_STRING,
      .at = AT(backing_fmt),
      .help = "format of the backing file: vmdk" },
    { .name = "compat6",
      .type = OPT_BOOL,
      .at = AT(compat6),
      .def = "off",
      .help = "hardware version 6" },
    { .name = "hwversion",
      .type = OPT_STRING,
      .at = AT(hwversion),
      .def = "undefined",
      .help = "hardware version of the machine, 4 to 21 (4)" },
    { .name = "toolsversion",
      .type = OPT_STRING,
      .at = AT(toolsversion),
      .help = "version of the guest's tools (2147483647)" },
    { .name = "subformat",
      .type = OPT_ENUM,
      .at = AT(subformat),
      .choices = subformats,
      .help = "how the disk is stored: in one file or in pieces of 2 GiB, sparse or flat, or "
              "compressed for transport" },
    { .name = "zeroed_grain",
      .type = OPT_BOOL,
      .at = AT(zeroed_grain),
      .help = "grains of zeroes take no space, over a backing file, too" },
    { .name = "preallocation",
      .type = OPT_ENUM,
      .at = AT(preallocation),
      .choices = preallocations,
      .help = "flat extents: off, falloc (space), full (and zeroes)" },
    OPT_END,
};

static bool is_flat(const struct vmdk_create_options *o)
{
    return o->subformat == MONO_FLAT || o->subformat == SPLIT_FLAT;
}

static int check_words(const struct vmdk_create_options *o, struct error **err)
{
    static const char *const adapters[] = { "ide", "lsilogic", "buslogic", "legacyESX" };
    const char *hw = o->hwversion, *tools = o->toolsversion;
    bool known = !o->adapter_type;

    for (size_t i = 0; !known && i < ARRAY_SIZE(adapters); i++)
        known = !strcmp(o->adapter_type, adapters[i]);
    if (!known)
        return error_set(err, EINVAL,
                         "adapter_type is '%s': use ide, lsilogic, buslogic or legacyESX",
                         o->adapter_type);
    if (strcmp(hw, "undefined") != 0) {
        char *end;
        long n = strtol(hw, &end, 10);
        if (o->compat6)
            return error_set(err, EINVAL, "compat6 and hwversion exclude each other");
        if (!isdigit((unsigned char)*hw) || *end || strlen(hw) > 2 || n < 4 || n > 21)
            return error_set(err, EINVAL, "hwversion is '%s', but it must be between 4 and 21", hw);
    }
    for (const char *c = tools; c && *c; c++)
        if (!isdigit((unsigned char)*c))
            return error_set(err, EINVAL, "toolsversion is '%s', which is no number", tools);
    if (tools && (!*tools || strlen(tools) > 10))
        return error_set(err, EINVAL, "toolsversion is '%s', but it has 1 to 10 digits", tools);
    return 0;
}

int vmdk_check_create(const void *options, struct error **err)
{
    const struct vmdk_create_options *o = options;
    const char *backing = o->backing_file && o->backing_file[0] ? o->backing_file : NULL;
    int ret = check_words(o, err);

    if (ret < 0)
        return ret;
    if (is_flat(o) && backing)
        return error_set(err, ENOTSUP, "a flat image can have no backing file");
    if (is_flat(o) && o->zeroed_grain)
        return error_set(err, ENOTSUP, "a flat image has no grains: leave out zeroed_grain");
    if (!is_flat(o) && o->preallocation != BLK_PREALLOC_OFF)
        return error_set(err, ENOTSUP, "only flat images can be preallocated");
    if (o->backing_fmt && strcmp(o->backing_fmt, "vmdk") != 0)
        return error_set(err, EINVAL, "backing_fmt is '%s', but only a vmdk can be the parent",
                         o->backing_fmt);
    if (backing && (strpbrk(backing, "\"\n\r") || strlen(backing) > 4096))
        return error_set(err, EINVAL,
                         "the backing file's name has a quote or a line end, or above 4096 bytes: "
                         "a descriptor cannot say that");
    if (o->size == 0)
        return error_set(err, EINVAL, "the size is 0, but a VMDK holds at least one sector");
    if (o->size > (is_flat(o) ? (uint64_t)INT64_MAX - SECTOR : MAX_SPARSE))
        return error_set(err, EFBIG,
                         "the size is %" PRIu64 " bytes, the limit of this subformat is "
                         "%" PRIu64,
                         o->size, is_flat(o) ? (uint64_t)INT64_MAX - SECTOR : MAX_SPARSE);
    if ((o->subformat == SPLIT_FLAT || o->subformat == SPLIT_SPARSE) &&
        o->size > MAX_EXTENTS * SPLIT)
        return error_set(err, EFBIG,
                         "the size is %" PRIu64 " bytes, but %d pieces of 2 GiB are the "
                         "limit",
                         o->size, MAX_EXTENTS);
    return 0;
}

/* ---- a sparse extent ------------------------------------------------------------------------------------ */

void vmdk_layout(struct vmdk_header *h, uint64_t sectors)
{
    uint64_t tables = div_round_up(sectors, h->grain * h->gt_entries);
    uint64_t directory = div_round_up(tables * 4, SECTOR);
    uint64_t all = directory + tables * div_round_up((uint64_t)h->gt_entries * 4, SECTOR);

    h->capacity = sectors;
    h->rgd = DESC_AT + DESC_SECTORS;
    h->gd = h->rgd + all;
    h->overhead = round_up(h->gd + all, h->grain);
}

static int write_directory(struct blk_node *file, const struct vmdk_header *h, uint64_t at)
{
    uint64_t tables = div_round_up(h->capacity, h->grain * h->gt_entries);
    uint64_t directory = div_round_up(tables * 4, SECTOR);
    uint64_t step = div_round_up((uint64_t)h->gt_entries * 4, SECTOR);
    _cleanup_free_ uint8_t *mem = calloc(1, directory * SECTOR);

    if (!mem)
        return -ENOMEM;
    for (uint64_t i = 0; i < tables; i++)
        store_le32(mem + 4 * i, (uint32_t)(at + directory + i * step));
    return blk_write(file, at * SECTOR, mem, directory * SECTOR, 0);
}

int vmdk_write_directories(struct blk_node *file, const struct vmdk_header *h)
{
    int ret = write_directory(file, h, h->rgd);
    return ret < 0 ? ret : write_directory(file, h, h->gd);
}

static void fill_header(struct vmdk_header *h, const struct vmdk_create_options *o,
                        uint64_t sectors)
{
    bool stream = o->subformat == STREAM;

    *h = (struct vmdk_header){
        .version = stream            ? 3
                   : o->zeroed_grain ? 2
                                     : 1,
        .flags = VMDK_NL_TEST | (o->zeroed_grain ? VMDK_ZEROED : 0) |
                 (stream ? VMDK_COMPRESSED | VMDK_MARKERS : VMDK_REDUNDANT),
        .grain = GRAIN,
        .desc_offset = DESC_AT,
        .desc_size = DESC_SECTORS,
        .gt_entries = GT_ENTRIES,
        .algorithm = stream ? VMDK_DEFLATE : 0,
    };
    vmdk_layout(h, sectors);
    if (stream) {
        h->rgd = 0;
        h->gd = VMDK_GD_AT_END;
        h->overhead = GRAIN;
    }
}

/* All but the first sector is on the disk before that says what it is. text: the descriptor, NULL: elsewhere. */
static int write_sparse(struct blk_node *file, const struct vmdk_create_options *o,
                        uint64_t sectors, const char *text, struct error **err)
{
    struct vmdk_header h;
    uint8_t sector[512];

    fill_header(&h, o, sectors);
    if (!node_grows(file))
        return error_set(err, ENOTSUP, "a sparse VMDK grows, which this file cannot");
    if (text && strlen(text) > DESC_SECTORS * SECTOR)
        return error_set(err, ENOSPC, "the descriptor has %zu bytes, but there is room for %d",
                         strlen(text), (int)(DESC_SECTORS * SECTOR));
    if (!text)
        h.desc_offset = h.desc_size = 0;
    int ret = blk_size(file) ? blk_resize(file, 0, BLK_PREALLOC_OFF, err) : 0;
    if (ret < 0)
        return ret;
    if (o->subformat != STREAM) {
        ret = blk_resize(file, h.overhead * SECTOR, BLK_PREALLOC_OFF, err);
        if (ret < 0)
            return ret;
        ret = vmdk_write_directories(file, &h);
    } else {
        ret = vmdk_stream_create(file, &h);
    }
    if (ret == 0 && text)
        ret = blk_write(file, DESC_AT * SECTOR, text, strlen(text), 0);
    if (ret == 0)
        ret = blk_flush(file);
    vmdk_header_build(&h, sector);
    if (ret == 0)
        ret = blk_write(file, 0, sector, sizeof(sector), 0);
    return ret < 0 ? error_set(err, -ret, "could not write it: %s", strerror(-ret)) : 0;
}

/* ---- the parts of a disk ---------------------------------------------------------------------------------- */

/* "DIR/vm.vmdk" -> "vm", as extents are named after it. */
static char *stem_of(struct blk_node *file)
{
    const char *name = node_final_name(file), *slash = strrchr(name, '/');
    const char *base = slash ? slash + 1 : name;
    size_t len = strlen(base);

    if (len > 5 && !strcmp(base + len - 5, ".vmdk"))
        len -= 5;
    return strndup(base, len);
}

static int make_extent(struct blk_node *file, const struct vmdk_create_options *o, const char *name,
                       uint64_t bytes, struct error **err)
{
    struct blk_node *extent = NULL;
    bool flat = is_flat(o);
    enum blk_prealloc prealloc = flat ? (enum blk_prealloc)o->preallocation : BLK_PREALLOC_OFF;
    int ret = node_create_beside(file, name, flat ? bytes : 0, prealloc, &extent, err);

    if (ret == 0 && !flat) {
        ret = write_sparse(extent, o, bytes / SECTOR, NULL, err);
        if (ret < 0)
            error_prefix(err, "the extent '%s'", name);
    }
    if (ret == 0)
        ret = blk_flush(extent);
    int r = blk_close(extent, ret < 0 ? NULL : err);
    return ret < 0 ? ret : r;
}

/* All extents in files of their own; *lines gets what the descriptor says of them. */
static int make_extents(struct blk_node *file, const struct vmdk_create_options *o, uint64_t size,
                        struct strbuf *lines, struct error **err)
{
    bool flat = is_flat(o), split = o->subformat != MONO_FLAT;
    _cleanup_free_ char *stem = stem_of(file);
    int ret = stem ? 0 : error_set(err, ENOMEM, "out of memory");

    if (ret == 0 && strpbrk(stem, "\"\n\r"))
        ret =
            error_set(err, EINVAL, "its name has a quote or a line end, which extents cannot have");
    for (uint64_t at = 0, i = 1; ret == 0 && at < size; i++) {
        uint64_t bytes = split ? MIN(size - at, SPLIT) : size;
        struct strbuf name = STRBUF_INIT;
        if (split)
            strbuf_addf(&name, "%s-%c%03" PRIu64 ".vmdk", stem, flat ? 'f' : 's', i);
        else
            strbuf_addf(&name, "%s-flat.vmdk", stem);
        ret = make_extent(file, o, strbuf_text(&name), bytes, err);
        strbuf_addf(lines, "RW %" PRIu64 " %s \"%s\"%s\n", bytes / SECTOR, flat ? "FLAT" : "SPARSE",
                    strbuf_text(&name), flat ? " 0" : "");
        strbuf_free(&name);
        at += bytes;
    }
    return ret;
}

static int parent_cid(struct blk_node *file, const struct vmdk_create_options *o, uint32_t *cid,
                      struct error **err)
{
    struct blk_node *parent = node_create_backing(file);
    const struct vmdk *p = node_state_as(parent, &vmdk_driver);

    *cid = NO_PARENT;
    if (!o->backing_file || !o->backing_file[0])
        return 0;
    if (!p)
        return error_set(err, EINVAL, "the backing file '%s' is no VMDK, but %s", o->backing_file,
                         parent ? blk_format(parent) : "not there");
    *cid = p->desc.cid;
    return 0;
}

static const char *own_name(struct blk_node *file)
{
    const char *name = node_final_name(file), *slash = strrchr(name, '/');
    return slash ? slash + 1 : name;
}

static int build(struct blk_node *file, const struct vmdk_create_options *o, uint64_t size,
                 const char *lines, char **text, struct error **err)
{
    struct vmdk_new n = {
        .create_type = subformats[o->subformat].name,
        .hwversion = o->compat6                               ? "6"
                     : strcmp(o->hwversion, "undefined") != 0 ? o->hwversion
                                                              : "4",
        .adapter = o->adapter_type ? o->adapter_type : "ide",
        .toolsversion = o->toolsversion ? o->toolsversion : "2147483647",
        .extents = lines,
        .size = size,
    };
    int ret = parent_cid(file, o, &n.parent_cid, err);

    if (ret < 0)
        return ret;
    if (n.parent_cid != NO_PARENT || (o->backing_file && o->backing_file[0]))
        n.parent_hint = o->backing_file;
    if (getrandom(&n.cid, sizeof(n.cid), GRND_NONBLOCK) != sizeof(n.cid) || n.cid == NO_PARENT)
        n.cid = UINT32_C(0xfffffffe);
    *text = vmdk_desc_build(&n);
    return *text ? 0 : error_set(err, ENOMEM, "out of memory");
}

int vmdk_create(struct blk_node *file, const void *options, struct error **err)
{
    const struct vmdk_create_options *o = options;
    uint64_t size = round_up(o->size, SECTOR);
    bool single = o->subformat == MONO_SPARSE || o->subformat == STREAM;
    _cleanup_strbuf_ struct strbuf lines = STRBUF_INIT;
    _cleanup_free_ char *text = NULL;
    uint32_t cid;
    int ret = parent_cid(file, o, &cid, err); /* before anything is written */

    if (ret == 0 && single && strpbrk(own_name(file), "\"\n\r"))
        ret = error_set(err, EINVAL,
                        "its name has a quote or a line end: a descriptor cannot say "
                        "that");
    if (ret == 0 && single)
        strbuf_addf(&lines, "RW %" PRIu64 " SPARSE \"%s\"\n", size / SECTOR, own_name(file));
    else if (ret == 0)
        ret = make_extents(file, o, size, &lines, err);
    if (ret == 0)
        ret = build(file, o, size, strbuf_text(&lines), &text, err);
    if (ret < 0)
        return ret;
    if (single)
        return write_sparse(file, o, size / SECTOR, text, err);
    ret = blk_size(file) ? blk_resize(file, 0, BLK_PREALLOC_OFF, err) : 0;
    if (ret < 0)
        return ret;
    ret = blk_write(file, 0, text, strlen(text), 0);
    if (ret == 0)
        ret = blk_flush(file);
    return ret < 0 ? error_set(err, -ret, "could not write the descriptor: %s", strerror(-ret)) : 0;
}

/* ---- measure -------------------------------------------------------------------------------------------------- */

/* Bytes of src's content, to whole grains. */
static int count_data(struct blk_node *src, uint64_t size, uint64_t grain, uint64_t *out,
                      struct error **err)
{
    uint64_t end = 0; /* of the last grain counted */

    *out = 0;
    for (uint64_t off = 0; off < size;) {
        struct blk_extent x;
        int ret = blk_extents(src, off, size - off, 0, &x);
        if (ret < 0)
            return error_set(err, -ret, "%s: could not look for data: %s", blk_filename(src),
                             strerror(-ret));
        if (!(x.flags & BLK_EXT_ZERO)) {
            uint64_t from = MAX(round_down(off, grain), end);
            uint64_t to = round_up(off + x.length, grain);
            *out += to > from ? to - from : 0;
            end = MAX(end, to);
        }
        off += x.length;
    }
    return 0;
}

int vmdk_measure(const void *options, uint64_t size, struct blk_node *src, struct blk_measure *out,
                 struct error **err)
{
    const struct vmdk_create_options *o = options;
    uint64_t grain = GRAIN * SECTOR, overhead = 0, data = 0;
    int ret = vmdk_check_create(o, err);

    if (ret < 0)
        return ret;
    size = round_up(size, SECTOR);
    for (uint64_t at = 0, bytes; !is_flat(o) && at < size; at += bytes) {
        struct vmdk_header h;
        bytes = o->subformat == SPLIT_SPARSE ? MIN(size - at, SPLIT) : size;
        fill_header(&h, o, bytes / SECTOR);
        overhead += h.overhead * SECTOR;
        if (o->subformat == STREAM) { /* each table behind a marker, the directory, the footer */
            uint64_t tables = div_round_up(bytes, grain * GT_ENTRIES);
            overhead +=
                tables * (SECTOR + GT_ENTRIES * 4) + round_up(tables * 4, SECTOR) + 4 * SECTOR;
        }
    }
    if (src)
        ret = count_data(src, size, grain, &data, err);
    if (ret < 0)
        return ret;
    /* A grain that does not compress takes a sector more, with its marker. */
    uint64_t whole = round_up(size, grain), more = o->subformat == STREAM ? SECTOR : 0;
    out->fully_allocated = is_flat(o) ? size : overhead + whole + whole / grain * more;
    out->required = is_flat(o) ? size : overhead + data + data / grain * more;
    return 0;
}
