/* The memory limit of a request, the mark below it, and the figures: what is used, the peak, what
   is given back. */
#include "harness.h"

#include <pthread.h>

static uint64_t begin(size_t limit, size_t reserve) {
    rq_options options = {.memory_limit = limit, .reserve = reserve};
    return rq_begin_request_with(&options);
}

/* Returns the numbers in a failure's text; fails if it is not a memory limit. */
static rq_limit_error limit_error(const char *text) {
    rq_limit_error error;
    char exact[256];
    if (sscanf(text, "memory limit reached (limit %zu, in use %zu, asked %zu)", &error.limit_bytes, &error.in_use_bytes,
               &error.asked_bytes) != 3) {
        fail(__FILE__, __LINE__, "no memory limit: %s", text);
    }
    snprintf(exact, sizeof exact, "memory limit reached (limit %zu, in use %zu, asked %zu)", error.limit_bytes,
             error.in_use_bytes, error.asked_bytes);
    CHECK_TEXT(text, exact);
    return error;
}

/* Allocates blocks of this size until that fails; returns how many there were. */
static size_t fill_up(size_t size, bool keep) {
    volatile size_t count = 0;
    void *volatile first = NULL;
    rq_try {
        for (;;) {
            void **block = emalloc(size);
            memset(block, 0x11, size);
            *block = first;
            first = block;
            count++;
        }
    } rq_catch {
        rq_limit_error error = limit_error(rq_bailout_reason());
        CHECK_EQUAL(error.asked_bytes, size);
    } rq_end_try
    while (!keep && first != NULL) {
        void *next = *(void **)first;
        efree(first);
        first = next;
    }
    return count;
}

/* ---- the text -------------------------------------------------------------------------------- */

DEATH(the_first_block_is_over_the_limit) {
    begin(4 * PAGE, 0);
    dies_with("memory limit reached (limit 65536, in use 0, asked 100000)");
    unused(emalloc(100000));
}

DEATH(a_later_block_is_over_the_limit) {
    begin(4 * PAGE, 0);
    unused(emalloc(100));
    dies_with("memory limit reached (limit 65536, in use 16384, asked 100000)");
    unused(emalloc(100000));
}

DEATH(a_huge_block_is_over_the_limit) {
    begin(4 * MIB, 0);
    dies_with("memory limit reached (limit 4194304, in use 0, asked 8388608)");
    unused(ecalloc(2, 4 * MIB));
}

DEATH(a_resized_block_is_over_the_limit) {
    begin(4 * MIB, 0);
    void *block = emalloc(100);
    dies_with("memory limit reached (limit 4194304, in use 16384, asked 8388608)");
    unused(erealloc(block, 8 * MIB));
}

DEATH(a_limit_below_a_page_is_over_at_once) {
    begin(1, 0);
    dies_with("memory limit reached (limit 1, in use 0, asked 1)");
    unused(emalloc(1));
}

CASE(the_text_of_a_caught_limit_is_the_same) {
    begin(4 * PAGE, 0);
    unused(emalloc(100));
    volatile bool is_caught = false;
    rq_try {
        unused(emalloc(100000));
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "memory limit reached (limit 65536, in use 16384, asked 100000)");
    } rq_end_try
    CHECK(is_caught);
    rq_end_request(NULL);
}

