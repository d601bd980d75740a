/* Every C allocation function under the preloaded library. Each case is a function; the program runs them all, or
 * those named, and says how many passed. A check that fails ends the program. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rqmalloc.h"

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* The program is not linked with the library: what it has of it came by LD_PRELOAD. */
static bool (*is_ours)(const void *);
static uint64_t (*begin_request)(void);
static void (*end_request)(rq_report *);

/* The compiler knows these functions too well: it must not fold them away. */
static void *volatile sink;
static void *(*volatile malloc_)(size_t) = malloc;
static void *(*volatile calloc_)(size_t, size_t) = calloc;
static void *(*volatile realloc_)(void *, size_t) = realloc;
static int (*volatile posix_memalign_)(void **, size_t, size_t) = posix_memalign;
static void *(*volatile reallocarray_)(void *, size_t, size_t) = reallocarray;

static const size_t sizes[] = {0, 1, 7, 8, 9, 24, 100, 1000, 1032, 1033, 5000, 40000, 100000, 1048584, 1048585, 5000000};
#define SIZES (sizeof sizes / sizeof *sizes)

/* Fills a block to the last byte that may be used, and expects it to be so later. */
static void fill(void *block, int seed) { memset(block, seed, malloc_usable_size(block)); }
static bool is_filled(const void *block, size_t bytes, int seed) {
    const unsigned char *at = block;
    for (size_t index = 0; index < bytes; index++)
        if (at[index] != (unsigned char)seed)
            return false;
    return true;
}

/* Before main, and at exit. */
static char *early;
__attribute__((constructor(101))) static void before_main(void) { early = strdup("before main"); }

static void sizes_and_bytes(void) {
    CHECK(early != NULL && strcmp(early, "before main") == 0);
    void *blocks[SIZES];
    for (size_t index = 0; index < SIZES; index++) {
        blocks[index] = malloc_(sizes[index]);
        CHECK(blocks[index] != NULL && is_ours(blocks[index]));
        CHECK((uintptr_t)blocks[index] % 16 == 0);
        CHECK(malloc_usable_size(blocks[index]) >= sizes[index]);
        fill(blocks[index], (int)index + 1);
    }
    for (size_t index = 0; index < SIZES; index++) {
        CHECK(is_filled(blocks[index], malloc_usable_size(blocks[index]), (int)index + 1));
        free(blocks[index]);
    }
    void *first = malloc_(0), *second = malloc_(0);
    CHECK(first != second);
    free(first);
    free(second);
    free(NULL);
    CHECK(malloc_usable_size(NULL) == 0);
}

static void zeroed(void) {
    for (int round = 0; round < 3; round++) {
        for (size_t index = 0; index < SIZES; index++) {
            void *block = calloc_(1, sizes[index]);
            CHECK(block != NULL && is_filled(block, sizes[index], 0));
            fill(block, 0xff);
            free(block);
        }
    }
    errno = 0;
    CHECK(calloc_(SIZE_MAX / 2, 3) == NULL && errno == ENOMEM);
}

static void impossible_sizes(void) {
    const size_t too_large[] = {SIZE_MAX, SIZE_MAX - 4096, (size_t)PTRDIFF_MAX + 1, (size_t)1 << 46};
    for (size_t index = 0; index < 4; index++) {
        errno = 0;
        CHECK(malloc_(too_large[index]) == NULL && errno == ENOMEM);
        errno = 0;
        CHECK(aligned_alloc(64, too_large[index]) == NULL && errno == ENOMEM);
        void *block = malloc_(10);
        fill(block, 3);
        errno = 0;
        CHECK(realloc_(block, too_large[index]) == NULL && errno == ENOMEM);
        CHECK(is_filled(block, 10, 3));
        errno = 0;
        CHECK(reallocarray_(block, too_large[index], 2) == NULL && errno == ENOMEM);
        free(block);
    }
}

