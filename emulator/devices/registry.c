/* The one table of devices that -device can name. */
#include "device.h"

#include "base/macros.h"

extern const struct device_type device_isa_debug_exit;
extern const struct device_type device_isa_debugcon;
extern const struct device_type device_vga;
extern const struct device_type device_ahci, device_ide_hd, device_ide_cd, device_nvme;
extern const struct device_type device_virtio_blk_pci, device_virtio_blk_pci_transitional,
    device_virtio_blk_pci_non_transitional;

static const struct device_type *const types[] = {
    &device_isa_debug_exit,
    &device_isa_debugcon,
    &device_vga,
    &device_ahci,
    &device_ide_hd,
    &device_ide_cd,
    &device_nvme,
    &device_virtio_blk_pci,
    &device_virtio_blk_pci_transitional,
    &device_virtio_blk_pci_non_transitional,
};

const struct device_type *device_type_at(unsigned i)
{
    return i < ARRAY_SIZE(types) ? types[i] : NULL;
}
