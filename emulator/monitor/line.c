/* Typing a line: cursor, history, completion, on any terminal that knows carriage return and ESC [ K. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static const char prompt[] = "(qemu) "; /* programs that play people wait for it */

static void show(struct monitor *m)
{
    struct line *l = &m->line;

    chardev_write(m->chardev, "\r\033[K", 4);
    chardev_write(m->chardev, prompt, sizeof(prompt) - 1);
    chardev_write(m->chardev, l->text, l->len);
    for (size_t i = l->at; i < l->len; i++)
        chardev_write(m->chardev, "\b", 1);
}

void line_prompt(struct monitor *m)
{
    m->line.len = m->line.at = 0;
    m->line.shown = m->line.count;
    chardev_write(m->chardev, prompt, sizeof(prompt) - 1);
}

static void insert(struct monitor *m, const char *text, size_t n)
{
    struct line *l = &m->line;

    if (n >= sizeof(l->text) - l->len)
        return;
    memmove(l->text + l->at + n, l->text + l->at, l->len - l->at);
    memcpy(l->text + l->at, text, n);
    l->len += n;
    l->at += n;
    if (l->at == l->len)
        chardev_write(m->chardev, text, n);
    else
        show(m);
}

static void erase(struct monitor *m, size_t from, size_t to)
{
    struct line *l = &m->line;

    memmove(l->text + from, l->text + to, l->len - to);
    l->len -= to - from;
    l->at = from;
    show(m);
}

static size_t word_before(const struct line *l)
{
    size_t at = l->at;

    while (at > 0 && l->text[at - 1] == ' ')
        at--;
    while (at > 0 && l->text[at - 1] != ' ')
        at--;
    return at;
}

/* ---- history ----------------------------------------------------------------------------------------------- */

static void remember(struct line *l)
{
    if (l->len == 0 || (l->count && !strcmp(l->history[l->count - 1], l->text)))
        return;
    char *copy = strdup(l->text);
    if (!copy)
        return;
    if (l->count == LINE_HISTORY) {
        free(l->history[0]);
        memmove(l->history, l->history + 1, (LINE_HISTORY - 1) * sizeof(*l->history));
        l->count--;
    }
    l->history[l->count++] = copy;
}

static void recall(struct monitor *m, int step)
{
    struct line *l = &m->line;

    if ((step < 0 && l->shown == 0) || (step > 0 && l->shown >= l->count))
        return;
    l->shown = step < 0 ? l->shown - 1 : l->shown + 1;
    const char *text = l->shown < l->count ? l->history[l->shown] : "";
    l->len = l->at = strlen(text);
    memcpy(l->text, text, l->len);
    show(m);
}

void line_free(struct line *l)
{
    for (unsigned i = 0; i < l->count; i++)
        free(l->history[i]);
}

/* ---- completion -------------------------------------------------------------------------------------------- */

static size_t common(const char *a, const char *b)
{
    size_t n = 0;
    while (a[n] && a[n] == b[n])
        n++;
    return n;
}

static void complete(struct monitor *m)
{
    struct line *l = &m->line;
    char begun[LINE_MAX_];
    const char *first, *other;

    memcpy(begun, l->text, l->at);
    begun[l->at] = '\0';
    first = command_completion(begun, 0);
    if (!first)
        return;
    size_t all = strlen(first), have = l->at - word_before(l);
    if (l->at > 0 && l->text[l->at - 1] == ' ')
        have = 0;
    for (unsigned i = 1; (other = command_completion(begun, i)); i++)
        if (common(first, other) < all)
            all = common(first, other);
    if (all > have) {
        insert(m, first + have, all - have);
        if (!command_completion(begun, 1))
            insert(m, " ", 1);
        return;
    }
    for (unsigned i = 0; (other = command_completion(begun, i)); i++)
        monitor_printf(m, "%s%s", i ? "  " : "\n", other);
    monitor_print(m, "\n");
    show(m);
}

/* ---- keys -------------------------------------------------------------------------------------------------- */

static void arrow(struct monitor *m, uint8_t key)
{
    struct line *l = &m->line;

    switch (key) {
    case 'A':
        recall(m, -1);
        return;
    case 'B':
        recall(m, 1);
        return;
    case 'C':
        l->at += l->at < l->len;
        break;
    case 'D':
        l->at -= l->at > 0;
        break;
    case 'H':
        l->at = 0;
        break;
    case 'F':
        l->at = l->len;
        break;
    default:
        return;
    }
    show(m);
}

static bool escaped(struct monitor *m, uint8_t key)
{
    struct line *l = &m->line;

    if (l->escape == 0 && key == 27) {
        l->escape = 1;
        return true;
    }
    if (l->escape == 1) {
        l->escape = key == '[' || key == 'O' ? 2 : 0;
        return true;
    }
    if (l->escape == 2) {
        bool parameter = (key >= '0' && key <= '9') || key == ';';
        l->escape = parameter ? 2 : 0;
        if (!parameter)
            arrow(m, key);
        return true;
    }
    return false;
}

static void control(struct monitor *m, uint8_t key)
{
    struct line *l = &m->line;

    switch (key) {
    case 1: /* Ctrl-A */
        arrow(m, 'H');
        break;
    case 5: /* Ctrl-E */
        arrow(m, 'F');
        break;
    case 4: /* Ctrl-D */
        if (l->at < l->len)
            erase(m, l->at, l->at + 1);
        break;
    case 8:
    case 127:
        if (l->at > 0)
            erase(m, l->at - 1, l->at);
        break;
    case '\t':
        complete(m);
        break;
    case 11: /* Ctrl-K */
        erase(m, l->at, l->len);
        break;
    case 21: /* Ctrl-U */
        erase(m, 0, l->at);
        break;
    case 23: /* Ctrl-W */
        erase(m, word_before(l), l->at);
        break;
    default:
        break;
    }
}

bool line_type(struct monitor *m, uint8_t key)
{
    struct line *l = &m->line;

    if (escaped(m, key))
        return false;
    if (key == '\r' || key == '\n') {
        monitor_print(m, "\n");
        l->text[l->len] = '\0';
        remember(l);
        return true;
    }
    if (key < ' ' || key == 127)
        control(m, key);
    else
        insert(m, (const char *)&key, 1);
    return false;
}
