/* Allocations that fail, because sizes overflow or no memory is left: with a way out (rq_try),
 * without one, and with NULL. The memory limit is in limits.c. */
#include "harness.h"

#include <pthread.h>

#define HUGE_SIZE ((size_t)1 << 40)

/* ---- sizes that overflow --------------------------------------------------------------------- */

enum overflow {
    SAFE_EMALLOC,
    SAFE_EMALLOC_OFFSET,
    SAFE_EMALLOC_AT,
    ECALLOC,
    ECALLOC_AT,
    SAFE_EREALLOC,
    SAFE_EREALLOC_OF_NULL,
    SAFE_EREALLOC_AT,
    SAFE_PEMALLOC,
    SAFE_PEMALLOC_PERSISTENT,
    PECALLOC,
    PECALLOC_PERSISTENT,
    SAFE_PEREALLOC,
    SAFE_PEREALLOC_PERSISTENT,
    ESTRNDUP,
    ESTRNDUP_AT,
    PESTRNDUP_PERSISTENT,
    OVERFLOW_COUNT
};

static const struct {
    const char *name;
    size_t count, size, offset;
    /* Whether the block it resizes is persistent. */
    bool persistent;
} OVERFLOWS[OVERFLOW_COUNT] = {
    [SAFE_EMALLOC] = {"safe_emalloc", 3, SIZE_MAX, 0, false},
    [SAFE_EMALLOC_OFFSET] = {"safe_emalloc_offset", 1, SIZE_MAX - 5, 6, false},
    [SAFE_EMALLOC_AT] = {"safe_emalloc_at", (size_t)1 << 63, 2, 1, false},
    [ECALLOC] = {"ecalloc", 3, SIZE_MAX, 0, false},
    [ECALLOC_AT] = {"ecalloc_at", SIZE_MAX / 2 + 1, 2, 0, false},
    [SAFE_EREALLOC] = {"safe_erealloc", SIZE_MAX, SIZE_MAX, SIZE_MAX, false},
    [SAFE_EREALLOC_OF_NULL] = {"safe_erealloc_of_null", 3, SIZE_MAX, 4, false},
    [SAFE_EREALLOC_AT] = {"safe_erealloc_at", 3, SIZE_MAX, 4, false},
    [SAFE_PEMALLOC] = {"safe_pemalloc_0", 3, SIZE_MAX, 4, false},
    [SAFE_PEMALLOC_PERSISTENT] = {"safe_pemalloc_1", 3, SIZE_MAX, 4, true},
    [PECALLOC] = {"pecalloc_0", 3, SIZE_MAX, 0, false},
    [PECALLOC_PERSISTENT] = {"pecalloc_1", 3, SIZE_MAX, 0, true},
    [SAFE_PEREALLOC] = {"safe_perealloc_0", 3, SIZE_MAX, 4, false},
    [SAFE_PEREALLOC_PERSISTENT] = {"safe_perealloc_1", 3, SIZE_MAX, 4, true},
    [ESTRNDUP] = {"estrndup", 1, SIZE_MAX, 1, false},
    [ESTRNDUP_AT] = {"estrndup_at", 1, SIZE_MAX, 1, false},
    [PESTRNDUP_PERSISTENT] = {"pestrndup_1", 1, SIZE_MAX, 1, true},
};

