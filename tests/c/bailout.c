/* rq_try, rq_catch and rq_bailout(): where a bailout lands, what it leaves, and what is freed
 * afterwards. */
#include "harness.h"

#include <ctype.h>
#include <pthread.h>
#include <setjmp.h>
#include <ucontext.h>

/* ---- where it lands -------------------------------------------------------------------------- */

CASE(a_body_that_ends_is_not_caught) {
    CHECK_TEXT(rq_bailout_reason(), "");
    volatile int ran = 0;
    rq_try {
        ran++;
    } rq_catch {
        CHECK(!"caught");
    } rq_end_try
    CHECK_EQUAL(ran, 1);
    CHECK_TEXT(rq_bailout_reason(), "");
}

CASE(a_try_needs_no_catch) {
    volatile int ran = 0;
    rq_try {
        ran++;
        rq_bailout("nobody asks");
    } rq_end_try
    CHECK_EQUAL(ran, 1);
    CHECK_TEXT(rq_bailout_reason(), "nobody asks");
}

CASE(a_bailout_is_caught_with_its_reason) {
    volatile int ran = 0;
    rq_try {
        ran++;
        rq_bailout("no such function");
    } rq_catch {
        ran += 10;
        CHECK_TEXT(rq_bailout_reason(), "no such function");
    } rq_end_try
    CHECK_EQUAL(ran, 11);
    CHECK_TEXT(rq_bailout_reason(), "no such function");
}

CASE(the_reason_is_copied) {
    char reason[] = "on the stack";
    rq_try {
        rq_bailout(reason);
    } rq_catch {
        memset(reason, 'x', sizeof reason - 1);
        CHECK_TEXT(rq_bailout_reason(), "on the stack");
    } rq_end_try
    rq_begin_request();
    rq_try {
        rq_bailout(estrdup("of the request"));
    } rq_catch {
        rq_end_request(NULL);
        CHECK_TEXT(rq_bailout_reason(), "of the request");
    } rq_end_try
}

CASE(no_reason_is_an_empty_one) {
    rq_try {
        rq_bailout("the first");
    } rq_end_try
    rq_try {
        rq_bailout(NULL);
    } rq_catch {
        CHECK_TEXT(rq_bailout_reason(), "");
    } rq_end_try
}

CASE(a_long_reason_is_cut) {
    char reason[5000];
    memset(reason, 'x', sizeof reason - 1);
    reason[sizeof reason - 1] = 0;
    rq_try {
        rq_bailout(reason);
    } rq_catch {
        size_t length = strlen(rq_bailout_reason());
        CHECK(length >= 100 && strncmp(rq_bailout_reason(), reason, length) == 0);
    } rq_end_try
    /* Bytes that are not UTF-8 may also be cut off, but are not fatal. */
    rq_try {
        rq_bailout("valid \xff\xfe invalid");
    } rq_catch {
        CHECK(strncmp(rq_bailout_reason(), "valid ", 6) == 0);
    } rq_end_try
}

CASE(the_innermost_try_catches) {
    volatile int inner = 0, outer = 0;
    rq_try {
        rq_try {
            rq_bailout("inner");
        } rq_catch {
            inner++;
            CHECK_TEXT(rq_bailout_reason(), "inner");
        } rq_end_try
        CHECK_EQUAL(inner, 1);
        rq_bailout("outer");
    } rq_catch {
        outer++;
        CHECK_TEXT(rq_bailout_reason(), "outer");
    } rq_end_try
    CHECK_EQUAL(inner, 1);
    CHECK_EQUAL(outer, 1);
}

CASE(a_bailout_in_the_catch_part_goes_to_the_outer_try) {
    volatile int inner = 0, outer = 0;
    rq_try {
        rq_try {
            rq_bailout("first");
        } rq_catch {
            inner++;
            rq_bailout("second");
        } rq_end_try
        CHECK(!"reached");
    } rq_catch {
        outer++;
        CHECK_TEXT(rq_bailout_reason(), "second");
    } rq_end_try
    CHECK(inner == 1 && outer == 1);
}

CASE(a_reason_is_passed_on) {
    volatile int outer = 0;
    rq_try {
        rq_try {
            rq_bailout("the one reason");
        } rq_catch {
            rq_bailout(rq_bailout_reason());
        } rq_end_try
    } rq_catch {
        outer++;
        CHECK_TEXT(rq_bailout_reason(), "the one reason");
    } rq_end_try
    CHECK_EQUAL(outer, 1);
}

CASE(a_try_in_the_catch_part) {
    volatile int ran = 0;
    rq_try {
        rq_bailout("first");
    } rq_catch {
        rq_try {
            rq_bailout("second");
        } rq_catch {
            ran++;
        } rq_end_try
        rq_try {
            ran++;
        } rq_catch {
            CHECK(!"caught");
        } rq_end_try
    } rq_end_try
    CHECK_EQUAL(ran, 2);
}

