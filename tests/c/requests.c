/* Requests: what their ends free and keep, callbacks, persistent parts, and threads. */
#include "harness.h"

#include <pthread.h>

static const size_t FEW_SIZES[] = {0, 100, 1000, 20000, 100000, 3 * 1048576};
#define FEW_SIZE_COUNT (sizeof FEW_SIZES / sizeof FEW_SIZES[0])

/* ---- begin and end --------------------------------------------------------------------------- */

CASE(before_the_first_request) {
    CHECK_EQUAL(rq_current_request(), 0);
    CHECK_EQUAL(rq_memory_usage(true), 0);
}

CASE(a_request_has_a_number_that_no_other_has) {
    uint64_t last = 0;
    for (int round = 0; round < 5000; round++) {
        uint64_t request = round % 2 == 0 ? rq_begin_request() : rq_begin_request_with(NULL);
        CHECK(request > last);
        CHECK_EQUAL(rq_current_request(), request);
        uint64_t inner = rq_begin_request();
        CHECK(inner > request);
        CHECK_EQUAL(rq_current_request(), inner);
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.id, inner);
        CHECK_EQUAL(rq_current_request(), request);
        rq_close_request(&report);
        CHECK_EQUAL(report.id, request);
        CHECK_EQUAL(rq_current_request(), 0);
        last = inner;
    }
}

CASE(the_end_frees_whatever_was_leaked) {
    for (int round = 0; round < 20; round++) {
        rq_begin_request();
        for (int count = 0; count < 20; count++) {
            for (size_t index = 0; index < FEW_SIZE_COUNT; index++) {
                fill(emalloc(FEW_SIZES[index]), FEW_SIZES[index], 1);
            }
        }
        size_t usage = rq_memory_usage(false);
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 20 * FEW_SIZE_COUNT);
        CHECK_EQUAL(report.freed_bytes, usage);
        CHECK_EQUAL(report.surviving_blocks, 0);
    }
}

CASE(the_blocks_of_an_inner_request_are_not_those_of_the_outer) {
    rq_begin_request();
    unsigned char *outer = emalloc(1000);
    fill(outer, 1000, 1);
    size_t usage = rq_memory_usage(false);
    for (int round = 0; round < 100; round++) {
        rq_begin_request();
        for (int count = 0; count < 100; count++) {
            memset(emalloc(1000), 0xee, 1000);
        }
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 100);
        CHECK(is_filled(outer, 1000, 1));
        CHECK_EQUAL(rq_memory_usage(false), usage);
    }
    efree(outer);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
}

CASE(a_block_is_freed_inside_another_request) {
    for (size_t index = 0; index < FEW_SIZE_COUNT; index++) {
        rq_begin_request();
        size_t before = rq_memory_usage(false);
        void *blocks[3] = {emalloc(FEW_SIZES[index]), emalloc(FEW_SIZES[index]), emalloc(FEW_SIZES[index])};
        rq_begin_request();
        efree(blocks[0]);
        rq_free(blocks[1]);
        pefree(blocks[2], false);
        CHECK_EQUAL(rq_memory_usage(false), 0);
        rq_end_request(NULL);
        CHECK_EQUAL(rq_memory_usage(false), before);
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 0);
    }
}

CASE(a_block_keeps_its_request_when_it_is_resized_inside_another) {
    for (size_t from = 0; from < FEW_SIZE_COUNT; from++) {
        for (size_t to = 0; to < FEW_SIZE_COUNT; to++) {
            size_t less = FEW_SIZES[from] < FEW_SIZES[to] ? FEW_SIZES[from] : FEW_SIZES[to];
            rq_begin_request();
            unsigned char *blocks[2] = {emalloc(FEW_SIZES[from]), emalloc(FEW_SIZES[from])};
            fill(blocks[0], FEW_SIZES[from], 1);
            fill(blocks[1], FEW_SIZES[from], 2);
            rq_begin_request();
            blocks[0] = erealloc(blocks[0], FEW_SIZES[to]);
            blocks[1] = erealloc2(blocks[1], FEW_SIZES[to], less / 2);
            CHECK_EQUAL(rq_memory_usage(false), 0);
            rq_report report;
            rq_end_request(&report);
            CHECK_EQUAL(report.freed_blocks, 0);
            CHECK(is_filled(blocks[0], less, 1));
            CHECK(is_filled(blocks[1], less / 2, 2));
            CHECK(rq_memory_usage(false) >= 2 * FEW_SIZES[to]);
            efree(blocks[0]);
            rq_end_request(&report);
            CHECK_EQUAL(report.freed_blocks, 1);
        }
    }
}

