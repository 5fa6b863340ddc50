/* VGA: PCI 1234:1111, for which Debian's SeaBIOS has a video BIOS (vgabios-stdvga.bin).
 *
 * Its video BIOS looks for the Bochs display interface and makes do without it: programs find no graphics modes of VESA's then
 * and stay with text. Source: IBM VGA technical reference.
 */
#include "vga.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/strbuf.h"
#include "cpu/memory.h"
#include "device.h"
#include "pci.h"
#include "ports.h"
#include "timer.h"
#include "vga_planes.h"

#include <string.h>
#include <sys/stat.h>

enum { WINDOW = 0xa0000, WINDOW_SIZE = 0x20000, CRTC = 25, ATTRIBUTES = 21 };

struct vga {
    struct device device;
    struct pci_function pci;
    char *romfile, *addr;
    bool windowed;
    pthread_mutex_t lock;
    struct vga_planes planes;
    uint8_t misc, feature, sequencer_index, graphics_index, crtc_index, crtc[CRTC];
    uint8_t attribute_index, attributes[ATTRIBUTES];
    bool attribute_data; /* the next write to 3c0 is data */
    uint8_t dac_mask, dac_read, dac_write, dac_part, dac[768];
};

/* ---- ports ---------------------------------------------------------------------------------- */

static uint8_t read_dac(struct vga *v)
{
    uint8_t value = v->dac[v->dac_read * 3 + v->dac_part];
    v->dac_part++;
    if (v->dac_part == 3) {
        v->dac_part = 0;
        v->dac_read++;
    }
    return value;
}

static void write_dac(struct vga *v, uint8_t value)
{
    v->dac[v->dac_write * 3 + v->dac_part] = value & 63;
    v->dac_part++;
    if (v->dac_part == 3) {
        v->dac_part = 0;
        v->dac_write++;
    }
}

/* Vertical retrace and blanking, as they follow each other at 70 Hz. */
static uint8_t input_status(struct vga *v)
{
    uint64_t ns = clock_now(v->device.host->clock), frame = ns % 14285714, line = ns % 31778;
    v->attribute_data = false;
    return frame > 13500000 ? 9 : line > 25000 ? 1 : 0;
}

static uint8_t read_port(struct vga *v, unsigned port)
{
    switch (port) {
    case 0x3c0:
        return v->attribute_index;
    case 0x3c1:
        return (v->attribute_index & 31) < ATTRIBUTES ? v->attributes[v->attribute_index & 31] : 0;
    case 0x3c2:
        return 0x10; /* a colour monitor is there */
    case 0x3c4:
        return v->sequencer_index;
    case 0x3c5:
        return v->sequencer_index < 5 ? v->planes.sequencer[v->sequencer_index] : 0;
    case 0x3c6:
        return v->dac_mask;
    case 0x3c7:
        return 0;
    case 0x3c8:
        return v->dac_write;
    case 0x3c9:
        return read_dac(v);
    case 0x3ca:
        return v->feature;
    case 0x3cc:
        return v->misc;
    case 0x3ce:
        return v->graphics_index;
    case 0x3cf:
        return v->graphics_index < 9 ? v->planes.graphics[v->graphics_index] : 0;
    case 0x3b4:
    case 0x3d4:
        return v->crtc_index;
    case 0x3b5:
    case 0x3d5:
        return v->crtc_index < CRTC ? v->crtc[v->crtc_index] : 0;
    case 0x3ba:
    case 0x3da:
        return input_status(v);
    default:
        return 0xff;
    }
}

static void write_attribute(struct vga *v, uint8_t value)
{
    unsigned n = v->attribute_index & 31;
    if (!v->attribute_data)
        v->attribute_index = value & 63;
    else if (n < ATTRIBUTES)
        v->attributes[n] = value;
    v->attribute_data = !v->attribute_data;
}

static void write_crtc(struct vga *v, uint8_t value)
{
    unsigned n = v->crtc_index;
    if (n >= CRTC)
        return;
    if (n < 8 && v->crtc[0x11] & 0x80) { /* locked, but for one bit */
        if (n == 7)
            v->crtc[7] = (uint8_t)((v->crtc[7] & ~0x10) | (value & 0x10));
        return;
    }
    v->crtc[n] = value;
}

static void write_port(struct vga *v, unsigned port, uint8_t value)
{
    switch (port) {
    case 0x3c0:
        write_attribute(v, value);
        break;
    case 0x3c2:
        v->misc = value;
        break;
    case 0x3c4:
        v->sequencer_index = value;
        break;
    case 0x3c5:
        if (v->sequencer_index < 5)
            v->planes.sequencer[v->sequencer_index] = value;
        break;
    case 0x3c6:
        v->dac_mask = value;
        break;
    case 0x3c7:
        v->dac_read = value;
        v->dac_part = 0;
        break;
    case 0x3c8:
        v->dac_write = value;
        v->dac_part = 0;
        break;
    case 0x3c9:
        write_dac(v, value);
        break;
    case 0x3ce:
        v->graphics_index = value;
        break;
    case 0x3cf:
        if (v->graphics_index < 9)
            v->planes.graphics[v->graphics_index] = value;
        break;
    case 0x3b4:
    case 0x3d4:
        v->crtc_index = value;
        break;
    case 0x3b5:
    case 0x3d5:
        write_crtc(v, value);
        break;
    case 0x3ba:
    case 0x3da:
        v->feature = value;
        break;
    default:
        break;
    }
}

