/* What the two families hand out: sizes, contents, zeros, resizing, texts, and which family a block
   belongs to. */
#include "harness.h"

/* Several of each size at once, so that a block that is too short runs into its neighbour. */
#define OF_EACH 5

static void check_sizes(bool persistent) {
    unsigned char *blocks[SIZE_COUNT][OF_EACH];
    size_t room[SIZE_COUNT][OF_EACH];
    for (size_t round = 0; round < 3; round++) {
        for (size_t index = 0; index < SIZE_COUNT; index++) {
            for (size_t copy = 0; copy < OF_EACH; copy++) {
                unsigned char *block = pemalloc(SIZES[index], persistent);
                CHECK(opaque(block) != NULL);
                CHECK_EQUAL(address_of(block) % 16, 0);
                room[index][copy] = rq_block_size(block);
                CHECK(room[index][copy] >= SIZES[index]);
                CHECK(rq_is_ours(block));
                fill(block, room[index][copy], (unsigned)(index * OF_EACH + copy));
                blocks[index][copy] = block;
            }
        }
        for (size_t index = 0; index < SIZE_COUNT; index++) {
            for (size_t copy = 0; copy < OF_EACH; copy++) {
                CHECK(is_filled(blocks[index][copy], room[index][copy], (unsigned)(index * OF_EACH + copy)));
                pefree(blocks[index][copy], persistent);
            }
        }
    }
}

CASE(every_size_of_a_request_is_writable_to_its_last_byte) {
    rq_begin_request();
    check_sizes(false);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
}

CASE(every_size_without_a_request) {
    check_sizes(false);
}

CASE(every_persistent_size) {
    check_sizes(true);
}

CASE(every_persistent_size_inside_a_request) {
    rq_begin_request();
    check_sizes(true);
    CHECK_EQUAL(rq_memory_usage(true), 0);
    rq_end_request(NULL);
}

CASE(every_size_of_a_request_that_traces) {
    rq_options options = {.trace_leaks = true};
    rq_begin_request_with(&options);
    check_sizes(false);
    check_sizes(true);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
}

static void check_size_zero(void) {
    enum { COUNT = 100 };
    uintptr_t seen[COUNT];
    void *blocks[COUNT];
    size_t zero = opaque_size(0);
    for (int index = 0; index < COUNT; index++) {
        switch (index % 7) {
            case 0: blocks[index] = emalloc(zero); break;
            case 1: blocks[index] = safe_emalloc(zero, 8, zero); break;
            case 2: blocks[index] = ecalloc(zero, 8); break;
            case 3: blocks[index] = ecalloc(8, zero); break;
            case 4: blocks[index] = erealloc(NULL, zero); break;
            case 5: blocks[index] = erealloc(emalloc(1000), zero); break;
            default: blocks[index] = rq_emalloc_or_null(zero); break;
        }
        seen[index] = address_of(blocks[index]);
        CHECK(seen[index] != 0 && rq_is_ours(blocks[index]));
        for (int other = 0; other < index; other++) {
            CHECK(seen[index] != seen[other]);
        }
    }
    for (int index = 0; index < COUNT; index++) {
        efree(blocks[index]);
    }
}

CASE(size_zero_gives_a_pointer_of_its_own) {
    check_size_zero();
    rq_begin_request();
    check_size_zero();
    rq_end_request(NULL);
    void *one = pemalloc(opaque_size(0), true), *other = pemalloc(opaque_size(0), true);
    CHECK(opaque(one) != NULL && opaque(other) != NULL && address_of(one) != address_of(other));
    pefree(one, true);
    pefree(other, true);
}

CASE(null_is_ignored_by_what_frees) {
    for (int round = 0; round < 2; round++) {
        efree(NULL);
        pefree(NULL, false);
        pefree(NULL, true);
        rq_free(NULL);
        CHECK_EQUAL(rq_block_size(NULL), 0);
        CHECK(!rq_is_ours(NULL));
        rq_begin_request();
    }
    rq_end_request(NULL);
    rq_end_request(NULL);
}