CASE(every_way_to_a_block_meets_the_limit) {
    begin(MIB, 0);
    void *volatile block = emalloc(100);
    fill(block, 100, 1);
    size_t usage = rq_memory_usage(false);
    for (volatile int way = 0; way < 15; way++) {
        size_t asked = 2 * MIB;
        volatile bool is_caught = false;
        rq_try {
            switch (way) {
                case 0: unused(emalloc(asked)); break;
                case 1: unused(safe_emalloc(2, MIB, 0)); break;
                case 2: unused(ecalloc(2, MIB)); break;
                case 3: unused(erealloc(block, asked)); break;
                case 4: unused(erealloc2(block, asked, 10)); break;
                case 5: unused(safe_erealloc(block, 2, MIB, 0)); break;
                case 6: unused(pemalloc(asked, false)); break;
                case 7: unused(safe_pemalloc(2, MIB, 0, false)); break;
                case 8: unused(pecalloc(2, MIB, false)); break;
                case 9: unused(perealloc(block, asked, false)); break;
                case 10: unused(safe_perealloc(block, 2, MIB, 0, false)); break;
                case 11: unused(rq_emalloc_at(asked, "a.c", 1)); break;
                case 12: unused(rq_erealloc_at(block, asked, "a.c", 1)); break;
                case 13: unused(erealloc(NULL, asked)); break;
                default: {
                    char *text = pemalloc(2 * MIB, true);
                    memset(text, 'x', 2 * MIB);
                    unused(estrndup(text, 2 * MIB - 1));
                }
            }
        } rq_catch {
            is_caught = true;
            rq_limit_error error = limit_error(rq_bailout_reason());
            CHECK_EQUAL(error.limit_bytes, MIB);
            CHECK_EQUAL(error.in_use_bytes, PAGE);
            CHECK_EQUAL(error.asked_bytes, asked);
        } rq_end_try
        CHECK(is_caught);
        CHECK_EQUAL(rq_memory_usage(false), usage);
        CHECK_EQUAL(rq_memory_usage(true), PAGE);
        CHECK(is_filled(block, 100, 1));
    }
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
}

/* ---- how far it goes ------------------------------------------------------------------------- */

CASE(no_limit_is_no_limit) {
    rq_begin_request();
    for (int count = 0; count < 64; count++) {
        unused(emalloc(2 * MIB));
    }
    CHECK(rq_check(NULL));
    rq_end_request(NULL);
    begin(0, 0);
    unused(emalloc(64 * MIB));
    CHECK(rq_check(NULL));
    rq_end_request(NULL);
    rq_begin_request_with(NULL);
    unused(emalloc(64 * MIB));
    CHECK(rq_check(NULL));
    rq_end_request(NULL);
}

CASE(the_limit_is_reached_to_the_last_page) {
    static const size_t limits[] = {PAGE, 2 * PAGE, 17 * PAGE, 1048576, 4194304, 16777216};
    static const size_t sizes[] = {8, 100, 1000, 5000};
    for (size_t index = 0; index < sizeof limits / sizeof limits[0]; index++) {
        for (size_t which = 0; which < sizeof sizes / sizeof sizes[0]; which++) {
            begin(limits[index], 0);
            size_t count = fill_up(sizes[which], true);
            CHECK_EQUAL(rq_memory_usage(true), limits[index]);
            CHECK(count * sizes[which] <= limits[index]);
            CHECK(count * (sizes[which] + 8) >= limits[index] / 100 * 55);
            rq_limit_error error;
            CHECK(!rq_check(&error));
            CHECK_EQUAL(error.limit_bytes, limits[index]);
            CHECK_EQUAL(error.in_use_bytes, limits[index]);
            CHECK_EQUAL(error.asked_bytes, sizes[which]);
            rq_report report;
            rq_end_request(&report);
            CHECK_EQUAL(report.freed_blocks, count);
            CHECK_EQUAL(report.peak_bytes, limits[index]);
        }
    }
}

CASE(a_limit_that_is_no_whole_pages_is_not_passed) {
    begin(100000, 0);
    fill_up(1000, true);
    CHECK_EQUAL(rq_memory_usage(true), 100000 / PAGE * PAGE);
    volatile bool is_caught = false;
    rq_try {
        unused(emalloc(1000));
    } rq_catch {
        is_caught = true;
        CHECK_EQUAL(limit_error(rq_bailout_reason()).limit_bytes, 100000);
    } rq_end_try
    CHECK(is_caught);
    rq_end_request(NULL);
}

