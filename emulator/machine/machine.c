/* What all machines do: come and go, run and stand, carry out requests.
 *
 * machine_run() is the one who carries out. CPUs run on threads of their own; each stands, counted in `standing`, while the machine does
 * not run, while a wish of the guest's waits (reset, off: the CPU is not to go on behind it), and at the end. Rank of locks: control,
 * then lock.
 */
#include "internal.h"

#include "base/cleanup.h"
#include "base/distance.h"
#include "base/error.h"
#include "base/strbuf.h"
#include "devices/pci.h"
#include "devices/timer.h"
#include "devices/vga.h"

#include <string.h>

#define BIT(request) (1u << (request))
#define OF_THE_GUEST                                                               \
    (BIT(MACHINE_GUEST_RESET) | BIT(MACHINE_GUEST_OFF) | BIT(MACHINE_GUEST_EXIT) | \
     BIT(MACHINE_ERROR_STOP))

/* ---- CPUs ----------------------------------------------------------------------------------- */

static void *cpu_thread(void *opaque)
{
    const struct machine_thread *t = opaque;
    struct machine *m = t->m;
    for (;;) {
        pthread_mutex_lock(&m->lock);
        if (!m->running || m->requests & OF_THE_GUEST) {
            m->standing++;
            pthread_cond_signal(&m->stood);
            while (!m->ending && (!m->running || m->requests & OF_THE_GUEST))
                pthread_cond_wait(&m->go, &m->lock);
            m->standing--;
        }
        bool end = m->ending;
        pthread_mutex_unlock(&m->lock); /* the CPU runs without */
        if (end)
            return NULL;
        if (m->ops->run(m, t->cpu) == CPU_EXIT_RESET)
            machine_request(m, MACHINE_GUEST_RESET);
    }
}

static void stop_cpus(struct machine *m)
{
    for (unsigned n = 0; n < m->started; n++)
        cpu_stop(m->ops->cpu(m, n));
}

/* With `control` held. Afterwards no guest code runs and no disk request is under way. */
static void stand(struct machine *m)
{
    pthread_mutex_lock(&m->lock);
    m->running = false;
    stop_cpus(m);
    while (m->standing < m->started)
        pthread_cond_wait(&m->stood, &m->lock);
    pthread_mutex_unlock(&m->lock); /* devices may ask for things while they are drained */
    clock_run(m->clock, false);
    devices_drain(m->devices);
}

static void go(struct machine *m)
{
    devices_resume(m->devices);
    clock_run(m->clock, true);
    LOCK_SCOPE(&m->lock);
    m->running = true;
    m->state = MACHINE_RUNNING;
    pthread_cond_broadcast(&m->go);
}

static int start_cpus(struct machine *m)
{
    for (unsigned n = 0; n < m->config->cpus; n++) {
        struct machine_thread *t = &m->threads[n];
        *t = (struct machine_thread){ .m = m, .cpu = n };
        if (pthread_create(&t->thread, NULL, cpu_thread, t))
            return -EAGAIN;
        LOCK_SCOPE(&m->lock);
        m->started++;
    }
    return 0;
}

static void end_cpus(struct machine *m)
{
    LOCK_SCOPE(&m->control);
    stand(m);
    pthread_mutex_lock(&m->lock);
    m->ending = true;
    pthread_cond_broadcast(&m->go);
    pthread_mutex_unlock(&m->lock); /* the threads need it to end */
    for (unsigned n = 0; n < m->started; n++)
        pthread_join(m->threads[n].thread, NULL);
    m->started = 0;
    m->ending = false;
}

/* ---- requests ------------------------------------------------------------------------------- */

void machine_request(struct machine *m, enum machine_request what)
{
    LOCK_SCOPE(&m->lock);
    m->requests |= BIT(what);
    if (BIT(what) & OF_THE_GUEST)
        stop_cpus(m);
    pthread_cond_signal(&m->wake);
}

static void guest_exit(void *machine, int status)
{
    struct machine *m = machine;
    pthread_mutex_lock(&m->lock);
    m->exit_status = status;
    pthread_mutex_unlock(&m->lock); /* the request takes it again */
    machine_request(m, MACHINE_GUEST_EXIT);
}