static void overflow(enum overflow which, void *block) {
    size_t count = opaque_size(OVERFLOWS[which].count), size = opaque_size(OVERFLOWS[which].size);
    size_t offset = opaque_size(OVERFLOWS[which].offset);
    switch (which) {
        case SAFE_EMALLOC:
        case SAFE_EMALLOC_OFFSET: unused(safe_emalloc(count, size, offset)); break;
        case SAFE_EMALLOC_AT: unused(rq_safe_emalloc_at(count, size, offset, "a.c", 1)); break;
        case ECALLOC: unused(ecalloc(count, size)); break;
        case ECALLOC_AT: unused(rq_ecalloc_at(count, size, "a.c", 1)); break;
        case SAFE_EREALLOC: unused(safe_erealloc(block, count, size, offset)); break;
        case SAFE_EREALLOC_OF_NULL: unused(safe_erealloc(NULL, count, size, offset)); break;
        case SAFE_EREALLOC_AT: unused(rq_safe_erealloc_at(block, count, size, offset, "a.c", 1)); break;
        case SAFE_PEMALLOC: unused(safe_pemalloc(count, size, offset, false)); break;
        case SAFE_PEMALLOC_PERSISTENT: unused(safe_pemalloc(count, size, offset, true)); break;
        case PECALLOC: unused(pecalloc(count, size, false)); break;
        case PECALLOC_PERSISTENT: unused(pecalloc(count, size, true)); break;
        case SAFE_PEREALLOC: unused(safe_perealloc(block, count, size, offset, false)); break;
        case SAFE_PEREALLOC_PERSISTENT: unused(safe_perealloc(block, count, size, offset, true)); break;
        case ESTRNDUP: unused(estrndup(block, size)); break;
        case ESTRNDUP_AT: unused(rq_estrndup_at(block, size, "a.c", 1)); break;
        case PESTRNDUP_PERSISTENT: unused(pestrndup(block, size, true)); break;
        case OVERFLOW_COUNT: break;
    }
}

static const char *overflow_text(enum overflow which) {
    static char text[256];
    snprintf(text, sizeof text, "integer overflow in an allocation (count %zu, size %zu, offset %zu)",
             OVERFLOWS[which].count, OVERFLOWS[which].size, OVERFLOWS[which].offset);
    return text;
}

static void overflow_without_a_try(int parameter) {
    void *block = pemalloc(100, OVERFLOWS[parameter].persistent);
    dies_with("%s", overflow_text((enum overflow)parameter));
    overflow((enum overflow)parameter, block);
}

static void overflow_without_a_try_in_a_request(int parameter) {
    rq_begin_request();
    overflow_without_a_try(parameter);
}

__attribute__((constructor)) static void register_overflows(void) {
    for (int which = 0; which < OVERFLOW_COUNT; which++) {
        char *outside = NULL, *inside = NULL;
        if (asprintf(&outside, "overflow_in_%s", OVERFLOWS[which].name) < 0 ||
            asprintf(&inside, "overflow_in_%s_in_a_request", OVERFLOWS[which].name) < 0) {
            exit(1);
        }
        register_case((test_case){outside, overflow_without_a_try, which, true, NULL});
        register_case((test_case){inside, overflow_without_a_try_in_a_request, which, true, NULL});
    }
}

static void check_overflows_are_caught(void) {
    for (volatile int which = 0; which < OVERFLOW_COUNT; which++) {
        bool persistent = OVERFLOWS[which].persistent;
        unsigned char *block = pemalloc(100, persistent);
        fill(block, 100, 1);
        size_t usage = rq_memory_usage(false);
        volatile bool is_caught = false;
        rq_try {
            overflow((enum overflow)which, block);
            CHECK(!"reached");
        } rq_catch {
            is_caught = true;
            CHECK_TEXT(rq_bailout_reason(), overflow_text((enum overflow)which));
        } rq_end_try
        CHECK(is_caught);
        CHECK_EQUAL(rq_memory_usage(false), usage);
        CHECK(is_filled(block, 100, 1));
        pefree(block, persistent);
    }
}

CASE(overflows_are_caught_and_leave_the_block_as_it_was) {
    check_overflows_are_caught();
    rq_begin_request();
    check_overflows_are_caught();
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
}

/* ---- no memory ------------------------------------------------------------------------------- */

enum origin {
    EMALLOC,
    EMALLOC_AT,
    EMALLOC_ZEROED,
    RESIZED,
    RESIZED2,
    PEMALLOC,
    PEMALLOC_ZEROED,
    PERSISTENT_RESIZED,
    PESTRNDUP,
    ORIGIN_COUNT
};

