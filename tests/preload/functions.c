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
    CHECK(posix_memalign(&block, 3, 10) == EINVAL && posix_memalign(&block, 4, 10) == EINVAL);
    CHECK(posix_memalign(&block, 64, SIZE_MAX) == ENOMEM);
    CHECK(block == sink && errno == 7);
    CHECK(aligned_alloc(48, 100) == NULL && errno == EINVAL);
    block = memalign(48, 100);
    CHECK((uintptr_t)block % 64 == 0);
    free(block);
    block = valloc(100);
    CHECK((uintptr_t)block % 4096 == 0 && is_ours(block));
    free(block);
    block = pvalloc(4097);
    CHECK((uintptr_t)block % 4096 == 0 && malloc_usable_size(block) >= 8192);
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
    {"memory_falls_after_a_spike", memory_falls_after_a_spike},
    {"from_thread_to_thread", from_thread_to_thread},
    {"forks_beside_threads", forks_beside_threads},
    {"threads_that_come_and_go", threads_that_come_and_go},
    {"libraries_come_and_go", libraries_come_and_go},
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
