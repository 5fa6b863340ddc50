/* The machine put together: RAM, chips, CPUs, and how they are wired. */
#include "q35.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "base/human.h"
#include "devices/timer.h"

#include <string.h>
#include <sys/mman.h>

/* ---- CPUs ask ------------------------------------------------------------------------------- */

static uint32_t bus_in(void *opaque, uint16_t port, unsigned size)
{
    const struct q35 *q = opaque;
    return ports_in(q->ports, port, size);
}

static void bus_out(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    const struct q35 *q = opaque;
    ports_out(q->ports, port, size, value);
}

static int bus_acknowledge(void *opaque, unsigned cpu)
{
    const struct q35 *q = opaque;
    int vector = lapic_acknowledge(q->lapics, cpu);
    return vector == LAPIC_FROM_PIC ? pic_acknowledge(q->pic) : vector;
}

static int bus_read_msr(void *opaque, unsigned cpu, uint32_t msr, uint64_t *value)
{
    const struct q35 *q = opaque;
    if (msr != 0x1b && msr != 0x6e0 && (msr < 0x800 || msr > 0x83f))
        return -1;
    return lapic_read_msr(q->lapics, cpu, msr, value);
}

static int bus_write_msr(void *opaque, unsigned cpu, uint32_t msr, uint64_t value)
{
    const struct q35 *q = opaque;
    if (msr != 0x1b && msr != 0x6e0 && (msr < 0x800 || msr > 0x83f))
        return -1;
    return lapic_write_msr(q->lapics, cpu, msr, value);
}

static unsigned bus_get_priority(void *opaque, unsigned cpu)
{
    const struct q35 *q = opaque;
    return lapic_priority(q->lapics, cpu);
}

static void bus_set_priority(void *opaque, unsigned cpu, unsigned priority)
{
    const struct q35 *q = opaque;
    lapic_set_priority(q->lapics, cpu, priority);
}

static uint64_t bus_now(void *opaque)
{
    const struct q35 *q = opaque;
    return clock_now(q->m->clock);
}

static const struct x86_bus bus = {
    .in = bus_in,
    .out = bus_out,
    .acknowledge = bus_acknowledge,
    .read_msr = bus_read_msr,
    .write_msr = bus_write_msr,
    .get_priority = bus_get_priority,
    .set_priority = bus_set_priority,
    .now = bus_now,
};

/* ---- local APICs ask ------------------------------------------------------------------------ */

static void apic_line(void *opaque, unsigned cpu, bool up)
{
    const struct q35 *q = opaque;
    if (q->cpus[cpu])
        cpu_line(x86_cpu(q->cpus[cpu]), up);
}

static void apic_nmi(void *opaque, unsigned cpu)
{
    const struct q35 *q = opaque;
    x86_nmi(q->cpus[cpu]);
}

static void apic_init(void *opaque, unsigned cpu)
{
    const struct q35 *q = opaque;
    x86_init_signal(q->cpus[cpu]);
}

static void apic_start(void *opaque, unsigned cpu, uint8_t vector)
{
    const struct q35 *q = opaque;
    x86_start(q->cpus[cpu], vector);
}

static uint64_t apic_tsc(void *opaque, unsigned cpu)
{
    const struct q35 *q = opaque;
    return x86_time_stamp(q->cpus[cpu]);
}

static void apic_eoi(void *opaque, uint8_t vector)
{
    const struct q35 *q = opaque;
    ioapic_eoi(q->ioapic, vector);
}

/* ---- other wires ---------------------------------------------------------------------------- */

static void pic_out(void *opaque, unsigned line, bool up)
{
    const struct q35 *q = opaque;
    (void)line;
    lapics_pic(q->lapics, up);
}

static struct irq isa_irq(struct q35 *q, unsigned line)
{
    return (struct irq){ .set = q35_isa_set, .opaque = q, .line = line };
}

static struct irq machine_isa_irq(void *machine, unsigned line)
{
    return isa_irq(q35_of(machine), line);
}

static void keyboard_reset(void *opaque)
{
    const struct q35 *q = opaque;
    machine_request(q->m, MACHINE_GUEST_RESET);
}

static int pci_map_ports(void *opaque, uint16_t port, uint32_t size, const struct memory_io *io,
                         void *device)
{
    const struct q35 *q = opaque;
    return ports_add(q->ports, port, size, io, device);
}