static const char *const ORIGIN_NAMES[ORIGIN_COUNT] = {
    [EMALLOC] = "emalloc",
    [EMALLOC_AT] = "emalloc_at",
    [EMALLOC_ZEROED] = "ecalloc",
    [RESIZED] = "erealloc",
    [RESIZED2] = "erealloc2",
    [PEMALLOC] = "pemalloc_1",
    [PEMALLOC_ZEROED] = "pecalloc_1",
    [PERSISTENT_RESIZED] = "perealloc_1",
    [PESTRNDUP] = "pestrndup_1",
};

static bool is_persistent(enum origin origin) {
    return origin >= PEMALLOC;
}

/* Asks for this size; `block` is one of the right family. */
static void ask(enum origin origin, void *block, size_t size) {
    size = opaque_size(size);
    switch (origin) {
        case EMALLOC: unused(emalloc(size)); break;
        case EMALLOC_AT: unused(rq_emalloc_at(size, "a.c", 1)); break;
        case EMALLOC_ZEROED: unused(ecalloc(1, size)); break;
        case RESIZED: unused(erealloc(block, size)); break;
        case RESIZED2: unused(erealloc2(block, size, 10)); break;
        case PEMALLOC: unused(pemalloc(size, true)); break;
        case PEMALLOC_ZEROED: unused(pecalloc(size, 1, true)); break;
        case PERSISTENT_RESIZED: unused(perealloc(block, size, true)); break;
        case PESTRNDUP: unused(pestrndup(block, size - 1, true)); break;
        case ORIGIN_COUNT: break;
    }
}

static void out_of_memory_without_a_try(int parameter) {
    enum origin origin = (enum origin)(parameter % ORIGIN_COUNT);
    if (parameter >= ORIGIN_COUNT) {
        rq_begin_request();
    }
    void *block = pemalloc(100, is_persistent(origin));
    limit_address_space(64 * MIB);
    dies_with("out of memory (asked %zu)", HUGE_SIZE);
    ask(origin, block, HUGE_SIZE);
}

__attribute__((constructor)) static void register_out_of_memory(void) {
    for (int parameter = 0; parameter < 2 * ORIGIN_COUNT; parameter++) {
        char *name = NULL;
        if (asprintf(&name, "out_of_memory_in_%s%s", ORIGIN_NAMES[parameter % ORIGIN_COUNT],
                     parameter >= ORIGIN_COUNT ? "_in_a_request" : "") < 0) {
            exit(1);
        }
        register_case((test_case){name, out_of_memory_without_a_try, parameter, true, NULL});
    }
}

static void check_out_of_memory_is_caught(size_t size) {
    char text[64];
    snprintf(text, sizeof text, "out of memory (asked %zu)", size);
    for (int origin = 0; origin < ORIGIN_COUNT; origin++) {
        bool persistent = is_persistent((enum origin)origin);
        unsigned char *block = pemalloc(5000, persistent);
        fill(block, 5000, 1);
        size_t usage = rq_memory_usage(false);
        volatile bool is_caught = false;
        rq_try {
            ask((enum origin)origin, block, size);
            CHECK(!"reached");
        } rq_catch {
            is_caught = true;
            CHECK_TEXT(rq_bailout_reason(), text);
        } rq_end_try
        CHECK(is_caught);
        CHECK_EQUAL(rq_memory_usage(false), usage);
        CHECK(is_filled(block, 5000, 1));
        pefree(block, persistent);
    }
    unsigned char *block = emalloc(5000);
    fill(block, 5000, 1);
    CHECK(rq_emalloc_or_null(opaque_size(size)) == NULL);
    CHECK(rq_erealloc_or_null(block, opaque_size(size)) == NULL);
    CHECK(rq_erealloc_or_null(NULL, opaque_size(size)) == NULL);
    CHECK(is_filled(block, 5000, 1));
    /* There is no limit that could have been the reason. */
    CHECK(rq_check(NULL));
    efree(block);
}

CASE(out_of_memory_is_caught_and_leaves_the_block_as_it_was) {
    efree(emalloc(1));
    limit_address_space(64 * MIB);
    for (int inside = 0; inside < 2; inside++) {
        check_out_of_memory_is_caught(HUGE_SIZE);
        check_out_of_memory_is_caught(1024 * MIB);
        rq_begin_request();
    }
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
    rq_end_request(NULL);
}