DEATH(a_bailout_without_a_try) {
    dies_with("bailout without a try (reason no such function)");
    rq_bailout("no such function");
}

DEATH(a_bailout_without_a_try_in_a_request) {
    rq_begin_request();
    dies_with("bailout without a try (reason no such function)");
    rq_bailout("no such function");
}

DEATH(a_bailout_in_the_catch_part_of_the_only_try) {
    rq_try {
        rq_bailout("first");
    } rq_catch {
        dies_with("bailout without a try (reason second)");
        rq_bailout("second");
    } rq_end_try
}

DEATH(a_bailout_after_the_try) {
    rq_try {
    } rq_end_try
    dies_with("bailout without a try (reason too late)");
    rq_bailout("too late");
}

DEATH(a_failure_in_the_catch_part_of_the_only_try) {
    rq_try {
        rq_bailout("first");
    } rq_catch {
        dies_with("integer overflow in an allocation (count 3, size 18446744073709551615, offset 0)");
        unused(ecalloc(opaque_size(3), opaque_size(SIZE_MAX)));
    } rq_end_try
}

/* ---- ways to leave the body ------------------------------------------------------------------ */

static int leave_by_return(int way) {
    rq_try {
        if (way == 0) {
            return 1;
        }
        rq_bailout("to the catch part");
    } rq_catch {
        if (way == 1) {
            return 2;
        }
    } rq_end_try
    return 3;
}

static int leave_a_loop(int way) {
    volatile int turns = 0;
    while (turns < 5) {
        turns++;
        rq_try {
            if (way == 0) {
                break;
            }
            if (way == 1) {
                continue;
            }
            if (way == 2) {
                goto out;
            }
            rq_bailout("to the catch part");
        } rq_catch {
            if (way == 3) {
                break;
            }
            if (way == 4) {
                continue;
            }
            if (way == 5) {
                goto out;
            }
        } rq_end_try
    }
    return turns;
out:
    return 100 + turns;
}

static int leave_two(int way) {
    rq_try {
        rq_try {
            if (way == 0) {
                return 1;
            }
            rq_bailout("to the inner catch part");
        } rq_catch {
            return 2;
        } rq_end_try
    } rq_catch {
        CHECK(!"caught");
    } rq_end_try
    return 3;
}

static void bail_out_after(int way) {
    switch (way) {
        case 0: case 1: case 2: CHECK_EQUAL(leave_by_return(way), way + 1); break;
        case 3: case 6: CHECK_EQUAL(leave_a_loop(way - 3), 1); break;
        case 4: case 7: CHECK_EQUAL(leave_a_loop(way - 3), 5); break;
        case 5: case 8: CHECK_EQUAL(leave_a_loop(way - 3), 101); break;
        default: CHECK_EQUAL(leave_two(way - 9), way - 8); break;
    }
    dies_with("bailout without a try (reason after the try)");
    rq_bailout("after the try");
}

#define WAYS 11

__attribute__((constructor)) static void register_ways(void) {
    static char names[WAYS][40];
    for (int way = 0; way < WAYS; way++) {
        snprintf(names[way], sizeof names[way], "a_bailout_after_leaving_in_way_%d", way);
        register_case((test_case){names[way], bail_out_after, way, true, NULL});
    }
}

/* Recurses `depth` frames deep and bails out; without a reason, returns. */
static void bail_out(int depth, const char *reason) {
    char on_the_stack[64] = {0};
    fill(opaque(on_the_stack), sizeof on_the_stack, (unsigned)depth);
    if (depth > 0) {
        bail_out(depth - 1, reason);
    } else if (reason != NULL) {
        rq_bailout(reason);
    }
    CHECK(is_filled(opaque(on_the_stack), sizeof on_the_stack, (unsigned)depth));
}

CASE(after_a_body_was_left_the_outer_try_catches) {
    for (volatile int way = 0; way < WAYS; way++) {
        volatile bool is_caught = false;
        rq_try {
            if (way < 3) {
                leave_by_return(way);
            } else if (way < 9) {
                leave_a_loop(way - 3);
            } else {
                leave_two(way - 9);
            }
            bail_out(1000, "the outer one");
        } rq_catch {
            is_caught = true;
            CHECK_TEXT(rq_bailout_reason(), "the outer one");
        } rq_end_try
        CHECK(is_caught);
    }
}

/* Nests `depth` tries, bails out of the innermost, and lets every catch part pass it on. */
static void nest(int depth) {
    rq_try {
        if (depth == 0) {
            rq_bailout("innermost");
        }
        nest(depth - 1);
    } rq_catch {
        if (strcmp(rq_bailout_reason(), "innermost") == 0) {
            rq_bailout(rq_bailout_reason());
        }
    } rq_end_try
}