CASE(a_thousand_requests_nest) {
    enum { DEPTH = 1000 };
    static unsigned char *blocks[DEPTH];
    for (int depth = 0; depth < DEPTH; depth++) {
        rq_begin_request();
        blocks[depth] = emalloc(100);
        fill(blocks[depth], 100, (unsigned)depth);
    }
    for (int depth = DEPTH - 1; depth >= 0; depth--) {
        CHECK(is_filled(blocks[depth], 100, (unsigned)depth));
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 1);
    }
    CHECK_EQUAL(rq_current_request(), 0);
}

CASE(the_options_need_not_outlive_the_call) {
    rq_options options = {.memory_limit = 1048576, .reserve = 65536};
    rq_begin_request_with(&options);
    memset(&options, 0xff, sizeof options);
    volatile bool is_caught = false;
    rq_try {
        unused(emalloc(2 * MIB));
    } rq_catch {
        is_caught = true;
    } rq_end_try
    CHECK(is_caught);
    rq_end_request(NULL);
}

CASE(ten_thousand_requests_that_leak_cost_no_memory) {
    size_t resident = 0;
    uint64_t random = 88172645463325252u;
    for (int round = 0; round < 10000; round++) {
        if (round == 2000) {
            resident = resident_bytes();
        }
        rq_begin_request();
        for (int count = 0; count < 20; count++) {
            size_t size = random_size(&random) / 8;
            void *block = emalloc(size);
            memset(block, 1, size);
            if (count % 3 == 0) {
                efree(block);
            }
        }
        rq_end_request(NULL);
    }
    CHECK(resident_bytes() <= resident + 4 * MIB);
}

/* ---- close and persist ----------------------------------------------------------------------- */

CASE(what_is_live_survives_a_close) {
    for (size_t index = 0; index < FEW_SIZE_COUNT; index++) {
        size_t size = FEW_SIZES[index];
        rq_begin_request();
        unsigned char *kept[4];
        for (int count = 0; count < 4; count++) {
            kept[count] = emalloc(size);
            fill(kept[count], size, (unsigned)count);
            efree(emalloc(size));
        }
        size_t usage = rq_memory_usage(false);
        rq_report report;
        rq_close_request(&report);
        CHECK_EQUAL(report.freed_blocks, 0);
        CHECK_EQUAL(report.surviving_blocks, 4);
        CHECK_EQUAL(report.surviving_bytes, usage);
        CHECK(report.span_bytes >= usage);
        CHECK(!report.still_open);
        /* Others come and go meanwhile. */
        rq_begin_request();
        for (int count = 0; count < 100; count++) {
            memset(emalloc(size), 0xee, size);
        }
        rq_end_request(NULL);
        for (int count = 0; count < 4; count++) {
            CHECK(is_filled(kept[count], size, (unsigned)count));
            CHECK(rq_block_size(kept[count]) >= size);
        }
        efree(kept[0]);
        rq_free(kept[1]);
        pefree(kept[2], false);
        rq_begin_request();
        efree(kept[3]);
        rq_end_request(NULL);
    }
}

CASE(a_survivor_of_a_close_can_be_resized) {
    for (size_t from = 0; from < FEW_SIZE_COUNT; from++) {
        for (size_t to = 0; to < FEW_SIZE_COUNT; to++) {
            size_t less = FEW_SIZES[from] < FEW_SIZES[to] ? FEW_SIZES[from] : FEW_SIZES[to];
            rq_begin_request();
            unsigned char *block = emalloc(FEW_SIZES[from]);
            fill(block, FEW_SIZES[from], 1);
            rq_close_request(NULL);
            block = erealloc(block, FEW_SIZES[to]);
            CHECK(is_filled(block, less, 1));
            CHECK(rq_block_size(block) >= FEW_SIZES[to]);
            /* Still of the emalloc family. */
            block = erealloc(block, FEW_SIZES[to] + 10);
            CHECK(is_filled(block, less, 1));
            efree(block);
        }
    }
}

CASE(a_close_of_nothing) {
    rq_begin_request();
    rq_report report;
    memset(&report, 0xff, sizeof report);
    rq_close_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
    CHECK_EQUAL(report.surviving_blocks, 0);
    CHECK_EQUAL(report.peak_bytes, 0);
    rq_begin_request();
    efree(emalloc(100));
    rq_close_request(NULL);
}