static void io_error(void *machine, const char *why)
{
    fprintf(stderr, "The machine is stopped: %s\n", why);
    machine_request(machine, MACHINE_ERROR_STOP);
}

static void set_state(struct machine *m, enum machine_state state)
{
    LOCK_SCOPE(&m->lock);
    m->state = state;
}

static void reset(struct machine *m)
{
    _cleanup_error_ struct error *err = NULL;
    bool ran = m->running;
    stand(m);
    devices_reset(m->devices);
    if (m->ops->reset(m, &err)) {
        fprintf(stderr, "The machine cannot be reset: %s\n", error_text(err));
        set_state(m, MACHINE_SHUT_DOWN);
        return;
    }
    if (ran || machine_state(m) == MACHINE_SHUT_DOWN)
        go(m);
}

/* True: the machine ends. */
static bool carry_out(struct machine *m, enum machine_request what,
                      const struct machine_run_args *args)
{
    LOCK_SCOPE(&m->control);
    switch (what) {
    case MACHINE_QUIT:
    case MACHINE_GUEST_EXIT:
        return true;
    case MACHINE_STOP:
    case MACHINE_ERROR_STOP:
        stand(m);
        if (m->state == MACHINE_RUNNING)
            set_state(m, what == MACHINE_STOP ? MACHINE_PAUSED : MACHINE_IO_ERROR);
        break;
    case MACHINE_CONT:
        if (m->state != MACHINE_SHUT_DOWN && !m->running)
            go(m);
        break;
    case MACHINE_GUEST_RESET:
    case MACHINE_RESET:
        if (!args->no_reboot || what == MACHINE_RESET) {
            reset(m);
            break;
        }
        __attribute__((fallthrough));
    case MACHINE_GUEST_OFF:
        stand(m);
        set_state(m, MACHINE_SHUT_DOWN);
        return !args->no_shutdown;
    case MACHINE_POWER_BUTTON:
        if (m->ops->power_button)
            m->ops->power_button(m);
        break;
    }
    return false;
}

/* The next request, taken out. The guest's CPUs go on only when it has been carried out. */
static enum machine_request next_request(struct machine *m, unsigned *bit)
{
    static const enum machine_request order[] = {
        MACHINE_QUIT,  MACHINE_GUEST_EXIT,  MACHINE_ERROR_STOP, MACHINE_GUEST_OFF,    MACHINE_STOP,
        MACHINE_RESET, MACHINE_GUEST_RESET, MACHINE_CONT,       MACHINE_POWER_BUTTON,
    };
    LOCK_SCOPE(&m->lock);
    for (;;) {
        for (unsigned i = 0; i < sizeof order / sizeof order[0]; i++) {
            *bit = BIT(order[i]);
            if (m->requests & *bit)
                return order[i];
        }
        pthread_cond_wait(&m->wake, &m->lock);
    }
}

int machine_run(struct machine *m, const struct machine_run_args *args)
{
    if (start_cpus(m)) {
        fprintf(stderr, "There is no thread left for CPU %u\n", m->started);
        end_cpus(m);
        return 1;
    }
    if (!args->paused)
        machine_request(m, MACHINE_CONT);
    for (bool end = false; !end;) {
        unsigned bit;
        enum machine_request what = next_request(m, &bit);
        end = carry_out(m, what, args);
        LOCK_SCOPE(&m->lock);
        m->requests &= ~bit;
        pthread_cond_broadcast(&m->go);
    }
    end_cpus(m);
    return m->exit_status;
}

enum machine_state machine_state(struct machine *m)
{
    LOCK_SCOPE(&m->lock);
    return m->state;
}

/* ---- life ----------------------------------------------------------------------------------- */

static const struct machine_type *find_type(const char *name, struct error **err)
{
    const struct machine_type *t;
    struct nearest best = nearest_begin(name);
    for (unsigned i = 0; (t = machine_type_at(i)); i++) {
        if (!strcmp(name, t->name) || (t->alias && !strcmp(name, t->alias)))
            return t;
        nearest_try(&best, t->name);
    }
    if (best.name)
        error_set(err, EINVAL, "There is no machine '%s'; did you mean '%s'?", name, best.name);
    else
        error_set(err, EINVAL, "There is no machine '%s'; '-M help' lists them", name);
    return NULL;
}

