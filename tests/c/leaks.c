/* The list of what a request never freed: by size class and, if the request traces its leaks, by
 * place. */
#define RQMALLOC_DEBUG
#include "harness.h"

#include <pthread.h>

static uint64_t begin_reporting(const char *name) {
    rq_options options = {.name = name, .report_leaks = true};
    return rq_begin_request_with(&options);
}

static uint64_t begin_tracing(const char *name) {
    rq_options options = {.name = name, .trace_leaks = true};
    return rq_begin_request_with(&options);
}

static const char *end_and_listen(void) {
    capture();
    rq_end_request(NULL);
    return captured();
}

__attribute__((format(printf, 1, 2))) static const char *text_of(const char *format, ...) {
    static char text[TEXT_BYTES];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    return text;
}

/* ---- by size class --------------------------------------------------------------------------- */

CASE(leaks_are_listed_by_class) {
    uint64_t request = begin_reporting("GET /");
    for (int count = 0; count < 3; count++) {
        unused(rq_emalloc(20));
    }
    unused(rq_emalloc(1000));
    efree(rq_emalloc(500));
    unused(rq_emalloc(8));
    unused(rq_emalloc(100000));
    unused(rq_estrdup("seven.."));
    unused(rq_emalloc(2 * MIB));
    unused(rq_emalloc(2 * MIB));
    unused(pemalloc(100, true));
    CHECK_TEXT(end_and_listen(), text_of("request %llu (GET /): 9 blocks never freed (4.1 MiB)\n"
                                         "  8-byte class: 2 blocks, 32 B\n"
                                         "  24-byte class: 3 blocks, 96 B\n"
                                         "  1032-byte class: 1 block, 1.0 KiB\n"
                                         "  114696-byte class: 1 block, 112.0 KiB\n"
                                         "  mapped: 2 blocks, 4.0 MiB\n",
                                         (unsigned long long)request));
}

CASE(one_leak_without_a_name) {
    uint64_t request = begin_reporting(NULL);
    unused(rq_emalloc(40));
    CHECK_TEXT(end_and_listen(), text_of("request %llu: 1 block never freed (48 B)\n"
                                         "  40-byte class: 1 block, 48 B\n",
                                         (unsigned long long)request));
}

CASE(one_huge_leak) {
    uint64_t request = begin_reporting("h");
    unused(rq_emalloc(2 * MIB));
    CHECK_TEXT(end_and_listen(), text_of("request %llu (h): 1 block never freed (2.0 MiB)\n"
                                         "  mapped: 1 block, 2.0 MiB\n",
                                         (unsigned long long)request));
}

CASE(nothing_is_said_of_nothing) {
    begin_reporting("GET /");
    efree(rq_emalloc(100));
    efree(rq_emalloc(100000));
    efree(rq_emalloc(2 * MIB));
    CHECK_TEXT(end_and_listen(), "");
    begin_reporting("GET /");
    CHECK_TEXT(end_and_listen(), "");
    begin_tracing("GET /");
    efree(emalloc(100));
    CHECK_TEXT(end_and_listen(), "");
}

CASE(nothing_is_said_without_being_asked) {
    rq_begin_request();
    unused(rq_emalloc(100));
    CHECK_TEXT(end_and_listen(), "");
    rq_options options = {.name = "silent"};
    rq_begin_request_with(&options);
    unused(emalloc(100));
    CHECK_TEXT(end_and_listen(), "");
}

CASE(what_was_persisted_is_no_leak) {
    uint64_t request = begin_reporting("p");
    void *small = rq_emalloc(100), *large = rq_emalloc(100000), *huge = rq_emalloc(2 * MIB);
    rq_persist(small);
    rq_persist(large);
    rq_persist(huge);
    unused(rq_emalloc(24));
    CHECK_TEXT(end_and_listen(), text_of("request %llu (p): 1 block never freed (32 B)\n"
                                         "  24-byte class: 1 block, 32 B\n",
                                         (unsigned long long)request));
    rq_free(small);
    rq_free(large);
    rq_free(huge);
}