static void resized(void) {
    char *block = realloc_(NULL, 10);
    size_t size = 10;
    for (size_t from = 0; from < SIZES; from++) {
        for (size_t to = 1; to < SIZES; to++) {
            fill(block, (int)(from + to));
            block = realloc_(block, sizes[to]);
            CHECK(block != NULL);
            CHECK(is_filled(block, size < sizes[to] ? size : sizes[to], (int)(from + to)));
            size = sizes[to];
        }
    }
    block = reallocarray_(block, 10, 10);
    CHECK(block != NULL && malloc_usable_size(block) >= 100);
    /* As in glibc. */
    CHECK(realloc_(block, 0) == NULL);
}

static void aligned(void) {
    for (size_t align = 8; align <= (size_t)1 << 22; align *= 2) {
        for (size_t index = 0; index < SIZES; index += 3) {
            void *blocks[3];
            CHECK(posix_memalign(&blocks[0], align, sizes[index]) == 0);
            blocks[1] = aligned_alloc(align, sizes[index]);
            blocks[2] = memalign(align, sizes[index]);
            for (int which = 0; which < 3; which++) {
                CHECK(blocks[which] != NULL && is_ours(blocks[which]));
                CHECK((uintptr_t)blocks[which] % align == 0);
                CHECK(malloc_usable_size(blocks[which]) >= sizes[index]);
                fill(blocks[which], which);
            }
            for (int which = 0; which < 3; which++)
                CHECK(is_filled(blocks[which], malloc_usable_size(blocks[which]), which));
            /* realloc keeps the bytes, not the alignment. */
            blocks[0] = realloc_(blocks[0], sizes[index] + 1);
            CHECK(is_filled(blocks[0], sizes[index], 0));
            blocks[0] = realloc_(blocks[0], 3 * sizes[index] + 100);
            CHECK(is_filled(blocks[0], sizes[index], 0));
            for (int which = 0; which < 3; which++)
                free(blocks[which]);
        }
    }
    void *block = sink;
    errno = 7;
    CHECK(posix_memalign_(&block, 3, 10) == EINVAL && posix_memalign_(&block, 4, 10) == EINVAL);
    CHECK(block == sink && errno == 7);
    /* As in glibc, which says it twice. */
    CHECK(posix_memalign_(&block, 64, SIZE_MAX) == ENOMEM);
    CHECK(block == sink && errno == ENOMEM);
    errno = 7;
    CHECK(posix_memalign_(&block, 64, 10) == 0 && errno == 7);
    free(block);
    CHECK(aligned_alloc(48, 100) == NULL && errno == EINVAL);
    block = memalign(48, 100);
    CHECK((uintptr_t)block % 64 == 0);
    free(block);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    block = valloc(100);
    CHECK((uintptr_t)block % page == 0 && is_ours(block));
    free(block);
    block = pvalloc(page + 1);
    CHECK((uintptr_t)block % page == 0 && malloc_usable_size(block) >= 2 * page);
    free(block);
}

static void sized_frees_of_c23(void) {
    void (*free_sized)(void *, size_t) = (void (*)(void *, size_t))dlsym(RTLD_DEFAULT, "free_sized");
    void (*free_aligned_sized)(void *, size_t, size_t) =
        (void (*)(void *, size_t, size_t))dlsym(RTLD_DEFAULT, "free_aligned_sized");
    CHECK(free_sized != NULL && free_aligned_sized != NULL);
    free_sized(malloc_(100), 100);
    free_aligned_sized(aligned_alloc(128, 256), 128, 256);
}

static void what_the_c_library_allocates(void) {
    char *text = strdup("some text");
    CHECK(is_ours(text) && strcmp(text, "some text") == 0);
    free(text);
    text = strndup("some text", 4);
    CHECK(is_ours(text) && strcmp(text, "some") == 0);
    free(text);
    CHECK(asprintf(&text, "%d %s", 7, "words") == 7);
    CHECK(is_ours(text));
    free(text);
    FILE *stream = open_memstream(&text, &(size_t){0});
    fprintf(stream, "%0*d", 10000, 1);
    fclose(stream);
    CHECK(is_ours(text) && strlen(text) == 10000);
    free(text);
}