static uint64_t ports_read(void *opaque, uint64_t offset, unsigned size)
{
    struct vga *v = opaque;
    uint64_t value = 0;
    LOCK_SCOPE(&v->lock);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)read_port(v, 0x3b0 + (unsigned)offset + i) << (8 * i);
    return value;
}

static void ports_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct vga *v = opaque;
    LOCK_SCOPE(&v->lock);
    for (unsigned i = 0; i < size; i++)
        write_port(v, 0x3b0 + (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
}

static uint64_t planes_read(void *opaque, uint64_t offset, unsigned size)
{
    struct vga *v = opaque;
    uint64_t value = 0;
    LOCK_SCOPE(&v->lock);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)vga_planes_read(&v->planes, (uint32_t)offset + i) << (8 * i);
    return value;
}

static void planes_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct vga *v = opaque;
    LOCK_SCOPE(&v->lock);
    for (unsigned i = 0; i < size; i++)
        vga_planes_write(&v->planes, (uint32_t)offset + i, (uint8_t)(value >> (8 * i)));
}

static const struct memory_io ports_io = { ports_read, ports_write };
static const struct memory_io planes_io = { planes_read, planes_write };

/* ---- the screen as text --------------------------------------------------------------------- */

/* Code page 437: what stands where ASCII has controls, and above ASCII. */
static const uint16_t controls[32] = {
    0x0020, 0x263a, 0x263b, 0x2665, 0x2666, 0x2663, 0x2660, 0x2022, 0x25d8, 0x25cb, 0x25d9,
    0x2642, 0x2640, 0x266a, 0x266b, 0x263c, 0x25ba, 0x25c4, 0x2195, 0x203c, 0x00b6, 0x00a7,
    0x25ac, 0x21a8, 0x2191, 0x2193, 0x2192, 0x2190, 0x221f, 0x2194, 0x25b2, 0x25bc,
};
static const uint16_t upper_half[128] = {
    0x00c7, 0x00fc, 0x00e9, 0x00e2, 0x00e4, 0x00e0, 0x00e5, 0x00e7, 0x00ea, 0x00eb, 0x00e8, 0x00ef,
    0x00ee, 0x00ec, 0x00c4, 0x00c5, 0x00c9, 0x00e6, 0x00c6, 0x00f4, 0x00f6, 0x00f2, 0x00fb, 0x00f9,
    0x00ff, 0x00d6, 0x00dc, 0x00a2, 0x00a3, 0x00a5, 0x20a7, 0x0192, 0x00e1, 0x00ed, 0x00f3, 0x00fa,
    0x00f1, 0x00d1, 0x00aa, 0x00ba, 0x00bf, 0x2310, 0x00ac, 0x00bd, 0x00bc, 0x00a1, 0x00ab, 0x00bb,
    0x2591, 0x2592, 0x2593, 0x2502, 0x2524, 0x2561, 0x2562, 0x2556, 0x2555, 0x2563, 0x2551, 0x2557,
    0x255d, 0x255c, 0x255b, 0x2510, 0x2514, 0x2534, 0x252c, 0x251c, 0x2500, 0x253c, 0x255e, 0x255f,
    0x255a, 0x2554, 0x2569, 0x2566, 0x2560, 0x2550, 0x256c, 0x2567, 0x2568, 0x2564, 0x2565, 0x2559,
    0x2558, 0x2552, 0x2553, 0x256b, 0x256a, 0x2518, 0x250c, 0x2588, 0x2584, 0x258c, 0x2590, 0x2580,
    0x03b1, 0x00df, 0x0393, 0x03c0, 0x03a3, 0x03c3, 0x00b5, 0x03c4, 0x03a6, 0x0398, 0x03a9, 0x03b4,
    0x221e, 0x03c6, 0x03b5, 0x2229, 0x2261, 0x00b1, 0x2265, 0x2264, 0x2320, 0x2321, 0x00f7, 0x2248,
    0x00b0, 0x2219, 0x00b7, 0x221a, 0x207f, 0x00b2, 0x25a0, 0x00a0,
};

static void add_character(struct strbuf *line, uint8_t c)
{
    uint16_t u = c >= 0x80 ? upper_half[c - 0x80] : c < 0x20 ? controls[c] : c;
    if (u >= 0x800)
        strbuf_addc(line, (char)(0xe0 | u >> 12));
    if (u >= 0x800)
        strbuf_addc(line, (char)(0x80 | (u >> 6 & 63)));
    else if (u >= 0x80)
        strbuf_addc(line, (char)(0xc0 | u >> 6));
    strbuf_addc(line, (char)(u >= 0x80 ? 0x80 | (u & 63) : u));
}