CASE(each_request_lists_its_own) {
    uint64_t outer = begin_reporting("outer");
    unused(rq_emalloc(24));
    uint64_t inner = begin_reporting("inner");
    unused(rq_emalloc(40));
    rq_begin_request();
    unused(rq_emalloc(8));
    CHECK_TEXT(end_and_listen(), "");
    CHECK_TEXT(end_and_listen(), text_of("request %llu (inner): 1 block never freed (48 B)\n"
                                         "  40-byte class: 1 block, 48 B\n",
                                         (unsigned long long)inner));
    CHECK_TEXT(end_and_listen(), text_of("request %llu (outer): 1 block never freed (32 B)\n"
                                         "  24-byte class: 1 block, 32 B\n",
                                         (unsigned long long)outer));
}

CASE(a_close_lists_them_as_well) {
    uint64_t request = begin_reporting("closed");
    void *block = rq_emalloc(24);
    capture();
    rq_close_request(NULL);
    CHECK_TEXT(captured(), text_of("request %llu (closed): 1 block never freed (32 B)\n"
                                   "  24-byte class: 1 block, 32 B\n",
                                   (unsigned long long)request));
    efree(block);
}

static void leak(void *argument) {
    unused(rq_emalloc(*(size_t *)argument));
}

static void free_it(void *argument) {
    efree(argument);
}

CASE(callbacks_run_before_the_list) {
    size_t size = 40;
    uint64_t request = begin_reporting("callbacks");
    rq_on_end(leak, &size);
    rq_on_end(free_it, rq_emalloc(1000));
    CHECK_TEXT(end_and_listen(), text_of("request %llu (callbacks): 1 block never freed (48 B)\n"
                                         "  40-byte class: 1 block, 48 B\n",
                                         (unsigned long long)request));
}

CASE(ten_thousand_leaks) {
    uint64_t request = begin_reporting("many");
    for (int count = 0; count < 10000; count++) {
        unused(rq_emalloc(24));
        efree(rq_emalloc(24));
    }
    CHECK_TEXT(end_and_listen(), text_of("request %llu (many): 10000 blocks never freed (312.5 KiB)\n"
                                         "  24-byte class: 10000 blocks, 312.5 KiB\n",
                                         (unsigned long long)request));
}

/* ---- after a bailout ------------------------------------------------------------------------- */

CASE(a_bailout_makes_it_silent) {
    begin_reporting("given up");
    rq_try {
        unused(rq_emalloc(24));
        rq_bailout("given up");
    } rq_end_try
    CHECK_TEXT(end_and_listen(), "");
    begin_tracing("given up");
    rq_try {
        unused(emalloc(24));
        unused(safe_emalloc(opaque_size(3), opaque_size(SIZE_MAX), 0));
    } rq_end_try
    CHECK_TEXT(end_and_listen(), "");
    capture();
    rq_try {
        begin_reporting("begun inside");
        unused(rq_emalloc(24));
        rq_bailout("given up");
    } rq_end_try
    CHECK_TEXT(captured(), "");
}

CASE(a_bailout_does_not_make_it_silent_where_that_is_asked_for) {
    rq_options options = {.name = "given up", .report_leaks = true, .report_leaks_after_bailout = true};
    uint64_t request = rq_begin_request_with(&options);
    rq_try {
        unused(rq_emalloc(24));
        rq_bailout("given up");
    } rq_end_try
    CHECK_TEXT(end_and_listen(), text_of("request %llu (given up): 1 block never freed (32 B)\n"
                                         "  24-byte class: 1 block, 32 B\n",
                                         (unsigned long long)request));
    volatile uint64_t inside = 0;
    capture();
    rq_try {
        inside = rq_begin_request_with(&options);
        unused(rq_emalloc(24));
        rq_bailout("given up");
    } rq_end_try
    CHECK_TEXT(captured(), text_of("request %llu (given up): 1 block never freed (32 B)\n"
                                   "  24-byte class: 1 block, 32 B\n",
                                   (unsigned long long)inside));
}

CASE(the_request_after_one_that_was_given_up_is_not_silent) {
    for (int round = 0; round < 3; round++) {
        begin_reporting("given up");
        rq_try {
            unused(rq_emalloc(24));
            rq_bailout("given up");
        } rq_end_try
        CHECK_TEXT(end_and_listen(), "");
        uint64_t request = begin_reporting("the next");
        unused(rq_emalloc(24));
        CHECK_TEXT(end_and_listen(), text_of("request %llu (the next): 1 block never freed (32 B)\n"
                                             "  24-byte class: 1 block, 32 B\n",
                                             (unsigned long long)request));
    }
}

