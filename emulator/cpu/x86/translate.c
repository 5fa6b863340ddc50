/* Guest code to blocks of IR. */
#include "translate.h"

/* What a helper leaves as the flags record, when that is certain. */
static int record_after(const struct insn *i, x86_helper *fn)
{
    unsigned w = log2_of(op_size(i));
    if (fn == h_bt || fn == h_bits)
        return fn == h_bits && i->rep != 0xf3 ? -1 : K_FLAGS * 4;
    if (fn == h_cmpxchg)
        return (int)(IR_KIND_SUB * 4 + w);
    if (fn == h_xadd)
        return (int)(IR_KIND_ADD * 4 + w);
    if (fn == h_unary && group(i) < 2)
        return (int)((group(i) ? K_DEC : K_INC) * 4 + w);
    return -1;
}

/* STI lets interrupts in behind the next instruction, so that one belongs to the same block. */
static bool sti(struct tr *t)
{
    if (t->i.op != 0xfb || t->c->cpu.mode & M_TF)
        return false;
    emit_call(t, h_sti);
    t->shadow = true;
    return true;
}

static void instruction(struct tr *t)
{
    struct insn *i = &t->i;
    if ((!i->lock && translate_op(t)) || sti(t))
        return;
    bool ends = false;
    x86_helper *fn = x86_find_helper(t->c, i, &ends);
    if (!fn) {
        fn = h_ud;
        ends = true;
    }
    if (ends)
        emit_pc(t, i->next);
    emit_call(t, fn);
    t->kind = record_after(i, fn);
    if (ends)
        emit_leave(t);
}

/* Code bytes of one page, or of two when it is the block's first instruction. */
struct source {
    struct x86_fetch fetch;
    struct cpu *cpu;
    uint64_t at, page;
    bool first;
};

static uint8_t next_byte(struct x86_fetch *fetch)
{
    struct source *s = (struct source *)fetch;
    if ((s->at & GUEST_PAGE_MASK) != s->page && !s->first) {
        s->fetch.over = true;
        return 0;
    }
    uint64_t at = s->at++;
    if (!(s->cpu->mode & M_64))
        at = (uint32_t)at;
    return (uint8_t)cpu_load_slow(s->cpu, at, 1, CPU_EXECUTE);
}

void x86_translate(struct cpu *cpu, struct block *block, unsigned limit)
{
    struct x86 *c = (struct x86 *)cpu;
    unsigned bits = cpu->mode & M_64 ? 64 : cpu->mode & M_32 ? 32 : 16;
    struct tr t = { .c = c, .block = block, .pc = block->pc, .kind = -1 };
    struct source s = { .fetch = { .next = next_byte },
                        .cpu = cpu,
                        .at = block->linear,
                        .page = block->linear & GUEST_PAGE_MASK,
                        .first = true };
    if (cpu->mode & (M_TF | M_SHADOW))
        limit = 1;
    if (cpu->mode & M_TF)
        emit_call(&t, h_trap);
    while (!t.done && block->count < limit && block->n_ops + 40 < BLOCK_OPS) {
        uint64_t start = s.at;
        bool ok = insn_decode(&t.i, &s.fetch, bits, t.pc);
        if (s.fetch.over || (!s.first && (start & GUEST_PAGE_MASK) != s.page))
            break;
        bool behind = t.shadow;
        s.first = false;
        if (bits == 16 && t.pc < 0x10000)
            t.i.next &= 0xffff;
        if (ok) {
            instruction(&t);
        } else {
            emit_call(&t, t.i.length > 15 ? h_gp : h_ud);
            emit_leave(&t);
        }
        t.pc += t.i.length;
        block->count++;
        block->size = (uint16_t)(t.pc - block->pc);
        if (cpu->mode & (M_TF | M_SHADOW) || t.i.next < t.pc)
            break;
        if (behind) {
            t.shadow = false;
            break;
        }
    }
    if (!t.done) {
        t.pc = t.pc - t.i.length;
        if (t.shadow)
            emit_call(&t, h_shadow);
        if (cpu->mode & M_TF) {
            emit_pc(&t, t.i.next);
            emit_leave(&t);
        } else {
            emit(&t, IR_EXIT, 0, 0, 0, block->pc + block->size);
        }
    }
}