CASE(what_is_persisted_survives_the_end) {
    for (size_t index = 0; index < FEW_SIZE_COUNT; index++) {
        size_t size = FEW_SIZES[index];
        rq_begin_request();
        unsigned char *kept[3], *closed;
        for (int count = 0; count < 3; count++) {
            kept[count] = emalloc(size);
            fill(kept[count], size, (unsigned)count);
            rq_persist(kept[count]);
            unused(emalloc(size));
        }
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 3);
        /* They are not the request's any more. */
        CHECK_EQUAL(report.surviving_blocks, 0);
        rq_begin_request();
        for (int count = 0; count < 100; count++) {
            memset(emalloc(size), 0xee, size);
        }
        rq_end_request(NULL);
        for (int count = 0; count < 3; count++) {
            CHECK(is_filled(kept[count], size, (unsigned)count));
        }
        rq_free(kept[0]);
        efree(kept[1]);
        pefree(kept[2], false);

        /* Freed while its request is open, and after a close. */
        rq_begin_request();
        kept[0] = emalloc(size);
        rq_persist(kept[0]);
        rq_persist(kept[0]);
        efree(kept[0]);
        closed = emalloc(size);
        fill(closed, size, 3);
        rq_persist(closed);
        unsigned char *survivor = emalloc(size);
        size_t usage = rq_memory_usage(false);
        rq_close_request(&report);
        /* Only the one that was live and still the request's. */
        CHECK_EQUAL(report.surviving_blocks, 1);
        CHECK_EQUAL(report.surviving_bytes, usage);
        CHECK(is_filled(closed, size, 3));
        rq_free(closed);
        rq_free(survivor);
    }
}

CASE(what_is_persisted_leaves_the_figures_at_once) {
    for (size_t index = 0; index < FEW_SIZE_COUNT; index++) {
        size_t size = FEW_SIZES[index];
        rq_begin_request();
        unsigned char *stays = emalloc(size);
        size_t usage = rq_memory_usage(false);
        unsigned char *persisted = emalloc(size);
        CHECK(rq_memory_usage(false) > usage);
        rq_persist(persisted);
        CHECK_EQUAL(rq_memory_usage(false), usage);
        efree(persisted);
        CHECK_EQUAL(rq_memory_usage(false), usage);
        efree(stays);
        CHECK_EQUAL(rq_memory_usage(false), 0);
        rq_end_request(NULL);
    }
}

/* Blocks of a closed request are of either family, and so is what they are resized to. */
CASE(survivors_are_of_either_family) {
    for (size_t index = 0; index < FEW_SIZE_COUNT; index++) {
        size_t size = FEW_SIZES[index];
        for (int parameter = 0; parameter < 16; parameter++) {
            bool persists = parameter & 1, resizes_as = parameter & 2, resizes = parameter & 4, frees_as = parameter & 8;
            rq_begin_request();
            unsigned char *block = emalloc(size);
            fill(block, size, 1);
            if (persists) {
                rq_persist(block);
                rq_end_request(NULL);
            } else {
                rq_close_request(NULL);
            }
            if (resizes) {
                block = perealloc(block, size + 100, resizes_as);
                CHECK(is_filled(block, size, 1));
                /* It may have moved: then it is of the family that asked. */
                frees_as = resizes_as;
            }
            pefree(block, frees_as);
        }
    }
}

CASE(later_requests_allocate_between_survivors) {
    enum { COUNT = 2000, EVERY = 20 };
    static unsigned char *blocks[COUNT];
    rq_begin_request();
    for (int index = 0; index < COUNT; index++) {
        blocks[index] = emalloc(1000);
    }
    for (int index = 0; index < COUNT; index++) {
        if (index % EVERY == 0) {
            fill(blocks[index], 1000, (unsigned)index);
        } else {
            efree(blocks[index]);
        }
    }
    rq_report report;
    rq_close_request(&report);
    CHECK_EQUAL(report.surviving_blocks, COUNT / EVERY);
    CHECK(report.reusable_bytes > 0);
    CHECK(report.surviving_bytes + report.reusable_bytes <= report.span_bytes);

    int between = 0;
    rq_begin_request();
    for (int count = 0; count < COUNT / 2; count++) {
        unsigned char *block = emalloc(1000);
        memset(block, 0xee, 1000);
        for (int index = 0; index < COUNT; index += EVERY) {
            between += (uintptr_t)block / PAGE == (uintptr_t)blocks[index] / PAGE;
        }
    }
    CHECK(between > COUNT / 4);
    CHECK_EQUAL(rq_memory_usage(true) % 256, 0);
    CHECK(rq_memory_usage(true) >= rq_memory_usage(false));
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, COUNT / 2);
    CHECK_EQUAL(report.surviving_blocks, 0);
    for (int index = 0; index < COUNT; index += EVERY) {
        CHECK(is_filled(blocks[index], 1000, (unsigned)index));
        efree(blocks[index]);
    }
}