static void check_null_is_as_emalloc(void) {
    void *blocks[] = {
        erealloc(NULL, 100),         erealloc2(NULL, 100, 50),        safe_erealloc(NULL, 9, 10, 10),
        perealloc(NULL, 100, false), safe_perealloc(NULL, 9, 10, 10, false), rq_erealloc_or_null(NULL, 100),
    };
    for (size_t index = 0; index < sizeof blocks / sizeof blocks[0]; index++) {
        CHECK(opaque(blocks[index]) != NULL && rq_block_size(blocks[index]) >= 100);
        fill(blocks[index], 100, (unsigned)index);
    }
    for (size_t index = 0; index < sizeof blocks / sizeof blocks[0]; index++) {
        CHECK(is_filled(blocks[index], 100, (unsigned)index));
        efree(blocks[index]);
    }
    void *persistent = perealloc(NULL, 100, true), *other = safe_perealloc(NULL, 9, 10, 10, true);
    CHECK(rq_block_size(persistent) >= 100 && rq_block_size(other) >= 100);
    pefree(persistent, true);
    pefree(other, true);
}

CASE(resizing_null_is_allocating) {
    check_null_is_as_emalloc();
    rq_begin_request();
    check_null_is_as_emalloc();
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
}

CASE(products_and_offsets_are_whole) {
    static const size_t of[][3] = {{3, 100, 7}, {0, 100, 7}, {100, 0, 7}, {1, 0, 0}, {1000, 1000, 1000}, {1, 1, 0}};
    rq_begin_request();
    for (size_t index = 0; index < sizeof of / sizeof of[0]; index++) {
        size_t count = of[index][0], size = of[index][1], offset = of[index][2], whole = count * size + offset;
        for (int persistent = 0; persistent < 2; persistent++) {
            unsigned char *block = safe_pemalloc(count, size, offset, persistent);
            CHECK(rq_block_size(block) >= whole);
            fill(block, whole, 1);
            block = safe_perealloc(block, count, size + 1, offset + 1, persistent);
            CHECK(rq_block_size(block) >= count * (size + 1) + offset + 1);
            CHECK(is_filled(block, whole, 1));
            pefree(block, persistent);
        }
        unsigned char *block = safe_emalloc(count, size, offset);
        CHECK(rq_block_size(block) >= whole);
        fill(block, whole, 2);
        block = safe_erealloc(block, count, size + 1, offset + 1);
        CHECK(rq_block_size(block) >= count * (size + 1) + offset + 1);
        CHECK(is_filled(block, whole, 2));
        efree(block);
    }
    /* No overflow: nothing times much is nothing. */
    efree(safe_emalloc(opaque_size(0), SIZE_MAX, 5));
    efree(safe_emalloc(opaque_size(SIZE_MAX), 0, 5));
    rq_end_request(NULL);
}

static void check_zeroed(bool persistent) {
    for (int round = 0; round < 4; round++) {
        for (size_t index = 0; index < SIZE_COUNT; index++) {
            size_t size = SIZES[index];
            unsigned char *block = pecalloc(1, size, persistent);
            CHECK(is_all(block, size, 0));
            /* The next block of this size is likely this one. */
            memset(block, 0xff, rq_block_size(block));
            unsigned char *other = pecalloc(size, 1, persistent);
            CHECK(is_all(other, size, 0));
            memset(other, 0xff, rq_block_size(other));
            pefree(block, persistent);
            pefree(other, persistent);
        }
    }
}

CASE(zeroed_blocks_are_zero_when_their_memory_was_used_before) {
    check_zeroed(false);
    check_zeroed(true);
    for (int request = 0; request < 3; request++) {
        rq_begin_request();
        check_zeroed(false);
        check_zeroed(true);
        for (size_t index = 0; index < SIZE_COUNT; index++) {
            unsigned char *block = ecalloc(opaque_size(3), SIZES[index]);
            CHECK(is_all(block, 3 * SIZES[index], 0));
            memset(block, 0xff, rq_block_size(block));
        }
        rq_end_request(NULL);
    }
}

/* Goes up through every size and down again, with something allocated in between so that the block
   cannot always stay in place. */