static void pci_unmap_ports(void *opaque, uint16_t port)
{
    const struct q35 *q = opaque;
    ports_remove(q->ports, port, NULL);
}

static void pci_message(void *opaque, uint64_t address, uint32_t data)
{
    const struct q35 *q = opaque;
    lapics_message(q->lapics, address, data);
}

static uint64_t nothing_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque, (void)offset, (void)size;
    return 0;
}

static void nothing_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque, (void)offset, (void)size, (void)value;
}

static const struct memory_io nothing_io = { nothing_read, nothing_write };

/* ---- life ----------------------------------------------------------------------------------- */

static int make_ram(struct q35 *q, uint64_t size, struct error **err)
{
    q->ram_size = size;
    q->low = size < Q35_LOW_MOST ? size : Q35_LOW_SPLIT;
    q->high = size - q->low;
    void *ram = mmap(NULL, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ram == MAP_FAILED)
        return error_set(err, ENOMEM, "The host has no room for %s of RAM", human_size(size).s);
    q->ram = ram;
    int r = memory_add_ram(q->m->memory, 0, q->low, ram, 0);
    if (!r && q->high)
        r = memory_add_ram(q->m->memory, Q35_HIGH, q->high, q->ram + q->low, 0);
    return r ? error_set(err, -r, "No memory left for a memory map") : 0;
}

static int make_bus(struct q35 *q, struct error **err)
{
    struct machine *m = q->m;
    const struct pci_host host = { .memory = m->memory,
                                   .opaque = q,
                                   .map_ports = pci_map_ports,
                                   .unmap_ports = pci_unmap_ports,
                                   .interrupt = q35_pci_interrupt,
                                   .message = pci_message };
    q->ports = ports_new();
    m->pci = pci_bus_new(&host);
    if (!q->ports || !m->pci)
        return error_set(err, ENOMEM, "No memory left for buses");
    m->host.pci = m->pci;
    m->host.ports = q->ports;
    m->host.isa_irq = machine_isa_irq;
    int r = q35_host_realize(q, err);
    return r ? r : q35_lpc_realize(q, err);
}

static int make_chips(struct q35 *q, struct error **err)
{
    struct machine *m = q->m;
    const struct lapic_host apic_host = { .opaque = q,
                                          .line = apic_line,
                                          .nmi = apic_nmi,
                                          .init = apic_init,
                                          .start = apic_start,
                                          .tsc = apic_tsc,
                                          .eoi = apic_eoi };
    const struct irq to_cpu = { .set = pic_out, .opaque = q };
    const struct irq timer = isa_irq(q, 0), keyboard = isa_irq(q, 1), clock = isa_irq(q, 8),
                     mouse = isa_irq(q, 12);
    const struct i8042_host i8042_host = { .opaque = q, .reset = keyboard_reset };
    q->lapics = lapics_new(m->clock, &apic_host, m->config->cpus);
    q->ioapic = q->lapics ? ioapic_new(q->lapics) : NULL;
    q->pic = q->ioapic ? pic_new(q->ports, &to_cpu) : NULL;
    q->pit = q->pic ? pit_new(q->ports, m->clock, &timer) : NULL;
    q->rtc = q->pit ? rtc_new(q->ports, m->clock, &clock) : NULL;
    q->i8042 = q->rtc ? i8042_new(q->ports, &keyboard, &mouse, &i8042_host) : NULL;
    q->fw_cfg = q->i8042 ? fw_cfg_new(q->ports, m->memory) : NULL;
    if (!q->fw_cfg || memory_add_io(m->memory, LAPIC_BASE, LAPIC_SIZE, &lapic_io, q->lapics) ||
        memory_add_io(m->memory, IOAPIC_BASE, IOAPIC_SIZE, &ioapic_io, q->ioapic) ||
        ports_add(q->ports, 0x80, 1, &nothing_io, q) ||
        ports_add(q->ports, 0xed, 1, &nothing_io, q))
        return error_set(err, ENOMEM, "No memory left for a machine's chips");
    return 0;
}

