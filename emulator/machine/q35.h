/* The parts of the q35 machine: an Intel 82Q35 host bridge and an ICH9, as far as firmware and systems look at them.
 *
 * Memory: RAM from 0 to `low` (at most 2.75 GiB), Express configuration space at 0xb0000000, PCI from 0xc0000000, chips from
 * 0xfec00000, firmware below 4 GiB, the rest of RAM above. */
#ifndef MACHINE_Q35_H
#define MACHINE_Q35_H

#include "internal.h"

#include "cpu/memory.h"
#include "devices/fw_cfg.h"
#include "devices/i8042.h"
#include "devices/ioapic.h"
#include "devices/irq.h"
#include "devices/lapic.h"
#include "devices/pci.h"
#include "devices/pic.h"
#include "devices/pit.h"
#include "devices/ports.h"
#include "devices/rtc.h"
#include "devices/serial.h"
#include "x86/x86.h"

#define Q35_LOW_MOST  ((uint64_t)0xb0000000) /* with more RAM than that, below 4 GiB are 2 GiB */
#define Q35_LOW_SPLIT ((uint64_t)0x80000000)
#define Q35_HIGH      ((uint64_t)0x100000000)
#define Q35_ECAM      0xb0000000u
#define Q35_PCI_START 0xc0000000u
#define Q35_PCI_END   0xfec00000u
#define Q35_RCBA      0xfed1c000u
#define Q35_PM_BASE   0x600
#define Q35_GSI_PIRQA 16 /* PIRQ A to H are these and the next seven of the I/O APIC */
#define Q35_SCI       9

enum { Q35_PAM = 13, Q35_CPUS_MOST = 255 };

struct q35;

/* A piece of C0000 to FFFFF and how it is mapped now. */
struct q35_piece {
    struct q35 *q;
    unsigned n;
    uint8_t pam;
};

struct q35_host_bridge {
    struct pci_function pci;
    uint32_t config_address; /* port cf8 */
    uint64_t ecam;           /* where it is, 0: nowhere */
    struct q35_piece pieces[Q35_PAM];
};

struct q35_lpc {
    struct pci_function pci;
    pthread_mutex_t
        lock; /* guards the power management registers and PIRQs; taken before interrupt controllers' */
    uint16_t pm_base; /* where they are, 0: nowhere */
    uint64_t rcba;
    uint16_t pm1_status, pm1_enable, pm1_control;
    uint8_t gpe[16], rest[0x80];
    uint64_t timer_start;
    uint8_t reset_control, port92, apm[2];
    uint32_t pins[8];   /* per PIRQ: a bit for each device that pulls */
    uint16_t pic_lines; /* which inputs PIRQs hold up */
};

struct q35 {
    struct machine *m;
    struct ports *ports;
    uint8_t *ram;
    uint64_t ram_size, low, high;
    bool no_vga;
    uint8_t *firmware; /* whole pages; NULL: the kernel is started without */
    uint64_t firmware_size;
    struct lapics *lapics;
    struct ioapic *ioapic;
    struct pic *pic;
    struct pit *pit;
    struct rtc *rtc;
    struct i8042 *i8042;
    struct fw_cfg *fw_cfg;
    struct serial *serial[MACHINE_SERIALS];
    struct q35_host_bridge bridge;
    struct q35_lpc lpc;
    struct x86 **cpus;
    struct x86_bus bus;
};

static inline struct q35 *q35_of(struct machine *m)
{
    return m->board;
}

/* q35_host.c */
int q35_host_realize(struct q35 *q, struct error **err);
void q35_host_reset(struct q35 *q);
void q35_host_free(struct q35 *q);

/* q35_lpc.c */
int q35_lpc_realize(struct q35 *q, struct error **err);
void q35_lpc_reset(struct q35 *q);
void q35_lpc_free(struct q35 *q);
void q35_power_button(struct machine *m);
void q35_isa_set(void *q35, unsigned line, bool up);
void q35_pci_interrupt(void *q35, unsigned device, unsigned pin, bool up);
/* Which PIRQ (0: A) a pin of a device on bus 0 leads to. */
unsigned q35_pirq(unsigned device, unsigned pin);

/* q35_firmware.c */
int q35_load_firmware(struct q35 *q, struct error **err);
/* What firmware asks for: numbers, tables, memory map, order of booting. When all devices are there. */
int q35_tell_firmware(struct q35 *q, struct error **err);
char *q35_find_file(const struct machine_config *c, const char *name);

/* q35_linux.c: a kernel without firmware, at each reset. */
int q35_start_kernel(struct q35 *q, struct error **err);

/* q35_info.c */
void q35_registers(struct machine *m, unsigned cpu, struct strbuf *text);
void q35_memory_tree(struct machine *m, struct strbuf *text);

#endif