CASE(large_and_huge_blocks_fit_up_to_the_limit_and_not_a_byte_more) {
    static const size_t sizes[] = {50000, 100000, 1000000, 2 * 1048576, 9 * 1048576};
    for (size_t index = 0; index < sizeof sizes / sizeof sizes[0]; index++) {
        /* What one of them takes. */
        rq_begin_request();
        unused(emalloc(sizes[index]));
        size_t taken = rq_memory_usage(true);
        CHECK(taken >= sizes[index] && taken % PAGE == 0);
        rq_end_request(NULL);

        begin(3 * taken, 0);
        CHECK_EQUAL(fill_up(sizes[index], true), 3);
        CHECK_EQUAL(rq_memory_usage(true), 3 * taken);
        rq_end_request(NULL);
        begin(3 * taken - 1, 0);
        CHECK_EQUAL(fill_up(sizes[index], true), 2);
        rq_end_request(NULL);
    }
}

CASE(the_limit_holds_for_what_grows_in_place) {
    begin(8 * MIB, 0);
    void *volatile block = emalloc(2 * MIB);
    volatile size_t size = 2 * MIB;
    fill(block, size, 1);
    volatile bool is_caught = false;
    rq_try {
        for (;;) {
            block = erealloc(block, size + 64 * KIB);
            size += 64 * KIB;
            CHECK(rq_memory_usage(true) <= 8 * MIB);
        }
    } rq_catch {
        is_caught = true;
        CHECK_EQUAL(limit_error(rq_bailout_reason()).asked_bytes, size + 64 * KIB);
    } rq_end_try
    CHECK(is_caught);
    CHECK(is_filled(block, 2 * MIB, 1) && rq_block_size(block) >= size);
    CHECK(rq_memory_usage(true) >= size && rq_memory_peak_usage(true) <= 8 * MIB);
    efree(block);
    CHECK_EQUAL(rq_memory_usage(true), 0);
    rq_end_request(NULL);
}

CASE(persistent_memory_counts_in_no_limit) {
    begin(MIB, 0);
    void *block = pemalloc(16 * MIB, true);
    rq_persistent_on();
    void *other = emalloc(16 * MIB);
    rq_persistent_off();
    for (int count = 0; count < 1000; count++) {
        pefree(pestrdup("text", true), true);
        unused(pemalloc(10000, true));
    }
    CHECK_EQUAL(rq_memory_usage(false), 0);
    CHECK_EQUAL(rq_memory_usage(true), 0);
    CHECK_EQUAL(rq_memory_peak_usage(true), 0);
    CHECK(rq_check(NULL));
    pefree(block, true);
    efree(other);
    rq_end_request(NULL);
}

CASE(each_request_has_a_limit_of_its_own) {
    begin(MIB, 0);
    fill_up(1000, true);
    begin(2 * MIB, 0);
    CHECK(rq_check(NULL));
    fill_up(1000, true);
    CHECK_EQUAL(rq_memory_usage(true), 2 * MIB);
    rq_begin_request();
    unused(emalloc(16 * MIB));
    rq_end_request(NULL);
    rq_end_request(NULL);
    CHECK_EQUAL(rq_memory_usage(true), MIB);
    CHECK(!rq_check(NULL));
    rq_end_request(NULL);
    CHECK(rq_check(NULL));
    /* The next request does not inherit it. */
    rq_begin_request();
    unused(emalloc(16 * MIB));
    CHECK(rq_check(NULL));
    rq_end_request(NULL);
}

CASE(a_block_that_grows_inside_another_request_meets_the_limit_of_its_own) {
    begin(MIB, 0);
    void *volatile block = emalloc(100);
    rq_begin_request();
    volatile bool is_caught = false;
    rq_try {
        block = erealloc(block, 2 * MIB);
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "memory limit reached (limit 1048576, in use 16384, asked 2097152)");
    } rq_end_try
    CHECK(is_caught);
    rq_end_request(NULL);
    /* The other way round: the block's request has no limit. */
    rq_end_request(NULL);
    rq_begin_request();
    block = emalloc(100);
    begin(MIB, 0);
    block = erealloc(block, 2 * MIB);
    CHECK_EQUAL(rq_memory_usage(true), 0);
    rq_end_request(NULL);
    CHECK(rq_memory_usage(true) >= 2 * MIB);
    rq_end_request(NULL);
}