/* ---- by place -------------------------------------------------------------------------------- */

/* The lines that a list must have after its classes, sorted as in the list. */
static char places[TEXT_BYTES];

__attribute__((format(printf, 1, 2))) static void expect_place(const char *format, ...) {
    size_t length = strlen(places);
    va_list values;
    va_start(values, format);
    vsnprintf(places + length, sizeof places - length, format, values);
    va_end(values);
}

/* Checks a list: its first line up to the bytes, classes that together have this many blocks,
 * smallest first, and the expected places. Traced blocks are longer by their record, so their
 * classes are up to the allocator. */
static void check_places(const char *said, const char *first_line, unsigned long blocks) {
    size_t length = strlen(first_line);
    if (strncmp(said, first_line, length) != 0) {
        fail(__FILE__, __LINE__, "the list is\n%s\nand not of\n%s", said, first_line);
    }
    unsigned long in_classes = 0, last_class = 0;
    const char *line = strchr(said, '\n') + 1;
    for (;; line = strchr(line, '\n') + 1) {
        unsigned long class_bytes, count;
        if (sscanf(line, "  %lu-byte class: %lu block", &class_bytes, &count) == 2) {
            CHECK(class_bytes > last_class);
            last_class = class_bytes;
        } else if (sscanf(line, "  mapped: %lu block", &count) != 1) {
            break;
        }
        in_classes += count;
    }
    CHECK_EQUAL(in_classes, blocks);
    CHECK_TEXT(line, places);
}

CASE(leaks_are_listed_by_place_and_size_and_equal_ones_are_folded) {
    unsigned long long request = begin_tracing("GET /");
    /* The lines are sorted as texts, so they must have the same number of digits. */
    int line = __LINE__;
    unused(emalloc(16));
    for (int count = 0; count < 3; count++) {
        unused(emalloc(100));
    }
    for (int count = 0; count < 2; count++) {
        unused(ecalloc(10, 20));
    }
    unused(safe_emalloc(3, 100, 1));
    unused(estrdup("seven.."));
    unused(estrndup("seven..", 3));
    for (size_t size = 10; size <= 30; size += 10) {
        unused(emalloc(size));
    }
    unused(erealloc(NULL, 70));
    unused(erealloc2(NULL, 80, 0));
    unused(safe_erealloc(NULL, 9, 10, 0));
    unused(emalloc(3 * MIB));
    efree(emalloc(100));
    const char *said = end_and_listen();
    CHECK(line > 100 && line < 900);
    expect_place("  %s(%d): 16 bytes\n", __FILE__, line + 1);
    expect_place("  %s(%d): 100 bytes, repeated 2 times\n", __FILE__, line + 3);
    expect_place("  %s(%d): 200 bytes, repeated 1 time\n", __FILE__, line + 6);
    expect_place("  %s(%d): 301 bytes\n", __FILE__, line + 8);
    expect_place("  %s(%d): 8 bytes\n", __FILE__, line + 9);
    expect_place("  %s(%d): 4 bytes\n", __FILE__, line + 10);
    expect_place("  %s(%d): 10 bytes\n", __FILE__, line + 12);
    expect_place("  %s(%d): 20 bytes\n", __FILE__, line + 12);
    expect_place("  %s(%d): 30 bytes\n", __FILE__, line + 12);
    expect_place("  %s(%d): 70 bytes\n", __FILE__, line + 14);
    expect_place("  %s(%d): 80 bytes\n", __FILE__, line + 15);
    expect_place("  %s(%d): 90 bytes\n", __FILE__, line + 16);
    expect_place("  %s(%d): %zu bytes\n", __FILE__, line + 17, 3 * MIB);
    check_places(said, text_of("request %llu (GET /): 16 blocks never freed (", request), 16);
}