CASE(tries_nest_deep) {
    volatile bool is_caught = false;
    rq_try {
        nest(500);
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "innermost");
    } rq_end_try
    CHECK(is_caught);
}

static bool is_caught_once(void) {
    rq_try {
        bail_out(3, "once more");
    } rq_catch {
        return true;
    } rq_end_try
    return false;
}

CASE(a_hundred_thousand_bailouts_cost_no_memory) {
    for (int round = 0; round < 1000; round++) {
        CHECK(is_caught_once());
    }
    size_t before = resident_bytes();
    for (int round = 0; round < 100000; round++) {
        CHECK(is_caught_once());
    }
    CHECK(resident_bytes() <= before + 64 * KIB);
}

/* ---- per thread ------------------------------------------------------------------------------ */

static void *bail_out_without_a_try(void *argument) {
    dies_with("bailout without a try (reason in the thread)");
    rq_bailout("in the thread");
    return argument;
}

DEATH(the_try_of_another_thread_is_none) {
    rq_try {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, bail_out_without_a_try, NULL) == 0);
        pthread_join(thread, NULL);
    } rq_catch {
        dprintf(2, "caught\n");
    } rq_end_try
}

static void *bail_out_once(void *argument) {
    CHECK_TEXT(rq_bailout_reason(), "");
    rq_try {
        rq_bailout("in a thread");
    } rq_end_try
    CHECK_TEXT(rq_bailout_reason(), "in a thread");
    return argument;
}

CASE(a_new_thread_has_no_reason_yet) {
    for (int round = 0; round < 10; round++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, bail_out_once, NULL) == 0 && pthread_join(thread, NULL) == 0);
    }
    CHECK_TEXT(rq_bailout_reason(), "");
}

static void *bail_out_often(void *argument) {
    int number = *(int *)argument;
    for (volatile int round = 0; round < 2000; round++) {
        char reason[32];
        snprintf(reason, sizeof reason, "thread %d round %d", number, round);
        volatile bool is_caught = false;
        rq_begin_request();
        rq_try {
            unused(emalloc(100));
            rq_begin_request();
            unused(emalloc(100));
            bail_out(round % 10, reason);
        } rq_catch {
            is_caught = true;
            CHECK_TEXT(rq_bailout_reason(), reason);
        } rq_end_try
        CHECK(is_caught);
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 1);
    }
    CHECK_EQUAL(rq_current_request(), 0);
    return NULL;
}

CASE(threads_bail_out_side_by_side) {
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    int numbers[THREADS];
    volatile bool is_caught = false;
    rq_try {
        for (int index = 0; index < THREADS; index++) {
            numbers[index] = index;
            CHECK(pthread_create(&threads[index], NULL, bail_out_often, &numbers[index]) == 0);
        }
        for (int index = 0; index < THREADS; index++) {
            CHECK(pthread_join(threads[index], NULL) == 0);
        }
        CHECK_TEXT(rq_bailout_reason(), "");
        rq_bailout("the main thread");
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "the main thread");
    } rq_end_try
    CHECK(is_caught);
}

/* ---- requests and persistent parts ----------------------------------------------------------- */

CASE(the_request_around_the_try_stays_open) {
    uint64_t request = rq_begin_request();
    char *block = estrdup("before");
    rq_try {
        unused(emalloc(100));
        rq_bailout("in the request");
    } rq_catch {
        CHECK_EQUAL(rq_current_request(), request);
        CHECK_TEXT(block, "before");
        unused(emalloc(100));
    } rq_end_try
    CHECK_EQUAL(rq_current_request(), request);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 3);
}

CASE(requests_that_were_begun_inside_are_closed) {
    uint64_t outer = rq_begin_request();
    unsigned char *volatile kept = NULL;
    rq_try {
        rq_begin_request();
        unused(emalloc(1000));
        rq_begin_request();
        kept = emalloc(1000);
        fill(kept, 1000, 1);
        rq_persistent_on();
        rq_begin_request();
        rq_bailout("three requests deep");
    } rq_catch {
        CHECK_EQUAL(rq_current_request(), outer);
        CHECK_EQUAL(rq_memory_usage(false), 0);
    } rq_end_try
    CHECK_EQUAL(rq_current_request(), outer);
    /* Closed, not ended: what is live stays valid, and must be freed. */
    CHECK(is_filled(kept, 1000, 1));
    kept = erealloc(kept, 2000);
    CHECK(is_filled(kept, 1000, 1));
    efree(kept);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
    CHECK_EQUAL(rq_current_request(), 0);
}

DEATH(no_request_is_left_over_after_a_bailout) {
    rq_try {
        for (int depth = 0; depth < 100; depth++) {
            rq_begin_request();
            unused(emalloc(100));
        }
        rq_bailout("a hundred requests deep");
    } rq_catch {
        CHECK_EQUAL(rq_current_request(), 0);
    } rq_end_try
    dies_with("no request is open (call rq_end_request)");
    rq_end_request(NULL);
}

