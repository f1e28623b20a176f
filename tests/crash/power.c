/* What would survive a power loss: a preload library that keeps a second tree, the shadow, which
 * holds nothing but what was synced.
 *
 * EVERTURN_POWER_ROOT is the tree to watch, EVERTURN_POWER_SHADOW where its shadow goes.
 *
 *   fsync, fdatasync of a file   its bytes of this moment are copied to the shadow, before the
 *                                caller hears that they are safe. A file's first sync also keeps
 *                                its name, as journalling file systems do.
 *   rename                       nothing yet: the shadow keeps the old names.
 *   fsync of a folder            renames and deletions in it take effect in the shadow.
 *
 * Everything else that was written is lost, which is the worst a power loss does: bytes that were
 * not synced may survive on a real disk, and nobody may rely on it. A copy is put in place by a
 * rename, so that a process killed while copying leaves the state before.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#define RENAMES_MAX 256

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char renamed_from[RENAMES_MAX][PATH_MAX], renamed_to[RENAMES_MAX][PATH_MAX];
static int renames;

/* The shadow of a path, or 0 for one outside the tree. */
static int shadow_of(const char *path, char *shadow) {
    const char *root = getenv("EVERTURN_POWER_ROOT"), *to = getenv("EVERTURN_POWER_SHADOW");
    if (!root || !to) return 0;
    size_t length = strlen(root);
    if (strncmp(path, root, length) || (path[length] && path[length] != '/')) return 0;
    return snprintf(shadow, PATH_MAX, "%s%s", to, path + length) < PATH_MAX;
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return 1;
}

static void make_folders(char *path) {
    for (char *at = path + 1; *at; at++)
        if (*at == '/') {
            *at = 0;
            mkdir(path, 0700);
            *at = '/';
        }
}

static void keep_file(const char *path, char *shadow) {
    char fresh[PATH_MAX + 16];
    struct stat facts;
    make_folders(shadow);
    snprintf(fresh, sizeof fresh, "%s.copying", shadow);
    int from = open(path, O_RDONLY | O_CLOEXEC);
    if (from < 0) return; /* deleted while open: no name leads to it */
    fstat(from, &facts);
    int to = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    off_t left = facts.st_size;
    while (to >= 0 && left > 0) {
        ssize_t sent = sendfile(to, from, NULL, left);
        if (sent <= 0) break;
        left -= sent;
    }
    close(from);
    if (to >= 0) close(to);
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    real(fresh, shadow);
}

static int lies_in(const char *path, const char *folder) {
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && path[length] == '/' && !strchr(path + length + 1, '/');
}

static void keep_folder(const char *path, const char *shadow) {
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    char from[PATH_MAX], to[PATH_MAX];
    int kept = 0;
    for (int i = 0; i < renames; i++) {
        if (lies_in(renamed_to[i], path)) {
            if (shadow_of(renamed_from[i], from) && shadow_of(renamed_to[i], to)) {
                make_folders(to);
                real(from, to);
            }
        } else if (kept++ != i) {
            strcpy(renamed_from[kept - 1], renamed_from[i]);
            strcpy(renamed_to[kept - 1], renamed_to[i]);
        }
    }
    renames = kept;
    DIR *folder = opendir(shadow);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char live[PATH_MAX + 260], kept_as[PATH_MAX + 260];
        if (entry->d_type != DT_REG) continue;
        snprintf(live, sizeof live, "%s/%s", path, entry->d_name);
        snprintf(kept_as, sizeof kept_as, "%s/%s", shadow, entry->d_name);
        if (access(live, F_OK)) unlink(kept_as);
    }
    if (folder) closedir(folder);
}

static void synced(int fd) {
    char path[PATH_MAX], shadow[PATH_MAX];
    struct stat facts;
    if (!path_of(fd, path) || !shadow_of(path, shadow) || fstat(fd, &facts)) return;
    pthread_mutex_lock(&lock);
    if (S_ISDIR(facts.st_mode))
        keep_folder(path, shadow);
    else if (S_ISREG(facts.st_mode))
        keep_file(path, shadow);
    pthread_mutex_unlock(&lock);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    int answer = real(fd);
    if (!answer) synced(fd);
    return answer;
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    int answer = real(fd);
    if (!answer) synced(fd);
    return answer;
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    char was[PATH_MAX], is[PATH_MAX], shadow[PATH_MAX];
    int known = realpath(from, was) != NULL;
    int answer = real(from, to);
    if (!answer && known && realpath(to, is) && shadow_of(is, shadow)) {
        pthread_mutex_lock(&lock);
        if (renames < RENAMES_MAX) {
            strcpy(renamed_from[renames], was);
            strcpy(renamed_to[renames++], is);
        }
        pthread_mutex_unlock(&lock);
    }
    return answer;
}