static void figures(void) {
    struct mallinfo2 before = mallinfo2();
    void *block = malloc_(32 << 20);
    struct mallinfo2 during = mallinfo2();
    CHECK(during.uordblks >= before.uordblks + ((size_t)32 << 20));
    CHECK(during.arena == during.uordblks + during.fordblks);
    free(block);
    CHECK(malloc_trim(0) == 1);
    CHECK(mallinfo2().arena <= before.arena);
    CHECK(malloc_trim(0) == 0);
}

static size_t figure(const char *text, const char *name) {
    const char *place = strstr(text, name);
    CHECK(place != NULL);
    return strtoull(place + strlen(name), NULL, 10);
}

/* Every function that tells of the heap tells the same. */
static void figures_by_other_names(void) {
    void *block = malloc_(20 << 20);
    fill(block, 1);
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    CHECK(malloc_info(0, stream) == 0);
    CHECK(malloc_info(1, stream) == EINVAL);
    struct mallinfo2 large = mallinfo2();
    CHECK(fclose(stream) == 0);
    CHECK(strncmp(text, "<malloc version=\"1\">\n", 21) == 0);
    CHECK(strcmp(text + length - 10, "</malloc>\n") == 0);
    size_t mapped = figure(text, "mapped=\""), in_use = figure(text, "in_use=\"");
    CHECK(mapped == large.arena && in_use <= large.uordblks && in_use >= (size_t)20 << 20);
    CHECK(mapped == in_use + figure(text, "cached=\"") + figure(text, " free=\""));
    CHECK(figure(text, "<system type=\"current\" size=\"") == mapped);
    CHECK(figure(text, "<total type=\"fast\" size=\"") == figure(text, "cached=\""));
    CHECK(figure(text, "<total type=\"rest\" size=\"") == figure(text, " free=\""));
    free(text);
    FILE *full = fopen("/dev/full", "w");
    if (full != NULL) {
        setvbuf(full, NULL, _IONBF, 0);
        CHECK(malloc_info(0, full) == -1);
        fclose(full);
    }

    large = mallinfo2();
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    struct mallinfo small = mallinfo();
#pragma GCC diagnostic pop
    CHECK((size_t)small.arena == large.arena && (size_t)small.uordblks == large.uordblks);
    CHECK((size_t)small.fordblks == large.fordblks && (size_t)small.fsmblks == large.fsmblks);
    CHECK((size_t)small.keepcost == large.keepcost && large.fordblks == large.fsmblks + large.keepcost);

    int ends[2], saved = dup(2);
    char lines[4096] = "";
    CHECK(pipe(ends) == 0 && dup2(ends[1], 2) == 2);
    malloc_stats();
    CHECK(dup2(saved, 2) == 2);
    CHECK(read(ends[0], lines, sizeof lines - 1) > 0);
    close(ends[0]), close(ends[1]), close(saved);
    int count = 0;
    for (const char *line = lines; *line != 0; line = strchr(line, '\n') + 1, count++) {
        CHECK(strncmp(line, "rqmalloc: ", 10) == 0 && strchr(line, '\n') != NULL);
    }
    CHECK(count == 10 && strncmp(lines, "rqmalloc: mapped ", 17) == 0);
    free(block);
}

