/* After a move: the names that the images of a chain state for their backing files, rewritten.
 *
 * First the whole chain is walked along the new names, read-only; only when each of them leads to an image
 * is anything written, from the lowest image up, so that the name the user has works last. Interrupted, the
 * command is simply given again.
 */
#include "chain.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"

#include "image.h"
#include "img.h"
#include "layers.h"
#include "target.h"
#include "watch.h"

/* One image of the chain, and the name it is to state. */
struct step {
    char *image, *image_format;
    char *before, *after, *format;
};

struct plan {
    struct step *at;
    size_t n;
};

static void plan_free(struct plan *p)
{
    for (size_t i = 0; i < p->n; i++) {
        free(p->at[i].image);
        free(p->at[i].image_format);
        free(p->at[i].before);
        free(p->at[i].after);
        free(p->at[i].format);
    }
    free(p->at);
}

/* ---- the new name -------------------------------------------------------------------------------- */

/* "/old/x" with OLD=/old, NEW=/new is "/new/x"; whole parts of the path only. NULL: OLD is not its beginning. */
static char *swap_beginning(const char *name, const char *old, size_t old_len, const char *new)
{
    char *out = NULL;
    while (old_len > 1 && old[old_len - 1] == '/')
        old_len--;
    if (strncmp(name, old, old_len) != 0)
        return NULL;
    const char *rest = name + old_len;
    if (*rest && *rest != '/' && !(old_len && old[old_len - 1] == '/'))
        return NULL;
    size_t new_len = strlen(new);
    while (new_len > 1 && new[new_len - 1] == '/' && *rest)
        new_len--;
    return asprintf(&out, "%.*s%s", (int)new_len, new, rest) < 0 ? NULL : out;
}

static char *folder_of(const char *file)
{
    const char *slash = strrchr(file, '/');
    if (!slash)
        return strdup(".");
    return strndup(file, slash == file ? 1 : (size_t)(slash - file));
}

/* The name of the same file in the folder, as `image` would state it: plain when it lies beside it. NULL: there is
 * no such file. */
static char *in_folder(const char *name, const char *folder, const char *image)
{
    const char *slash = strrchr(name, '/'), *base = slash ? slash + 1 : name;
    _cleanup_free_ char *real = realpath(folder, NULL), *home = folder_of(image);
    _cleanup_free_ char *real_home = home ? realpath(home, NULL) : NULL;
    char *full = NULL;
    struct stat st;
    if (!real || asprintf(&full, "%s/%s", strcmp(real, "/") == 0 ? "" : real, base) < 0)
        return NULL;
    if (stat(full, &st) != 0) {
        free(full);
        return NULL;
    }
    if (real_home && strcmp(real, real_home) == 0) {
        free(full);
        return strdup(base);
    }
    return full;
}

/* What the image is to state instead of `name`. */
static char *new_name(const struct chain_move *m, const char *name, const char *image)
{
    const char *equals = strchr(m->rule, '=');
    char *out = NULL;
    if (!name_has_protocol(name))
        out = equals ? swap_beginning(name, m->rule, (size_t)(equals - m->rule), equals + 1)
                     : in_folder(name, m->rule, image);
    return out ? out : strdup(name);
}

/* ---- planning ------------------------------------------------------------------------------------ */

static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static struct step *add_step(struct plan *p)
{
    struct step *more = realloc(p->at, (p->n + 1) * sizeof(*more));
    if (!more) {
        complain("out of memory");
        return NULL;
    }
    p->at = more;
    more[p->n] = (struct step){ 0 };
    return &more[p->n++];
}

