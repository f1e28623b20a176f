/* A machine that misbehaves on demand: a preload library, steered through a shared file.
 *
 * EVERTURN_HOSTILE names a file of four native 64-bit numbers, which may change at any time:
 *
 *   0  milliseconds the wall clock is ahead (or behind); the stopwatch is left alone
 *   1  milliseconds each sync takes longer
 *   2  not 0: the disk is full: a write to a file below EVERTURN_HOSTILE_ROOT stores half of what
 *      it was given at most, and the next one fails with ENOSPC
 *   3  not 0: the files below EVERTURN_HOSTILE_ROOT may only be read (EROFS)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static volatile int64_t *words;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void map_words(void) {
    static int64_t nothing[4];
    const char *path = getenv("EVERTURN_HOSTILE");
    /* Not `open`, which asks for the words. */
    int fd = path ? openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, 32, PROT_READ, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    words = at == MAP_FAILED ? nothing : at;
}

static int64_t word(int which) {
    pthread_once(&once, map_words);
    return words[which];
}

/* --- the clock --------------------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *at) {
    REAL(clock_gettime);
    int answer = real(clock, at);
    if (!answer && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ahead = word(0), rest = ahead % 1000 * 1000000;
        at->tv_sec += ahead / 1000;
        at->tv_nsec += rest;
        if (at->tv_nsec >= 1000000000) at->tv_nsec -= 1000000000, at->tv_sec++;
        if (at->tv_nsec < 0) at->tv_nsec += 1000000000, at->tv_sec--;
    }
    return answer;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

/* --- the disk ---------------------------------------------------------------------------- */

static int lies_below(const char *path) {
    const char *root = getenv("EVERTURN_HOSTILE_ROOT");
    return root && !strncmp(path, root, strlen(root));
}

static int is_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return lies_below(path);
}

static int is_full(int fd) { return word(2) && is_below(fd); }
static int is_read_only(int fd) { return word(3) && is_below(fd); }

static __thread int torn;

/* How many bytes still fit: half of them, then none. */
static size_t fits(size_t size) {
    torn = !torn;
    return torn ? size / 2 : 0;
}

#define FULL(call_with_less) \
    if (is_read_only(fd)) return errno = EROFS, -1; \
    if (is_full(fd)) { \
        size_t less = fits(size); \
        if (!less) return errno = ENOSPC, -1; \
        return call_with_less; \
    }

ssize_t write(int fd, const void *from, size_t size) {
    REAL(write);
    FULL(real(fd, from, less));
    return real(fd, from, size);
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
    REAL(pwrite);
    FULL(real(fd, from, less, at));
    return real(fd, from, size, at);
}

ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
    REAL(pwrite64);
    FULL(real(fd, from, less, at));
    return real(fd, from, size, at);
}

static void delay(void) {
    int64_t ms = word(1);
    if (ms > 0) usleep((useconds_t)ms * 1000);
}

int fsync(int fd) {
    REAL(fsync);
    delay();
    return is_full(fd) ? (errno = ENOSPC, -1) : real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    delay();
    return is_full(fd) ? (errno = ENOSPC, -1) : real(fd);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (word(3) && lies_below(path) && (flags & O_ACCMODE) != O_RDONLY) \
            return errno = EROFS, -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return word(3) && lies_below(path) ? (errno = EROFS, -1) : real(path, mode);
}