static void check_resizing(bool persistent, bool beside) {
    unsigned char *block = pemalloc(SIZES[0], persistent);
    size_t held = 0;
    void *others[2 * SIZE_COUNT];
    size_t other_count = 0;
    for (size_t step = 1; step < 2 * SIZE_COUNT; step++) {
        size_t size = SIZES[step < SIZE_COUNT ? step : 2 * SIZE_COUNT - 1 - step];
        block = perealloc(block, size, persistent);
        CHECK_EQUAL(address_of(block) % 16, 0);
        CHECK(rq_block_size(block) >= size);
        CHECK(is_filled(block, held < size ? held : size, 7));
        fill(block, size, 7);
        held = size;
        if (beside) {
            others[other_count++] = pemalloc(size, persistent);
        }
    }
    CHECK_EQUAL(held, 0);
    pefree(block, persistent);
    while (other_count > 0) {
        pefree(others[--other_count], persistent);
    }
}

CASE(resized_blocks_keep_what_they_hold) {
    for (int beside = 0; beside < 2; beside++) {
        check_resizing(false, beside);
        check_resizing(true, beside);
        rq_begin_request();
        check_resizing(false, beside);
        check_resizing(true, beside);
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 0);
        rq_options options = {.trace_leaks = true};
        rq_begin_request_with(&options);
        check_resizing(false, beside);
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 0);
    }
}

CASE(resizing_to_nothing_shrinks) {
    rq_begin_request();
    char *block = emalloc(100000);
    size_t before = rq_memory_usage(false);
    block = erealloc(block, opaque_size(0));
    CHECK(opaque(block) != NULL && rq_is_ours(block));
    CHECK(rq_memory_usage(false) < before && rq_memory_usage(false) > 0);
    block = erealloc2(block, opaque_size(0), 0);
    CHECK(opaque(block) != NULL);
    efree(block);
    CHECK_EQUAL(rq_memory_usage(false), 0);
    rq_end_request(NULL);
    void *persistent = perealloc(pemalloc(100000, true), opaque_size(0), true);
    CHECK(opaque(persistent) != NULL && rq_is_ours(persistent));
    pefree(persistent, true);
}

CASE(erealloc2_brings_so_much_along) {
    rq_begin_request();
    for (size_t from = 0; from < SIZE_COUNT; from++) {
        for (size_t to = 0; to < SIZE_COUNT; to++) {
            size_t old_size = SIZES[from], new_size = SIZES[to];
            size_t less = old_size < new_size ? old_size : new_size;
            size_t copies[] = {0, less / 2, less, old_size + 5000, new_size + 5000, SIZE_MAX};
            for (size_t index = 0; index < sizeof copies / sizeof copies[0]; index++) {
                size_t copied = copies[index] < less ? copies[index] : less;
                unsigned char *block = emalloc(old_size);
                fill(block, old_size, 3);
                /* Wherever the block goes, one of these may lie behind it. */
                unsigned char *behind[4];
                for (int other = 0; other < 4; other++) {
                    behind[other] = emalloc(new_size < 5000 ? new_size : 5000);
                    memset(behind[other], 0x5a, new_size < 5000 ? new_size : 5000);
                }
                efree(behind[0]);
                block = erealloc2(block, new_size, copies[index]);
                CHECK(rq_block_size(block) >= new_size);
                CHECK(is_filled(block, copied, 3));
                for (int other = 1; other < 4; other++) {
                    CHECK(is_all(behind[other], new_size < 5000 ? new_size : 5000, 0x5a));
                    efree(behind[other]);
                }
                efree(block);
            }
        }
    }
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
}

CASE(texts_are_copied) {
    for (int inside = 0; inside < 2; inside++) {
        if (inside) {
            rq_begin_request();
        }
        char long_text[5000];
        memset(long_text, 'x', sizeof long_text - 1);
        long_text[sizeof long_text - 1] = 0;
        const char *texts[] = {"", "a", "seven..", "eight...", "a few words", long_text};
        for (size_t index = 0; index < sizeof texts / sizeof texts[0]; index++) {
            char *copies[] = {
                estrdup(texts[index]),
                pestrdup(texts[index], false),
                pestrdup(texts[index], true),
                estrndup(texts[index], strlen(texts[index])),
                pestrndup(texts[index], strlen(texts[index]), false),
                pestrndup(texts[index], strlen(texts[index]), true),
            };
            for (int copy = 0; copy < 6; copy++) {
                CHECK(copies[copy] != texts[index]);
                CHECK_TEXT(copies[copy], texts[index]);
                pefree(copies[copy], copy % 3 == 2);
            }
        }
        if (inside) {
            rq_report report;
            rq_end_request(&report);
            CHECK_EQUAL(report.freed_blocks, 0);
        }
    }
}

