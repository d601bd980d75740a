/* Handles of requests in other threads, why an allocation returned NULL, figures of the process. */
#include "harness.h"

#include <pthread.h>
#include <string.h>

/* ---- handles --------------------------------------------------------------------------------- */

static void *allocate_inside(void *argument) {
    rq_request *request = argument;
    CHECK_EQUAL(rq_current_request(), 0);
    rq_enter(request);
    uint64_t here = rq_current_request();
    CHECK(here != 0);
    void *block = emalloc(100);
    memset(block, 1, 100);
    /* Nests, also with a request of its own. */
    rq_begin_request();
    CHECK(rq_current_request() != here);
    rq_enter(request);
    CHECK_EQUAL(rq_current_request(), here);
    rq_leave();
    CHECK(rq_current_request() != here);
    rq_close_request(NULL);
    CHECK_EQUAL(rq_current_request(), here);
    rq_leave();
    CHECK_EQUAL(rq_current_request(), 0);
    return block;
}

CASE(a_second_thread_enters_by_a_handle) {
    CHECK(rq_request_ref() == NULL);
    rq_request_unref(NULL);
    uint64_t id = rq_begin_request();
    rq_request *handle = rq_request_ref();
    pthread_t threads[4];
    for (int index = 0; index < 4; index++) {
        CHECK_EQUAL(pthread_create(&threads[index], NULL, allocate_inside, handle), 0);
    }
    for (int index = 0; index < 4; index++) {
        CHECK_EQUAL(pthread_join(threads[index], NULL), 0);
    }
    rq_report report;
    rq_close_request(&report);
    CHECK(report.still_open && report.outcome == RQ_STILL_OPEN && report.id == id);
    /* Only left: the handle keeps it. */
    rq_enter(handle);
    CHECK_EQUAL(rq_current_request(), id);
    CHECK_EQUAL(rq_memory_usage(false), 4 * 112);
    rq_leave();
    rq_request_unref(handle);
    rq_process_stats stats;
    rq_stats(&stats);
    CHECK_EQUAL(stats.open_request_count, 0);
}

static void *exit_inside(void *argument) {
    rq_enter(argument);
    rq_enter(argument);
    return emalloc(8);
}

CASE(a_thread_that_exits_inside_leaves) {
    rq_begin_request();
    rq_request *handle = rq_request_ref();
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, exit_inside, handle), 0);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    rq_request_unref(handle);
    rq_report report;
    rq_end_request(&report);
    CHECK(!report.still_open && report.outcome == RQ_ENDED);
    CHECK_EQUAL(report.freed_blocks, 1);
}

CASE(a_bailout_leaves_what_was_entered) {
    rq_begin_request();
    rq_request *handle = rq_request_ref();
    uint64_t outer = rq_current_request();
    rq_try {
        rq_begin_request();
        rq_enter(handle);
        rq_bailout("enough");
    } rq_catch {
        CHECK_EQUAL(rq_current_request(), outer);
    } rq_end_try
    rq_request_unref(handle);
    rq_report report;
    rq_close_request(&report);
    CHECK_EQUAL(report.outcome, RQ_BAILED_OUT);
}

DEATH(a_handle_given_back_twice_is_named) {
    dies_with("handle of a request that is over (call rq_request_unref)");
    rq_begin_request();
    rq_request *handle = rq_request_ref();
    rq_close_request(NULL);
    rq_request_unref(handle);
    rq_request_unref(handle);
}

DEATH(a_handle_given_back_is_not_entered) {
    dies_with("handle of a request that is over (call rq_enter)");
    rq_begin_request();
    rq_request *handle = rq_request_ref();
    rq_close_request(NULL);
    rq_request_unref(handle);
    rq_enter(handle);
}

DEATH(leaving_without_entering_is_named) {
    dies_with("no request is open (call rq_leave)");
    rq_begin_request();
    rq_leave();
}

/* ---- limits and reasons ---------------------------------------------------------------------- */

CASE(null_has_a_reason) {
    CHECK_EQUAL(rq_failure(), RQ_NO_FAILURE);
    CHECK(rq_emalloc_or_null((size_t)1 << 62) == NULL);
    CHECK_EQUAL(rq_failure(), RQ_OUT_OF_MEMORY);
    rq_options options = {.name = "limited", .memory_limit = 1 << 20, .soft_limit = 0};
    rq_begin_request_with(&options);
    CHECK(rq_emalloc_or_null(2 << 20) == NULL);
    CHECK_EQUAL(rq_failure(), RQ_MEMORY_LIMIT);
    void *block = emalloc(100);
    CHECK(rq_erealloc_or_null(block, (size_t)1 << 62) == NULL);
    CHECK_EQUAL(rq_failure(), RQ_MEMORY_LIMIT);
    rq_persistent_on();
    CHECK(rq_emalloc_or_null((size_t)1 << 62) == NULL);
    CHECK_EQUAL(rq_failure(), RQ_OUT_OF_MEMORY);
    rq_persistent_off();
    CHECK(rq_erealloc_or_null(block, 2 << 20) == NULL);
    CHECK_EQUAL(rq_failure(), RQ_MEMORY_LIMIT);
    rq_report report;
    rq_close_request(&report);
    CHECK_EQUAL(report.limit_bytes, 1 << 20);
}

CASE(a_soft_limit_only_marks) {
    char name[] = "copied";
    rq_options options = {.name = name, .soft_limit = 1 << 20};
    rq_begin_request_with(&options);
    memset(name, 'x', sizeof name - 1);
    rq_limit_error error;
    CHECK(rq_check(&error));
    void *block = rq_emalloc_or_null(4 << 20);
    CHECK(block != NULL);
    CHECK(!rq_check(&error));
    CHECK(error.kind == RQ_LIMIT_SOFT && error.limit_bytes == 1 << 20);
    CHECK(error.in_use_bytes >= 4 << 20 && error.asked_bytes == 4 << 20);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.outcome, RQ_OVER_LIMIT);
    CHECK_EQUAL(report.limit_bytes, 0);
}

CASE(the_process_has_a_limit_and_figures) {
    rq_process_stats stats;
    rq_stats(&stats);
    CHECK_EQUAL(stats.mapped_bytes, stats.in_use_bytes + stats.cached_bytes + stats.free_bytes);
    CHECK(rq_check_process(NULL));
    rq_begin_request();
    void *block = emalloc(64 << 20);
    memset(block, 1, 64 << 20);
    rq_set_process_limit(16 << 20);
    rq_limit_error error = {0};
    for (int round = 0; round < 1000 && rq_check_process(&error); round++) {
        /* It is looked at when the process grows. */
        efree(emalloc((size_t)(2 + round % 8) << 20));
    }
    CHECK(error.kind == RQ_LIMIT_PROCESS && error.limit_bytes == 16 << 20);
    rq_set_process_limit(SIZE_MAX);
    CHECK(rq_check_process(&error));
    rq_end_request(NULL);
    rq_trim();
    size_t before = stats.mapped_bytes;
    rq_stats(&stats);
    CHECK(stats.mapped_bytes < before + (64 << 20));
}