/* A program that writes to all of rq_block_size() must not overwrite the record. */
CASE(the_record_is_none_of_the_blocks_bytes) {
    static const size_t sizes[] = {0, 1, 100, 1000, 20000, 100000, 3 * 1048576};
    unsigned long long request = begin_tracing(NULL);
    int line = __LINE__ + 2;
    for (size_t index = 0; index < sizeof sizes / sizeof sizes[0]; index++) {
        void *block = emalloc(sizes[index]);
        CHECK(rq_block_size(block) >= sizes[index]);
        memset(block, 0xff, rq_block_size(block));
        expect_place("  %s(%d): %zu bytes\n", __FILE__, line, sizes[index]);
    }
    check_places(end_and_listen(), text_of("request %llu: 7 blocks never freed (", request), 7);
}

CASE(a_block_that_was_resized_is_listed_with_its_new_size) {
    unsigned long long request = begin_tracing(NULL);
    int line = __LINE__;
    void *block = emalloc(10);
    block = erealloc(block, 5000);
    unused(block);
    const char *said = end_and_listen();
    expect_place("  %s(%d): 5000 bytes\n", __FILE__, line + 2);
    check_places(said, text_of("request %llu: 1 block never freed (", request), 1);
}

CASE(the_place_of_a_call_by_its_name_is_not_known) {
    unsigned long long request = begin_tracing(NULL);
    unused(rq_emalloc(10));
    unused(pemalloc(10, false));
    expect_place("  unknown place (the feature `trace` finds it): 10 bytes, repeated 1 time\n");
    check_places(end_and_listen(), text_of("request %llu: 2 blocks never freed (", request), 2);
}

static unsigned long long traced_in_a_thread;
static const char *said_in_a_thread;

static void *leak_in_a_thread(void *argument) {
    traced_in_a_thread = begin_tracing("thread");
    unused(rq_emalloc_at(10, "thread.c", 1));
    said_in_a_thread = end_and_listen();
    return argument;
}

CASE(a_thread_traces_its_own_request) {
    begin_tracing("main");
    void *block = emalloc(10);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, leak_in_a_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
    expect_place("  thread.c(1): 10 bytes\n");
    check_places(said_in_a_thread, text_of("request %llu (thread): 1 block never freed (", traced_in_a_thread), 1);
    efree(block);
    CHECK_TEXT(end_and_listen(), "");
}

static void *free_in_a_thread(void *block) {
    efree(block);
    return NULL;
}

CASE(what_another_thread_freed_is_no_leak) {
    for (int trace = 0; trace < 2; trace++) {
        rq_options options = {.report_leaks = true, .trace_leaks = trace};
        rq_begin_request_with(&options);
        void *blocks[] = {emalloc(10), emalloc(100000), emalloc(2 * MIB)};
        for (int index = 0; index < 3; index++) {
            pthread_t thread;
            CHECK(pthread_create(&thread, NULL, free_in_a_thread, blocks[index]) == 0);
            CHECK(pthread_join(thread, NULL) == 0);
        }
        CHECK_TEXT(end_and_listen(), "");
    }
}

CASE_WITH("RQMALLOC_TRACE=1", the_environment_traces_every_request) {
    unsigned long long request = rq_begin_request();
    int line = __LINE__;
    unused(emalloc(10));
    expect_place("  %s(%d): 10 bytes\n", __FILE__, line + 1);
    check_places(end_and_listen(), text_of("request %llu: 1 block never freed (", request), 1);

    rq_options options = {.name = "named"};
    request = rq_begin_request_with(&options);
    unused(emalloc(20));
    memset(places, 0, sizeof places);
    expect_place("  %s(%d): 20 bytes\n", __FILE__, line + 7);
    check_places(end_and_listen(), text_of("request %llu (named): 1 block never freed (", request), 1);

    rq_begin_request();
    efree(emalloc(10));
    CHECK_TEXT(end_and_listen(), "");
    rq_begin_request();
    rq_try {
        unused(emalloc(10));
        rq_bailout("given up");
    } rq_end_try
    CHECK_TEXT(end_and_listen(), "");
}

CASE_WITH("RQMALLOC_TRACE=0", the_environment_may_say_no) {
    rq_begin_request();
    unused(emalloc(10));
    CHECK_TEXT(end_and_listen(), "");
}