static void *grow_it(void *argument) {
    void **block = argument;
    volatile bool is_caught = false;
    rq_try {
        *block = erealloc(*block, 16 * MIB);
    } rq_catch {
        is_caught = true;
        rq_limit_error error = limit_error(rq_bailout_reason());
        CHECK_EQUAL(error.limit_bytes, 8 * MIB);
        CHECK_EQUAL(error.asked_bytes, 16 * MIB);
    } rq_end_try
    CHECK(is_caught);
    *block = erealloc(*block, 3 * MIB);
    /* Above the mark, below the limit. */
    *block = erealloc(*block, 7 * MIB + 512 * KIB);
    return NULL;
}

CASE(a_block_that_grows_in_another_thread_meets_the_limit_of_its_request) {
    static const size_t sizes[] = {100, 100000, 3 * 1048576};
    for (size_t index = 0; index < sizeof sizes / sizeof sizes[0]; index++) {
        for (int by_another = 0; by_another < 2; by_another++) {
            begin(8 * MIB, MIB);
            void *block = emalloc(sizes[index]);
            fill(block, 100, 1);
            if (by_another) {
                pthread_t thread;
                CHECK(pthread_create(&thread, NULL, grow_it, &block) == 0 && pthread_join(thread, NULL) == 0);
            } else {
                grow_it(&block);
            }
            CHECK(is_filled(block, 100, 1));
            CHECK(rq_memory_usage(true) >= 7 * MIB + 512 * KIB && rq_memory_usage(true) <= 8 * MIB);
            CHECK(!rq_check(NULL));
            rq_end_request(NULL);
        }
    }
}

/* ---- reclaiming ------------------------------------------------------------------------------ */

/* ZendMM fails here with megabytes of free blocks of another size. */
CASE(what_was_freed_in_one_size_is_there_for_another) {
    static const size_t sizes[] = {64, 8, 3000, 500, 20000, 200, 100000};
    begin(8 * MIB, 0);
    for (size_t index = 0; index < sizeof sizes / sizeof sizes[0]; index++) {
        size_t count = fill_up(sizes[index], false);
        CHECK(count * (sizes[index] + 8) >= 5 * MIB);
        CHECK_EQUAL(rq_memory_usage(false), 0);
    }
    void *block = emalloc(7 * MIB);
    memset(block, 0x22, 7 * MIB);
    efree(block);
    rq_end_request(NULL);
}

CASE(at_the_limit_what_is_free_is_used_first) {
    enum { BLOCKS = 7500 };
    static void *blocks[BLOCKS];
    begin(8 * MIB, 0);
    for (int index = 0; index < BLOCKS; index++) {
        blocks[index] = emalloc(1000);
    }
    CHECK(rq_memory_usage(true) > 7 * MIB);
    /* Every thousandth stays, but most pages are still free. */
    for (int index = 0; index < BLOCKS; index++) {
        if (index % 1000 != 0) {
            efree(blocks[index]);
        }
    }
    for (int index = 0; index < 40; index++) {
        unused(emalloc(100000));
    }
    rq_end_request(NULL);
}

CASE(gc_gives_pages_back_and_says_how_many) {
    enum { BLOCKS = 5000 };
    static void *blocks[BLOCKS];
    rq_begin_request();
    for (int index = 0; index < BLOCKS; index++) {
        blocks[index] = emalloc(1000);
    }
    size_t held = rq_memory_usage(true);
    CHECK_EQUAL(rq_gc(), 0);
    for (int index = 0; index < BLOCKS; index++) {
        efree(blocks[index]);
    }
    size_t before = rq_memory_usage(true), gone = rq_gc(), after = rq_memory_usage(true);
    CHECK(gone >= held / 2);
    CHECK_EQUAL(before - after, gone);
    CHECK_EQUAL(rq_gc(), 0);
    rq_end_request(NULL);
}

