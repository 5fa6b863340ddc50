/* The handshake: a client learns what there is and chooses an export (proto.md, "Option haggling"). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "base/strbuf.h"
#include "internal.h"

enum { OPTION_HEADER = 16, REPLY_HEADER = 20 };

/* An option, all of it there. */
struct option {
    uint32_t type, len;
    const uint8_t *data;
};

/* ---- saying ------------------------------------------------------------------------------------------ */

static void put(struct conn *c, const void *data, size_t len)
{
    uint8_t *room = out_room(c, len);

    if (!room) { /* longer than any reply of ours */
        conn_close(c);
        return;
    }
    memcpy(room, data, len);
    c->loop->out_len += len;
}

static void reply(struct conn *c, uint32_t option, uint32_t type, const void *data, size_t len)
{
    uint8_t head[REPLY_HEADER];

    store_be64(head, NBD_REP_MAGIC);
    store_be32(head + 8, option);
    store_be32(head + 12, type);
    store_be32(head + 16, (uint32_t)len);
    put(c, head, sizeof(head));
    if (len > 0)
        put(c, data, len);
}

static void refuse(struct conn *c, uint32_t option, enum nbd_rep_err err, const char *text)
{
    reply(c, option, NBD_REP_ERR(err), text, strlen(text));
}

void handshake_greet(struct conn *c)
{
    uint8_t hello[18];

    store_be64(hello, NBD_MAGIC);
    store_be64(hello + 8, NBD_IHAVEOPT);
    store_be16(hello + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    put(c, hello, sizeof(hello));
    out_send(c);
}

/* ---- the list -------------------------------------------------------------------------------------------- */

static void list(struct conn *c, const struct option *o)
{
    struct nbd_server *s = c->server;

    if (o->len > 0) {
        refuse(c, o->type, NBD_ERR_INVALID, "this option has no data");
        return;
    }
    for (size_t i = 0;; i++) {
        struct export *e;
        {
            LOCK_SCOPE(&s->lock);
            e = i < s->exports.len ? s->exports.at[i] : NULL; /* lives as long as the server */
        }
        if (!e)
            break;
        if (e->hidden)
            continue;
        _cleanup_strbuf_ struct strbuf text = STRBUF_INIT;
        uint8_t len[4];
        store_be32(len, (uint32_t)strlen(e->name));
        strbuf_addn(&text, (const char *)len, 4);
        strbuf_add(&text, e->name);
        strbuf_add(&text, e->description ? e->description : "");
        reply(c, o->type, NBD_REP_SERVER, strbuf_text(&text), text.len);
    }
    reply(c, o->type, NBD_REP_ACK, NULL, 0);
}

/* ---- what an export is -------------------------------------------------------------------------------------- */

static uint16_t export_flags(const struct conn *c, const struct export *e)
{
    unsigned f = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    if (e->read_only)
        f |= NBD_FLAG_READ_ONLY;
    else
        f |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    if (c->server->config.max_clients != 1) /* all share one node: a flush is everybody's */
        f |= NBD_FLAG_CAN_MULTI_CONN;
    if (c->style != REPLY_SIMPLE)
        f |= NBD_FLAG_SEND_DF;
    return (uint16_t)f;
}

static void info_export(struct conn *c, uint32_t option, const struct export *e)
{
    uint8_t info[12];

    store_be16(info, NBD_INFO_EXPORT);
    store_be64(info + 2, blk_size(e->node));
    store_be16(info + 10, export_flags(c, e));
    reply(c, option, NBD_REP_INFO, info, sizeof(info));
}

static void info_text(struct conn *c, uint32_t option, uint16_t type, const char *text)
{
    uint8_t info[2 + NBD_MAX_STRING];
    size_t len = MIN(strlen(text), (size_t)NBD_MAX_STRING);

    store_be16(info, type);
    memcpy(info + 2, text, len);
    reply(c, option, NBD_REP_INFO, info, 2 + len);
}

static void info_block_size(struct conn *c, uint32_t option, const struct export *e)
{
    struct blk_limits limits;
    uint8_t info[14];

    blk_get_limits(e->node, &limits);
    store_be16(info, NBD_INFO_BLOCK_SIZE);
    store_be32(info + 2, 1); /* the core takes care of alignment */
    store_be32(info + 6, MAX(4096u, limits.align));
    store_be32(info + 10, MAX_REQUEST);
    reply(c, option, NBD_REP_INFO, info, sizeof(info));
}

/* Ready for requests. */
static void choose(struct conn *c, struct export *e)
{
    c->export = e;
    if (c->contexts_export != e)
        c->contexts = 0;
    c->state = CONN_REQUESTS;
    atomic_fetch_add(&e->clients, 1);
    atomic_fetch_sub(&c->server->handshakes, 1);
    server_update_accepting(c->server);
    server_log(c->server, "%s: connected to export '%s'", c->peer, e->name);
}

static void info_or_go(struct conn *c, const struct option *o)
{
    bool all = o->type == NBD_OPT_GO, sizes = false;

    if (o->len < 6)
        goto bad;
    uint32_t len = load_be32(o->data);
    if (len > o->len - 6)
        goto bad;
    uint32_t count = load_be16(o->data + 4 + len);
    if (o->len != 6 + (uint64_t)len + 2 * (uint64_t)count)
        goto bad;
    struct export *e = server_export(c->server, (const char *)o->data + 4, len);
    if (!e) {
        refuse(c, o->type, NBD_ERR_UNKNOWN, "there is no export of this name");
        return;
    }
    info_export(c, o->type, e);
    for (uint32_t i = 0; i < count; i++) {
        uint16_t wanted = load_be16(o->data + 6 + len + 2 * (size_t)i);
        if (wanted == NBD_INFO_NAME)
            info_text(c, o->type, NBD_INFO_NAME, e->name);
        if (wanted == NBD_INFO_DESCRIPTION && e->description)
            info_text(c, o->type, NBD_INFO_DESCRIPTION, e->description);
        if (wanted == NBD_INFO_BLOCK_SIZE && !sizes) {
            info_block_size(c, o->type, e);
            sizes = true;
        }
    }
    if (!sizes)
        info_block_size(c, o->type, e);
    reply(c, o->type, NBD_REP_ACK, NULL, 0);
    if (all)
        choose(c, e);
    return;
bad:
    refuse(c, o->type, NBD_ERR_INVALID, "the option's lengths contradict each other");
}

/* The old way to choose; it knows no errors. */
static void export_name(struct conn *c, const struct option *o)
{
    struct export *e = server_export(c->server, (const char *)o->data, o->len);
    uint8_t answer[10 + 124] = { 0 };

    if (!e || c->style == REPLY_EXTENDED) {
        conn_close(c);
        return;
    }
    store_be64(answer, blk_size(e->node));
    store_be16(answer + 8, export_flags(c, e));
    put(c, answer, c->no_zeroes ? 10 : sizeof(answer));
    choose(c, e);
}

enum { CONTEXT_NAME = 18 + 1024 }; /* a bitmap's name has 1023 bytes at most */

/* ---- contexts -------------------------------------------------------------------------------------------- */

/* false: the export does not offer it. */
static bool context_name(const struct export *e, unsigned context, char *out, size_t size)
{
    switch (context) {
    case META_BASE:
        snprintf(out, size, "base:allocation");
        return true;
    case META_DEPTH:
        snprintf(out, size, "qemu:allocation-depth");
        return e->allocation_depth;
    default:
        if (context - META_BITMAP >= e->bitmaps)
            return false;
        snprintf(out, size, "qemu:dirty-bitmap:%s", e->bitmap_name[context - META_BITMAP]);
        return true;
    }
}

/* "qemu:" and "qemu:dirty-bitmap:" ask for all that begin so, which only a list answers. */
static bool asked(const char *query, uint32_t len, const char *name, bool lists)
{
    if (len == strlen(name) && !memcmp(query, name, len))
        return true;
    return lists && len > 0 && query[len - 1] == ':' && !strncmp(query, name, len);
}

/* query NULL: all. */
static unsigned find_contexts(const struct export *e, const char *query, uint32_t len, bool lists)
{
    char name[CONTEXT_NAME];
    unsigned found = 0;

    for (unsigned i = META_BASE; i < META_END; i++)
        if (context_name(e, i, name, sizeof(name)) && (!query || asked(query, len, name, lists)))
            found |= META_BIT(i);
    return found;
}

static void tell_contexts(struct conn *c, const struct export *e, uint32_t option, unsigned found,
                          bool lists)
{
    for (unsigned i = META_BASE; i < META_END; i++) {
        uint8_t data[4 + CONTEXT_NAME];
        if (!(found & META_BIT(i)) || !context_name(e, i, (char *)data + 4, CONTEXT_NAME))
            continue;
        store_be32(data, lists ? 0 : i);
        reply(c, option, NBD_REP_META_CONTEXT, data, 4 + strlen((char *)data + 4));
    }
    reply(c, option, NBD_REP_ACK, NULL, 0);
}

/* All queries, from `at` on. -EINVAL: their lengths contradict each other. */
static int read_queries(const struct option *o, uint32_t at, const struct export *e, bool lists,
                        unsigned *found)
{
    uint32_t count = load_be32(o->data + at);

    at += 4;
    *found = count == 0 && lists ? find_contexts(e, NULL, 0, true) : 0;
    for (; count > 0; count--) {
        if (o->len - at < 4)
            return -EINVAL;
        uint32_t len = load_be32(o->data + at);
        at += 4;
        if (len > o->len - at)
            return -EINVAL;
        *found |= find_contexts(e, (const char *)o->data + at, len, lists);
        at += len;
    }
    return at == o->len ? 0 : -EINVAL;
}

static void meta_context(struct conn *c, const struct option *o)
{
    bool lists = o->type == NBD_OPT_LIST_META_CONTEXT;
    unsigned found;

    if (!lists)
        c->contexts = 0;
    if (c->style == REPLY_SIMPLE) {
        refuse(c, o->type, NBD_ERR_INVALID, "structured replies come first");
        return;
    }
    uint32_t len = o->len >= 8 ? load_be32(o->data) : 0;
    if (o->len < 8 || len > o->len - 8) {
        refuse(c, o->type, NBD_ERR_INVALID, "the option's lengths contradict each other");
        return;
    }
    struct export *e = server_export(c->server, (const char *)o->data + 4, len);
    if (!e) {
        refuse(c, o->type, NBD_ERR_UNKNOWN, "there is no export of this name");
        return;
    }
    if (read_queries(o, 4 + len, e, lists, &found) < 0) {
        refuse(c, o->type, NBD_ERR_INVALID, "the option's lengths contradict each other");
        return;
    }
    if (!lists) {
        c->contexts = found;
        c->contexts_export = e;
    }
    tell_contexts(c, e, o->type, found, lists);
}

/* ---- the rest ---------------------------------------------------------------------------------------------- */

static void structured(struct conn *c, const struct option *o, enum reply_style style)
{
    if (o->len > 0) {
        refuse(c, o->type, NBD_ERR_INVALID, "this option has no data");
        return;
    }
    if (c->style > style) {
        refuse(c, o->type, NBD_ERR_INVALID, "extended headers were agreed on already");
        return;
    }
    c->style = style;
    c->contexts = 0;
    reply(c, o->type, NBD_REP_ACK, NULL, 0);
}

/* N4: everything learnt so far is forgotten. The caller drops what else was read. */
static void start_tls(struct conn *c, const struct option *o)
{
    if (o->len > 0) {
        refuse(c, o->type, NBD_ERR_INVALID, "this option has no data");
        return;
    }
    if (!c->server->config.tls) {
        refuse(c, o->type, NBD_ERR_POLICY, "this server has no TLS");
        return;
    }
    if (c->secure) {
        refuse(c, o->type, NBD_ERR_INVALID, "TLS is there already");
        return;
    }
    reply(c, o->type, NBD_REP_ACK, NULL, 0);
    out_send(c);
    c->style = REPLY_SIMPLE;
    c->contexts = 0;
    c->contexts_export = NULL;
    bool waits;
    {
        LOCK_SCOPE(&c->lock);
        waits = c->out; /* in plain text; a client that takes no replies gets no TLS */
    }
    if (waits || tls_start(c) < 0)
        conn_close(c);
    else
        c->state = CONN_TLS;
}

static void handle(struct conn *c, const struct option *o)
{
    bool locked = c->server->config.tls && !c->server->config.tls_optional && !c->secure;

    if (locked && o->type != NBD_OPT_STARTTLS && o->type != NBD_OPT_ABORT) {
        if (o->type == NBD_OPT_EXPORT_NAME)
            conn_close(c);
        else
            refuse(c, o->type, NBD_ERR_TLS_REQD, "this server wants TLS first");
        return;
    }
    switch (o->type) {
    case NBD_OPT_EXPORT_NAME:
        export_name(c, o);
        break;
    case NBD_OPT_ABORT:
        reply(c, o->type, NBD_REP_ACK, NULL, 0);
        c->eof = true;
        break;
    case NBD_OPT_LIST:
        list(c, o);
        break;
    case NBD_OPT_STARTTLS:
        start_tls(c, o);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        info_or_go(c, o);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        structured(c, o, REPLY_STRUCTURED);
        break;
    case NBD_OPT_EXTENDED_HEADERS:
        structured(c, o, REPLY_EXTENDED);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        meta_context(c, o);
        break;
    default:
        refuse(c, o->type, NBD_ERR_UNSUP, "this option is not known here");
    }
}

static size_t client_flags(struct conn *c, const uint8_t *data, size_t len)
{
    if (len < 4)
        return 0;
    uint32_t flags = load_be32(data);
    if (flags & ~(uint32_t)(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) {
        conn_close(c);
        return len;
    }
    c->fixed = flags & NBD_FLAG_C_FIXED_NEWSTYLE;
    c->no_zeroes = flags & NBD_FLAG_C_NO_ZEROES;
    c->state = CONN_OPTIONS;
    return 4;
}

size_t handshake_parse(struct conn *c, const uint8_t *data, size_t len)
{
    if (c->state == CONN_FLAGS)
        return client_flags(c, data, len);
    if (c->skip > 0) {
        size_t n = (size_t)MIN(c->skip, (uint64_t)len);
        c->skip -= n;
        return n;
    }
    if (len < OPTION_HEADER)
        return 0;
    struct option o = { load_be32(data + 8), load_be32(data + 12), data + OPTION_HEADER };
    bool wrong = load_be64(data) != NBD_IHAVEOPT || o.len > MAX_REQUEST ||
                 (!c->fixed && o.type != NBD_OPT_EXPORT_NAME);
    if (wrong) {
        conn_close(c);
        return len;
    }
    if (o.len > OPTION_MAX) {
        if (o.type == NBD_OPT_EXPORT_NAME)
            conn_close(c);
        else
            refuse(c, o.type, NBD_ERR_TOO_BIG, "the option is too long");
        c->skip = o.len;
        return OPTION_HEADER;
    }
    if (len - OPTION_HEADER < o.len)
        return 0;
    handle(c, &o);
    return c->state == CONN_TLS ? len : OPTION_HEADER + o.len; /* N4 */
}
