/* Images with one table of blocks: check and repair. What is wrong with the table is mended first, each step in an
 * order that a power cut may interrupt; only then are gaps filled, since an entry that is wrong may mean one of
 * them. See bat.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "bat_scan.h"

#define MAX_MESSAGES 1000

void bat_say(struct bat_report *r, const char *fmt, ...)
{
    char text[320];
    va_list args;

    if (!r->hooks || !r->hooks->message || r->messages > MAX_MESSAGES)
        return;
    if (r->messages++ == MAX_MESSAGES) {
        r->hooks->message(r->hooks->opaque, "More was found; the rest is only counted.");
        return;
    }
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    r->hooks->message(r->hooks->opaque, text);
}

bool bat_found(struct bat_report *r, bool leak, uint64_t count)
{
    bool mend = r->fix & (leak ? BLK_FIX_LEAKS : BLK_FIX_ERRORS);

    if (leak)
        *(mend ? &r->out->leaks_fixed : &r->out->leaks) += count;
    else
        *(mend ? &r->out->corruptions_fixed : &r->out->corruptions) += count;
    return mend;
}

static int failed(struct bat *b, int ret, const char *what, struct error **err)
{
    return error_set(err, -ret, "%s: could not %s: %s", blk_filename(b->node), what,
                     strerror(-ret));
}

/* ---- finding ------------------------------------------------------------------------------------------ */

static void tell_bad(struct bat *b, struct bat_report *r, const struct bat_scan *s)
{
    (void)b;
    for (size_t i = 0; i < s->bad.len; i++)
        bat_say(r, "%s block %" PRIu32 " of the disk, at %#" PRIx64 ", %s",
                r->fix & BLK_FIX_ERRORS ? "Repairing" : "ERROR", s->bad.at[i].block,
                s->bad.at[i].record, bat_bad_text(s->bad.at[i].kind));
}

static uint64_t find_leaks(struct bat *b, struct bat_report *r, const struct bat_scan *s)
{
    uint64_t leaks = s->behind;
    struct bat_gap g = { 0 };
    struct freed run;

    if (s->behind)
        bat_say(r, "Leaked %" PRIu64 " blocks behind the end of the disk", s->behind);
    while (bat_next_gap(b, s, &g, &run)) {
        bat_say(r, "Leaked %" PRIu64 " blocks at %#" PRIx64, run.length, run.offset);
        leaks += run.length;
    }
    if (b->file_end > s->end && (b->file_end - s->end) / b->stride > 0) {
        uint64_t count = (b->file_end - s->end) / b->stride;
        bat_say(r, "Leaked %" PRIu64 " blocks at the end of the file", count);
        leaks += count;
    }
    return leaks;
}

/* ---- mending ------------------------------------------------------------------------------------------ */

/* What the entry referred to is in no use, or in somebody else's. */
static int clear_entry(struct bat *b, uint64_t block)
{
    return bat_set_entry(b, block, b->free_mark);
}

/* Who shares a place gets a copy in one of his own, behind all others. */
static int give_own(struct bat *b, const struct bat_finding *f)
{
    uint64_t to, got;
    bool fresh;
    {
        WRLOCK_SCOPE(&b->lock);
        int ret = bat_alloc(b, 1, &to, &got, &fresh);
        if (ret < 0)
            return ret;
    }
    return bat_move(b, f->block, f->record, to);
}

static int mend_bad(struct bat *b, const struct bat_scan *s)
{
    int ret = 0;

    b->free.len = 0; /* what looks free may be what a wrong entry means */
    for (size_t i = 0; i < s->bad.len && ret == 0; i++) {
        const struct bat_finding *f = &s->bad.at[i];
        if (f->kind == BAT_OUTSIDE)
            ret = clear_entry(b, f->block);
        else if (f->kind == BAT_CROSSED)
            ret = give_own(b, f);
    }
    b->holes = true;
    return ret == 0 ? bat_settle(b) : ret;
}

static int clear_behind(struct bat *b, const struct bat_scan *s)
{
    int ret = 0;

    for (uint64_t i = 0; i < s->slots && ret == 0 && s->behind; i++)
        if (s->slot[i].block > b->entries)
            ret = clear_entry(b, s->slot[i].block - 1);
    return ret == 0 ? bat_settle(b) : ret;
}

static int mend(struct bat *b, struct bat_report *r, const struct bat_scan *s, uint64_t leaks,
                struct error **err)
{
    int ret = bat_adopt(b, s);

    if (ret == 0 && s->bad_count && (r->fix & BLK_FIX_ERRORS))
        ret = mend_bad(b, s);
    if (ret < 0)
        return failed(b, ret, "mend the block table", err);
    if (s->bad_count > s->bad.len && (r->fix & BLK_FIX_ERRORS))
        return error_set(err, EIO,
                         "%s: only the first %zu of %" PRIu64
                         " entries that are wrong were mended: mend it once more",
                         blk_filename(b->node), s->bad.len, s->bad_count);
    if (s->bad_count && !(r->fix & BLK_FIX_ERRORS))
        return 0;
    if (leaks && (r->fix & BLK_FIX_LEAKS))
        ret = clear_behind(b, s);
    if (ret == 0)
        ret = bat_compact(b);
    return ret < 0 ? failed(b, ret, "give back what is not in use", err) : 0;
}

/* The file's own end, where it is not in use yet. */
static int look(struct bat *b, struct bat_scan *s, struct error **err)
{
    const bool all = true;
    int ret = 0;

    if (node_writable(b->node) && b->end > 0) {
        ret = bat_settle(b);
        b->file_end = MAX(b->file_end, b->reserved);
    }
    if (ret == 0)
        ret = bat_scan(b, s, &all);
    return ret < 0 ? failed(b, ret, "read the block table", err) : 0;
}

int bat_check(struct bat *b, struct bat_report *r, struct error **err)
{
    struct bat_scan s;
    int ret = look(b, &s, err);

    if (ret < 0)
        return ret;
    r->out->total_clusters = b->entries;
    r->out->allocated_clusters = s.stored;
    tell_bad(b, r, &s);
    uint64_t leaks = find_leaks(b, r, &s);
    bool errors_stay = s.bad_count && !(r->fix & BLK_FIX_ERRORS);
    unsigned fix = r->fix;

    if (errors_stay)
        r->fix &= ~(unsigned)BLK_FIX_LEAKS; /* what is leaked cannot be told */
    bat_found(r, false, s.bad_count);
    bat_found(r, true, leaks);
    if (r->fix && (s.bad_count || leaks))
        ret = mend(b, r, &s, leaks, err);
    r->fix = fix;
    r->out->image_end_offset = node_writable(b->node) && b->end ? b->end : s.end;
    bat_scan_free(&s);
    return ret;
}