CASE(gc_without_a_request_gives_back_what_is_idle) {
    enum { BLOCKS = 30000 };
    static void *blocks[BLOCKS];
    for (int index = 0; index < BLOCKS; index++) {
        blocks[index] = pemalloc(1000, true);
        memset(blocks[index], 1, 1000);
    }
    size_t before = resident_bytes();
    for (int index = 0; index < BLOCKS; index++) {
        pefree(blocks[index], true);
    }
    CHECK(rq_gc() >= 20 * MIB);
    CHECK(resident_bytes() + 20 * MIB <= before);
    rq_gc();
    CHECK_EQUAL(rq_gc(), 0);
}

/* ---- setting it ------------------------------------------------------------------------------ */

CASE(a_limit_can_be_set_and_lifted) {
    CHECK(!rq_set_memory_limit(MIB));
    CHECK(!rq_set_memory_limit(SIZE_MAX));
    rq_begin_request();
    CHECK(rq_set_memory_limit(MIB));
    fill_up(1000, true);
    CHECK_EQUAL(rq_memory_usage(true), MIB);
    CHECK(!rq_check(NULL));
    CHECK(rq_set_memory_limit(2 * MIB));
    CHECK(rq_check(NULL));
    fill_up(1000, true);
    CHECK_EQUAL(rq_memory_usage(true), 2 * MIB);
    CHECK(rq_set_memory_limit(SIZE_MAX));
    CHECK(rq_check(NULL));
    unused(emalloc(64 * MIB));
    CHECK(rq_check(NULL));
    rq_end_request(NULL);
    CHECK(!rq_set_memory_limit(SIZE_MAX));
}

CASE(a_limit_below_what_is_used_is_refused_and_nothing_changes) {
    begin(4 * MIB, 0);
    unused(emalloc(2 * MIB));
    size_t held = rq_memory_usage(true);
    CHECK(!rq_set_memory_limit(MIB));
    CHECK(!rq_set_memory_limit(held - 1));
    CHECK(!rq_set_memory_limit(0));
    CHECK_EQUAL(rq_memory_usage(true), held);
    fill_up(1000, true);
    CHECK_EQUAL(rq_memory_usage(true), 4 * MIB);
    rq_end_request(NULL);

    rq_begin_request();
    unused(emalloc(2 * MIB));
    CHECK(!rq_set_memory_limit(MIB));
    unused(emalloc(64 * MIB));
    rq_end_request(NULL);
}

CASE(a_limit_of_just_what_is_used_is_stored) {
    rq_begin_request();
    unused(emalloc(2 * MIB));
    size_t held = rq_memory_usage(true);
    CHECK(rq_set_memory_limit(held));
    volatile bool is_caught = false;
    rq_try {
        unused(emalloc(1));
    } rq_catch {
        is_caught = true;
        rq_limit_error error = limit_error(rq_bailout_reason());
        CHECK_EQUAL(error.limit_bytes, held);
        CHECK_EQUAL(error.in_use_bytes, held);
    } rq_end_try
    CHECK(is_caught);
    rq_end_request(NULL);
}

/* ZendMM makes room, reports success, and forgets the limit. */
CASE(a_limit_that_reclaiming_makes_room_for_is_stored) {
    begin(8 * MIB, 0);
    fill_up(1000, false);
    CHECK(rq_set_memory_limit(MIB));
    CHECK(rq_memory_usage(true) <= MIB);
    fill_up(1000, true);
    CHECK_EQUAL(rq_memory_usage(true), MIB);
    rq_end_request(NULL);
}