DEATH(no_persistent_part_is_left_over_after_a_bailout) {
    rq_begin_request();
    rq_try {
        rq_persistent_on();
        rq_persistent_on();
        unused(emalloc(100));
        CHECK_EQUAL(rq_memory_usage(false), 0);
        rq_bailout("in a persistent part");
    } rq_catch {
        unused(emalloc(100));
        CHECK(rq_memory_usage(false) >= 100);
    } rq_end_try
    dies_with("persistent off without on");
    rq_persistent_off();
}

CASE(a_persistent_part_around_the_try_stays) {
    rq_begin_request();
    rq_persistent_on();
    rq_try {
        rq_begin_request();
        unused(emalloc(100));
        rq_bailout("inside");
    } rq_catch {
        unused(emalloc(100));
        CHECK_EQUAL(rq_memory_usage(false), 0);
    } rq_end_try
    rq_persistent_off();
    unused(emalloc(100));
    CHECK(rq_memory_usage(false) >= 100);
    rq_end_request(NULL);
}

CASE(a_body_that_ends_leaves_what_it_began_open) {
    volatile uint64_t request = 0;
    rq_try {
        request = rq_begin_request();
        rq_persistent_on();
    } rq_catch {
    } rq_end_try
    CHECK_EQUAL(rq_current_request(), request);
    unused(emalloc(100));
    CHECK_EQUAL(rq_memory_usage(false), 0);
    rq_persistent_off();
    unused(emalloc(100));
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
}

CASE(a_request_begun_inside_is_closed_though_one_from_outside_was_ended) {
    rq_begin_request();
    rq_try {
        rq_end_request(NULL);
        rq_begin_request();
        unused(emalloc(100));
        rq_bailout("in the second request");
    } rq_catch {
        CHECK_EQUAL(rq_current_request(), 0);
    } rq_end_try
    CHECK_EQUAL(rq_current_request(), 0);
}

CASE(a_persistent_part_begun_inside_is_left_though_one_from_outside_was) {
    rq_begin_request();
    rq_persistent_on();
    rq_try {
        rq_persistent_off();
        rq_persistent_on();
        rq_bailout("in the second part");
    } rq_catch {
        unused(emalloc(100));
        CHECK(rq_memory_usage(false) >= 100);
    } rq_end_try
    rq_end_request(NULL);
}

CASE(an_outer_request_ended_inside_stays_ended) {
    rq_begin_request();
    rq_try {
        rq_end_request(NULL);
        rq_bailout("without a request");
    } rq_catch {
        CHECK_EQUAL(rq_current_request(), 0);
    } rq_end_try
    CHECK_EQUAL(rq_current_request(), 0);
    rq_begin_request();
    unused(emalloc(100));
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
}

/* ---- callbacks and bailouts ------------------------------------------------------------------ */

static int callbacks_run;

static void try_inside(void *argument) {
    volatile bool is_caught = false;
    rq_try {
        unused(emalloc(100));
        rq_bailout("inside the callback");
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "inside the callback");
    } rq_end_try
    CHECK(is_caught);
    callbacks_run++;
    (void)argument;
}

CASE(a_try_inside_a_callback) {
    rq_begin_request();
    rq_on_end(try_inside, NULL);
    rq_on_end(try_inside, NULL);
    volatile bool is_caught = false;
    rq_try {
        rq_end_request(NULL);
        CHECK_EQUAL(callbacks_run, 2);
        rq_bailout("after the end");
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "after the end");
    } rq_end_try
    CHECK(is_caught);
}

/* The callback bails out and catches meanwhile: the reason is still that of the bailout that is
 * caught here. */
CASE(the_reason_outlives_the_callbacks_that_run_on_the_way) {
    volatile bool is_caught = false;
    rq_try {
        rq_begin_request();
        rq_on_end(try_inside, NULL);
        rq_bailout("the outer reason");
    } rq_catch {
        is_caught = true;
        CHECK_EQUAL(callbacks_run, 1);
        CHECK_TEXT(rq_bailout_reason(), "the outer reason");
    } rq_end_try
    CHECK(is_caught);
}

static void end_a_request_inside(void *argument) {
    volatile bool is_caught = false;
    rq_try {
        rq_begin_request();
        rq_on_end(try_inside, NULL);
        rq_end_request(NULL);
        CHECK_EQUAL(callbacks_run, 1);
        rq_bailout("between two callbacks");
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "between two callbacks");
    } rq_end_try
    CHECK(is_caught);
    callbacks_run++;
    (void)argument;
}

