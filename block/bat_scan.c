/* Images with one table of blocks: what a whole table refers to, and moving records about. See bat.h. */
#include "bat_scan.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"

enum { PIECE = 64 << 10, MAX_FINDINGS = 1 << 20 };

const char *bat_bad_text(enum bat_bad kind)
{
    static const char *const text[] = {
        [BAT_OUTSIDE] = "lies where no blocks are",
        [BAT_CUT] = "lies beyond the end of the file",
        [BAT_CROSSED] = "shares its place with something else",
    };
    return text[kind];
}

/* ---- scanning ---------------------------------------------------------------------------------------- */

static int found(struct bat_scan *s, uint32_t block, enum bat_bad kind, uint64_t record, bool all)
{
    struct bat_finding f = { block, kind, record };

    s->bad_count++;
    if (s->bad.len > 0 && (!all || s->bad.len >= MAX_FINDINGS))
        return 0;
    return vector_push(&s->bad, f);
}

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a < b + b_len && b < a + a_len;
}

static bool crossed(const struct bat *b, const struct bat_scan *s, uint64_t i, uint64_t record)
{
    for (unsigned k = 0; k < b->fixed_count; k++)
        if (overlap(record, b->stride, b->fixed[k].offset, b->fixed[k].length))
            return true;
    if (s->slot[i].block)
        return true;
    if (i > 0 && s->slot[i - 1].block && bat_slot_record(b, s, i - 1) + b->stride > record)
        return true;
    return i + 1 < s->slots && s->slot[i + 1].block &&
           record + b->stride > bat_slot_record(b, s, i + 1);
}

static int scan_entry(struct bat *b, struct bat_scan *s, uint32_t block, uint32_t entry, bool all)
{
    uint64_t record = bat_place(b, entry);

    if (!bat_stored(b, entry))
        return 0;
    if (record < b->data_start || record + b->prefix >= b->file_end)
        return found(s, block, BAT_OUTSIDE, record, all);
    uint64_t i = (record - b->data_start) / b->stride;
    if (crossed(b, s, i, record))
        return found(s, block, BAT_CROSSED, record, all);
    s->slot[i].block = block + 1;
    s->slot[i].delta = (uint32_t)((record - b->data_start - i * b->stride) / b->factor);
    s->stored++;
    s->behind += block >= b->entries;
    s->records_end = MAX(s->records_end, record + b->stride);
    s->end = MAX(s->end, s->records_end);
    return record + b->stride > b->file_end ? found(s, block, BAT_CUT, record, all) : 0;
}

static int make_slots(const struct bat *b, struct bat_scan *s)
{
    uint64_t room = b->file_end > b->data_start ? b->file_end - b->data_start : 0;

    s->slots = div_round_up(room, b->stride) + 1;
    if (s->slots > SIZE_MAX / sizeof(*s->slot) / 2)
        return -ENOMEM;
    s->bytes = (size_t)s->slots * sizeof(*s->slot);
    s->slot = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->slot == MAP_FAILED)
        s->slot = NULL;
    return s->slot ? 0 : -ENOMEM;
}

int bat_scan(struct bat *b, struct bat_scan *s, const bool *all_bad)
{
    uint64_t bytes = (uint64_t)b->all_entries * 4;
    _cleanup_free_ uint8_t *piece = malloc(PIECE);

    memset(s, 0, sizeof(*s));
    s->end = s->records_end = b->data_start;
    for (unsigned k = 0; k < b->fixed_count; k++)
        s->end = MAX(s->end, b->fixed[k].offset + b->fixed[k].length);
    int ret = piece ? make_slots(b, s) : -ENOMEM;
    for (uint64_t at = 0; at < bytes && ret == 0; at += PIECE) {
        size_t len = (size_t)MIN(bytes - at, (uint64_t)PIECE);
        ret = blk_read(b->file, b->table_offset + at, piece, len, 0);
        for (size_t k = 0; k < len && ret == 0; k += 4)
            ret = scan_entry(b, s, (uint32_t)((at + k) / 4), bat_load(b, piece + k),
                             all_bad && *all_bad);
    }
    if (ret < 0)
        bat_scan_free(s);
    return ret;
}