CASE(the_limit_that_is_set_is_that_of_the_innermost_request) {
    begin(MIB, 0);
    rq_begin_request();
    CHECK(rq_set_memory_limit(2 * MIB));
    fill_up(1000, true);
    CHECK_EQUAL(rq_memory_usage(true), 2 * MIB);
    rq_end_request(NULL);
    fill_up(1000, true);
    CHECK_EQUAL(rq_memory_usage(true), MIB);
    rq_end_request(NULL);
}

/* ---- the mark -------------------------------------------------------------------------------- */

static void check_mark(size_t limit, size_t reserve, size_t expected_reserve) {
    begin(limit, reserve);
    CHECK(rq_check(NULL));
    rq_limit_error error = {1, 2, 3, RQ_LIMIT_SOFT};
    CHECK(rq_check(&error));
    CHECK(error.limit_bytes == 1 && error.in_use_bytes == 2 && error.asked_bytes == 3);
    while (rq_check(&error)) {
        CHECK(rq_memory_usage(true) <= limit - expected_reserve);
        unused(emalloc(1000));
    }
    CHECK_EQUAL(error.limit_bytes, limit);
    CHECK_EQUAL(error.asked_bytes, 1000);
    CHECK(error.in_use_bytes >= limit - expected_reserve && error.in_use_bytes <= limit);
    CHECK(rq_memory_usage(true) >= limit - expected_reserve && rq_memory_usage(true) <= limit);
    /* Allocation goes on into the reserve. */
    size_t count = fill_up(1000, true);
    CHECK(count * 1100 + 256 * KIB >= expected_reserve);
    CHECK_EQUAL(rq_memory_usage(true), limit);
    CHECK(!rq_check(&error));
    rq_end_request(NULL);
}

CASE(a_request_is_marked_before_its_limit) {
    check_mark(8 * MIB, 2 * MIB, 2 * MIB);
    check_mark(8 * MIB, 0, MIB);
    check_mark(16 * MIB, 8 * MIB, 8 * MIB);
    check_mark(MIB, 512 * KIB, 512 * KIB);
}

CASE(the_program_gives_up_at_the_mark) {
    begin(8 * MIB, 4 * MIB);
    volatile bool is_caught = false;
    rq_try {
        for (;;) {
            unused(emalloc(10000));
            if (!rq_check(NULL)) {
                rq_bailout("at the mark");
            }
        }
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "at the mark");
        CHECK(rq_memory_usage(true) < 8 * MIB);
        unused(emalloc(MIB));
    } rq_end_try
    CHECK(is_caught);
    rq_end_request(NULL);
    CHECK(rq_check(NULL));
}

CASE(what_could_be_reclaimed_sets_no_mark) {
    begin(8 * MIB, 2 * MIB);
    static void *blocks[5000];
    for (int round = 0; round < 20; round++) {
        size_t size = round % 2 == 0 ? 1000 : 500;
        for (int index = 0; index < 5000; index++) {
            blocks[index] = emalloc(size);
        }
        for (int index = 0; index < 5000; index++) {
            efree(blocks[index]);
        }
        CHECK(rq_check(NULL));
    }
    rq_end_request(NULL);
}

/* ---- NULL instead of a bailout --------------------------------------------------------------- */

static void never(const char *text) {
    fail(__FILE__, __LINE__, "the error handler was called: %s", text);
}

CASE(or_null_says_null_at_the_limit) {
    rq_set_error_handler(never);
    begin(4 * MIB, 0);
    unsigned char *block = rq_emalloc_or_null(100);
    CHECK(block != NULL);
    fill(block, 100, 1);
    rq_try {
        CHECK(rq_emalloc_or_null(8 * MIB) == NULL);
        rq_limit_error error;
        CHECK(!rq_check(&error));
        CHECK_EQUAL(error.limit_bytes, 4 * MIB);
        CHECK_EQUAL(error.in_use_bytes, PAGE);
        CHECK_EQUAL(error.asked_bytes, 8 * MIB);
        CHECK(rq_erealloc_or_null(block, 9 * MIB) == NULL);
        CHECK(!rq_check(&error));
        CHECK_EQUAL(error.asked_bytes, 9 * MIB);
        CHECK(is_filled(block, 100, 1));
        block = rq_erealloc_or_null(block, MIB);
        CHECK(block != NULL && is_filled(block, 100, 1));
        efree(block);
    } rq_catch {
        CHECK(!"caught");
    } rq_end_try
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
}

