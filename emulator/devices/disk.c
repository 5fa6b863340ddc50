#include "disk.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/round.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { ON_ERROR_AUTO = -1 };

const struct opt_choice disk_error_choices[] = {
    { "auto", ON_ERROR_AUTO }, { "report", ON_ERROR_REPORT }, { "ignore", ON_ERROR_IGNORE },
    { "stop", ON_ERROR_STOP }, { "enospc", ON_ERROR_ENOSPC }, { NULL, 0 },
};

static int check(const struct disk_options *o, struct error **err)
{
    if (!o->drive)
        return error_set(err, EINVAL, "drive: it must say which drive or node it shows");
    if (!is_pow2(o->logical) || !is_pow2(o->physical))
        return error_set(err, EINVAL, "logical_block_size and physical_block_size are powers of 2");
    if (o->physical < o->logical)
        return error_set(err, EINVAL, "physical_block_size %llu is below logical_block_size %llu",
                         (unsigned long long)o->physical, (unsigned long long)o->logical);
    if (o->rerror == ON_ERROR_ENOSPC)
        return error_set(err, EINVAL, "rerror: enospc is for writes");
    return 0;
}

int disk_open(struct disk *disk, struct device *d, bool write, struct error **err)
{
    struct blockdev_user user = { .device = d->id ? d->id : d->type->name, .write = write };
    struct disk_options *o = &disk->o;

    int r = check(o, err);
    if (r < 0)
        return r;
    if (o->rerror == ON_ERROR_AUTO)
        o->rerror = ON_ERROR_REPORT;
    if (o->werror == ON_ERROR_AUTO)
        o->werror = ON_ERROR_ENOSPC;
    disk->host = d->host;
    r = blockdev_take(o->drive, &user, &disk->blockdev, err);
    if (r < 0)
        return r;
    pthread_mutex_init(&disk->lock, NULL);
    return 0;
}

void disk_close(struct disk *disk)
{
    if (!disk->blockdev)
        return;
    disk_cancel(disk);
    blockdev_release(disk->blockdev);
    pthread_mutex_destroy(&disk->lock);
    disk->blockdev = NULL;
}

static const char *what(enum blockdev_op op)
{
    static const char *const names[] = {
        [BLOCKDEV_READ] = "read",       [BLOCKDEV_WRITE] = "write", [BLOCKDEV_ZERO] = "zeroing",
        [BLOCKDEV_DISCARD] = "discard", [BLOCKDEV_FLUSH] = "flush",
    };
    return names[op];
}

/* The machine is to stop, and the request waits until it goes on. */
static void park(struct disk_request *q, int result)
{
    struct disk *disk = q->disk;
    char why[128];

    snprintf(why, sizeof(why), "%s: a %s failed: %s", disk->o.drive, what(q->r.op),
             strerror(-result));
    {
        LOCK_SCOPE(&disk->lock);
        q->next = disk->parked;
        disk->parked = q;
    }
    disk->host->stop(disk->host->machine, why);
}

static void ended(struct blockdev_request *r, int result)
{
    struct disk_request *q = (struct disk_request *)r;
    struct disk *disk = q->disk;
    int policy = r->op == BLOCKDEV_READ ? disk->o.rerror : disk->o.werror;

    if (result < 0 && policy == ON_ERROR_ENOSPC)
        policy = result == -ENOSPC ? ON_ERROR_STOP : ON_ERROR_REPORT;
    if (result < 0 && policy == ON_ERROR_STOP && disk->host->stop)
        park(q, result);
    else
        q->done(q, policy == ON_ERROR_IGNORE ? 0 : result);
}

void disk_submit_all(struct disk *disk, struct disk_request **r, unsigned count)
{
    enum { BATCH = 64 };
    struct blockdev_request *batch[BATCH];

    for (unsigned i = 0; i < count; i += BATCH) {
        unsigned n = MIN(count - i, (unsigned)BATCH);
        for (unsigned j = 0; j < n; j++) {
            r[i + j]->disk = disk;
            r[i + j]->r.done = ended;
            batch[j] = &r[i + j]->r;
        }
        blockdev_submit_all(disk->blockdev, batch, n);
    }
}

void disk_submit(struct disk *disk, struct disk_request *r)
{
    disk_submit_all(disk, &r, 1);
}

void disk_drain(struct disk *disk)
{
    blockdev_drain(disk->blockdev);
}

/* The parked ones in the order they came. */
static struct disk_request *take_parked(struct disk *disk)
{
    struct disk_request *in_order = NULL;

    LOCK_SCOPE(&disk->lock);
    while (disk->parked) {
        struct disk_request *r = disk->parked;
        disk->parked = r->next;
        r->next = in_order;
        in_order = r;
    }
    return in_order;
}

void disk_resume(struct disk *disk)
{
    for (struct disk_request *r = take_parked(disk), *next; r; r = next) {
        next = r->next;
        disk_submit(disk, r);
    }
}

void disk_cancel(struct disk *disk)
{
    blockdev_drain(disk->blockdev);
    for (struct disk_request *r = take_parked(disk), *next; r; r = next) {
        next = r->next;
        r->done(r, -ECANCELED);
    }
}
