/* The memory of a VGA behind its graphics controller: four planes of 64 KiB. */
#ifndef DEVICES_VGA_PLANES_H
#define DEVICES_VGA_PLANES_H

#include <stdbool.h>
#include <stdint.h>

enum { PLANE = 0x10000 };

/* Registers that decide what an access does; the names are IBM's. */
struct vga_planes {
    uint8_t sequencer[5], graphics[9];
    uint8_t latch[4];
    uint8_t plane[4][PLANE];
};

/* The address counts from A0000. One byte at a time. */
uint8_t vga_planes_read(struct vga_planes *v, uint32_t address);
void vga_planes_write(struct vga_planes *v, uint32_t address, uint8_t value);

#endif
