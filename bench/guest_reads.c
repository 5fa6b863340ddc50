/* In a guest: random reads of 4 KiB past the page cache, so many threads for so many seconds; prints reads per second.
 *
 * guest_reads DISK THREADS SECONDS
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <linux/fs.h>

enum { BLOCK = 4096, MOST = 64 };

static uint64_t blocks;
static int fd;
static volatile int stop;
static unsigned long counts[MOST];

static void *work(void *arg)
{
    unsigned long *count = arg;
    uint64_t random = 88172645463325252u + (uint64_t)(count - counts) * 7919;
    void *buffer;
    if (posix_memalign(&buffer, BLOCK, BLOCK))
        return NULL;
    while (!stop) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if (pread(fd, buffer, BLOCK, (off_t)(random % blocks * BLOCK)) != BLOCK)
            perror("pread");
        ++*count;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread[MOST];
    struct timespec begin, end;
    unsigned long all = 0;
    uint64_t size = 0;
    int threads = argc == 4 ? atoi(argv[2]) : 0;

    fd = argc == 4 ? open(argv[1], O_RDONLY | O_DIRECT) : -1;
    if (fd < 0 || threads < 1 || threads > MOST || ioctl(fd, BLKGETSIZE64, &size) < 0)
        return 1;
    blocks = size / BLOCK;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int i = 0; i < threads; i++)
        pthread_create(&thread[i], NULL, work, &counts[i]);
    sleep((unsigned)atoi(argv[3]));
    stop = 1; /* a word, seen soon enough */
    for (int i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
        all += counts[i];
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds =
        (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9;
    printf("READS %.0f\n", (double)all / seconds);
    return 0;
}