CASE(a_size_that_no_address_space_has_is_out_of_memory) {
    for (int inside = 0; inside < 2; inside++) {
        check_out_of_memory_is_caught(SIZE_MAX / 2);
        check_out_of_memory_is_caught(SIZE_MAX / 2 + 1);
        check_out_of_memory_is_caught(SIZE_MAX - 10000);
        check_out_of_memory_is_caught(SIZE_MAX - 16);
        check_out_of_memory_is_caught(SIZE_MAX - 1);
        check_out_of_memory_is_caught(SIZE_MAX);
        rq_begin_request();
    }
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
    rq_end_request(NULL);
}

/* Takes all there is in blocks of one size, linked by their first words; returns how many. */
static size_t take_all(size_t size, bool persistent, bool or_null, void *volatile *first) {
    volatile size_t count = 0;
    rq_try {
        for (;;) {
            void **block = or_null ? rq_emalloc_or_null(size) : pemalloc(size, persistent);
            if (block == NULL) {
                break;
            }
            *block = *first;
            *first = block;
            count++;
        }
    } rq_catch {
        char text[64];
        snprintf(text, sizeof text, "out of memory (asked %zu)", size);
        CHECK_TEXT(rq_bailout_reason(), text);
        CHECK(!or_null);
    } rq_end_try
    return count;
}

CASE(memory_that_ran_out_is_there_again_after_the_end) {
    efree(emalloc(1));
    limit_address_space(48 * MIB);
    static const size_t of[] = {1000, 24, 20000, 200000, 2 * 1048576, 1000};
    for (int or_null = 0; or_null < 2; or_null++) {
        for (size_t index = 0; index < sizeof of / sizeof of[0]; index++) {
            void *volatile first = NULL;
            rq_begin_request();
            size_t count = take_all(of[index], false, or_null, &first);
            CHECK(count * of[index] > 16 * MIB);
            CHECK(rq_check(NULL));
            rq_report report;
            rq_end_request(&report);
            CHECK_EQUAL(report.freed_blocks, count);
            first = NULL;
            count = take_all(of[index], true, false, &first);
            CHECK(count * of[index] > 16 * MIB);
            while (first != NULL) {
                void *next = *(void **)first;
                pefree(first, true);
                first = next;
            }
        }
    }
}

DEATH(small_blocks_until_there_is_no_memory) {
    rq_begin_request();
    unused(emalloc(1000));
    limit_address_space(16 * MIB);
    dies_with("out of memory (asked 1000)");
    for (;;) {
        unused(emalloc(1000));
    }
}

/* The size asked for is the same as the one that set the mark, but the mark is not the reason. */
CASE(out_of_memory_below_the_limit_is_no_memory_limit) {
    rq_options options = {.memory_limit = HUGE_SIZE, .reserve = HUGE_SIZE - 2 * MIB};
    rq_begin_request_with(&options);
    while (rq_check(NULL)) {
        unused(emalloc(1000));
    }
    limit_address_space(32 * MIB);
    volatile bool is_caught = false;
    rq_try {
        for (;;) {
            unused(emalloc(1000));
        }
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "out of memory (asked 1000)");
    } rq_end_try
    CHECK(is_caught);
    rq_end_request(NULL);
}

/* What represents a request, a persistent part or a callback needs memory, too. */
static void begin_endlessly(int what) {
    switch (what) {
        case 0: rq_begin_request(); break;
        case 1: rq_persistent_on(); break;
        default: rq_begin_request_with(&(rq_options){.name = "one of many", .report_leaks = true}); break;
    }
}

CASE(requests_and_parts_until_there_is_no_memory) {
    efree(emalloc(1));
    limit_address_space(24 * MIB);
    for (volatile int what = 0; what < 3; what++) {
        volatile bool is_caught = false;
        rq_try {
            for (;;) {
                begin_endlessly(what);
            }
        } rq_catch {
            is_caught = true;
            CHECK(strncmp(rq_bailout_reason(), "out of memory (asked ", 21) == 0);
            CHECK_EQUAL(rq_current_request(), 0);
        } rq_end_try
        CHECK(is_caught);
        rq_begin_request();
        unused(emalloc(100));
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 1);
    }
}