/* Opens the image of step s, and says what it states and shall state. 1: it states nothing; negative: failed. */
static int plan_one(const struct chain_move *m, struct plan *p, const char *name,
                    const char *format, const char *stated_by)
{
    struct image_spec spec = {
        .name = name,
        .format = format,
        .image_opts = m->image_opts && !stated_by,
        .flags = BLK_OPEN_NO_BACKING | BLK_OPEN_NO_IO | BLK_OPEN_QUIET,
        .stated_by = stated_by,
    };
    _cleanup_image_ struct blk_node *node = image_open(&spec);
    struct error *err = NULL;
    struct blk_info info = { 0 };
    if (!node)
        return -EIO;
    if (blk_info(node, &info, &err) < 0) {
        complain_error(&err, NULL);
        return -EIO;
    }
    if (!info.backing_filename || !info.backing_filename[0]) {
        blk_info_free(&info);
        return 1;
    }
    struct step *s = add_step(p);
    if (s) {
        s->image = strdup(name);
        s->image_format = strdup(info.format);
        s->before = strdup(info.backing_filename);
        s->after = new_name(m, info.backing_filename, blk_filename(node));
        s->format = info.backing_format ? strdup(info.backing_format) : NULL;
    }
    blk_info_free(&info);
    return s && s->image && s->before && s->after ? 0 : -ENOMEM;
}

static bool is_loop(const struct plan *p, const char *name)
{
    for (size_t i = 0; i < p->n; i++) {
        if (same_file(p->at[i].image, name)) {
            complain("with the new names the chain would be a loop: '%s' stands above itself",
                     name);
            return true;
        }
    }
    if (p->n >= CHAIN_MAX)
        complain("the chain is longer than %d images", CHAIN_MAX);
    return p->n >= CHAIN_MAX;
}

/* Walks along the new names. */
static bool plan_all(const struct chain_move *m, struct plan *p, const char *top)
{
    int r = plan_one(m, p, top, m->format, NULL);
    while (r == 0) {
        const struct step *s = &p->at[p->n - 1];
        _cleanup_free_ char *name = blk_resolve(s->image, s->after);
        _cleanup_free_ char *format = s->format && s->format[0] ? strdup(s->format) : NULL;
        _cleanup_free_ char *image = strdup(s->image);
        if (!name || !image || is_loop(p, name))
            return false;
        r = plan_one(m, p, name, format, image);
    }
    return r == 1;
}

/* ---- doing ----------------------------------------------------------------------------------------- */

static bool still_states(struct blk_node *node, const char *name)
{
    struct blk_info info = { 0 };
    if (blk_info(node, &info, NULL) < 0)
        return false;
    bool same = info.backing_filename && strcmp(info.backing_filename, name) == 0;
    if (!same)
        complain("'%s' no longer rests on '%s': it has just been changed", blk_filename(node),
                 name);
    blk_info_free(&info);
    return same;
}

static bool rewrite(const struct chain_move *m, const struct step *s, bool top)
{
    struct image_spec spec = {
        .name = s->image,
        .format = top && m->image_opts ? NULL : s->image_format,
        .image_opts = top && m->image_opts,
        .flags = BLK_OPEN_NO_BACKING | BLK_OPEN_RDWR | BLK_OPEN_QUIET,
    };
    struct blk_node *node = image_open(&spec);
    if (!node)
        return false;
    bool ok = still_states(node, s->before) && layer_rename(node, s->after, s->format);
    return image_close(node) && ok;
}

static bool move_all(const struct chain_move *m, const struct plan *p)
{
    for (size_t i = p->n; i-- > 0;) {
        const struct step *s = &p->at[i];
        if (strcmp(s->before, s->after) == 0)
            continue;
        if (watch_stopped() || (!m->dry && !rewrite(m, s, i == 0)))
            return false;
        if (!m->quiet)
            printf("%s: %s -> %s\n", s->image, s->before, s->after);
    }
    return true;
}

int chain_relocate(const struct chain_move *m, const char *name)
{
    struct plan p = { 0 };
    struct stat st;
    bool ok = false;
    if (!strchr(m->rule, '=') && (stat(m->rule, &st) != 0 || !S_ISDIR(st.st_mode)))
        complain("--relocate=%s: it is OLD=NEW, or a folder", m->rule);
    else if (m->rule[0] == '=')
        complain("--relocate=%s: the old beginning of the names is missing", m->rule);
    else
        ok = plan_all(m, &p, name) && move_all(m, &p);
    plan_free(&p);
    return ok ? 0 : 1;
}
