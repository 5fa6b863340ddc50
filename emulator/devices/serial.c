/* What is sent goes to the stream at once, so the transmitter is always empty. What comes in stands in the FIFO until it is read;
 * the stream is told when there is room again. */
#include "serial.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "chardev/chardev.h"
#include "cpu/memory.h"
#include "irq.h"
#include "ports.h"
#include "timer.h"

enum { IER_DATA = 1, IER_EMPTY = 2, IER_LINE = 4, IER_MODEM = 8 };
enum { IIR_NONE = 1, IIR_MODEM = 0, IIR_EMPTY = 2, IIR_DATA = 4, IIR_LINE = 6, IIR_TIMEOUT = 12 };
enum { LCR_DIVISOR = 0x80, MCR_OUT2 = 8, MCR_LOOP = 16 };
enum { LSR_DATA = 1, LSR_OVERRUN = 2, LSR_BREAK = 16, LSR_EMPTY = 0x60 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };
enum { FIFO = 16, SOON = 400000 /* ns: the timeout of four characters at 115200 baud */ };

struct serial {
    pthread_mutex_t lock;
    struct chardev *chardev;
    struct chardev_user user;
    struct clock *clock;
    struct timer *timer;
    struct irq out;
    uint8_t ier, fcr, lcr, mcr, lsr, msr, scratch, divisor[2];
    uint8_t fifo[FIFO];
    unsigned head, count;
    bool empty_due; /* the transmitter's interrupt has not been seen yet */
    bool timeout, up;
};

static unsigned capacity(const struct serial *s)
{
    return s->fcr & 1 ? FIFO : 1;
}

static unsigned trigger(const struct serial *s)
{
    static const uint8_t at[] = { 1, 4, 8, 14 };
    return s->fcr & 1 ? at[s->fcr >> 6] : 1;
}

static uint8_t interrupt(const struct serial *s)
{
    if (s->ier & IER_LINE && s->lsr & (LSR_OVERRUN | LSR_BREAK))
        return IIR_LINE;
    if (s->ier & IER_DATA && s->count && s->timeout)
        return IIR_TIMEOUT;
    if (s->ier & IER_DATA && s->count >= trigger(s))
        return IIR_DATA;
    if (s->ier & IER_EMPTY && s->empty_due)
        return IIR_EMPTY;
    if (s->ier & IER_MODEM && s->msr & 15)
        return IIR_MODEM;
    return IIR_NONE;
}

static void update(struct serial *s)
{
    bool up = interrupt(s) != IIR_NONE && s->mcr & MCR_OUT2;
    if (up != s->up)
        irq_set(&s->out, up);
    s->up = up;
}

static void receive(struct serial *s, uint8_t byte)
{
    if (s->count == capacity(s)) {
        s->lsr |= LSR_OVERRUN;
        return;
    }
    s->fifo[(s->head + s->count++) % FIFO] = byte;
    if (s->fcr & 1 && s->count < trigger(s))
        timer_set(s->timer, clock_now(s->clock) + SOON);
}

static void ring(void *opaque)
{
    struct serial *s = opaque;
    LOCK_SCOPE(&s->lock);
    s->timeout = s->count > 0;
    update(s);
}

/* ---- the stream ----------------------------------------------------------------------------- */

static size_t stream_room(void *opaque)
{
    struct serial *s = opaque;
    LOCK_SCOPE(&s->lock);
    return s->mcr & MCR_LOOP ? 0 : capacity(s) - s->count;
}

static void stream_input(void *opaque, const uint8_t *data, size_t length)
{
    struct serial *s = opaque;
    LOCK_SCOPE(&s->lock);
    for (size_t i = 0; i < length; i++)
        receive(s, data[i]);
    update(s);
}

static void stream_event(void *opaque, enum chardev_event event)
{
    struct serial *s = opaque;
    if (event != CHARDEV_BREAK)
        return;
    LOCK_SCOPE(&s->lock);
    receive(s, 0);
    s->lsr |= LSR_BREAK;
    update(s);
}

/* ---- registers ------------------------------------------------------------------------------ */

static uint8_t read_data(struct serial *s, bool *more)
{
    uint8_t byte = s->fifo[s->head];
    if (!s->count)
        return 0;
    s->head = (s->head + 1) % FIFO;
    s->count--;
    if (!s->count)
        s->timeout = false;
    *more = !s->count;
    return byte;
}

/* Table III: in loopback the modem's inputs are our own outputs. */
static uint8_t modem(const struct serial *s)
{
    if (!(s->mcr & MCR_LOOP))
        return (uint8_t)(s->msr & 15) | MSR_CTS | MSR_DSR | MSR_DCD;
    return (uint8_t)((s->msr & 15) | (s->mcr & 2 ? MSR_CTS : 0) | (s->mcr & 1 ? MSR_DSR : 0) |
                     (s->mcr & 4 ? MSR_RI : 0) | (s->mcr & 8 ? MSR_DCD : 0));
}