CASE(texts_with_a_zero_inside_are_copied_to_their_length) {
    static const char text[] = "one\0two\0\0three";
    for (int persistent = 0; persistent < 2; persistent++) {
        for (size_t length = 0; length <= sizeof text; length++) {
            char *copy = persistent ? pestrndup(text, length, true) : estrndup(text, length);
            CHECK(memcmp(copy, text, length) == 0 && copy[length] == 0);
            CHECK(rq_block_size(copy) > length);
            pefree(copy, persistent);
        }
    }
    /* No byte past the length is read. */
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    char *page = mmap(NULL, 2 * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    char *edge = page + page_bytes;
    CHECK(munmap(edge, page_bytes) == 0);
    memset(edge - 10, 'y', 10);
    char *copy = estrndup(edge - 10, 10);
    CHECK_TEXT(copy, "yyyyyyyyyy");
    efree(copy);
    copy = estrndup(edge, opaque_size(0));
    CHECK_TEXT(copy, "");
    efree(copy);
}

CASE(a_block_of_emalloc_without_a_request_is_persistent_and_of_the_emalloc_family) {
    enum { COUNT = (int)SIZE_COUNT };
    unsigned char *blocks[COUNT];
    for (int index = 0; index < COUNT; index++) {
        blocks[index] = emalloc(SIZES[index]);
        fill(blocks[index], SIZES[index], (unsigned)index);
    }
    rq_begin_request();
    CHECK_EQUAL(rq_memory_usage(false), 0);
    for (int index = 0; index < COUNT; index += 3) {
        CHECK(is_filled(blocks[index], SIZES[index], (unsigned)index));
        efree(blocks[index]);
        /* A block that grows inside the request stays persistent. */
        if (index + 1 < COUNT) {
            blocks[index + 1] = erealloc(blocks[index + 1], SIZES[index + 1] + 5000);
        }
        CHECK_EQUAL(rq_memory_usage(true), 0);
    }
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 0);
    for (int index = 0; index < COUNT; index++) {
        if (index % 3 != 0) {
            CHECK(is_filled(blocks[index], SIZES[index], (unsigned)index));
            efree(blocks[index]);
        }
    }
}

CASE(memory_goes_from_one_family_to_the_other_and_back) {
    for (int round = 0; round < 1000; round++) {
        size_t size = SIZES[(size_t)round % SIZE_COUNT];
        void *early = emalloc(size);
        efree(early);
        void *persistent = pemalloc(size, true);
        pefree(persistent, true);
        early = pemalloc(size, false);
        early = erealloc(early, size + 100);
        pefree(early, false);
        persistent = pecalloc(1, size, true);
        persistent = perealloc(persistent, size + 100, true);
        pefree(persistent, true);
        early = ecalloc(1, size);
        rq_free(early);
    }
}

CASE(rq_free_takes_any_family) {
    for (size_t index = 0; index < SIZE_COUNT; index++) {
        rq_free(emalloc(SIZES[index]));
        rq_free(pemalloc(SIZES[index], true));
        rq_begin_request();
        rq_free(emalloc(SIZES[index]));
        rq_free(pemalloc(SIZES[index], true));
        CHECK_EQUAL(rq_memory_usage(false), 0);
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 0);
    }
}

