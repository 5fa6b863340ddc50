/* What the machine tells its firmware: numbered items and a directory of named ones, by port or by DMA.
 *
 * Source: QEMU's documented interface, docs/specs/fw_cfg.rst. Items are added before the machine runs.
 */
#ifndef DEVICES_FW_CFG_H
#define DEVICES_FW_CFG_H

#include <stddef.h>
#include <stdint.h>

struct fw_cfg;
struct memory;
struct ports;

enum {
    FW_CFG_UUID = 0x02,
    FW_CFG_RAM_SIZE = 0x03,
    FW_CFG_NOGRAPHIC = 0x04,
    FW_CFG_NB_CPUS = 0x05,
    FW_CFG_BOOT_MENU = 0x0e,
    FW_CFG_MAX_CPUS = 0x0f,
    FW_CFG_FILES = 0x20,
};

struct fw_cfg *fw_cfg_new(struct ports *ports, struct memory *memory);
void fw_cfg_free(struct fw_cfg *f);
void fw_cfg_reset(struct fw_cfg *f);

/* Copies the bytes. 0, -ENOMEM, -EINVAL (no such number). */
int fw_cfg_item(struct fw_cfg *f, uint16_t key, const void *bytes, size_t length);
int fw_cfg_number(struct fw_cfg *f, uint16_t key, uint16_t value);
/* A file of the directory; names of up to 55 characters. -ENOSPC: there are 64 files already. */
int fw_cfg_file(struct fw_cfg *f, const char *name, const void *bytes, size_t length);

#endif
