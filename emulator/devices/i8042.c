/* One queue of bytes on their way to port 60; each remembers which device it is from. */
#include "i8042.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "cpu/memory.h"
#include "irq.h"
#include "keys.h"
#include "ports.h"

#include <string.h>

enum {
    STATUS_FULL = 1,
    STATUS_SYSTEM = 4,
    STATUS_COMMAND = 8,
    STATUS_UNLOCKED = 16,
    STATUS_MOUSE = 32
};
enum {
    MODE_IRQ = 1,
    MODE_MOUSE_IRQ = 2,
    MODE_SYSTEM = 4,
    MODE_NO_KEYBOARD = 16,
    MODE_NO_MOUSE = 32,
    MODE_TRANSLATE = 64
};
enum { QUEUE = 256, KEYS = 8, ACK = 0xfa, RESEND = 0xfe };

struct i8042 {
    pthread_mutex_t lock;
    struct irq irq[2]; /* keyboard, mouse */
    struct i8042_host host;
    struct {
        uint8_t byte;
        bool mouse;
    } queue[QUEUE];
    unsigned head, count;
    bool full; /* what `out` holds waits to be read */
    uint8_t out;
    bool out_mouse;
    uint8_t mode, status;
    uint8_t command; /* whose parameter comes next at port 60, 0: none */
    uint8_t port2, keyboard_command, mouse_command;
    bool scanning;
    uint8_t set; /* scan code set */
};

/* ---- the queue ------------------------------------------------------------------------------ */

static void pull(struct i8042 *k)
{
    irq_set(&k->irq[0], k->full && !k->out_mouse && k->mode & MODE_IRQ);
    irq_set(&k->irq[1], k->full && k->out_mouse && k->mode & MODE_MOUSE_IRQ);
}

/* The next byte goes to the output buffer when that is empty and its device may speak. */
static void move_on(struct i8042 *k)
{
    if (!k->full && k->count) {
        bool mouse = k->queue[k->head].mouse;
        if (k->mode & (mouse ? MODE_NO_MOUSE : MODE_NO_KEYBOARD)) {
            pull(k);
            return;
        }
        k->out = k->queue[k->head].byte;
        k->out_mouse = mouse;
        k->full = true;
        k->head = (k->head + 1) % QUEUE;
        k->count--;
    }
    pull(k);
}

static void put(struct i8042 *k, uint8_t byte, bool mouse)
{
    if (k->count == QUEUE)
        return; /* as a keyboard whose buffer has run over */
    unsigned at = (k->head + k->count++) % QUEUE;
    k->queue[at].byte = byte;
    k->queue[at].mouse = mouse;
    move_on(k);
}

/* The controller's own answer goes in front of what the devices say. */
static void answer(struct i8042 *k, uint8_t byte, bool mouse)
{
    k->out = byte;
    k->out_mouse = mouse;
    k->full = true;
    pull(k);
}

/* ---- the devices ---------------------------------------------------------------------------- */

static void keyboard_byte(struct i8042 *k, uint8_t value)
{
    uint8_t command = k->keyboard_command;
    k->keyboard_command = 0;
    if (command == 0xf0 && value == 0) {
        put(k, ACK, false);
        put(k, k->set, false);
        return;
    }
    if (command) { /* the parameter of what came before */
        if (command == 0xf0 && value <= 3)
            k->set = value;
        put(k, ACK, false);
        return;
    }
    switch (value) {
    case 0xff:
        k->scanning = true;
        k->set = 2;
        put(k, ACK, false);
        put(k, 0xaa, false);
        break;
    case 0xf2:
        put(k, ACK, false);
        put(k, 0xab, false);
        put(k, k->mode & MODE_TRANSLATE ? 0x41 : 0x83, false);
        break;
    case 0xee:
        put(k, 0xee, false);
        break;
    case 0xed:
    case 0xf0:
    case 0xf3:
        k->keyboard_command = value;
        put(k, ACK, false);
        break;
    case 0xf4:
    case 0xf5:
    case 0xf6:
        k->scanning = value != 0xf5;
        put(k, ACK, false);
        break;
    default:
        put(k, value >= 0xed ? ACK : RESEND, false);
    }
}

static void mouse_byte(struct i8042 *k, uint8_t value)
{
    uint8_t command = k->mouse_command;
    k->mouse_command = 0;
    put(k, ACK, true);
    if (command)
        return;
    switch (value) {
    case 0xff:
        put(k, 0xaa, true);
        put(k, 0, true);
        break;
    case 0xf2:
        put(k, 0, true);
        break;
    case 0xe9:
        put(k, 0, true);
        put(k, 2, true);
        put(k, 100, true);
        break;
    case 0xe8:
    case 0xf3:
        k->mouse_command = value;
        break;
    default:
        break;
    }
}

/* ---- the controller ------------------------------------------------------------------------- */

static bool write_command(struct i8042 *k, uint8_t value)
{
    if (value >= 0x20 && value < 0x40) {
        answer(k, value == 0x20 ? k->mode : 0, false);
        return false;
    }
    switch (value) {
    case 0x60:
    case 0xd1:
    case 0xd2:
    case 0xd3:
    case 0xd4:
        k->command = value;
        break;
    case 0xa7:
    case 0xa8:
        k->mode = (uint8_t)((k->mode & ~MODE_NO_MOUSE) | (value == 0xa7 ? MODE_NO_MOUSE : 0));
        break;
    case 0xa9:
    case 0xab:
        answer(k, 0, false); /* the wires are sound */
        break;
    case 0xaa:
        k->status |= STATUS_SYSTEM;
        answer(k, 0x55, false);
        break;
    case 0xad:
    case 0xae:
        k->mode = (uint8_t)((k->mode & ~MODE_NO_KEYBOARD) | (value == 0xad ? MODE_NO_KEYBOARD : 0));
        break;
    case 0xc0:
        answer(k, 0x80, false);
        break;
    case 0xd0:
        answer(k, (uint8_t)(0x01 | k->port2 | (k->full ? 0x10 : 0)), false);
        break;
    default:
        /* Pulses of output lines: line 0 is the CPU's reset. */
        return value >= 0xf0 && !(value & 1);
    }
    move_on(k);
    return false;
}