/* ---- where it is suspended ------------------------------------------------------------------- */

static size_t allocated_by_the_handler;

static void allocate_much(const char *text) {
    limit_error(text);
    for (int count = 0; count < 4; count++) {
        memset(emalloc(MIB), 1, MIB);
        memset(emalloc(1000), 1, 1000);
    }
    allocated_by_the_handler = rq_memory_usage(true);
}

CASE(the_limit_is_suspended_in_the_error_handler_and_only_there) {
    rq_set_error_handler(allocate_much);
    begin(MIB, 0);
    unused(emalloc(1000));
    volatile bool is_caught = false;
    rq_try {
        unused(emalloc(2 * MIB));
    } rq_catch {
        is_caught = true;
        CHECK_TEXT(rq_bailout_reason(), "memory limit reached (limit 1048576, in use 16384, asked 2097152)");
    } rq_end_try
    CHECK(is_caught);
    CHECK(allocated_by_the_handler > 4 * MIB);
    CHECK_EQUAL(rq_memory_usage(true), allocated_by_the_handler);
    rq_set_error_handler(NULL);
    is_caught = false;
    rq_try {
        unused(emalloc(100000));
    } rq_catch {
        is_caught = true;
        CHECK_EQUAL(limit_error(rq_bailout_reason()).in_use_bytes, allocated_by_the_handler);
    } rq_end_try
    CHECK(is_caught);
    CHECK(!rq_set_memory_limit(2 * MIB));
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 9);
}

static void allocate_at_the_end(void *argument) {
    size_t *usage = argument;
    CHECK(rq_current_request() != 0);
    for (int count = 0; count < 4; count++) {
        memset(emalloc(MIB), 1, MIB);
        memset(emalloc(1000), 1, 1000);
    }
    *usage = rq_memory_usage(true);
}

CASE(the_limit_is_suspended_in_callbacks_at_the_end) {
    for (volatile int how = 0; how < 3; how++) {
        volatile size_t usage = 0;
        rq_report report = {0};
        rq_try {
            begin(MIB, 0);
            rq_on_end(allocate_at_the_end, (void *)(uintptr_t)&usage);
            fill_up(1000, true);
            /* Whole pages, and holes between survivors of the request before. */
            CHECK(rq_memory_usage(true) > MIB - PAGE && rq_memory_usage(true) <= MIB);
            switch (how) {
                case 0: rq_end_request(&report); break;
                case 1: rq_close_request(&report); break;
                default: rq_bailout("given up");
            }
        } rq_catch {
        } rq_end_try
        CHECK(usage > 5 * MIB);
        CHECK(how == 2 || report.peak_bytes == usage);
        CHECK_EQUAL(rq_current_request(), 0);
    }
}

/* ---- figures --------------------------------------------------------------------------------- */

CASE(without_a_request_nothing_is_used) {
    void *block = emalloc(MIB);
    CHECK_EQUAL(rq_memory_usage(false), 0);
    CHECK_EQUAL(rq_memory_usage(true), 0);
    CHECK_EQUAL(rq_memory_peak_usage(false), 0);
    CHECK_EQUAL(rq_memory_peak_usage(true), 0);
    rq_memory_reset_peak_usage();
    CHECK(rq_check(NULL));
    efree(block);
}