static void do_nothing(void *argument) {
    (void)argument;
}

CASE(callbacks_until_there_is_no_memory) {
    rq_begin_request();
    unused(emalloc(1));
    limit_address_space(24 * MIB);
    volatile bool is_caught = false;
    rq_try {
        for (;;) {
            rq_on_end(do_nothing, NULL);
        }
    } rq_catch {
        is_caught = true;
        CHECK(strncmp(rq_bailout_reason(), "out of memory (asked ", 21) == 0);
    } rq_end_try
    CHECK(is_caught);
    rq_end_request(NULL);
}

/* The list needs memory, too. Without memory it may be missing, but the request ends. */
CASE(a_list_of_leaks_without_memory_for_it) {
    rq_options options = {.trace_leaks = true, .report_leaks_after_bailout = true};
    rq_begin_request_with(&options);
    unused(rq_emalloc_at(100, "a.c", 1));
    limit_address_space(16 * MIB);
    volatile size_t count = 1;
    for (size_t size = 1000; size > 0; size /= 4) {
        while (rq_emalloc_or_null(size) != NULL) {
            count++;
        }
    }
    capture();
    rq_report report;
    rq_end_request(&report);
    captured();
    CHECK_EQUAL(report.freed_blocks, count);
}

/* ---- the error handler ----------------------------------------------------------------------- */

static char told[256];
static int told_count;

static void remember(const char *text) {
    snprintf(told, sizeof told, "%s", text);
    told_count++;
}

CASE(the_error_handler_is_told_before_the_bailout) {
    rq_set_error_handler(remember);
    rq_begin_request();
    for (int round = 1; round <= 3; round++) {
        volatile bool is_caught = false;
        rq_try {
            unused(safe_emalloc(opaque_size(3), SIZE_MAX, 0));
        } rq_catch {
            is_caught = true;
            CHECK_TEXT(told, "integer overflow in an allocation (count 3, size 18446744073709551615, offset 0)");
            CHECK_TEXT(rq_bailout_reason(), told);
        } rq_end_try
        CHECK(is_caught);
        CHECK_EQUAL(told_count, round);
    }
    rq_try {
        unused(pemalloc(opaque_size(SIZE_MAX), true));
    } rq_catch {
        CHECK_TEXT(told, "out of memory (asked 18446744073709551615)");
    } rq_end_try
    CHECK_EQUAL(told_count, 4);
    CHECK(rq_emalloc_or_null(opaque_size(SIZE_MAX)) == NULL);
    CHECK_EQUAL(told_count, 4);
    rq_try {
        rq_bailout("a reason of the program's own");
    } rq_catch {
        CHECK_TEXT(rq_bailout_reason(), "a reason of the program's own");
    } rq_end_try
    CHECK_EQUAL(told_count, 4);
    rq_set_error_handler(NULL);
    rq_try {
        unused(safe_emalloc(opaque_size(3), SIZE_MAX, 0));
    } rq_catch {
    } rq_end_try
    CHECK_EQUAL(told_count, 4);
    rq_end_request(NULL);
}

static void *fail_in_a_thread(void *argument) {
    volatile bool is_caught = false;
    rq_try {
        unused(safe_emalloc(opaque_size(3), SIZE_MAX, 0));
    } rq_catch {
        is_caught = true;
    } rq_end_try
    CHECK(is_caught);
    return argument;
}

CASE(the_error_handler_is_for_the_whole_process) {
    rq_set_error_handler(remember);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, fail_in_a_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
    CHECK_EQUAL(told_count, 1);
}

/* Expects the process to end with this text, which the handler is told first. */
static void expect_the_end(const char *text) {
    dies_with("%s", text);
    CHECK(strncmp(text, "integer overflow", 16) == 0);
}