static bool write_data(struct i8042 *k, uint8_t value)
{
    uint8_t command = k->command;
    k->command = 0;
    switch (command) {
    case 0x60:
        k->mode = value;
        k->status = (uint8_t)((k->status & ~STATUS_SYSTEM) | (value & STATUS_SYSTEM));
        move_on(k);
        break;
    case 0xd1:
        k->port2 = value & 2;
        return !(value & 1);
    case 0xd2:
        answer(k, value, false);
        break;
    case 0xd3:
        answer(k, value, true);
        break;
    case 0xd4:
        k->mode &= (uint8_t)~MODE_NO_MOUSE;
        mouse_byte(k, value);
        break;
    default:
        k->mode &= (uint8_t)~MODE_NO_KEYBOARD;
        keyboard_byte(k, value);
    }
    return false;
}

static uint64_t read_60(void *opaque, uint64_t offset, unsigned size)
{
    struct i8042 *k = opaque;
    (void)offset, (void)size;
    LOCK_SCOPE(&k->lock);
    uint8_t value = k->out;
    k->full = false;
    pull(k);
    move_on(k);
    return value;
}

static uint64_t read_64(void *opaque, uint64_t offset, unsigned size)
{
    struct i8042 *k = opaque;
    (void)offset, (void)size;
    LOCK_SCOPE(&k->lock);
    return k->status | (k->full ? STATUS_FULL | (k->out_mouse ? STATUS_MOUSE : 0) : 0);
}

static void write_60(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8042 *k = opaque;
    bool reset;
    (void)offset, (void)size;
    {
        LOCK_SCOPE(&k->lock);
        k->status &= (uint8_t)~STATUS_COMMAND;
        reset = write_data(k, (uint8_t)value);
    }
    if (reset)
        k->host.reset(k->host.opaque);
}

static void write_64(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8042 *k = opaque;
    bool reset;
    (void)offset, (void)size;
    {
        LOCK_SCOPE(&k->lock);
        k->status |= STATUS_COMMAND;
        reset = write_command(k, (uint8_t)value);
    }
    if (reset)
        k->host.reset(k->host.opaque);
}

static const struct memory_io io_60 = { read_60, write_60 };
static const struct memory_io io_64 = { read_64, write_64 };

/* ---- typing --------------------------------------------------------------------------------- */

static void put_code(struct i8042 *k, uint16_t code, bool release)
{
    bool set1 = k->mode & MODE_TRANSLATE || k->set == 1;
    uint8_t byte = set1 ? key_set1(code) : key_set2(code);
    if (code & KEY_EXTENDED)
        put(k, 0xe0, false);
    if (release && !set1)
        put(k, 0xf0, false);
    put(k, (uint8_t)(byte | (release && set1 ? 0x80 : 0)), false);
}

int i8042_type(struct i8042 *k, const char *keys, struct error **err)
{
    uint16_t codes[KEYS];
    unsigned n = 0;
    _cleanup_free_ char *copy = strdup(keys);
    char *rest = copy;
    for (const char *key; rest && (key = strsep(&rest, "-"));) {
        if (n == KEYS)
            return error_set(err, EINVAL, "'%s' is more than %d keys at once", keys, KEYS);
        codes[n] = key_find(key);
        if (!codes[n])
            return error_set(err, EINVAL, "There is no key '%s'", key);
        n++;
    }
    LOCK_SCOPE(&k->lock);
    if (!k->scanning || k->count + 6 * n > QUEUE)
        return error_set(err, EBUSY, "The guest does not take keys");
    for (unsigned i = 0; i < n; i++)
        put_code(k, codes[i], false);
    for (unsigned i = n; i-- > 0;)
        put_code(k, codes[i], true);
    return 0;
}

/* ---- life ----------------------------------------------------------------------------------- */

void i8042_reset(struct i8042 *k)
{
    LOCK_SCOPE(&k->lock);
    k->head = k->count = 0;
    k->full = false;
    k->mode = MODE_TRANSLATE | MODE_NO_MOUSE | MODE_NO_KEYBOARD;
    k->status = STATUS_UNLOCKED;
    k->command = k->keyboard_command = k->mouse_command = 0;
    k->port2 = 2; /* A20 is open, always */
    k->scanning = true;
    k->set = 2;
    pull(k);
}

struct i8042 *i8042_new(struct ports *ports, const struct irq *keyboard, const struct irq *mouse,
                        const struct i8042_host *host)
{
    struct i8042 *k = calloc(1, sizeof *k);
    if (!k)
        return NULL;
    k->irq[0] = *keyboard;
    k->irq[1] = *mouse;
    k->host = *host;
    pthread_mutex_init(&k->lock, NULL);
    if (ports_add(ports, 0x60, 1, &io_60, k) || ports_add(ports, 0x64, 1, &io_64, k)) {
        i8042_free(k);
        return NULL;
    }
    i8042_reset(k);
    return k;
}

void i8042_free(struct i8042 *k)
{
    if (!k)
        return;
    pthread_mutex_destroy(&k->lock);
    free(k);
}