void bat_scan_free(struct bat_scan *s)
{
    if (s->slot)
        munmap(s->slot, s->bytes);
    s->slot = NULL;
    vector_free(&s->bad);
}

/* ---- gaps ------------------------------------------------------------------------------------------------ */

/* The first fixed part that [at, at + len) touches; NULL: none. */
static const struct bat_fixed *fixed_at(const struct bat *b, uint64_t at, uint64_t len)
{
    const struct bat_fixed *first = NULL;

    for (unsigned k = 0; k < b->fixed_count; k++)
        if (overlap(at, len, b->fixed[k].offset, b->fixed[k].length) &&
            (!first || b->fixed[k].offset < first->offset))
            first = &b->fixed[k];
    return first;
}

bool bat_next_gap(const struct bat *b, const struct bat_scan *s, struct bat_gap *g,
                  struct freed *out)
{
    if (g->at == 0)
        g->at = b->data_start;
    while (g->at < s->end) {
        while (g->next_slot < s->slots && !s->slot[g->next_slot].block)
            g->next_slot++;
        uint64_t stop = g->next_slot < s->slots ? bat_slot_record(b, s, g->next_slot) : s->end;
        uint64_t from = g->at;
        const struct bat_fixed *f = stop > from ? fixed_at(b, from, stop - from) : NULL;
        if (f) {
            stop = MAX(f->offset, from);
            g->at = f->offset + f->length;
        } else {
            g->at = stop + (g->next_slot < s->slots ? b->stride : 0);
            g->next_slot++;
        }
        if (stop > from && (stop - from) / b->stride > 0) {
            *out = (struct freed){ .offset = from, .length = (stop - from) / b->stride };
            return true;
        }
        if (g->next_slot > s->slots)
            break;
    }
    return false;
}

int bat_adopt(struct bat *b, const struct bat_scan *s)
{
    struct bat_gap g = { 0 };
    struct freed run;

    b->free.len = 0;
    while (bat_next_gap(b, s, &g, &run))
        if (vector_push(&b->free, run) < 0)
            return -ENOMEM;
    b->end = s->end;
    b->reserved = b->claimed ? MIN(b->claimed, b->file_end) : b->file_end;
    b->fresh = MAX(b->fresh, MAX(blk_size(b->file), b->file_end));
    return 0;
}

/* ---- moving ------------------------------------------------------------------------------------------------ */

/* A record's bytes go to another place. */
static int copy_record(struct bat *b, uint64_t from, uint64_t to, uint8_t *buf)
{
    enum { STEP = 1 << 20 };
    int ret = 0;

    for (uint64_t at = 0; at < b->stride && ret == 0; at += STEP) {
        size_t len = (size_t)MIN(b->stride - at, (uint64_t)STEP);
        ret = blk_read(b->file, from + at, buf, len, 0);
        if (ret == 0)
            ret = blk_write(b->file, to + at, buf, len, 0);
    }
    return ret;
}

int bat_set_entry(struct bat *b, uint64_t block, uint32_t value)
{
    uint32_t left;
    uint8_t *at;
    int ret;

    WRLOCK_SCOPE(&b->lock);
    do {
        ret = bat_get(b, block, true, false, &at, &left);
    } while (ret == TABLE_RELOCKED);
    if (ret < 0)
        return ret;
    bat_store(b, at, value);
    table_cache_dirty(b->table, at);
    b->unsynced = true;
    return 0;
}

static int move_record(struct bat *b, uint64_t block, uint64_t from, uint64_t to, uint8_t *buf)
{
    int ret = copy_record(b, from, to, buf);

    if (ret == 0 && b->format->moved)
        b->format->moved(b, to);
    return ret == 0 ? bat_set_entry(b, block, bat_entry(b, to)) : ret;
}