/* The names that glibc has for its own: blocks of these and of the plain ones mix. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t), *__libc_valloc(size_t), *__libc_pvalloc(size_t);
extern void __libc_free(void *);

static void names_of_the_c_library(void) {
    /* Not for linking, but in old programs. */
    void (*free_of_old)(void *) = (void (*)(void *))dlsym(RTLD_DEFAULT, "cfree");
    int (*align_to)(void **, size_t, size_t) =
        (int (*)(void **, size_t, size_t))dlsym(RTLD_DEFAULT, "__posix_memalign");
    CHECK(free_of_old != NULL && align_to != NULL);
    void (*frees[])(void *) = {free, __libc_free, free_of_old};
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t index = 0; index < SIZES; index++) {
        for (int which = 0; which < 3; which++) {
            void *blocks[8] = {__libc_malloc(sizes[index]),       __libc_calloc(1, sizes[index]),
                               __libc_realloc(NULL, sizes[index] + 1), __libc_memalign(64, sizes[index]),
                               __libc_valloc(sizes[index]),       __libc_pvalloc(sizes[index]),
                               malloc_(sizes[index]),             NULL};
            CHECK(align_to(&blocks[7], 256, sizes[index]) == 0 && (uintptr_t)blocks[7] % 256 == 0);
            CHECK(is_filled(blocks[1], sizes[index], 0) && (uintptr_t)blocks[3] % 64 == 0);
            CHECK((uintptr_t)blocks[4] % page == 0 && (uintptr_t)blocks[5] % page == 0);
            for (int block = 0; block < 8; block++) {
                CHECK(is_ours(blocks[block]) && malloc_usable_size(blocks[block]) >= sizes[index]);
                fill(blocks[block], block);
            }
            for (int block = 0; block < 8; block++) {
                blocks[block] = (block % 2 ? realloc_ : __libc_realloc)(blocks[block], sizes[index] + 3000);
                CHECK(is_filled(blocks[block], sizes[index], block));
                frees[which](blocks[block]);
            }
        }
    }
    __libc_free(NULL);
    free_of_old(NULL);
    errno = 0;
    CHECK(__libc_calloc(SIZE_MAX / 2, 3) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(__libc_pvalloc(SIZE_MAX) == NULL && errno == ENOMEM);
    CHECK(align_to(&(void *){NULL}, 3, 10) == EINVAL);
    CHECK(__libc_realloc(__libc_malloc(5), 0) == NULL);
}

/* What a spike left behind goes back while the program does nothing but ask for large blocks. */
static void memory_falls_after_a_spike(void) {
    enum { COUNT = 400000 };
    void **blocks = malloc_(COUNT * sizeof *blocks);
    for (int index = 0; index < COUNT; index++)
        blocks[index] = malloc_(150);
    for (int index = 0; index < COUNT; index++)
        free(blocks[index]);
    free(blocks);
    size_t spike = mallinfo2().arena;
    CHECK(spike > (size_t)60 << 20);
    /* Ten seconds at most, where one would do. */
    for (int round = 0; round < 10000 && mallinfo2().arena > spike / 2; round++) {
        free(malloc_(2 << 20));
        usleep(1000);
    }
    CHECK(mallinfo2().arena <= spike / 2);
}

#define HANDED 2000
static void *handed[HANDED];

static void *frees(void *unused) {
    for (int index = 0; index < HANDED; index++) {
        CHECK(is_filled(handed[index], 1 + index % 3000, index));
        free(handed[index]);
        handed[index] = malloc_(1 + index % 500);
    }
    return unused;
}

