/* What the pool carries out: requests that wait, one piece each. */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "internal.h"

static struct piece describe(const struct job *j)
{
    const struct request *r = j->request;
    return (struct piece){
        .export = j->conn->export,
        .style = j->conn->style,
        .contexts = j->conn->contexts,
        .cookie = r->cookie,
        .request_offset = r->offset,
        .offset = j->offset,
        .length = j->length,
        .type = r->type,
        .flags = r->flags,
        .done = !r->cut,
    };
}

/* *reply: the data with its headers; NULL: none. */
static int carry_out(struct job *j, struct chunk **reply)
{
    struct piece p = describe(j);

    *reply = NULL;
    if (p.type != NBD_CMD_READ && p.type != NBD_CMD_BLOCK_STATUS)
        return serve_change(&p, j->data, 0);
    struct chunk *k = chunk_new(serve_room(&p));
    if (!k)
        return -ENOMEM;
    int ret = p.type == NBD_CMD_READ ? serve_read(&p, 0, k->data, &k->len)
                                     : serve_status(&p, k->data, &k->len);
    if (ret < 0)
        free(k);
    else
        *reply = k;
    return ret;
}

/* conn.lock held: a reply without data. */
static void say(struct job *j, size_t (*reply)(const struct piece *, uint8_t *), int error)
{
    struct piece p = describe(j);
    struct chunk *k = j->reply;

    size_t n = k->len;
    if (error) {
        p.done = !j->request->cut || p.type != NBD_CMD_READ;
        n += reply_error(&p, error, k->data + n);
    }
    if (reply)
        n += reply(&p, k->data + n);
    k->len = n;
}

/* conn.lock held. N3 */
static void answer(struct job *j, bool data, int result)
{
    struct request *r = j->request;
    bool last = --r->pieces == 0;

    j->reply->len = 0;
    if (result < 0 && r->error == 0)
        r->error = -result;
    if (r->cut && r->type == NBD_CMD_READ)
        say(j, last ? reply_end : NULL, -result);
    else if (last && !data)
        say(j, r->error ? NULL : reply_ok, r->error);
    if (last)
        free(r);
}

/* Replies, and gives back what the job held. */
static void finish(struct job *j, struct chunk *data, int result)
{
    struct conn *c = j->conn;

    LOCK_SCOPE(&c->lock);
    answer(j, data, result);
    if (data) {
        data->held = j->held;
        out_queue_locked(c, data);
    } else {
        out_release_locked(c, j->held);
    }
    if (j->reply->len > 0) {
        out_queue_locked(c, j->reply);
        j->reply = NULL;
    }
    if (!c->blocked)
        out_flush_locked(c);
    c->jobs--;
    if (c->jobs == 0 && c->awaited)
        loop_mail(c);
}

static void run(void *arg)
{
    struct job *j = arg;
    struct chunk *data;
    int ret = carry_out(j, &data);

    serve_count(j->conn->export, j->request->type, j->length, ret);
    finish(j, data, ret);
    free(j->reply);
    free(j);
}

/* Memory for a job with so many bytes of data; `room` is set. */
static struct job *allocate(struct loop *l, size_t data)
{
    struct job *j = l->spare;

    if (j && data > 0 && data <= j->room) {
        l->spare = NULL;
        return j;
    }
    j = malloc(sizeof(*j) + data);
    if (j)
        j->room = data;
    return j;
}

struct job *job_new(struct conn *c, struct request *r, uint64_t offset, uint64_t length,
                    size_t data, size_t held)
{
    struct job *j = allocate(c->loop, data);
    struct chunk *reply = chunk_new(2 * REPLY_ROOM);

    if (!j || !reply) {
        free(j);
        free(reply);
        return NULL;
    }
    *j = (struct job){
        .pool = { .fn = run, .arg = j },
        .conn = c,
        .request = r,
        .offset = offset,
        .length = length,
        .held = data + held,
        .reply = reply,
        .room = j->room,
    };
    reply->held = 0;
    LOCK_SCOPE(&c->lock);
    c->held += j->held;
    atomic_fetch_add(&c->server->held, j->held);
    return j;
}

void job_submit(struct job *j)
{
    struct conn *c = j->conn;
    {
        LOCK_SCOPE(&c->lock);
        c->jobs++;
    }
    pool_submit(c->server->pool, &j->pool);
}

void job_free(struct job *j)
{
    {
        LOCK_SCOPE(&j->conn->lock);
        out_release_locked(j->conn, j->held);
    }
    free(j->reply);
    struct loop *l = j->conn->loop;
    if (j->room > 0 && !l->spare)
        l->spare = j;
    else
        free(j);
}
