/* A program that knows nothing of rqmalloc opens a library that contains it, uses it in threads,
 * and closes it while they live: before they exit, and at that very moment. Each round opens it
 * anew, and forks.
 *
 *     unload_host LIBRARY STAYS
 *
 * STAYS is the library that contains rqmalloc: the one that is opened, or one that it needs. The
 * last line is `N passed, N failed`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define THREADS 4
#define ROUNDS 200

static const char *path, *stays;
static pthread_barrier_t used, go;

static int (*use_of(void *library))(void) {
    int (*use_memory)(void) = (int (*)(void))dlsym(library, "use_memory");
    CHECK(use_memory != NULL);
    return use_memory;
}

static void *uses_then_exits(void *use_memory) {
    CHECK(((int (*)(void))use_memory)() == 1);
    pthread_barrier_wait(&used);
    pthread_barrier_wait(&go);
    return NULL;
}

static void forks(void) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(20);
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        _exit(library != NULL && use_of(library)() == 1 && dlclose(library) == 0 ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* Threads exit after the library was closed, or meanwhile. */
static void closed_while_threads_live(bool at_the_same_time) {
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t threads[THREADS];
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        CHECK(library != NULL);
        for (int index = 0; index < THREADS; index++) {
            CHECK(pthread_create(&threads[index], NULL, uses_then_exits, (void *)use_of(library)) == 0);
        }
        pthread_barrier_wait(&used);
        if (at_the_same_time) {
            pthread_barrier_wait(&go);
            for (volatile int wait = 0; wait < round * 100; wait++) {
            }
            CHECK(dlclose(library) == 0);
        } else {
            CHECK(dlclose(library) == 0);
            if (round % 20 == 0) {
                forks();
            }
            pthread_barrier_wait(&go);
        }
        for (int index = 0; index < THREADS; index++) {
            CHECK(pthread_join(threads[index], NULL) == 0);
        }
        if (round % 20 == 0) {
            forks();
        }
    }
}

static void *opens_uses_and_closes(void *count) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    CHECK(library != NULL && use_of(library)() == 1 && dlclose(library) == 0);
    atomic_fetch_add((atomic_int *)count, 1);
    return NULL;
}

static void opened_and_closed_by_the_threads(void) {
    atomic_int count = 0;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t threads[THREADS];
        for (int index = 0; index < THREADS; index++) {
            CHECK(pthread_create(&threads[index], NULL, opens_uses_and_closes, &count) == 0);
        }
        for (int index = 0; index < THREADS; index++) {
            CHECK(pthread_join(threads[index], NULL) == 0);
        }
    }
    CHECK(count == ROUNDS * THREADS);
    forks();
}

/* The library also stays if nobody has used it: the first thread to do so may be one that it does
 * not know. */
static void stays_when_it_was_not_used(void) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
    }
    CHECK(library != NULL && dlclose(library) == 0);
    library = dlopen(stays, RTLD_NOW | RTLD_NOLOAD);
    CHECK(library != NULL && dlclose(library) == 0);
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    path = arguments[1];
    stays = arguments[2];
    alarm(120);
    pthread_barrier_init(&used, NULL, THREADS + 1);
    pthread_barrier_init(&go, NULL, THREADS + 1);
    stays_when_it_was_not_used();
    opened_and_closed_by_the_threads();
    closed_while_threads_live(false);
    closed_while_threads_live(true);
    puts("4 passed, 0 failed");
    return 0;
}