static void from_thread_to_thread(void) {
    for (int round = 0; round < 20; round++) {
        pthread_t thread;
        for (int index = 0; index < HANDED; index++) {
            handed[index] = malloc_(1 + index % 3000);
            fill(handed[index], index);
        }
        CHECK(pthread_create(&thread, NULL, frees, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        for (int index = 0; index < HANDED; index++)
            free(handed[index]);
    }
}

static volatile bool goes_on;

static void *allocates(void *unused) {
    while (goes_on)
        for (size_t index = 0; index < SIZES; index++)
            free(malloc_(sizes[index]));
    return unused;
}

static void forks_beside_threads(void) {
    pthread_t threads[3];
    goes_on = true;
    for (int index = 0; index < 3; index++)
        CHECK(pthread_create(&threads[index], NULL, allocates, NULL) == 0);
    for (int round = 0; round < 50; round++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            alarm(20);
            for (size_t index = 0; index < SIZES; index++) {
                char *block = calloc_(1, sizes[index] + 1);
                fill(block, 1);
                free(block);
            }
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    goes_on = false;
    for (int index = 0; index < 3; index++)
        CHECK(pthread_join(threads[index], NULL) == 0);
}

/* A thread's last destructors come after the allocator's own. */
static pthread_key_t key;
static void allocates_at_exit(void *rounds) {
    free(malloc_(100));
    if (rounds > (void *)1)
        pthread_setspecific(key, (char *)rounds - 1);
}
static void *leaves_late(void *unused) {
    pthread_setspecific(key, (void *)4);
    sink = malloc_(50);
    return unused;
}

static void threads_that_come_and_go(void) {
    CHECK(pthread_key_create(&key, allocates_at_exit) == 0);
    for (int round = 0; round < 500; round++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, leaves_late, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        free(sink);
    }
}

static void libraries_come_and_go(void) {
    if (getenv("RQMALLOC_PRELOAD_DEEPBIND") != NULL)
        return;
    for (int round = 0; round < 20; round++) {
        /* The last of these would let the library take its blocks from the C library. */
        const int flags[] = {RTLD_LOCAL, RTLD_GLOBAL, RTLD_LOCAL | RTLD_DEEPBIND};
        void *library = dlopen(getenv("PLUGIN"), RTLD_NOW | flags[round % 3]);
        CHECK(library != NULL);
        char *(*words)(const char *) = (char *(*)(const char *))dlsym(library, "words");
        CHECK(words != NULL);
        char *text = words("plugin");
        CHECK(is_ours(text) && strcmp(text, "words of plugin") == 0);
        CHECK(dlclose(library) == 0);
        free(text);
    }
}

/* A library that is opened with RTLD_DEEPBIND has the C library's functions where that is asked for. */
static void libraries_that_bind_deep(void) {
    bool is_kept = getenv("RQMALLOC_PRELOAD_DEEPBIND") != NULL;
    void *library = dlopen(getenv("PLUGIN_DEEP"), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    CHECK(library != NULL);
    void *(*take)(size_t) = (void *(*)(size_t))dlsym(library, "take");
    void (*give)(void *) = (void (*)(void *))dlsym(library, "give");
    CHECK(take != NULL && give != NULL);
    void *block = take(100);
    CHECK(block != NULL && is_ours(block) == !is_kept);
    give(block);
    CHECK(dlclose(library) == 0);
}

static void requests(void) {
    bool of_requests = getenv("RQMALLOC_PRELOAD_REQUESTS") != NULL;
    char *outside = malloc_(100);
    begin_request();
    sink = malloc_(100);
    sink = calloc_(10, 10);
    sink = strdup("leaked");
    sink = aligned_alloc(256, 1000);
    outside = realloc_(outside, 100000);
    free(malloc_(50));
    rq_report report;
    end_request(&report);
    CHECK(report.freed_blocks == (of_requests ? 4 : 0));
    fill(outside, 1);
    free(outside);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"sizes_and_bytes", sizes_and_bytes},
    {"zeroed", zeroed},
    {"impossible_sizes", impossible_sizes},
    {"resized", resized},
    {"aligned", aligned},
    {"sized_frees_of_c23", sized_frees_of_c23},
    {"what_the_c_library_allocates", what_the_c_library_allocates},
    {"figures", figures},
    {"figures_by_other_names", figures_by_other_names},
    {"names_of_the_c_library", names_of_the_c_library},
    {"memory_falls_after_a_spike", memory_falls_after_a_spike},
    {"from_thread_to_thread", from_thread_to_thread},
    {"forks_beside_threads", forks_beside_threads},
    {"threads_that_come_and_go", threads_that_come_and_go},
    {"libraries_come_and_go", libraries_come_and_go},
    {"libraries_that_bind_deep", libraries_that_bind_deep},
    {"requests", requests},
};

static void at_exit(void) { free(realloc_(early, 5000)); }

int main(int count, char **names) {
    is_ours = (bool (*)(const void *))dlsym(RTLD_DEFAULT, "rq_is_ours");
    begin_request = (uint64_t(*)(void))dlsym(RTLD_DEFAULT, "rq_begin_request");
    end_request = (void (*)(rq_report *))dlsym(RTLD_DEFAULT, "rq_end_request");
    CHECK(is_ours != NULL && begin_request != NULL && end_request != NULL);
    atexit(at_exit);
    alarm(120);
    int passed = 0;
    for (size_t index = 0; index < sizeof cases / sizeof *cases; index++) {
        if (count > 1 && strcmp(names[1], cases[index].name) != 0)
            continue;
        cases[index].run();
        passed++;
    }
    printf("%d passed, 0 failed\n", passed);
    return passed == 0;
}