static int make_serials(struct q35 *q, struct error **err)
{
    static const struct {
        uint16_t port;
        uint8_t irq;
    } com[MACHINE_SERIALS] = { { 0x3f8, 4 }, { 0x2f8, 3 }, { 0x3e8, 4 }, { 0x2e8, 3 } };
    for (unsigned n = 0; n < MACHINE_SERIALS; n++) {
        const char *chardev = q->m->config->serial[n];
        const struct irq irq = isa_irq(q, com[n].irq);
        int r = 0;
        if (chardev)
            r = serial_new(q->ports, com[n].port, q->m->clock, &irq, chardev, &q->serial[n], err);
        if (r) {
            error_prefix(err, "serial port %u", n);
            return r;
        }
    }
    return 0;
}

static int make_cpus(struct q35 *q, struct error **err)
{
    const struct machine_config *c = q->m->config;
    for (unsigned n = 0; n < c->cpus; n++) {
        q->cpus[n] = x86_new(q->m->memory, &bus, q, c->cpu_model, n, err);
        if (!q->cpus[n])
            return -EINVAL;
        x86_set_topology(q->cpus[n], c->cpus);
    }
    return 0;
}

static int make_vga(struct q35 *q, struct error **err)
{
    _cleanup_free_ char *rom = q35_find_file(q->m->config, "vgabios-stdvga.bin");
    _cleanup_json_ json_t *options = json_pack("{s:s}", "driver", "VGA");
    if (!options || (rom && json_object_set_new(options, "romfile", json_string(rom))))
        return error_set(err, ENOMEM, "No memory left for a VGA");
    return device_add(&q->m->devices, &q->m->host, options, err);
}

/* ICH9's, which -hda and -cdrom mean: its ports are the buses ide.0 to ide.5. */
static int make_ahci(struct q35 *q, struct error **err)
{
    _cleanup_json_ json_t *options = json_pack("{s:s, s:s}", "driver", "ich9-ahci", "addr", "1f.2");
    if (!options)
        return error_set(err, ENOMEM, "No memory left for an AHCI controller");
    return device_add(&q->m->devices, &q->m->host, options, err);
}

/* What -M says behind the type. */
struct q35_options {
    char *accel; /* has been looked at already */
    int vga;
    bool hpet;
};

static const struct opt_choice displays[] = { { "std", 1 }, { "none", 0 }, { NULL, 0 } };

static const struct opt_def machine_options[] = {
    { .name = "accel", .type = OPT_STRING, .at = offsetof(struct q35_options, accel) },
    { .name = "vga",
      .type = OPT_ENUM,
      .at = offsetof(struct q35_options, vga),
      .def = "std",
      .choices = displays },
    { .name = "hpet", .type = OPT_BOOL, .at = offsetof(struct q35_options, hpet), .def = "off" },
    OPT_END,
};

static int take_options(struct q35 *q, struct error **err)
{
    struct q35_options o = { 0 };
    _cleanup_json_ json_t *object =
        q->m->config->options ? json_deep_copy(q->m->config->options) : json_object();
    if (!object)
        return error_set(err, ENOMEM, "No memory left for a machine");
    int r = opts_take(machine_options, object, &o, err);
    if (!r)
        r = opts_refuse_rest(machine_options, object, "machine q35", err);
    if (!r && o.hpet)
        r = error_set(err, ENOTSUP,
                      "machine q35: hpet=on: this machine has no HPET; its guests have "
                      "the TSC, ACPI's timer and the 8254");
    q->no_vga = !o.vga;
    opts_free(machine_options, &o);
    return r;
}

/* The user's own one goes instead. */
static bool wants_vga(const struct q35 *q)
{
    const struct machine_config *c = q->m->config;
    size_t i;
    json_t *d;
    json_array_foreach(c->devices, i, d)
    {
        const char *driver = json_string_value(json_object_get(d, "driver"));
        if (driver && !strcmp(driver, "VGA"))
            return false;
    }
    return !c->no_display && !q->no_vga;
}

static const struct machine_ops q35_ops;

static int check(const struct machine_config *c, struct error **err)
{
    if (c->ram < 1 << 20 || c->ram > (uint64_t)1 << 39)
        return error_set(err, EINVAL, "%s of RAM: this machine takes 1 MiB to 512 GiB",
                         human_size(c->ram).s);
    if (c->ram % GUEST_PAGE_SIZE)
        return error_set(err, EINVAL, "%llu bytes of RAM are not a multiple of 4 KiB",
                         (unsigned long long)c->ram);
    if (c->cpus > Q35_CPUS_MOST)
        return error_set(err, EINVAL, "%u CPUs: this machine takes 1 to %d", c->cpus,
                         Q35_CPUS_MOST);
    return 0;
}

