/* Threads that end in the middle of things: cancelled, by pthread_exit(), or left by longjmp(). No
 * lock is held afterwards: other threads go on, and every function still works. */
#include "harness.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>

#if !LIBRARY_IS_SHARED
/* The static library in a program pins nothing: if it did, it would open itself with this. */
static atomic_int opened_count;
void *dlopen(const char *name, int flags);
void *dlopen(const char *name, int flags) {
    (void)name, (void)flags;
    opened_count++;
    return NULL;
}

CASE(a_program_does_not_open_itself) {
    rq_begin_request();
    unused(emalloc(100));
    rq_end_request(NULL);
    CHECK_EQUAL(opened_count, 0);
}
#endif

/* ---- everything once ------------------------------------------------------------------------- */

static void count_call(void *count) {
    atomic_fetch_add((atomic_int *)count, 1);
}

static atomic_int on_end_count;

static void use_a_request(unsigned seed) {
    static const size_t FEW[] = {0, 10, 100, 1000, 5000, 40000, 100000, 2000000};
    rq_options options = {.memory_limit = 64 * MIB, .trace_leaks = seed % 5 == 0};
    rq_begin_request_with(&options);
    rq_on_end(count_call, &on_end_count);
    for (size_t index = 0; index < sizeof FEW / sizeof FEW[0]; index++) {
        char *block = emalloc(FEW[index]);
        fill(block, FEW[index], seed);
        block = erealloc(block, FEW[index] + seed % 3000);
        size_t filled = FEW[index];
        CHECK(is_filled(block, filled, seed));
        efree(block);
        free(opaque(malloc(FEW[index])));
        char *persistent = pemalloc(FEW[index], true);
        persistent = perealloc(persistent, 2 * FEW[index] + 1, true);
        pefree(persistent, true);
    }
    char *survivor = estrdup("lives on");
    rq_persistent_on();
    efree(estrdup("persistent"));
    rq_persistent_off();
    rq_gc();
    rq_try {
        rq_begin_request();
        unused(emalloc(100));
        unused(ecalloc(opaque_size(3), opaque_size(SIZE_MAX)));
    } rq_end_try
    if (seed % 5 == 0) {
        efree(survivor);
        survivor = NULL;
    }
    if (seed % 2 == 0) {
        rq_close_request(NULL);
        efree(survivor);
    } else {
        rq_end_request(NULL);
    }
}

static void *use_requests(void *unused_argument) {
    for (unsigned seed = 0; seed < 50; seed++) {
        use_a_request(seed);
    }
    rq_gc();
    return unused_argument;
}

/* Does everything in this thread, in others at once, and in a child. A lock that is still held
 * shows as a case that does not end. */