/* How many tries the bailouts after the end have gone back to, one after the other. */
static int end_inside_tries(int levels) {
    volatile int caught = 0;
    rq_try {
        if (levels > 1) {
            caught = end_inside_tries(levels - 1);
        } else {
            rq_begin_request();
            rq_on_end(end_a_request_inside, NULL);
            rq_end_request(NULL);
            CHECK_EQUAL(callbacks_run, 2);
        }
        rq_bailout("after the end");
    } rq_catch {
        caught++;
        CHECK_TEXT(rq_bailout_reason(), "after the end");
    } rq_end_try
    return caught;
}

CASE(tries_around_a_callback_inside_a_callback) {
    for (int levels = 1; levels <= 40; levels += 3) {
        callbacks_run = 0;
        CHECK_EQUAL(end_inside_tries(levels), levels);
    }
}

static void bail_out_at_the_end(void *argument) {
    (void)argument;
    dies_with("bailout without a try (reason past the callback)");
    rq_bailout("past the callback");
}

DEATH(a_bailout_past_a_callback) {
    rq_begin_request();
    rq_on_end(bail_out_at_the_end, NULL);
    rq_try {
        rq_end_request(NULL);
    } rq_catch {
        dprintf(2, "caught\n");
    } rq_end_try
}

static void overflow_at_the_end(void *argument) {
    (void)argument;
    dies_with("integer overflow in an allocation (count 3, size 18446744073709551615, offset 0)");
    unused(ecalloc(opaque_size(3), opaque_size(SIZE_MAX)));
}

DEATH(a_failure_past_a_callback_during_a_bailout) {
    rq_try {
        rq_begin_request();
        rq_on_end(overflow_at_the_end, NULL);
        rq_bailout("outer");
    } rq_catch {
        dprintf(2, "caught\n");
    } rq_end_try
}

/* ---- the classic: a function that does not exist --------------------------------------------- */

/* An interpreter looks a function up by its lower-cased name, which it allocates. If there is none,
 * it raises an error, which jumps past the code that would have freed the name. */

typedef struct function {
    const char *name;
    int (*call)(int);
} function;

static int twice(int argument) {
    return 2 * argument;
}

static int negative(int argument) {
    return -argument;
}

static const function FUNCTIONS[] = {{"twice", twice}, {"negative", negative}};

static int call_function(const char *name, int argument, bool bails_out) {
    char *lower = estrndup(name, strlen(name));
    for (char *at = lower; *at != 0; at++) {
        *at = (char)tolower((unsigned char)*at);
    }
    const function *found = NULL;
    for (size_t index = 0; index < sizeof FUNCTIONS / sizeof FUNCTIONS[0]; index++) {
        if (strcmp(FUNCTIONS[index].name, lower) == 0) {
            found = &FUNCTIONS[index];
        }
    }
    if (found == NULL && bails_out) {
        rq_bailout("no such function");
    }
    efree(lower);
    return found != NULL ? found->call(argument) : -1;
}

/* Runs one request that calls this function; returns the report of its end. */
static rq_report one_request(const char *name, int expected, bool bails_out) {
    rq_begin_request();
    unsigned char *document = emalloc(500);
    fill(document, 500, 1);
    size_t before = rq_memory_usage(false);
    rq_try {
        CHECK_EQUAL(call_function(name, 21, bails_out), expected);
        CHECK_EQUAL(rq_memory_usage(false), before);
    } rq_catch {
        CHECK_TEXT(rq_bailout_reason(), "no such function");
        CHECK(rq_memory_usage(false) > before);
    } rq_end_try
    CHECK(is_filled(document, 500, 1));
    efree(document);
    rq_report report;
    rq_end_request(&report);
    return report;
}

#define ROUNDS 10000

static void call_often(const char *name, int expected, bool bails_out, size_t left_blocks) {
    /* An outer request stands in for the process: nothing may stay with it. */
    rq_begin_request();
    unused(estrdup("what was there before"));
    size_t usage = rq_memory_usage(false), pages = rq_memory_usage(true), resident = 0;
    for (int round = 0; round < ROUNDS; round++) {
        if (round == ROUNDS / 10) {
            resident = resident_bytes();
        }
        rq_report report = one_request(name, expected, bails_out);
        CHECK_EQUAL(report.freed_blocks, left_blocks);
        CHECK_EQUAL(report.surviving_blocks, 0);
        CHECK_EQUAL(rq_memory_usage(false), usage);
        CHECK_EQUAL(rq_memory_usage(true), pages);
    }
    CHECK(resident_bytes() <= resident + 64 * KIB);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
}

CASE(call_function_that_exists) {
    call_often("TwicE", 42, true, 0);
    call_often("NEGATIVE", -21, false, 0);
}

CASE(call_function_that_does_not_exist_frees_the_name_by_hand) {
    call_often("NoSuchFunction", -1, false, 0);
}

CASE(call_function_that_does_not_exist_and_bails_out_leaves_the_name_to_the_end) {
    call_often("NoSuchFunction", -1, true, 1);
}