static int q35_create(struct machine *m, const struct machine_config *c, struct error **err)
{
    int r = check(c, err);
    if (r)
        return r;
    struct q35 *q = calloc(1, sizeof *q);
    struct x86 **cpus = calloc(c->cpus, sizeof *cpus);
    if (!q || !cpus) {
        free(q);
        free(cpus);
        return error_set(err, ENOMEM, "No memory left for a machine");
    }
    q->m = m;
    q->cpus = cpus;
    pthread_mutex_init(&q->lpc.lock, NULL);
    m->board = q;
    m->ops = &q35_ops;
    r = take_options(q, err);
    if (!r)
        r = make_ram(q, c->ram, err);
    if (!r && (!c->kernel || c->firmware))
        r = q35_load_firmware(q, err);
    if (!r)
        r = make_bus(q, err);
    if (!r)
        r = make_chips(q, err);
    if (!r)
        r = make_serials(q, err);
    if (!r)
        r = make_cpus(q, err);
    if (!r && wants_vga(q))
        r = make_vga(q, err);
    if (!r)
        r = make_ahci(q, err);
    return r;
}

static int q35_reset(struct machine *m, struct error **err)
{
    struct q35 *q = q35_of(m);
    bool direct = m->config->kernel;
    for (unsigned n = 0; n < MACHINE_SERIALS; n++) {
        if (q->serial[n])
            serial_reset(q->serial[n]);
    }
    i8042_reset(q->i8042);
    rtc_reset(q->rtc);
    pit_reset(q->pit);
    fw_cfg_reset(q->fw_cfg);
    q35_host_reset(q);
    q35_lpc_reset(q);
    pic_reset(q->pic);
    ioapic_reset(q->ioapic);
    for (unsigned n = 0; n < m->config->cpus; n++) {
        struct cpu *cpu = x86_cpu(q->cpus[n]);
        atomic_fetch_and(&cpu->request, ~(unsigned)(CPU_REQUEST_LINE | CPU_REQUEST_NMI |
                                                    CPU_REQUEST_INIT | CPU_REQUEST_START));
        if (n)
            x86_wait(q->cpus[n]);
        else
            x86_reset(q->cpus[n]);
    }
    lapics_reset(q->lapics, direct);
    int r = q35_tell_firmware(q, err);
    return r || !direct ? r : q35_start_kernel(q, err);
}

static enum cpu_exit q35_run(struct machine *m, unsigned cpu)
{
    return x86_run(q35_of(m)->cpus[cpu]);
}

static struct cpu *q35_cpu(struct machine *m, unsigned cpu)
{
    return x86_cpu(q35_of(m)->cpus[cpu]);
}

static int q35_send_key(struct machine *m, const char *keys, struct error **err)
{
    return i8042_type(q35_of(m)->i8042, keys, err);
}

static void q35_free(struct machine *m)
{
    struct q35 *q = q35_of(m);
    for (unsigned n = 0; n < MACHINE_SERIALS; n++)
        serial_free(q->serial[n]);
    i8042_free(q->i8042);
    rtc_free(q->rtc);
    pit_free(q->pit);
    if (q->ports && m->pci) {
        q35_lpc_free(q);
        q35_host_free(q);
    }
    pic_free(q->pic);
    ioapic_free(q->ioapic);
    fw_cfg_free(q->fw_cfg);
    lapics_free(q->lapics); /* alarms ring no more */
    for (unsigned n = 0; n < m->config->cpus; n++)
        x86_free(q->cpus[n]);
    pci_bus_free(m->pci);
    ports_free(q->ports);
    if (q->ram)
        munmap(q->ram, q->ram_size);
    free(q->firmware);
    pthread_mutex_destroy(&q->lpc.lock);
    free(q->cpus);
    free(q);
}

static const struct machine_ops q35_ops = {
    .free = q35_free,
    .reset = q35_reset,
    .run = q35_run,
    .cpu = q35_cpu,
    .power_button = q35_power_button,
    .registers = q35_registers,
    .memory_tree = q35_memory_tree,
    .send_key = q35_send_key,
};

const struct machine_type machine_q35 = {
    .name = "q35",
    .alias = "pc-q35",
    .help = "a PC with Intel's Q35 and ICH9 chips",
    .create = q35_create,
};
