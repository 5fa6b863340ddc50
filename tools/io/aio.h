/* Requests that run while the commands go on.
 *
 * A request is made by the main thread and handed to a pool; its worker moves the bytes and puts it
 * on the list of finished ones. The main thread takes them from there, prints what they have to say
 * and frees them. So output has one writer, and comes out at places that a script can rely on.
 */
#ifndef IO_AIO_H
#define IO_AIO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/pool.h"
#include "block/block.h"
#include "buffer.h"
#include "report.h"

enum aio_kind { AIO_READ, AIO_WRITE, AIO_ZERO };

struct aio;

struct aio_request {
    enum aio_kind kind;
    struct blk_node *node;
    int64_t offset, length;
    unsigned flags;    /* enum blk_flag */
    struct buffer buf; /* not of AIO_ZERO */
    struct iovec *iov; /* pieces of buf */
    int iovcnt;
    int pattern; /* to verify a read by; -1: none */
    bool quiet, machine, dump;
    /* from here on aio.c's own */
    struct aio *aio;
    struct pool_job job;
    struct stopwatch watch;
    int result;
    struct aio_request *next;
};

/* Takes the request over. *aio is made when it is NULL. False after a complaint; the request is
 * freed then. */
bool aio_submit(struct aio **aio, struct aio_request *request);
void aio_request_free(struct aio_request *request);

/* Prints what has finished. aio may be NULL in all of these. */
void aio_reap(struct aio *aio);
/* Prints until nothing runs any more. */
void aio_wait(struct aio *aio);
/* Prints what finishes within that time. */
void aio_sleep(struct aio *aio, int64_t milliseconds);

/* Readable when something has finished; -1 for NULL. */
int aio_fd(const struct aio *aio);

/* Waits and ends the pool. */
void aio_destroy(struct aio *aio);

#endif