/* One line of characters, without the blanks at its end. */
static void add_line(struct strbuf *text, const struct vga *v, unsigned at, unsigned columns)
{
    uint8_t line[256];
    unsigned length = 0;
    for (unsigned c = 0; c < columns; c++) {
        line[c] = v->planes.plane[0][(at + c) * 2 & (PLANE - 1)];
        if (line[c] != ' ' && line[c] && line[c] != 0xff)
            length = c + 1;
    }
    for (unsigned c = 0; c < length; c++)
        add_character(text, line[c]);
    strbuf_addc(text, '\n');
}

extern const struct device_type device_vga;

char *vga_text(struct device *d)
{
    struct vga *v = (struct vga *)d;
    struct strbuf text = STRBUF_INIT;
    if (d->type != &device_vga)
        return strbuf_take(&text);
    LOCK_SCOPE(&v->lock);
    const uint8_t *c = v->crtc;
    bool graphics =
        v->planes.graphics[6] & 1 || v->attributes[16] & 1 || !(v->attribute_index & 32);
    if (!graphics) {
        unsigned lines = (c[0x12] | (c[7] & 2u) << 7 | (c[7] & 0x40u) << 3) + 1,
                 columns = c[1] + 1u;
        unsigned rows = lines / ((c[9] & 31u) + 1), start = (unsigned)c[12] << 8 | c[13];
        for (unsigned row = 0; row < MIN(rows, 100u); row++)
            add_line(&text, v, start + row * c[0x13] * 2u, columns);
    }
    return strbuf_take(&text);
}

/* ---- life ----------------------------------------------------------------------------------- */

static int load_rom(struct vga *v, struct error **err)
{
    _cleanup_stream_ FILE *file = fopen(v->romfile, "rb");
    struct stat st;
    if (!file || fstat(fileno(file), &st))
        return error_set(err, errno, "romfile '%s' cannot be opened: %s", v->romfile,
                         strerror(errno));
    if (st.st_size <= 0 || st.st_size > 1 << 20)
        return error_set(err, EINVAL, "romfile '%s' has %lld bytes; 1 byte to 1 MiB are possible",
                         v->romfile, (long long)st.st_size);
    size_t length = (size_t)st.st_size;
    _cleanup_free_ uint8_t *bytes = malloc(length);
    if (!bytes)
        return error_set(err, ENOMEM, "No memory left for romfile '%s'", v->romfile);
    if (fread(bytes, 1, length, file) != length)
        return error_set(err, EIO, "romfile '%s' cannot be read", v->romfile);
    int r = pci_rom(&v->pci, bytes, length);
    return r ? error_set(err, -r, "No memory left for romfile '%s'", v->romfile) : 0;
}

static int vga_realize(struct device *d, struct error **err)
{
    struct vga *v = (struct vga *)d;
    static const struct pci_identity id = { .vendor = 0x1234,
                                            .device = 0x1111,
                                            .subsystem_vendor = 0x1af4,
                                            .subsystem = 0x1100,
                                            .class_code = 0x030000,
                                            .revision = 2 };
    pthread_mutex_init(&v->lock, NULL);
    int r = pci_add(d->host->pci, &v->pci, &id, v->addr, err);
    if (!r && v->romfile)
        r = load_rom(v, err);
    if (r)
        return r;
    r = memory_add_io(d->host->memory, WINDOW, WINDOW_SIZE, &planes_io, v);
    v->windowed = !r;
    if (!r)
        r = ports_add(d->host->ports, 0x3b0, 0x30, &ports_io, v);
    return r ? error_set(err, -r, "No memory left for a VGA") : 0;
}

static void vga_reset(struct device *d)
{
    struct vga *v = (struct vga *)d;
    pci_reset(&v->pci);
    LOCK_SCOPE(&v->lock);
    memset(&v->planes, 0, sizeof v->planes);
    memset(v->crtc, 0, sizeof v->crtc);
    memset(v->attributes, 0, sizeof v->attributes);
    memset(v->dac, 0, sizeof v->dac);
    v->misc = v->feature = v->attribute_index = 0;
    v->sequencer_index = v->graphics_index = v->crtc_index = 0;
    v->attribute_data = false;
    v->dac_mask = 0xff;
    v->dac_read = v->dac_write = v->dac_part = 0;
}

static void vga_free(struct device *d)
{
    struct vga *v = (struct vga *)d;
    ports_remove(d->host->ports, 0x3b0, v);
    if (v->windowed)
        memory_remove(d->host->memory, WINDOW);
    pci_remove(&v->pci);
    pthread_mutex_destroy(&v->lock);
}

static const struct opt_def options[] = {
    { .name = "addr", .type = OPT_STRING, .at = offsetof(struct vga, addr), .help = "PCI address" },
    { .name = "romfile",
      .type = OPT_STRING,
      .at = offsetof(struct vga, romfile),
      .help = "its video BIOS" },
    OPT_END,
};

const struct device_type device_vga = {
    .name = "VGA",
    .help = "a display for text",
    .bus = "PCI",
    .size = sizeof(struct vga),
    .options = options,
    .realize = vga_realize,
    .reset = vga_reset,
    .free = vga_free,
};
