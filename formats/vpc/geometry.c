/* How large the disk is: cylinders, heads and sectors (the VHD specification's appendix), or just a number; and the
 * checksums.
 *
 * Virtual PC means the geometry, Hyper-V the number. Who made the image tells which; QEMU's images are of either
 * kind, by their creator's name.
 */
#include <string.h>

#include "base/macros.h"
#include "vpc.h"

struct vpc_chs vpc_geometry(uint64_t sectors)
{
    uint32_t per_track, heads, tracks, total = (uint32_t)MIN(sectors, VPC_MAX_CHS);

    if (total >= 65535u * 16 * 63) {
        per_track = 255;
        heads = 16;
        tracks = total / per_track;
    } else {
        per_track = 17;
        tracks = total / per_track;
        heads = MAX((tracks + 1023) / 1024, 4u);
        if (tracks >= heads * 1024 || heads > 16) {
            per_track = 31;
            heads = 16;
            tracks = total / per_track;
        }
        if (tracks >= heads * 1024) {
            per_track = 63;
            heads = 16;
            tracks = total / per_track;
        }
    }
    return (struct vpc_chs){ (uint16_t)(tracks / heads), (uint8_t)heads, (uint8_t)per_track };
}

uint64_t vpc_round_to_chs(uint64_t sectors, struct vpc_chs *out)
{
    uint64_t try = sectors;

    if (sectors >= VPC_MAX_CHS) {
        *out = vpc_geometry(sectors);
        return sectors;
    }
    do {
        *out = vpc_geometry(try++);
    } while (vpc_chs_sectors(*out) < sectors);
    return vpc_chs_sectors(*out);
}

/* Those who mean the number. */
static bool means_number(const uint8_t *creator)
{
    static const char names[][5] = { "win ", "qem2", "d2v ", "tap\0", "CTXS" };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (!memcmp(creator, names[i], 4))
            return true;
    return false;
}

uint64_t vpc_footer_size(const uint8_t *footer, int size_calc)
{
    struct vpc_chs g = { load_be16(footer + AT_CYLINDERS), footer[AT_HEADS], footer[AT_SECTORS] };
    uint64_t sectors = vpc_chs_sectors(g);

    if (size_calc == SIZE_CHS)
        return sectors * 512;
    if (size_calc == SIZE_CURRENT || means_number(footer + AT_CREATOR) || sectors == VPC_MAX_CHS)
        return load_be64(footer + AT_SIZE);
    return sectors * 512;
}

void vpc_set_size(uint8_t *footer, uint64_t size, bool force)
{
    struct vpc_chs g;
    bool exact = vpc_round_to_chs(size / 512, &g) == size / 512;

    if (force || !exact) {
        g = (struct vpc_chs){ 65535, 16, 255 };
        if (!means_number(footer + AT_CREATOR))
            memcpy(footer + AT_CREATOR, "qem2", 4);
    }
    store_be64(footer + AT_ORIGINAL_SIZE, size); /* libvhdi, for one, means this one */
    store_be64(footer + AT_SIZE, size);
    store_be16(footer + AT_CYLINDERS, g.cylinders);
    footer[AT_HEADS] = g.heads;
    footer[AT_SECTORS] = g.sectors;
    vpc_sign(footer, VPC_FOOTER, AT_CHECKSUM);
}

/* The sum of all bytes but those of the checksum at `at`, inverted. */
uint32_t vpc_checksum(const uint8_t *bytes, size_t len, size_t at)
{
    uint32_t sum = 0;

    for (size_t i = 0; i < len; i++)
        if (i < at || i >= at + 4)
            sum += bytes[i];
    return ~sum;
}

void vpc_sign(uint8_t *bytes, size_t len, size_t at)
{
    store_be32(bytes + at, vpc_checksum(bytes, len, at));
}