static void resize_persisted(bool before_the_end) {
    for (size_t from = 0; from < FEW_SIZE_COUNT; from++) {
        for (size_t to = 0; to < FEW_SIZE_COUNT; to++) {
            size_t less = FEW_SIZES[from] < FEW_SIZES[to] ? FEW_SIZES[from] : FEW_SIZES[to];
            rq_begin_request();
            unsigned char *block = emalloc(FEW_SIZES[from]);
            fill(block, FEW_SIZES[from], 1);
            rq_persist(block);
            if (before_the_end) {
                block = erealloc(block, FEW_SIZES[to]);
            }
            rq_report report;
            rq_end_request(&report);
            CHECK_EQUAL(report.freed_blocks, 0);
            if (!before_the_end) {
                block = erealloc(block, FEW_SIZES[to]);
            }
            CHECK(is_filled(block, less, 1));
            /* Still of the emalloc family. */
            efree(block);
        }
    }
}

CASE(a_persisted_block_can_be_resized_before_the_end) {
    resize_persisted(true);
}

CASE(a_persisted_block_can_be_resized_after_the_end) {
    resize_persisted(false);
}

CASE(persisting_what_is_persistent_already) {
    void *persistent = pemalloc(100, true), *early = emalloc(100);
    rq_persist(persistent);
    rq_begin_request();
    rq_persist(persistent);
    rq_persist(early);
    rq_end_request(NULL);
    pefree(persistent, true);
    efree(early);
}

/* ---- callbacks ------------------------------------------------------------------------------- */

static char order[64];
static uint64_t seen_request;

static void note(void *argument) {
    order[strlen(order)] = *(char *)argument;
    seen_request = rq_current_request();
}

static char letters[] = "abcdefghijklmnopqrstuvwxyz";

static void register_three(void) {
    memset(order, 0, sizeof order);
    for (int index = 0; index < 3; index++) {
        rq_on_end(note, &letters[index]);
    }
}

CASE(callbacks_run_last_one_first) {
    rq_begin_request();
    register_three();
    CHECK_TEXT(order, "");
    uint64_t request = rq_current_request();
    rq_end_request(NULL);
    CHECK_TEXT(order, "cba");
    CHECK_EQUAL(seen_request, request);
    rq_begin_request();
    rq_end_request(NULL);
    CHECK_TEXT(order, "cba");
    rq_begin_request();
    register_three();
    rq_close_request(NULL);
    CHECK_TEXT(order, "cba");
}

CASE(callbacks_run_after_a_bailout) {
    rq_begin_request();
    register_three();
    rq_try {
        rq_bailout("given up");
    } rq_catch {
        CHECK_TEXT(order, "");
    } rq_end_try
    rq_end_request(NULL);
    CHECK_TEXT(order, "cba");
    rq_try {
        rq_begin_request();
        register_three();
        rq_bailout("given up");
    } rq_catch {
        CHECK_TEXT(order, "cba");
    } rq_end_try
}

CASE(callbacks_are_those_of_the_innermost_request) {
    rq_begin_request();
    rq_on_end(note, &letters[0]);
    rq_begin_request();
    rq_on_end(note, &letters[1]);
    rq_persistent_on();
    rq_on_end(note, &letters[2]);
    rq_persistent_off();
    rq_end_request(NULL);
    CHECK_TEXT(order, "cb");
    rq_end_request(NULL);
    CHECK_TEXT(order, "cba");
}

static unsigned char *block_of_the_request;

static void use_the_block(void *argument) {
    CHECK(is_filled(block_of_the_request, 1000, 1));
    efree(block_of_the_request);
    fill(emalloc(2000), 2000, 2);
    unused(pemalloc(100, true));
    *(int *)argument += 1;
}