static bool calls(const char *name) {
    rq_try {
        call_function(name, 1, true);
        return true;
    } rq_catch {
        CHECK_TEXT(rq_bailout_reason(), "no such function");
    } rq_end_try
    return false;
}

CASE(call_function_ten_thousand_times_in_one_request) {
    rq_begin_request();
    size_t before = rq_memory_usage(false);
    for (int round = 0; round < ROUNDS; round++) {
        CHECK(!calls("NoSuchFunction"));
        CHECK(calls("Twice"));
    }
    CHECK(rq_memory_usage(false) >= before + ROUNDS * sizeof "NoSuchFunction");
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, ROUNDS);
    CHECK_EQUAL(rq_memory_usage(false), 0);
}

/* Two calls that fail, each with a try of its own: the request goes on after the first. */
CASE(call_function_twice_in_a_request_that_outlives_both_tries) {
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t request = rq_begin_request();
        CHECK(!calls("Missing"));
        CHECK(!calls("MissingToo"));
        CHECK_EQUAL(rq_current_request(), request);
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.id, request);
        CHECK_EQUAL(report.freed_blocks, 2);
    }
}

/* ---- longjmp past a try ---------------------------------------------------------------------- */

static __thread jmp_buf way_out;
#define NOINLINE __attribute__((noinline, noclone))

static void jump_out_of_here(void) {
    longjmp(way_out, 1);
}

/* Keeps the compiler from knowing that it does not return. */
static void (*volatile jump_out)(void) = jump_out_of_here;

/* Overwrites what lies below the caller on the stack. */
NOINLINE static void overwrite_the_stack(void) {
    char bytes[256 * 1024];
    memset(bytes, 0x41, sizeof bytes);
    unused(bytes);
}

NOINLINE static void jump_past_a_try(void) {
    rq_try {
        jump_out();
    } rq_catch {
        CHECK(!"the dead try");
    } rq_end_try
}

NOINLINE static void jump_past_a_try_further_down(int levels) {
    volatile char room[300];
    room[0] = (char)levels;
    if (levels > 0) {
        jump_past_a_try_further_down(levels - 1);
    } else {
        jump_past_a_try();
    }
    room[1] = room[0];
}

/* Each level has a try of its own. */
NOINLINE static void jump_past_tries(int levels) {
    rq_try {
        if (levels > 1) {
            jump_past_tries(levels - 1);
        }
        jump_out();
    } rq_catch {
        CHECK(!"a dead try");
    } rq_end_try
}

static void jump_past(void (*jump)(int), int levels) {
    if (setjmp(way_out) == 0) {
        jump(levels);
        CHECK(!"returned");
    }
}

NOINLINE static void bail_out_deeper(void) {
    char untouched[5000];
    unused(untouched);
    rq_bailout("later");
}

DEATH(a_bailout_after_a_longjmp_past_the_only_try) {
    if (setjmp(way_out) == 0) {
        jump_past_a_try();
    }
    overwrite_the_stack();
    dies_with("bailout without a try (reason later)");
    rq_bailout("later");
}

DEATH(a_bailout_at_once_after_a_longjmp_past_the_only_try) {
    if (setjmp(way_out) == 0) {
        jump_past_a_try();
    }
    dies_with("bailout without a try (reason later)");
    rq_bailout("later");
}

DEATH(a_bailout_from_as_deep_after_a_longjmp_past_the_only_try) {
    dies_with("bailout without a try (reason later)");
    if (setjmp(way_out) == 0) {
        jump_past_a_try();
    }
    bail_out_deeper();
}

DEATH(a_bailout_after_a_longjmp_past_a_try_further_down) {
    jump_past(jump_past_a_try_further_down, 5);
    dies_with("bailout without a try (reason later)");
    rq_bailout("later");
}

static void jump_past_inside(void *argument) {
    (void)argument;
    jump_past(jump_past_tries, 3);
}

CASE(a_longjmp_past_tries_inside_a_callback) {
    volatile bool is_caught = false;
    rq_try {
        for (int round = 0; round < 2; round++) {
            rq_begin_request();
            rq_on_end(jump_past_inside, NULL);
            rq_end_request(NULL);
            rq_begin_request();
            rq_on_end(try_inside, NULL);
            rq_end_request(NULL);
        }
        rq_bailout("after the end");
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "after the end");
    } rq_end_try
    CHECK(is_caught);
}

DEATH(a_bailout_past_a_callback_after_a_longjmp_past_tries_in_another) {
    rq_try {
        rq_begin_request();
        rq_on_end(jump_past_inside, NULL);
        rq_end_request(NULL);
        rq_begin_request();
        rq_on_end(bail_out_at_the_end, NULL);
        rq_end_request(NULL);
    } rq_catch {
        dprintf(2, "caught\n");
    } rq_end_try
}