CASE(usage_follows_the_blocks) {
    static const size_t sizes[] = {1, 100, 1000, 20000, 100000, 3 * 1048576};
    rq_begin_request();
    CHECK_EQUAL(rq_memory_usage(false), 0);
    CHECK_EQUAL(rq_memory_usage(true), 0);
    for (size_t index = 0; index < sizeof sizes / sizeof sizes[0]; index++) {
        void *blocks[10];
        size_t before = rq_memory_usage(false);
        for (int count = 0; count < 10; count++) {
            size_t just_before = rq_memory_usage(false);
            blocks[count] = emalloc(sizes[index]);
            size_t more = rq_memory_usage(false) - just_before;
            CHECK(more >= sizes[index] && more <= sizes[index] + sizes[index] / 2 + 64);
            CHECK(rq_memory_usage(true) >= rq_memory_usage(false));
            CHECK_EQUAL(rq_memory_usage(true) % PAGE, 0);
        }
        size_t during = rq_memory_usage(true);
        for (int count = 0; count < 10; count++) {
            efree(blocks[count]);
        }
        CHECK_EQUAL(rq_memory_usage(false), before);
        CHECK(rq_memory_usage(true) <= during);
        unused(emalloc(sizes[index]));
    }
    rq_end_request(NULL);
    CHECK_EQUAL(rq_memory_usage(true), 0);
}

CASE(usage_is_that_of_the_innermost_request) {
    rq_begin_request();
    unused(emalloc(100));
    size_t outer = rq_memory_usage(false);
    rq_begin_request();
    CHECK_EQUAL(rq_memory_usage(false), 0);
    unused(emalloc(1000));
    CHECK(rq_memory_usage(false) > outer);
    rq_persistent_on();
    unused(emalloc(100000));
    CHECK(rq_memory_usage(false) < 100000 && rq_memory_usage(false) > outer);
    rq_persistent_off();
    rq_end_request(NULL);
    CHECK_EQUAL(rq_memory_usage(false), outer);
    rq_end_request(NULL);
}

CASE(the_peak_stays_until_it_is_measured_anew) {
    rq_begin_request();
    void *block = emalloc(4 * MIB);
    size_t high = rq_memory_usage(true);
    CHECK_EQUAL(rq_memory_peak_usage(true), high);
    CHECK_EQUAL(rq_memory_peak_usage(false), high);
    efree(block);
    size_t low = rq_memory_usage(true);
    CHECK(low < high);
    CHECK_EQUAL(rq_memory_peak_usage(true), high);
    rq_memory_reset_peak_usage();
    CHECK_EQUAL(rq_memory_peak_usage(true), low);
    block = emalloc(2 * MIB);
    CHECK_EQUAL(rq_memory_peak_usage(true), rq_memory_usage(true));
    CHECK(rq_memory_peak_usage(true) < high);
    rq_begin_request();
    CHECK_EQUAL(rq_memory_peak_usage(true), 0);
    rq_end_request(NULL);
    size_t peak = rq_memory_peak_usage(true);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.peak_bytes, peak);
    CHECK_EQUAL(rq_memory_peak_usage(true), 0);
}

CASE(the_report_says_what_was_freed) {
    rq_begin_request();
    rq_report report;
    memset(&report, 0xff, sizeof report);
    uint64_t request = rq_current_request();
    for (int count = 0; count < 10; count++) {
        unused(emalloc(100));
    }
    unused(emalloc(MIB));
    unused(emalloc(3 * MIB));
    size_t usage = rq_memory_usage(false), peak = rq_memory_peak_usage(true);
    rq_end_request(&report);
    CHECK_EQUAL(report.id, request);
    CHECK_EQUAL(report.freed_blocks, 12);
    CHECK_EQUAL(report.freed_bytes, usage);
    CHECK_EQUAL(report.peak_bytes, peak);
    CHECK_EQUAL(report.surviving_blocks, 0);
    CHECK_EQUAL(report.surviving_bytes, 0);
    CHECK_EQUAL(report.span_bytes, 0);
    CHECK(!report.still_open);
}