static int add_devices(struct machine *m, struct error **err)
{
    size_t i;
    json_t *options;
    json_array_foreach(m->config->devices, i, options)
    {
        int r = device_add(&m->devices, &m->host, options, err);
        if (r)
            return r;
    }
    return 0;
}

static int build(struct machine *m, struct error **err)
{
    m->memory = memory_new();
    m->clock = clock_new();
    m->threads = calloc(m->config->cpus, sizeof m->threads[0]);
    if (!m->memory || !m->clock || !m->threads)
        return error_set(err, ENOMEM, "No memory left for a machine");
    m->host.memory = m->memory;
    m->host.clock = m->clock;
    int r = m->type->create(m, m->config, err);
    if (!r)
        r = add_devices(m, err);
    if (!r) {
        devices_reset(m->devices);
        r = m->ops->reset(m, err);
    }
    return r;
}

int machine_new(const struct machine_config *config, struct machine **out, struct error **err)
{
    const struct machine_type *type = find_type(config->type, err);
    if (!type)
        return -EINVAL;
    if (!config->cpus)
        return error_set(err, EINVAL, "A machine has at least one CPU");
    struct machine *m = calloc(1, sizeof *m);
    if (!m)
        return error_set(err, ENOMEM, "No memory left for a machine");
    m->type = type;
    m->config = config;
    m->host.machine = m;
    m->host.exit = guest_exit;
    m->host.stop = io_error;
    pthread_mutex_init(&m->control, NULL);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->wake, NULL);
    pthread_cond_init(&m->go, NULL);
    pthread_cond_init(&m->stood, NULL);
    int r = build(m, err);
    if (r)
        machine_free(m);
    else
        *out = m;
    return r;
}

void machine_free(struct machine *m)
{
    if (!m)
        return;
    devices_drain(m->devices);
    devices_free(&m->devices);
    if (m->ops)
        m->ops->free(m);
    memory_free(m->memory);
    clock_free(m->clock);
    pthread_cond_destroy(&m->wake);
    pthread_cond_destroy(&m->go);
    pthread_cond_destroy(&m->stood);
    pthread_mutex_destroy(&m->lock);
    pthread_mutex_destroy(&m->control);
    free(m->threads);
    free(m);
}

/* ---- for the monitor ------------------------------------------------------------------------ */

char *machine_registers(struct machine *m)
{
    struct strbuf text = STRBUF_INIT;
    LOCK_SCOPE(&m->control);
    bool ran = m->running;
    stand(m);
    for (unsigned n = 0; n < m->config->cpus; n++)
        m->ops->registers(m, n, &text);
    if (ran)
        go(m);
    return strbuf_take(&text);
}

char *machine_memory_tree(struct machine *m)
{
    struct strbuf text = STRBUF_INIT;
    m->ops->memory_tree(m, &text);
    return strbuf_take(&text);
}

char *machine_pci(struct machine *m)
{
    struct strbuf text = STRBUF_INIT;
    const struct pci_function *f;
    for (unsigned i = 0; m->pci && (f = pci_function_at(m->pci, i)); i++) {
        const uint8_t devfn = f->devfn;
        strbuf_addf(&text, "  Bus  0, device %3u, function %u: %04x:%04x, class %04x\n", devfn >> 3,
                    devfn & 7u, pci_config_read(m->pci, devfn, 0, 2),
                    pci_config_read(m->pci, devfn, 2, 2), pci_config_read(m->pci, devfn, 10, 2));
        for (unsigned bar = 0; bar < PCI_BARS; bar++) {
            uint32_t at = pci_config_read(m->pci, devfn, 0x10 + 4 * bar, 4);
            if (at)
                strbuf_addf(&text, "      BAR%u: %s at 0x%x\n", bar, at & 1 ? "I/O" : "memory",
                            at & (at & 1 ? ~3u : ~15u));
        }
    }
    return strbuf_take(&text);
}

char *machine_screen_text(struct machine *m)
{
    for (struct device *d = m->devices; d; d = d->next) {
        if (!strcmp(d->type->name, "VGA"))
            return vga_text(d);
    }
    return strdup("");
}

int machine_send_key(struct machine *m, const char *keys, struct error **err)
{
    if (!m->ops->send_key)
        return error_set(err, ENODEV, "This machine has no keyboard");
    return m->ops->send_key(m, keys, err);
}
