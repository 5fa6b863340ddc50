/* String instructions. A repeated one keeps its registers right after every step, so it may fault
 * or be interrupted in the middle and go on later. */
#include "helpers.h"

static void step(struct x86 *c, const struct insn *i, unsigned reg, unsigned size)
{
    uint64_t delta = c->eflags & F_D ? 0 - (uint64_t)size : size;
    reg_write(c, i, reg, i->asize, c->cpu.r[reg] + delta);
}

static uint64_t source(struct x86 *c, const struct insn *i)
{
    return linear(c, i->seg, c->cpu.r[RSI] & width_mask(i->asize));
}

static uint64_t target(struct x86 *c, const struct insn *i)
{
    return linear(c, ES, c->cpu.r[RDI] & width_mask(i->asize));
}

/* One step. */
static void once(struct x86 *c, const struct insn *i, unsigned size)
{
    uint64_t a, b;
    switch (i->op & 0xfe) {
    case 0xa4:
        cpu_store(&c->cpu, target(c, i), size, cpu_load(&c->cpu, source(c, i), size));
        step(c, i, RSI, size);
        step(c, i, RDI, size);
        break;
    case 0xa6:
        a = cpu_load(&c->cpu, source(c, i), size);
        b = cpu_load(&c->cpu, target(c, i), size);
        record(c, IR_KIND_SUB, size, a - b, b);
        step(c, i, RSI, size);
        step(c, i, RDI, size);
        break;
    case 0xaa:
        cpu_store(&c->cpu, target(c, i), size, c->cpu.r[RAX]);
        step(c, i, RDI, size);
        break;
    case 0xac:
        reg_write(c, i, RAX, size, cpu_load(&c->cpu, source(c, i), size));
        step(c, i, RSI, size);
        break;
    default:
        a = reg_read(c, i, RAX, size);
        b = cpu_load(&c->cpu, target(c, i), size);
        record(c, IR_KIND_SUB, size, a - b, b);
        step(c, i, RDI, size);
        break;
    }
}

static void fill_memory(uint8_t *to, uint64_t value, unsigned size, uint64_t count)
{
    uint64_t bytes = (value & 0xff) * 0x0101010101010101u;
    if (!((value ^ bytes) & width_mask(size))) {
        memset(to, (int)(value & 0xff), count * size);
        return;
    }
    for (unsigned n = size; n < 8; n *= 2)
        value = (value & width_mask(n)) | value << (8 * n);
    for (uint64_t left = count * size; left; to += left < 8 ? left : 8, left -= left < 8 ? left : 8)
        memcpy(to, &value, left < 8 ? left : 8);
}

/* Many steps at once, forwards within one page each; returns how many were done. */
static uint64_t bulk(struct x86 *c, const struct insn *i, unsigned size, uint64_t count)
{
    unsigned op = i->op & 0xfe;
    if ((op != 0xa4 && op != 0xaa) || c->eflags & F_D || i->asize < 4)
        return 0;
    uint64_t to = target(c, i), from = op == 0xa4 ? source(c, i) : 0;
    uint64_t room = GUEST_PAGE_SIZE - (to & ~GUEST_PAGE_MASK);
    if (op == 0xa4 && room > GUEST_PAGE_SIZE - (from & ~GUEST_PAGE_MASK))
        room = GUEST_PAGE_SIZE - (from & ~GUEST_PAGE_MASK);
    const struct tlb_entry *d = &c->cpu.tlb[(to >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)];
    const struct tlb_entry *s = &c->cpu.tlb[(from >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)];
    uint64_t n = room / size < count ? room / size : count;
    if (n < 4 || d->tag[CPU_WRITE] != (to & GUEST_PAGE_MASK) ||
        (op == 0xa4 && s->tag[CPU_READ] != (from & GUEST_PAGE_MASK)))
        return 0;
    uint8_t *dest = (uint8_t *)(uintptr_t)(to + d->add);
    if (op == 0xa4) {
        const uint8_t *src = (const uint8_t *)(uintptr_t)(from + s->add);
        if (dest > src && dest < src + n * size)
            return 0; /* each step reads what an earlier one wrote */
        memmove(dest, src, n * size);
        reg_write(c, i, RSI, i->asize, c->cpu.r[RSI] + n * size);
    } else {
        fill_memory(dest, c->cpu.r[RAX], size, n);
    }
    reg_write(c, i, RDI, i->asize, c->cpu.r[RDI] + n * size);
    return n;
}

void h_string(struct x86 *c, const struct insn *i)
{
    unsigned size = op_size(i), op = i->op & 0xfe;
    if (!i->rep) {
        once(c, i, size);
        c->cpu.r[IR_PC] = i->next;
        return;
    }
    bool compares = op == 0xa6 || op == 0xae;
    for (;;) {
        uint64_t count = c->cpu.r[RCX] & width_mask(i->asize);
        if (!count)
            break;
        uint64_t n = bulk(c, i, size, count);
        if (!n) {
            once(c, i, size);
            n = 1;
        }
        reg_write(c, i, RCX, i->asize, count - n);
        if (compares && !(flags_arith(c) & F_Z) == (i->rep == 0xf3))
            break;
        if (count != n && atomic_load_explicit(&c->cpu.request, memory_order_relaxed) & ~8u) {
            c->cpu.r[IR_PC] = cpu_pc(&c->cpu); /* again after the interrupt */
            return;
        }
    }
    c->cpu.r[IR_PC] = i->next;
}