static uint8_t read_register(struct serial *s, unsigned r, bool *more)
{
    uint8_t value;
    switch (r) {
    case 0:
        return s->lcr & LCR_DIVISOR ? s->divisor[0] : read_data(s, more);
    case 1:
        return s->lcr & LCR_DIVISOR ? s->divisor[1] : s->ier;
    case 2:
        value = interrupt(s);
        if (value == IIR_EMPTY)
            s->empty_due = false;
        return (uint8_t)(value | (s->fcr & 1 ? 0xc0 : 0));
    case 3:
        return s->lcr;
    case 4:
        return s->mcr;
    case 5:
        value = (uint8_t)(s->lsr | LSR_EMPTY | (s->count ? LSR_DATA : 0));
        s->lsr = 0;
        return value;
    case 6:
        value = modem(s);
        s->msr = 0;
        return value;
    default:
        return s->scratch;
    }
}

static void write_fcr(struct serial *s, uint8_t value)
{
    if ((value ^ s->fcr) & 1 || value & 2) {
        s->head = s->count = 0;
        s->timeout = false;
    }
    if (value & 4)
        s->empty_due = true;
    s->fcr = value & 0xc9;
}

static void write_mcr(struct serial *s, uint8_t value)
{
    uint8_t before = modem(s), now;
    s->mcr = value & 0x1f;
    now = modem(s);
    s->msr |= (uint8_t)((before ^ now) >> 4 & 0xb) | (before & ~now & MSR_RI ? 4 : 0);
}

/* True: the byte is to be sent. */
static bool write_register(struct serial *s, unsigned r, uint8_t value)
{
    switch (r) {
    case 0:
        if (s->lcr & LCR_DIVISOR) {
            s->divisor[0] = value;
            return false;
        }
        s->empty_due = true;
        if (s->mcr & MCR_LOOP)
            receive(s, value);
        return !(s->mcr & MCR_LOOP);
    case 1:
        if (s->lcr & LCR_DIVISOR) {
            s->divisor[1] = value;
            return false;
        }
        if (value & ~s->ier & IER_EMPTY)
            s->empty_due = true;
        s->ier = value & 15;
        break;
    case 2:
        write_fcr(s, value);
        break;
    case 3:
        s->lcr = value;
        break;
    case 4:
        write_mcr(s, value);
        break;
    case 7:
        s->scratch = value;
        break;
    default:
        break;
    }
    return false;
}

static uint64_t io_read(void *opaque, uint64_t offset, unsigned size)
{
    struct serial *s = opaque;
    bool more = false;
    uint8_t value;
    (void)size;
    {
        LOCK_SCOPE(&s->lock);
        value = read_register(s, (unsigned)offset & 7, &more);
        update(s);
    }
    if (more && s->chardev)
        chardev_more(s->chardev);
    return value;
}

static void io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct serial *s = opaque;
    uint8_t byte = (uint8_t)value;
    bool sends, more;
    (void)size;
    {
        LOCK_SCOPE(&s->lock);
        sends = write_register(s, (unsigned)offset & 7, byte);
        more = (offset & 7) == 2 || (offset & 7) == 4; /* the FIFO was emptied, loopback ended */
        update(s);
    }
    if (s->chardev && sends)
        chardev_write(s->chardev, &byte, 1);
    if (s->chardev && more)
        chardev_more(s->chardev);
}

static const struct memory_io io = { io_read, io_write };

/* ---- life ----------------------------------------------------------------------------------- */

void serial_reset(struct serial *s)
{
    LOCK_SCOPE(&s->lock);
    s->ier = s->fcr = s->lcr = s->mcr = s->lsr = s->msr = s->scratch = 0;
    s->divisor[0] = 12;
    s->divisor[1] = 0;
    s->head = s->count = 0;
    s->empty_due = s->timeout = false;
    update(s);
}

int serial_new(struct ports *ports, uint16_t port, struct clock *clock, const struct irq *out,
               const char *chardev, struct serial **serial, struct error **err)
{
    struct serial *s = calloc(1, sizeof *s);
    if (!s)
        return error_set(err, ENOMEM, "No memory left for a serial port");
    s->out = *out;
    s->clock = clock;
    pthread_mutex_init(&s->lock, NULL);
    s->timer = timer_new(clock, ring, s);
    int r = s->timer ? ports_add(ports, port, 8, &io, s) : -ENOMEM;
    if (r) {
        serial_free(s);
        return error_set(err, -r, "No memory left for a serial port");
    }
    serial_reset(s);
    s->user = (struct chardev_user){
        .opaque = s, .room = stream_room, .input = stream_input, .event = stream_event
    };
    r = chardev ? chardev_take(chardev, &s->user, &s->chardev, err) : 0;
    if (r)
        serial_free(s);
    else
        *serial = s;
    return r;
}

void serial_free(struct serial *s)
{
    if (!s)
        return;
    if (s->chardev)
        chardev_release(s->chardev, &s->user);
    timer_free(s->timer);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