DEATH(a_failure_after_a_longjmp_past_the_only_try) {
    jump_past(jump_past_tries, 3);
    overwrite_the_stack();
    dies_with("integer overflow in an allocation (count 3, size 18446744073709551615, offset 0)");
    unused(ecalloc(opaque_size(3), opaque_size(SIZE_MAX)));
}

static void *jumps_past_a_try(void *unused_argument) {
    if (setjmp(way_out) == 0) {
        jump_past_a_try();
    }
    overwrite_the_stack();
    dies_with("bailout without a try (reason in a thread)");
    rq_bailout("in a thread");
    return unused_argument;
}

DEATH(a_bailout_in_a_thread_after_a_longjmp_past_its_only_try) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, jumps_past_a_try, NULL) == 0);
    pthread_join(thread, NULL);
}

/* The next outer try catches, whatever became of the memory of the dead ones: bailouts by
 * rq_bailout() and by every kind of function that fails. */
static void the_outer_try_catches(int parameter) {
    static const int LEVELS[] = {1, 3, 16, 17, 300};
    int levels = LEVELS[parameter % 5], way = parameter / 5;
    volatile int caught = 0;
    rq_try {
        jump_past(jump_past_tries, levels);
        if (way != 1) {
            overwrite_the_stack();
        }
        switch (way) {
            case 0: rq_bailout("later");
            case 1: bail_out_deeper(); break;
            case 2: unused(ecalloc(opaque_size(3), opaque_size(SIZE_MAX))); break;
            case 3: unused(rq_safe_emalloc_at(opaque_size(3), opaque_size(SIZE_MAX), 0, __FILE__, __LINE__)); break;
            case 4: unused(safe_erealloc(NULL, opaque_size(3), opaque_size(SIZE_MAX), 0)); break;
            case 5: unused(pemalloc(opaque_size(SIZE_MAX), true)); break;
            case 6: unused(rq_erealloc2_at(NULL, opaque_size(SIZE_MAX), 1, __FILE__, __LINE__)); break;
            case 7: unused(estrndup("text", opaque_size(SIZE_MAX))); break;
            case 8: unused(safe_pemalloc(opaque_size(3), opaque_size(SIZE_MAX), 0, true)); break;
        }
        CHECK(!"reached");
    } rq_catch {
        caught++;
    } rq_end_try
    CHECK_EQUAL(caught, 1);
    /* The list is as before. */
    rq_try {
        rq_bailout("again");
    } rq_catch {
        caught++;
    } rq_end_try
    CHECK_EQUAL(caught, 2);
}

__attribute__((constructor)) static void register_outer_tries(void) {
    static char names[45][64];
    for (int index = 0; index < 45; index++) {
        snprintf(names[index], sizeof names[index], "the_outer_try_catches_%d", index);
        register_case((test_case){names[index], the_outer_try_catches, index, false, NULL});
    }
}

CASE(a_try_after_a_longjmp_past_another_one) {
    volatile int caught = 0;
    rq_try {
        jump_past(jump_past_tries, 2);
        rq_try {
            jump_past(jump_past_tries, 1);
            rq_bailout("inner");
        } rq_catch {
            caught += 1;
            jump_past(jump_past_a_try_further_down, 3);
            overwrite_the_stack();
            rq_bailout("outer");
        } rq_end_try
    } rq_catch {
        caught += 10;
        CHECK_TEXT(rq_bailout_reason(), "outer");
    } rq_end_try
    CHECK_EQUAL(caught, 11);
}

CASE(a_try_at_the_same_place_as_one_that_was_jumped_past) {
    volatile int caught = 0;
    volatile int turns = 0;
    rq_try {
        while (turns < 100000) {
            turns++;
            if (setjmp(way_out) == 0) {
                rq_try {
                    if (turns % 3 == 0) {
                        rq_bailout("to the inner one");
                    }
                    longjmp(way_out, 1);
                } rq_catch {
                    caught++;
                } rq_end_try
            }
        }
        jump_past(jump_past_tries, 1);
    } rq_end_try
    CHECK_EQUAL(caught, 33333);
}

CASE(a_longjmp_past_tries_in_a_loop) {
    volatile int caught = 0, turns = 0;
    while (turns < 10000) {
        turns++;
        rq_try {
            jump_past(jump_past_tries, turns % 40 + 1);
            rq_bailout("out");
        } rq_catch {
            caught++;
        } rq_end_try
    }
    CHECK_EQUAL(caught, 10000);
}

NOINLINE static void recurse_with_tries(volatile int *caught, int depth) {
    rq_try {
        if (depth == 0) {
            rq_bailout("the bottom");
        }
        recurse_with_tries(caught, depth - 1);
        rq_bailout("on the way back");
    } rq_catch {
        *caught += 1;
    } rq_end_try
}

CASE(a_try_on_every_level_of_a_recursion) {
    volatile int caught = 0;
    recurse_with_tries(&caught, 999);
    CHECK_EQUAL(caught, 1000);
}

