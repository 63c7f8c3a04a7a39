/* Preloaded into a broker: faults of its disk and of its clock, each while a file of its name exists in $X0_FAULTS.

   read-fails   reads of the store fail
   sync-hangs   nothing can be synced to the disk
   clock        holds the seconds that the clock of the machine is behind
   inode        the store's files have other inodes, as after another mount
   no-birth-time  the file system does not know when the store's files were made */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int open_fault(const char *name) {
    const char *dir = getenv("X0_FAULTS");
    char path[4096];
    if (!dir) return -1;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
}

static int is_on(const char *name) {
    int fd = open_fault(name);
    if (fd < 0) return 0;
    syscall(SYS_close, fd);
    return 1;
}

static int is_store(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, "store.db") != NULL;
}

static int fails(int fd) {
    int error = errno;
    int on = is_on("read-fails") && is_store(fd);
    errno = on ? EIO : error;
    return on;
}

ssize_t read(int fd, void *to, size_t length) {
    return fails(fd) ? -1 : syscall(SYS_read, fd, to, length);
}

ssize_t pread64(int fd, void *to, size_t length, off64_t at) {
    return fails(fd) ? -1 : syscall(SYS_pread64, fd, to, length, at);
}

ssize_t pread(int fd, void *to, size_t length, off_t at) { return pread64(fd, to, length, at); }

static void hang(void) {
    struct timespec pause = {0, 5000000};
    while (is_on("sync-hangs")) nanosleep(&pause, NULL);
}

int fsync(int fd) {
    hang();
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    hang();
    return (int)syscall(SYS_fdatasync, fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = (int)syscall(SYS_clock_gettime, clock, now);
    if (clock != CLOCK_REALTIME) return done;
    int error = errno, fd = open_fault("clock");
    if (fd >= 0) {
        char text[32] = {0};
        if (syscall(SYS_read, fd, text, sizeof text - 1) > 0) now->tv_sec -= atoll(text);
        syscall(SYS_close, fd);
    }
    errno = error;
    return done;
}

int statx(int dir, const char *path, int flags, unsigned int mask, struct statx *found) {
    int done = (int)syscall(SYS_statx, dir, path, flags, mask, found);
    int error = errno;
    if (done == 0 && path && strstr(path, "store.db")) {
        if (is_on("inode")) found->stx_ino += 1000000007;
        if (is_on("no-birth-time")) found->stx_mask &= ~STATX_BTIME;
    }
    errno = error;
    return done;
}