CASE(a_callback_frees_and_allocates_in_its_request) {
    int run = 0;
    rq_begin_request();
    block_of_the_request = emalloc(1000);
    fill(block_of_the_request, 1000, 1);
    rq_on_end(use_the_block, &run);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(run, 1);
    CHECK_EQUAL(report.freed_blocks, 1);

    rq_begin_request();
    block_of_the_request = emalloc(1000);
    fill(block_of_the_request, 1000, 1);
    rq_on_end(use_the_block, &run);
    rq_close_request(&report);
    CHECK_EQUAL(run, 2);
    CHECK_EQUAL(report.surviving_blocks, 1);
}

static void register_more(void *argument) {
    int *left = argument;
    order[strlen(order)] = (char)('0' + *left);
    if (*left > 0) {
        *left -= 1;
        rq_on_end(register_more, left);
    }
}

CASE(a_callback_may_register_another) {
    int left = 5;
    rq_begin_request();
    rq_on_end(note, &letters[0]);
    rq_on_end(register_more, &left);
    rq_end_request(NULL);
    CHECK_EQUAL(left, 0);
    CHECK_EQUAL(strlen(order), 7);
    CHECK(strchr(order, 'a') != NULL && order[0] == '5');
}

static void have_a_request(void *argument) {
    uint64_t outer = rq_current_request();
    CHECK(rq_begin_request() > outer);
    rq_on_end(note, argument);
    unused(emalloc(100));
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
    CHECK_EQUAL(rq_current_request(), outer);
}

CASE(a_callback_may_have_a_request_of_its_own) {
    rq_begin_request();
    rq_on_end(have_a_request, &letters[0]);
    rq_report report;
    rq_end_request(&report);
    CHECK_TEXT(order, "a");
    CHECK_EQUAL(report.freed_blocks, 0);
    CHECK_EQUAL(rq_current_request(), 0);
}

static void count(void *argument) {
    *(int *)argument += 1;
}

CASE(a_thousand_callbacks) {
    int run = 0;
    rq_options options = {.memory_limit = PAGE};
    rq_begin_request_with(&options);
    for (int index = 0; index < 1000; index++) {
        rq_on_end(count, &run);
    }
    /* What records them is not the request's memory. */
    CHECK_EQUAL(rq_memory_usage(true), 0);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(run, 1000);
    CHECK_EQUAL(report.freed_blocks, 0);
}

/* ---- persistent parts ------------------------------------------------------------------------ */

CASE(a_persistent_part_allocates_what_outlives_the_request) {
    uint64_t request = rq_begin_request();
    unsigned char *blocks[3];
    rq_persistent_on();
    CHECK_EQUAL(rq_current_request(), request);
    blocks[0] = emalloc(1000);
    rq_persistent_on();
    blocks[1] = ecalloc(10, 100);
    rq_persistent_off();
    blocks[2] = erealloc(estrdup("text"), 1000);
    CHECK_EQUAL(rq_memory_usage(false), 0);
    rq_persistent_off();
    unused(emalloc(1000));
    CHECK(rq_memory_usage(false) >= 1000);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
    for (int index = 0; index < 3; index++) {
        fill(blocks[index], 1000, (unsigned)index);
    }
    for (int index = 0; index < 3; index++) {
        CHECK(is_filled(blocks[index], 1000, (unsigned)index));
        efree(blocks[index]);
    }
}

CASE(a_request_inside_a_persistent_part_is_a_request) {
    rq_persistent_on();
    rq_begin_request();
    unused(emalloc(100));
    CHECK(rq_memory_usage(false) >= 100);
    rq_persistent_on();
    rq_begin_request();
    unused(emalloc(100));
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
    efree(emalloc(100));
    rq_persistent_off();
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
    rq_persistent_off();
}

CASE(parts_and_requests_may_end_crosswise) {
    rq_begin_request();
    rq_persistent_on();
    rq_end_request(NULL);
    CHECK_EQUAL(rq_current_request(), 0);
    efree(emalloc(100));
    rq_persistent_off();
    rq_persistent_on();
    uint64_t request = rq_begin_request();
    rq_persistent_off();
    CHECK_EQUAL(rq_current_request(), request);
    unused(emalloc(100));
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
}