NOINLINE static void begin_and_jump_past_a_try(void) {
    rq_try {
        rq_begin_request();
        unused(emalloc(1000));
        longjmp(way_out, 1);
    } rq_end_try
}

CASE(a_request_that_was_begun_in_a_dead_try_is_left_by_a_bailout) {
    volatile int caught = 0;
    rq_try {
        if (setjmp(way_out) == 0) {
            begin_and_jump_past_a_try();
        }
        CHECK(rq_current_request() != 0);
        overwrite_the_stack();
        rq_bailout("out");
    } rq_catch {
        caught++;
        CHECK_EQUAL(rq_current_request(), 0);
    } rq_end_try
    CHECK_EQUAL(caught, 1);
}

/* ---- tries on other stacks ------------------------------------------------------------------- */

static volatile int caught_in_the_handler;
static sigjmp_buf out_of_the_handler;

static void handler_with_a_try(int signal) {
    (void)signal;
    rq_try {
        rq_try {
            rq_bailout("inner");
        } rq_catch {
            caught_in_the_handler++;
            rq_bailout("outer");
        } rq_end_try
    } rq_catch {
        caught_in_the_handler++;
    } rq_end_try
}

static void handler_that_bails_out(int signal) {
    (void)signal;
    rq_bailout("from the handler");
}

static void handler_that_jumps_past_its_try(int signal) {
    (void)signal;
    rq_try {
        siglongjmp(out_of_the_handler, 1);
    } rq_catch {
        CHECK(!"the dead try");
    } rq_end_try
}

static void handle(void (*handler)(int), char *stack, size_t size) {
    stack_t alternate = {.ss_sp = stack, .ss_size = size};
    CHECK(sigaltstack(&alternate, NULL) == 0);
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_NODEFER};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
}

static void tries_of_signal_handlers(char *stack, size_t size) {
    volatile int caught = 0;
    handle(handler_with_a_try, stack, size);
    caught_in_the_handler = 0;
    rq_try {
        raise(SIGUSR1);
        CHECK_EQUAL(caught_in_the_handler, 2);
        rq_bailout("on the thread's stack");
    } rq_catch {
        caught++;
        CHECK_TEXT(rq_bailout_reason(), "on the thread's stack");
    } rq_end_try
    handle(handler_that_bails_out, stack, size);
    for (volatile int round = 0; round < 3; round++) {
        rq_try {
            raise(SIGUSR1);
        } rq_catch {
            caught++;
            CHECK_TEXT(rq_bailout_reason(), "from the handler");
        } rq_end_try
    }
    handle(handler_that_jumps_past_its_try, stack, size);
    rq_try {
        if (sigsetjmp(out_of_the_handler, 1) == 0) {
            raise(SIGUSR1);
        }
        rq_bailout("back on the thread's stack");
    } rq_catch {
        caught++;
    } rq_end_try
    CHECK_EQUAL(caught, 5);
}

CASE(tries_of_signal_handlers_with_a_stack_of_their_own) {
    static char stack[64 * 1024];
    tries_of_signal_handlers(stack, sizeof stack);
}

CASE(tries_of_signal_handlers_whose_stack_lies_in_the_thread_s) {
    char stack[64 * 1024];
    tries_of_signal_handlers(stack, sizeof stack);
}

static ucontext_t of_the_thread, of_the_coroutine;
static volatile int caught_in_the_coroutine;

static void coroutine(void) {
    rq_try {
        swapcontext(&of_the_coroutine, &of_the_thread);
        rq_bailout("in the coroutine");
    } rq_catch {
        caught_in_the_coroutine++;
    } rq_end_try
    /* Out of the coroutine, to the try of the thread. */
    rq_bailout("out of the coroutine");
}

static void tries_of_a_coroutine(char *stack, size_t size) {
    volatile int caught = 0;
    caught_in_the_coroutine = 0;
    rq_try {
        CHECK(getcontext(&of_the_coroutine) == 0);
        of_the_coroutine.uc_stack.ss_sp = stack;
        of_the_coroutine.uc_stack.ss_size = size;
        makecontext(&of_the_coroutine, coroutine, 0);
        swapcontext(&of_the_thread, &of_the_coroutine);
        swapcontext(&of_the_thread, &of_the_coroutine);
        CHECK(!"reached");
    } rq_catch {
        caught++;
        CHECK_TEXT(rq_bailout_reason(), "out of the coroutine");
    } rq_end_try
    CHECK(caught == 1 && caught_in_the_coroutine == 1);
}

CASE(tries_of_a_coroutine_above_and_below_the_stack) {
    static char in_static_memory_too[256 * 1024];
    tries_of_a_coroutine(in_static_memory_too, sizeof in_static_memory_too);
    char *mapped = mmap(NULL, 256 * KIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mapped != MAP_FAILED);
    tries_of_a_coroutine(mapped, 256 * KIB);
}