static void everything_still_works(void) {
    pthread_t threads[3];
    for (int index = 0; index < 3; index++) {
        CHECK(pthread_create(&threads[index], NULL, use_requests, NULL) == 0);
    }
    use_requests(NULL);
    for (int index = 0; index < 3; index++) {
        CHECK(pthread_join(threads[index], NULL) == 0);
    }
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(20);
        use_requests(NULL);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* ---- cancelled ------------------------------------------------------------------------------- */

static atomic_bool runs;

static void *loops(void *unused_argument) {
    for (volatile unsigned seed = 0;; seed++) {
        use_a_request(seed);
        runs = true;
        /* Also inside a request, and inside a try. */
        if (seed % 3 == 1) {
            rq_begin_request();
            unused(emalloc(100000));
        }
        rq_try {
            pthread_testcancel();
        } rq_end_try
        if (seed % 3 == 1) {
            rq_close_request(NULL);
        }
    }
    return unused_argument;
}

CASE(threads_that_are_cancelled_at_any_time) {
    uint64_t random = 88172645463325252u;
    for (int round = 0; round < 150; round++) {
        pthread_t threads[4];
        for (int index = 0; index < 4; index++) {
            CHECK(pthread_create(&threads[index], NULL, loops, NULL) == 0);
        }
        runs = false;
        usleep((useconds_t)(next_random(&random) % 3000));
        for (int index = 0; index < 4; index++) {
            CHECK(pthread_cancel(threads[index]) == 0);
        }
        for (int index = 0; index < 4; index++) {
            void *result;
            CHECK(pthread_join(threads[index], &result) == 0 && result == PTHREAD_CANCELED);
        }
    }
    everything_still_works();
}

static void *is_cancelled_already(void *unused_argument) {
    pthread_cancel(pthread_self());
    /* The thread must not be cancelled anywhere here. */
    for (unsigned seed = 0; seed < 20; seed++) {
        use_a_request(seed);
    }
    runs = true;
    pthread_testcancel();
    return unused_argument;
}

static void cancel_before(void *(*run)(void *)) {
    pthread_t thread;
    void *result;
    runs = false;
    CHECK(pthread_create(&thread, NULL, run, NULL) == 0);
    CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
    CHECK(runs);
}

CASE(no_function_is_a_cancellation_point) {
    use_requests(NULL);
    cancel_before(is_cancelled_already);
    everything_still_works();
}

CASE(nor_is_the_first_use_of_the_heap) {
    cancel_before(is_cancelled_already);
    everything_still_works();
}

static void pauses(void *count) {
    usleep(1);
    pthread_testcancel();
    CHECK(write(STDOUT_FILENO, "", 0) == 0);
    count_call(count);
}

static atomic_int pauses_count;

static void *ends_requests_while_cancelled(void *unused_argument) {
    pthread_cancel(pthread_self());
    for (int way = 0; way < 3; way++) {
        rq_begin_request();
        rq_on_end(pauses, &pauses_count);
        rq_on_end(pauses, &pauses_count);
        if (way == 0) {
            rq_end_request(NULL);
        } else if (way == 1) {
            rq_close_request(NULL);
        }
    }
    runs = true;
    /* The thread's exit closes the third request. */
    pthread_testcancel();
    return unused_argument;
}

CASE(callbacks_are_not_cancelled) {
    cancel_before(ends_requests_while_cancelled);
    CHECK_EQUAL(pauses_count, 6);
    everything_still_works();
}

static void handler_that_pauses(const char *text) {
    CHECK(text[0] != 0);
    pauses(&pauses_count);
}

static void *fails_while_cancelled(void *unused_argument) {
    pthread_cancel(pthread_self());
    rq_try {
        unused(ecalloc(opaque_size(3), opaque_size(SIZE_MAX)));
    } rq_end_try
    runs = true;
    pthread_testcancel();
    return unused_argument;
}

CASE(the_error_handler_is_not_cancelled) {
    rq_set_error_handler(handler_that_pauses);
    cancel_before(fails_while_cancelled);
    CHECK_EQUAL(pauses_count, 1);
    everything_still_works();
}

static void *reports_while_cancelled(void *unused_argument) {
    rq_options options = {.report_leaks = true};
    pthread_cancel(pthread_self());
    rq_begin_request_with(&options);
    unused(emalloc(100));
    rq_end_request(NULL);
    runs = true;
    pthread_testcancel();
    return unused_argument;
}

CASE(the_report_of_leaks_is_not_cancelled) {
    capture();
    cancel_before(reports_while_cancelled);
    CHECK(strstr(captured(), "1 block") != NULL);
    everything_still_works();
}

/* ---- left in other ways ---------------------------------------------------------------------- */

static void *exits_inside_requests(void *unused_argument) {
    rq_begin_request();
    rq_on_end(count_call, &pauses_count);
    unused(emalloc(100));
    rq_begin_request();
    rq_persistent_on();
    rq_try {
        unused(emalloc(100000));
        pthread_exit(NULL);
    } rq_end_try
    return unused_argument;
}

CASE(threads_that_exit_inside_requests) {
    for (int round = 0; round < 500; round++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, exits_inside_requests, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    CHECK_EQUAL(pauses_count, 500);
    everything_still_works();
}

static jmp_buf out;

static int compares_and_jumps(const void *left, const void *right) {
    static int calls;
    char *copy = emalloc(*(const int *)left % 3000 + 1);
    copy[0] = 1;
    if (++calls % 50 == 0) {
        longjmp(out, 1);
    }
    efree(copy);
    return *(const int *)left - *(const int *)right;
}

CASE(callers_that_are_left_by_longjmp) {
    static int numbers[200];
    volatile int jumps = 0;
    for (volatile int round = 0; round < 1000; round++) {
        uint64_t before = rq_current_request();
        if (setjmp(out) == 0) {
            rq_begin_request();
            for (int index = 0; index < 200; index++) {
                numbers[index] = index * 7919 % 1000;
            }
            qsort(numbers, 200, sizeof *numbers, compares_and_jumps);
        } else {
            jumps++;
        }
        CHECK(rq_current_request() > before);
        unused(emalloc(1000));
        rq_end_request(NULL);
        CHECK_EQUAL(rq_current_request(), 0);
    }
    CHECK(jumps > 500);
    everything_still_works();
}
