/* The list of what a request never freed: by size class, and where the request traces its leaks by place. */
#define RQMALLOC_DEBUG
#include "harness.h"

#include <pthread.h>

/* The first line of a list, and what comes behind it. */
#define FIRST_LINE "request %llu%s: %s never freed (%s)\n"

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

/* ---- by size class ------------------------------------------------------------------------------------------------ */

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
                                         "  huge: 2 blocks, 4.0 MiB\n",
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
                                         "  huge: 1 block, 2.0 MiB\n",
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

/* ---- after a bailout ---------------------------------------------------------------------------------------------- */

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

/* ---- by place ----------------------------------------------------------------------------------------------------- */

/* The places of a list that has these first line and classes whose blocks add up; NULL terminated lines, sorted as
 * the list is. */
static void check_places(const char *said, const char *first_line, const char *const *places) {
    size_t length = strlen(first_line);
    if (strncmp(said, first_line, length) != 0) {
        fail(__FILE__, __LINE__, "the list is\n%s\nand not of\n%s", said, first_line);
    }
    unsigned long blocks = 0, in_classes = 0, last_class = 0;
    sscanf(strstr(first_line, ": ") + 2, "%lu", &blocks);
    const char *line = strchr(said, '\n') + 1;
    for (;; line = strchr(line, '\n') + 1) {
        unsigned long class_bytes, count;
        if (sscanf(line, "  %lu-byte class: %lu block", &class_bytes, &count) == 2) {
            CHECK(class_bytes > last_class);
            last_class = class_bytes;
        } else if (sscanf(line, "  huge: %lu block", &count) != 1) {
            break;
        }
        in_classes += count;
    }
    CHECK_EQUAL(in_classes, blocks);
    char expected[TEXT_BYTES] = "";
    for (; *places != NULL; places++) {
        strcat(strcat(strcat(expected, "  "), *places), "\n");
    }
    CHECK_TEXT(line, expected);
}

CASE(leaks_are_listed_by_place_and_size_and_equal_ones_are_folded) {
    unsigned long long request = begin_tracing("GET /");
    int first = __LINE__ + 1;
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
    char places[13][80];
    const char *in_order[14] = {0};
    int index = 0;
#define PLACE(line, ...)                                                                                               \
    snprintf(places[index], sizeof places[index], "%s(%d): " __VA_ARGS__);                                            \
    in_order[index] = places[index];                                                                                   \
    index++
    snprintf(places[index], 80, "%s(%d): 16 bytes", __FILE__, first), in_order[index] = places[index], index++;
    snprintf(places[index], 80, "%s(%d): 100 bytes, repeated 2 times", __FILE__, first + 2), in_order[index] = places[index], index++;
    snprintf(places[index], 80, "%s(%d): 200 bytes, repeated 1 time", __FILE__, first + 5), in_order[index] = places[index], index++;
    snprintf(places[index], 80, "%s(%d): 301 bytes", __FILE__, first + 7), in_order[index] = places[index], index++;
    snprintf(places[index], 80, "%s(%d): 8 bytes", __FILE__, first + 8), in_order[index] = places[index], index++;
    snprintf(places[index], 80, "%s(%d): 4 bytes", __FILE__, first + 9), in_order[index] = places[index], index++;
    for (int size = 10; size <= 30; size += 10) {
        snprintf(places[index], 80, "%s(%d): %d bytes", __FILE__, first + 11, size), in_order[index] = places[index], index++;
    }
    check_places(said, text_of("request %llu (GET /): 16 blocks never freed (", request), in_order);
}