DEATH(the_error_handler_is_told_before_the_end) {
    rq_set_error_handler(expect_the_end);
    unused(ecalloc(opaque_size(3), opaque_size(SIZE_MAX)));
}

static void allocate_and_free(const char *text) {
    char *copy = estrdup(text);
    CHECK_TEXT(copy, text);
    efree(copy);
    unused(estrdup(text));
    pefree(pemalloc(100, true), true);
    told_count++;
}

CASE(the_error_handler_may_allocate) {
    rq_set_error_handler(allocate_and_free);
    rq_begin_request();
    for (int round = 0; round < 1000; round++) {
        rq_try {
            unused(safe_emalloc(opaque_size(3), SIZE_MAX, 0));
        } rq_catch {
        } rq_end_try
    }
    CHECK_EQUAL(told_count, 1000);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1000);
}

static void try_inside(const char *text) {
    told_count++;
    volatile bool is_caught = false;
    rq_try {
        rq_bailout("inside the handler");
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "inside the handler");
    } rq_end_try
    CHECK(is_caught);
    CHECK(strncmp(text, "integer overflow", 16) == 0);
}

CASE(a_try_inside_the_error_handler_is_the_handlers) {
    rq_set_error_handler(try_inside);
    volatile bool is_caught = false;
    rq_try {
        unused(safe_emalloc(opaque_size(3), SIZE_MAX, 0));
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), overflow_text(SAFE_EMALLOC));
    } rq_end_try
    CHECK(is_caught);
    CHECK_EQUAL(told_count, 1);
}

static void bail_out(const char *text) {
    (void)text;
    dies_with("bailout without a try (reason past the handler)");
    rq_bailout("past the handler");
}

DEATH(a_bailout_past_the_error_handler) {
    rq_set_error_handler(bail_out);
    rq_try {
        unused(safe_emalloc(opaque_size(3), SIZE_MAX, 0));
    } rq_catch {
        dprintf(2, "caught\n");
    } rq_end_try
}

/* A handler that fails is not called about its own failure: that would never end. */
static void fail_again(const char *text) {
    (void)text;
    if (told_count++ > 0) {
        dprintf(2, "told once more\n");
        _exit(1);
    }
    dies_with("integer overflow in an allocation (count 5, size 18446744073709551615, offset 0)");
    unused(safe_emalloc(opaque_size(5), SIZE_MAX, 0));
}

DEATH(an_error_in_the_error_handler) {
    rq_set_error_handler(fail_again);
    rq_try {
        unused(safe_emalloc(opaque_size(3), SIZE_MAX, 0));
    } rq_catch {
        dprintf(2, "caught\n");
    } rq_end_try
}

static void fail_again_in_a_try(const char *text) {
    (void)text;
    if (told_count++ > 0) {
        dprintf(2, "told once more\n");
        _exit(1);
    }
    volatile bool is_caught = false;
    rq_try {
        unused(safe_emalloc(opaque_size(5), SIZE_MAX, 0));
    } rq_catch {
        is_caught = true;
    } rq_end_try
    CHECK(is_caught);
}

CASE(an_error_in_a_try_in_the_error_handler) {
    rq_set_error_handler(fail_again_in_a_try);
    volatile bool is_caught = false;
    rq_try {
        unused(safe_emalloc(opaque_size(3), SIZE_MAX, 0));
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), overflow_text(SAFE_EMALLOC));
    } rq_end_try
    CHECK(is_caught);
    CHECK_EQUAL(told_count, 1);
}

static void begin_a_request(const char *text) {
    (void)text;
    rq_begin_request();
    unused(emalloc(100));
    rq_end_request(NULL);
    told_count++;
}

CASE(the_error_handler_may_have_a_request_of_its_own) {
    rq_set_error_handler(begin_a_request);
    uint64_t request = rq_begin_request();
    rq_try {
        unused(safe_emalloc(opaque_size(3), SIZE_MAX, 0));
    } rq_catch {
    } rq_end_try
    CHECK_EQUAL(told_count, 1);
    CHECK_EQUAL(rq_current_request(), request);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
}