int bat_move(struct bat *b, uint64_t block, uint64_t from, uint64_t to)
{
    _cleanup_free_ uint8_t *buf = malloc(1 << 20);
    return buf ? move_record(b, block, from, to, buf) : -ENOMEM;
}

/* The records at the end go into the gaps, those nearest to the beginning first. */
static int fill_gaps(struct bat *b, struct bat_scan *s, uint8_t *buf)
{
    struct bat_gap g = { 0 };
    struct freed run;
    uint64_t last = s->slots;

    while (bat_next_gap(b, s, &g, &run))
        for (; run.length > 0; run.length--, run.offset += b->stride) {
            while (last > 0 && !s->slot[last - 1].block)
                last--;
            if (last == 0 || bat_slot_record(b, s, last - 1) <= run.offset)
                return 0;
            int ret = move_record(b, s->slot[last - 1].block - 1, bat_slot_record(b, s, last - 1),
                                  run.offset, buf);
            if (ret < 0)
                return ret;
            s->slot[--last].block = 0;
        }
    return 0;
}

/* While the image is in use for writing: nothing is out of order but what ends behind the file, which the next
 * trim makes longer. */
static int scan_sound(struct bat *b, struct bat_scan *s)
{
    b->file_end = MAX(b->file_end, b->reserved);
    int ret = bat_scan(b, s, NULL);
    if (ret == 0 && s->bad_count > 0 && s->bad.at[0].kind != BAT_CUT) {
        bat_scan_free(s);
        ret = -EIO;
    }
    return ret;
}

int bat_compact(struct bat *b)
{
    struct bat_scan s;
    _cleanup_free_ uint8_t *buf = malloc(1 << 20);
    int ret = buf ? bat_settle(b) : -ENOMEM;

    if (ret == 0)
        ret = scan_sound(b, &s);
    if (ret < 0)
        return ret;
    b->free.len = 0; /* the gaps, which are filled now; found anew in the end */
    b->holes = true;
    ret = fill_gaps(b, &s, buf);
    bat_scan_free(&s);
    if (ret == 0)
        ret = bat_settle(b);
    if (ret == 0)
        ret = scan_sound(b, &s);
    if (ret == 0 && b->format->lower) {
        ret = b->format->lower(b, s.records_end);
        bat_scan_free(&s);
        if (ret == 0)
            ret = scan_sound(b, &s);
    }
    if (ret < 0)
        return ret;
    b->holes = false;
    b->end = s.end;
    b->grown = false;
    b->fresh = MAX(b->fresh, blk_size(b->file)); /* what is cut off may come back in a power cut */
    ret = b->format->trim(b);
    b->file_end = b->reserved;
    if (ret == 0)
        ret = bat_adopt(b, &s);
    bat_scan_free(&s);
    return ret;
}

int bat_vacate(struct bat *b, uint64_t limit)
{
    struct bat_scan s;
    _cleanup_free_ uint8_t *buf = malloc(1 << 20);
    int ret = buf ? bat_settle(b) : -ENOMEM;
    bool fresh;

    if (ret < 0)
        return ret;
    ret = scan_sound(b, &s);
    if (ret < 0)
        return ret;
    b->free.len = 0; /* gaps may lie before the limit; they are found again by compaction */
    b->holes = true;
    b->end = MAX(b->end, limit);
    for (uint64_t i = 0; i < s.slots && ret == 0; i++) {
        uint64_t from = s.slot[i].block ? bat_slot_record(b, &s, i) : limit, to, got;
        if (from >= limit)
            continue;
        {
            WRLOCK_SCOPE(&b->lock);
            ret = bat_alloc(b, 1, &to, &got, &fresh);
        }
        if (ret == 0)
            ret = move_record(b, s.slot[i].block - 1, from, to, buf);
    }
    bat_scan_free(&s);
    return ret == 0 ? bat_settle(b) : ret;
}
