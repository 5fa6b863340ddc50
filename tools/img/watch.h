/* Watching over long work: progress in four styles, SIGUSR1, and a clean stop on SIGINT.
 *
 * watch_begin blocks the signals and starts one thread that receives them and draws. The work polls
 * watch_stopped (or lets watch_step cancel it) and winds up as after any failure; watch_end
 * turns the exit code into 128 + signal. A second signal, or work that does not end within three
 * seconds, makes the thread remove what was registered with watch_guard and leave at once.
 */
#ifndef IMG_WATCH_H
#define IMG_WATCH_H

#include <stdbool.h>
#include <stdint.h>

struct watch_how {
    bool percent;     /* -p */
    const char *mode; /* --progress=: NULL, "", "bar", "qemu", "json" or "none" */
    bool quiet;       /* -q */
    bool busy_stdout; /* the data goes there, so nothing else may */
};

/* Before any image is opened, so that threads of the block layer inherit the signal mask. */
void watch_begin(const char *verb, const struct watch_how *how);

/* The amount of work in bytes, once it is known. */
void watch_total(uint64_t total);

/* So many bytes are dealt with. From any thread; never goes backwards. */
void watch_done(uint64_t done);

/* A signal asked to stop. */
bool watch_stopped(void);

/* For poll(2): readable once a signal asked to stop. */
int watch_stop_fd(void);

/* Called before leaving in haste; NULL: nothing to do. Must only use what is safe from another
 * thread. */
void watch_guard(void (*leave)(void));

/* A blk_progress_fn; opaque points to the uint64_t of bytes that earlier parts account for. */
int watch_step(void *opaque, uint64_t done, uint64_t total);

/* Takes the bar off the screen, because a line of text comes. */
void watch_hide(void);

/* Ends the thread and the display. code 0: all done. */
int watch_end(int code);

#endif