CASE(a_block_of_the_request_stays_of_it_inside_a_persistent_part) {
    rq_begin_request();
    unsigned char *block = emalloc(100);
    fill(block, 100, 1);
    rq_persistent_on();
    block = erealloc(block, 50000);
    rq_persistent_off();
    CHECK(is_filled(block, 100, 1));
    CHECK(rq_memory_usage(false) >= 50000);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
}

CASE(a_thousand_persistent_parts_nest) {
    rq_begin_request();
    for (int depth = 0; depth < 1000; depth++) {
        rq_persistent_on();
    }
    efree(emalloc(100));
    CHECK_EQUAL(rq_memory_usage(true), 0);
    for (int depth = 0; depth < 1000; depth++) {
        rq_persistent_off();
    }
    unused(emalloc(100));
    CHECK(rq_memory_usage(true) > 0);
    rq_end_request(NULL);
}

#if LIBRARY_IS_SHARED
CASE_WITH("RQMALLOC_PRELOAD_REQUESTS=1", malloc_inside_a_request_is_of_it_where_the_environment_says_so) {
    void *before = malloc(100);
    rq_begin_request();
    for (int count = 0; count < 10; count++) {
        fill(opaque(malloc(1000)), 1000, 1);
        free(opaque(realloc(opaque(malloc(1000)), 5000)));
    }
    CHECK(rq_memory_usage(false) >= 10000);
    free(before);
    rq_on_end(use_the_block, &(int){0});
    block_of_the_request = malloc(1000);
    fill(block_of_the_request, 1000, 1);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 11);
}

CASE(malloc_inside_a_request_is_persistent) {
    rq_begin_request();
    unsigned char *block = malloc(1000), *zeroed = calloc(10, 100);
    fill(block, 1000, 1);
    block = realloc(block, 5000);
    CHECK(is_all(zeroed, 1000, 0));
    CHECK_EQUAL(rq_memory_usage(true), 0);
    rq_end_request(NULL);
    CHECK(is_filled(block, 1000, 1));
    free(block);
    free(zeroed);
}
#endif

/* ---- threads --------------------------------------------------------------------------------- */

static void *in_no_request(void *argument) {
    CHECK_EQUAL(rq_current_request(), 0);
    CHECK_EQUAL(rq_memory_usage(true), 0);
    *(void **)argument = emalloc(100);
    uint64_t request = rq_begin_request();
    CHECK_EQUAL(rq_current_request(), request);
    rq_end_request(NULL);
    return NULL;
}

CASE(a_thread_does_not_inherit_the_request) {
    uint64_t request = rq_begin_request();
    void *block;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, in_no_request, &block) == 0 && pthread_join(thread, NULL) == 0);
    CHECK_EQUAL(rq_current_request(), request);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
    efree(block);
}

enum { PASSED = 20000 };
static unsigned char *passed_on[PASSED];

static void *free_what_is_passed_on(void *argument) {
    if (argument != NULL) {
        rq_begin_request();
    }
    for (int index = 0; index < PASSED; index++) {
        if (index % 4 != 3) {
            CHECK(is_filled(passed_on[index], (size_t)(index % 300), (unsigned)index));
            efree(passed_on[index]);
        } else {
            passed_on[index] = erealloc(passed_on[index], 500);
            CHECK(is_filled(passed_on[index], (size_t)(index % 300), (unsigned)index));
        }
    }
    if (argument != NULL) {
        CHECK_EQUAL(rq_memory_usage(false), 0);
        rq_end_request(NULL);
    }
    return NULL;
}

CASE(another_thread_frees_and_resizes_blocks_of_the_request) {
    for (int round = 0; round < 4; round++) {
        rq_begin_request();
        for (int index = 0; index < PASSED; index++) {
            passed_on[index] = emalloc((size_t)(index % 300));
            fill(passed_on[index], (size_t)(index % 300), (unsigned)index);
        }
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, free_what_is_passed_on, round % 2 == 0 ? NULL : passed_on) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        for (int index = 3; index < PASSED; index += 4) {
            CHECK(is_filled(passed_on[index], (size_t)(index % 300), (unsigned)index));
        }
        rq_report report;
        if (round < 2) {
            rq_end_request(&report);
            CHECK_EQUAL(report.freed_blocks, PASSED / 4);
        } else {
            rq_close_request(&report);
            CHECK_EQUAL(report.surviving_blocks, PASSED / 4);
            for (int index = 3; index < PASSED; index += 4) {
                CHECK(is_filled(passed_on[index], (size_t)(index % 300), (unsigned)index));
                rq_free(passed_on[index]);
            }
        }
    }
}

