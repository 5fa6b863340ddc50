/* What machine.c and the kinds of machine share. */
#ifndef MACHINE_INTERNAL_H
#define MACHINE_INTERNAL_H

#include "machine.h"

#include "cpu/cpu.h"
#include "devices/device.h"

#include <pthread.h>

struct strbuf;

/* What a kind of machine does; `board` is its own. */
struct machine_ops {
    void (*free)(struct machine *m); /* also after a create that failed halfway */
    /* All as after power on. CPUs stand, devices are drained; an error only when something cannot be loaded. */
    int (*reset)(struct machine *m, struct error **err);
    enum cpu_exit (*run)(struct machine *m, unsigned cpu);
    struct cpu *(*cpu)(struct machine *m, unsigned cpu);
    void (*power_button)(struct machine *m);
    void (*registers)(struct machine *m, unsigned cpu, struct strbuf *text);
    void (*memory_tree)(struct machine *m, struct strbuf *text);
    int (*send_key)(struct machine *m, const char *keys, struct error **err);
};

struct machine_thread {
    struct machine *m;
    unsigned cpu;
    pthread_t thread;
};

struct machine {
    const struct machine_type *type;
    const struct machine_ops *ops;
    void *board;
    const struct machine_config *config;
    struct memory *memory;
    struct clock *clock;
    struct pci_bus *pci;
    struct device *devices;
    struct device_host host;

    pthread_mutex_t control; /* held while the machine is stopped, run or reset */

    pthread_mutex_t lock;       /* guards what follows; taken inside `control` */
    pthread_cond_t wake;        /* machine_run(): a request came */
    pthread_cond_t go;          /* CPUs: something changed */
    pthread_cond_t stood;       /* a CPU has stopped */
    unsigned requests;          /* bits by enum machine_request */
    unsigned started, standing; /* threads */
    bool running, ending;
    enum machine_state state;
    int exit_status;
    struct machine_thread *threads;
};

#endif
