/* A monitor's life on its chardev. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "internal.h"

void monitor_print(struct monitor *m, const char *text)
{
    while (*text) {
        size_t n = strcspn(text, "\n");
        chardev_write(m->chardev, text, n);
        text += n;
        if (*text) {
            chardev_write(m->chardev, "\r\n", 2);
            text++;
        }
    }
}

void monitor_printf(struct monitor *m, const char *format, ...)
{
    _cleanup_free_ char *text = NULL;
    va_list args;

    va_start(args, format);
    if (vasprintf(&text, format, args) < 0)
        text = NULL;
    va_end(args);
    monitor_print(m, text ? text : "out of memory\n");
}

static void input(void *opaque, const uint8_t *data, size_t length)
{
    struct monitor *m = opaque;

    for (size_t i = 0; i < length; i++)
        if (line_type(m, data[i])) {
            command_run(m, m->line.text);
            line_prompt(m);
        }
}

static void event(void *opaque, enum chardev_event what)
{
    struct monitor *m = opaque;

    if (what != CHARDEV_OPENED)
        return;
    monitor_print(m, "Platter " PLATTER_VERSION " monitor - type 'help' for more information\n");
    line_prompt(m);
}

int monitor_new(const char *chardev, struct machine *machine, const char *name, bool paused,
                struct monitor **out, struct error **err)
{
    struct monitor *m = calloc(1, sizeof(*m));

    if (!m)
        return error_set(err, ENOMEM, "out of memory");
    m->machine = machine;
    m->name = name;
    m->prelaunch = paused;
    m->user = (struct chardev_user){ .opaque = m, .input = input, .event = event };
    int ret = chardev_take(chardev, &m->user, &m->chardev, err);
    if (ret < 0) {
        free(m);
        return ret;
    }
    *out = m;
    return 0;
}

void monitor_free(struct monitor *m)
{
    if (!m)
        return;
    chardev_release(m->chardev, &m->user);
    line_free(&m->line);
    free(m);
}