static void *free_survivor(void *block) {
    CHECK(is_filled(block, 1000, 1));
    efree(block);
    return NULL;
}

CASE(another_thread_frees_survivors_later) {
    for (int round = 0; round < 200; round++) {
        rq_begin_request();
        unsigned char *block = emalloc(1000);
        fill(block, 1000, 1);
        if (round % 2 == 0) {
            rq_persist(block);
            rq_end_request(NULL);
        } else {
            rq_close_request(NULL);
        }
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, free_survivor, block) == 0 && pthread_join(thread, NULL) == 0);
    }
}

static unsigned char *left_behind;
static int callbacks_at_exit;

static void *leave_a_request_open(void *argument) {
    rq_begin_request();
    rq_on_end(count, &callbacks_at_exit);
    left_behind = emalloc(1000);
    fill(left_behind, 1000, 1);
    rq_begin_request();
    rq_persistent_on();
    return argument;
}

CASE(a_thread_that_exits_inside_a_request_closes_it) {
    for (int round = 1; round <= 100; round++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, leave_a_request_open, NULL) == 0 && pthread_join(thread, NULL) == 0);
        CHECK_EQUAL(callbacks_at_exit, round);
        CHECK(is_filled(left_behind, 1000, 1));
        efree(left_behind);
    }
}

/* A destructor that runs after the allocator's own finds that the thread has exited. */
static pthread_key_t key;
static int destructors_run;

static void allocate_in_a_destructor(void *value) {
    unsigned char *block = emalloc(1000), *persistent = pecalloc(10, 100, true);
    fill(block, 1000, 1);
    CHECK(is_all(persistent, 1000, 0));
    block = erealloc(block, 100000);
    CHECK(is_filled(block, 1000, 1));
    efree(block);
    pefree(persistent, true);
    efree(value);
    destructors_run++;
    if (destructors_run % 3 != 0) {
        CHECK(pthread_setspecific(key, emalloc(100)) == 0);
    }
}

static void *leave_a_destructor(void *argument) {
    CHECK(pthread_setspecific(key, emalloc(100)) == 0);
    rq_begin_request();
    unused(emalloc(100));
    return argument;
}

CASE(a_thread_allocates_in_its_last_destructors) {
    CHECK(pthread_key_create(&key, allocate_in_a_destructor) == 0);
    for (int round = 1; round <= 100; round++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, leave_a_destructor, NULL) == 0 && pthread_join(thread, NULL) == 0);
        CHECK_EQUAL(destructors_run, 3 * round);
    }
}

static void *work(void *argument) {
    uint64_t random = *(uint64_t *)argument;
    for (int round = 0; round < 300; round++) {
        rq_begin_request();
        unsigned char *blocks[30];
        size_t sizes[30];
        for (unsigned index = 0; index < 30; index++) {
            sizes[index] = random_size(&random) / 4;
            blocks[index] = pemalloc(sizes[index], index % 5 == 0);
            fill(blocks[index], sizes[index], index);
        }
        size_t live = 0;
        for (unsigned index = 0; index < 30; index++) {
            CHECK(is_filled(blocks[index], sizes[index], index));
            if (index % 5 == 0) {
                pefree(blocks[index], true);
            } else if (index % 3 == 0) {
                efree(blocks[index]);
            } else {
                live++;
            }
        }
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, live);
    }
    return NULL;
}

CASE(threads_have_requests_side_by_side) {
    enum { THREADS = 8 };
    pthread_t threads[THREADS];
    uint64_t seeds[THREADS];
    for (unsigned index = 0; index < THREADS; index++) {
        seeds[index] = 88172645463325252u + index * 7919u;
        CHECK(pthread_create(&threads[index], NULL, work, &seeds[index]) == 0);
    }
    for (int index = 0; index < THREADS; index++) {
        CHECK(pthread_join(threads[index], NULL) == 0);
    }
}

CASE(a_forked_child_goes_on_inside_the_request) {
    rq_begin_request();
    unsigned char *block = emalloc(1000);
    fill(block, 1000, 1);
    pid_t child = fork();
    if (child == 0) {
        CHECK(is_filled(block, 1000, 1));
        unused(emalloc(1000));
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 2);
        rq_begin_request();
        unused(emalloc(1000));
        rq_end_request(NULL);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(is_filled(block, 1000, 1));
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
}