CASE(the_functions_behind_the_debug_macros_are_the_same_but_for_the_place) {
    for (int trace = 0; trace < 2; trace++) {
        rq_options options = {.trace_leaks = trace};
        rq_begin_request_with(&options);
        unsigned char *block = rq_emalloc_at(100, "a.c", 1);
        fill(block, 100, 1);
        block = rq_erealloc_at(block, 1000, "a.c", 2);
        CHECK(is_filled(block, 100, 1));
        block = rq_erealloc2_at(block, 50000, 50, "a.c", 3);
        CHECK(is_filled(block, 50, 1));
        block = rq_safe_erealloc_at(block, 10, 10, 10, "a.c", 4);
        CHECK(is_filled(block, 50, 1) && rq_block_size(block) >= 110);
        efree(block);
        block = rq_safe_emalloc_at(10, 10, 10, "a.c", 5);
        CHECK(rq_block_size(block) >= 110);
        efree(block);
        block = rq_ecalloc_at(10, 10, "a.c", 6);
        CHECK(is_all(block, 100, 0));
        efree(block);
        char *text = rq_estrdup_at("text", "a.c", 7);
        CHECK_TEXT(text, "text");
        efree(text);
        text = rq_estrndup_at("text", 2, "a.c", 8);
        CHECK_TEXT(text, "te");
        efree(text);
        efree(rq_emalloc_at(10, NULL, 0));
        rq_report report;
        rq_end_request(&report);
        CHECK_EQUAL(report.freed_blocks, 0);
    }
}

static unsigned char *from_before_main;

__attribute__((constructor(101))) static void allocate_before_main(void) {
    from_before_main = emalloc(1000);
    fill(from_before_main, 1000, 1);
    rq_begin_request();
    unused(emalloc(1000));
    rq_end_request(NULL);
}

static void allocate_at_exit(void) {
    rq_begin_request();
    fill(emalloc(1000), 1000, 2);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
    CHECK(is_filled(from_before_main, 1000, 1));
    efree(from_before_main);
}

CASE(before_main_and_at_exit) {
    CHECK(is_filled(from_before_main, 1000, 1));
    CHECK(atexit(allocate_at_exit) == 0);
}

static int in_static_memory[16];

CASE(is_ours_knows_its_memory) {
    int on_the_stack = 0;
    CHECK(!rq_is_ours(&on_the_stack));
    CHECK(!rq_is_ours(in_static_memory));
    CHECK(!rq_is_ours((void *)(uintptr_t)1) && !rq_is_ours((void *)UINTPTR_MAX));
    CHECK(!rq_is_ours((void *)(uintptr_t)(UINTPTR_MAX / 2 + 1)));
    void *foreign = mmap(NULL, MIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(foreign != MAP_FAILED && !rq_is_ours(foreign));
    for (size_t index = 0; index < SIZE_COUNT; index++) {
        unsigned char *block = emalloc(SIZES[index]);
        CHECK(rq_is_ours(block) && rq_is_ours(block + SIZES[index] / 2));
        efree(block);
    }
    /* The shared library also replaces `malloc`; the static one leaves it alone. */
    void *of_malloc = malloc(100);
    CHECK_EQUAL(rq_is_ours(of_malloc), LIBRARY_IS_SHARED);
    free(of_malloc);
}

CASE(many_blocks_of_random_sizes_keep_apart) {
    enum { SLOTS = 400, STEPS = 60000 };
    static struct {
        unsigned char *block;
        size_t size;
        unsigned seed;
        bool persistent;
    } slots[SLOTS];
    uint64_t random = 88172645463325252u;
    rq_begin_request();
    for (unsigned step = 0; step < STEPS; step++) {
        size_t at = next_random(&random) % SLOTS;
        size_t size = random_size(&random);
        if (slots[at].block == NULL) {
            slots[at].persistent = next_random(&random) % 4 == 0;
            slots[at].block = pemalloc(size, slots[at].persistent);
        } else {
            size_t kept = slots[at].size < size ? slots[at].size : size;
            CHECK(is_filled(slots[at].block, slots[at].size, slots[at].seed));
            if (next_random(&random) % 2 == 0) {
                pefree(slots[at].block, slots[at].persistent);
                slots[at].block = NULL;
                continue;
            }
            slots[at].block = perealloc(slots[at].block, size, slots[at].persistent);
            CHECK(is_filled(slots[at].block, kept, slots[at].seed));
        }
        slots[at].size = size;
        slots[at].seed = step;
        fill(slots[at].block, size, step);
    }
    size_t live = 0;
    for (size_t at = 0; at < SLOTS; at++) {
        live += slots[at].block != NULL && !slots[at].persistent;
    }
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, live);
    for (size_t at = 0; at < SLOTS; at++) {
        if (slots[at].block != NULL && slots[at].persistent) {
            CHECK(is_filled(slots[at].block, slots[at].size, slots[at].seed));
            pefree(slots[at].block, true);
        }
    }
}
