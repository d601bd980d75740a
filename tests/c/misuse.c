/* Misuse ends the process with one line that names it: every function that takes a block, with
 * everything that is not a live block of its family. */
#include "harness.h"

#include <pthread.h>

/* ---- what is done with a pointer ------------------------------------------------------------- */

enum operation {
    EFREE,
    PEFREE_OF_A_REQUEST,
    PEFREE_PERSISTENT,
    FREE_ANY,
    EREALLOC,
    EREALLOC2,
    SAFE_EREALLOC,
    EREALLOC_OR_NULL,
    EREALLOC_AT,
    PEREALLOC_OF_A_REQUEST,
    PEREALLOC_PERSISTENT,
    SAFE_PEREALLOC_PERSISTENT,
    BLOCK_SIZE,
    PERSIST,
    OPERATION_COUNT
};

static const struct {
    const char *name;
    /* The family it takes, if that matters. */
    bool of_a_request, persistent;
} OPERATIONS[OPERATION_COUNT] = {
    [EFREE] = {"efree", true, false},
    [PEFREE_OF_A_REQUEST] = {"pefree_0", true, false},
    [PEFREE_PERSISTENT] = {"pefree_1", false, true},
    [FREE_ANY] = {"rq_free", false, false},
    [EREALLOC] = {"erealloc", true, false},
    [EREALLOC2] = {"erealloc2", true, false},
    [SAFE_EREALLOC] = {"safe_erealloc", true, false},
    [EREALLOC_OR_NULL] = {"erealloc_or_null", true, false},
    [EREALLOC_AT] = {"erealloc_at", true, false},
    [PEREALLOC_OF_A_REQUEST] = {"perealloc_0", true, false},
    [PEREALLOC_PERSISTENT] = {"perealloc_1", false, true},
    [SAFE_PEREALLOC_PERSISTENT] = {"safe_perealloc_1", false, true},
    [BLOCK_SIZE] = {"block_size", false, false},
    [PERSIST] = {"persist", false, false},
};

static void operate(enum operation operation, void *pointer) {
    pointer = opaque(pointer);
    switch (operation) {
        case EFREE: efree(pointer); break;
        case PEFREE_OF_A_REQUEST: pefree(pointer, false); break;
        case PEFREE_PERSISTENT: pefree(pointer, true); break;
        case FREE_ANY: rq_free(pointer); break;
        case EREALLOC: unused(erealloc(pointer, 200)); break;
        case EREALLOC2: unused(erealloc2(pointer, 200, 10)); break;
        case SAFE_EREALLOC: unused(safe_erealloc(pointer, 2, 100, 0)); break;
        case EREALLOC_OR_NULL: unused(rq_erealloc_or_null(pointer, 200)); break;
        case EREALLOC_AT: unused(rq_erealloc_at(pointer, 200, __FILE__, __LINE__)); break;
        case PEREALLOC_OF_A_REQUEST: unused(perealloc(pointer, 200, false)); break;
        case PEREALLOC_PERSISTENT: unused(perealloc(pointer, 200, true)); break;
        case SAFE_PEREALLOC_PERSISTENT: unused(safe_perealloc(pointer, 2, 100, 0, true)); break;
        case BLOCK_SIZE: CHECK(rq_block_size(pointer) != 1); break;
        case PERSIST: rq_persist(pointer); break;
        case OPERATION_COUNT: break;
    }
}

/* Registers a death for each pair: the parameter is first * second_count + second. */
static void register_pair(const char *what, const char *first_name, const char *second_name, int parameter,
                          void (*run)(int)) {
    char *name = NULL;
    if (asprintf(&name, "%s_%s_%s", what, first_name, second_name) < 0) {
        exit(1);
    }
    register_case((test_case){name, run, parameter, true, NULL});
}

static const size_t FEW_SIZES[] = {0, 100, 20000, 100000, 3 * 1048576};
static const char *const FEW_SIZE_NAMES[] = {"0", "100", "20000", "100000", "3M"};
#define FEW_SIZE_COUNT 5

/* ---- pointers that are no block -------------------------------------------------------------- */

static char in_static_memory[64] __attribute__((aligned(16)));

enum foreign {
    ON_THE_STACK,
    ON_THE_STACK_MISALIGNED,
    STATIC,
    CODE,
    LOW,
    LOWEST,
    LOWEST_MISALIGNED,
    END_OF_THE_FIRST_PAGE,
    HIGH,
    HIGH_MISALIGNED,
    FIRST_WITHOUT_MEMORY,
    NOT_CANONICAL,
    NOT_CANONICAL_MISALIGNED,
    PAGE_WITHOUT_MEMORY,
    PAGE_OF_MMAP,
    INSIDE_PAGE_OF_MMAP,
    OF_LIBC,
    INSIDE_SMALL,
    INSIDE_SMALL_MISALIGNED,
    NOT_HANDED_OUT,
    INSIDE_LARGE,
    PAGE_INSIDE_LARGE,
    INSIDE_HUGE,
    PAGE_INSIDE_HUGE,
    INSIDE_PERSISTENT_SMALL,
    INSIDE_PERSISTENT_LARGE,
    INSIDE_PERSISTENT_HUGE,
    FOREIGN_COUNT
};

static const char *const FOREIGN_NAMES[FOREIGN_COUNT] = {
    [ON_THE_STACK] = "on_the_stack",
    [ON_THE_STACK_MISALIGNED] = "on_the_stack_misaligned",
    [STATIC] = "static",
    [CODE] = "code",
    [LOW] = "low",
    [LOWEST] = "lowest",
    [LOWEST_MISALIGNED] = "lowest_misaligned",
    [END_OF_THE_FIRST_PAGE] = "end_of_the_first_page",
    [HIGH] = "high",
    [HIGH_MISALIGNED] = "high_misaligned",
    [FIRST_WITHOUT_MEMORY] = "first_without_memory",
    [NOT_CANONICAL] = "not_canonical",
    [NOT_CANONICAL_MISALIGNED] = "not_canonical_misaligned",
    [PAGE_WITHOUT_MEMORY] = "page_without_memory",
    [PAGE_OF_MMAP] = "page_of_mmap",
    [INSIDE_PAGE_OF_MMAP] = "inside_page_of_mmap",
    [OF_LIBC] = "of_libc",
    [INSIDE_SMALL] = "inside_small",
    [INSIDE_SMALL_MISALIGNED] = "inside_small_misaligned",
    [NOT_HANDED_OUT] = "not_handed_out",
    [INSIDE_LARGE] = "inside_large",
    [PAGE_INSIDE_LARGE] = "page_inside_large",
    [INSIDE_HUGE] = "inside_huge",
    [PAGE_INSIDE_HUGE] = "page_inside_huge",
    [INSIDE_PERSISTENT_SMALL] = "inside_persistent_small",
    [INSIDE_PERSISTENT_LARGE] = "inside_persistent_large",
    [INSIDE_PERSISTENT_HUGE] = "inside_persistent_huge",
};

/* Returns an address this far into a block of this size, which is filled with bytes that are no
 * header. */
static void *inside(size_t size, size_t offset, bool persistent) {
    unsigned char *block = pemalloc(size, persistent);
    memset(block, 0xab, size);
    return block + offset;
}

/* The first address at which no program has memory. */
#ifdef __x86_64__
#define END_OF_MEMORY ((uintptr_t)1 << 47)
#else
#define END_OF_MEMORY ((uintptr_t)1 << 48)
#endif

static uintptr_t next_page(const void *pointer) {
    return (address_of(pointer) + 2 * PAGE) & ~(PAGE - 1);
}

static void use_of_a_foreign_pointer(int parameter) {
    enum foreign foreign = (enum foreign)(parameter / OPERATION_COUNT);
    char on_the_stack[64] __attribute__((aligned(16))) = {0};
    void *pointer = NULL;
    rq_begin_request();
    unused(emalloc(100));
    switch (foreign) {
        case ON_THE_STACK: pointer = on_the_stack + 16; break;
        case ON_THE_STACK_MISALIGNED: pointer = on_the_stack + 17; break;
        case STATIC: pointer = in_static_memory + 16; break;
        case CODE: pointer = (void *)(((uintptr_t)&operate + 16) & ~(uintptr_t)15); break;
        case LOW: pointer = (void *)(uintptr_t)64; break;
        case LOWEST: pointer = (void *)(uintptr_t)8; break;
        case LOWEST_MISALIGNED: pointer = (void *)(uintptr_t)9; break;
        case END_OF_THE_FIRST_PAGE: pointer = (void *)(uintptr_t)4080; break;
        case HIGH: pointer = (void *)(uintptr_t)(UINTPTR_MAX - 15); break;
        case HIGH_MISALIGNED: pointer = (void *)(uintptr_t)(UINTPTR_MAX - 2); break;
        case FIRST_WITHOUT_MEMORY: pointer = (void *)(END_OF_MEMORY + 16); break;
        case NOT_CANONICAL: pointer = (void *)(uintptr_t)0x8000000000000010; break;
        case NOT_CANONICAL_MISALIGNED: pointer = (void *)(uintptr_t)0x8000000000000013; break;
        case PAGE_WITHOUT_MEMORY: pointer = (void *)(uintptr_t)0x4000000000000000; break;
        case PAGE_OF_MMAP:
        case INSIDE_PAGE_OF_MMAP:
            pointer = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(pointer != MAP_FAILED);
            pointer = (char *)pointer + (foreign == PAGE_OF_MMAP ? 0 : 160);
            break;
        case OF_LIBC: pointer = malloc(100); break;
        case INSIDE_SMALL: pointer = inside(1000, 160, false); break;
        case INSIDE_SMALL_MISALIGNED: pointer = inside(1000, 8, false); break;
        /* In the rest of the request's page. */
        case NOT_HANDED_OUT: pointer = inside(1000, 4096, false); break;
        case INSIDE_LARGE: pointer = inside(100000, 160, false); break;
        case PAGE_INSIDE_LARGE: pointer = (void *)next_page(inside(100000, 0, false)); break;
        case INSIDE_HUGE: pointer = inside(5 * MIB, 160, false); break;
        case PAGE_INSIDE_HUGE: pointer = (void *)next_page(inside(5 * MIB, 4 * MIB + 16, false)); break;
        case INSIDE_PERSISTENT_SMALL: pointer = inside(1000, 160, true); break;
        case INSIDE_PERSISTENT_LARGE: pointer = inside(100000, 160, true); break;
        case INSIDE_PERSISTENT_HUGE: pointer = inside(5 * MIB, 4 * MIB, true); break;
        case FOREIGN_COUNT: break;
    }
    dies_with("not a block of this allocator (address 0x%zx)", address_of(pointer));
    operate((enum operation)(parameter % OPERATION_COUNT), pointer);
}

__attribute__((constructor)) static void register_foreign_pointers(void) {
    for (int parameter = 0; parameter < FOREIGN_COUNT * OPERATION_COUNT; parameter++) {
        int operation = parameter % OPERATION_COUNT, foreign = parameter / OPERATION_COUNT;
        /* With the shared library, `malloc` returns a persistent block. */
        if (LIBRARY_IS_SHARED && foreign == OF_LIBC) {
            continue;
        }
        register_pair("foreign", OPERATIONS[operation].name, FOREIGN_NAMES[foreign], parameter,
                      use_of_a_foreign_pointer);
    }
}

#if LIBRARY_IS_SHARED
CASE(blocks_of_malloc_are_of_the_persistent_family) {
    for (size_t index = 0; index < FEW_SIZE_COUNT; index++) {
        unsigned char *block = malloc(FEW_SIZES[index]);
        fill(block, FEW_SIZES[index], 1);
        rq_begin_request();
        block = perealloc(opaque(block), FEW_SIZES[index] + 1000, true);
        CHECK(is_filled(block, FEW_SIZES[index], 1));
        rq_end_request(NULL);
        pefree(opaque(block), true);
        free(opaque(pemalloc(FEW_SIZES[index], true)));
        rq_free(opaque(malloc(FEW_SIZES[index])));
    }
}

/* C's own functions, with addresses that cannot be read. */
static const uintptr_t WILD[] = {8, 9, 16, 4080, END_OF_MEMORY + 16, 0x8000000000000010, 0x8000000000000011, UINTPTR_MAX - 15};
#define WILD_COUNT (int)(sizeof WILD / sizeof WILD[0])

static void free_of_a_wild_pointer(int parameter) {
    free(malloc(100));
    dies_with("not a block of this allocator (address 0x%zx)", WILD[parameter]);
    free(opaque((void *)WILD[parameter]));
}

static void realloc_of_a_wild_pointer(int parameter) {
    free(malloc(100));
    dies_with("not a block of this allocator (address 0x%zx)", WILD[parameter]);
    unused(realloc(opaque((void *)WILD[parameter]), 1000));
}

__attribute__((constructor)) static void register_wild_pointers(void) {
    static char names[WILD_COUNT][2][64];
    for (int index = 0; index < WILD_COUNT; index++) {
        snprintf(names[index][0], sizeof names[index][0], "free_of_%zx", (size_t)WILD[index]);
        snprintf(names[index][1], sizeof names[index][1], "realloc_of_%zx", (size_t)WILD[index]);
        register_case((test_case){names[index][0], free_of_a_wild_pointer, index, true, NULL});
        register_case((test_case){names[index][1], realloc_of_a_wild_pointer, index, true, NULL});
    }
}

DEATH(efree_of_a_block_of_malloc) {
    void *block = malloc(100);
    dies_with("wrong family (address 0x%zx, block persistent, freed as request)", address_of(block));
    efree(opaque(block));
}
#endif

/* ---- the other family ------------------------------------------------------------------------ */

enum origin {
    OF_A_REQUEST,
    OF_EMALLOC_BEFORE,
    OF_EMALLOC_IN_A_PERSISTENT_PART,
    PERSISTED,
    OF_PEMALLOC,
    OF_PEMALLOC_INSIDE,
    ORIGIN_COUNT
};

static const char *const ORIGIN_NAMES[ORIGIN_COUNT] = {
    [OF_A_REQUEST] = "of_a_request",
    [OF_EMALLOC_BEFORE] = "of_emalloc_before",
    [OF_EMALLOC_IN_A_PERSISTENT_PART] = "of_emalloc_in_a_persistent_part",
    [PERSISTED] = "persisted",
    [OF_PEMALLOC] = "of_pemalloc",
    [OF_PEMALLOC_INSIDE] = "of_pemalloc_inside",
};

/* Returns a block of this origin. A request is open afterwards. */
static void *block_from(enum origin origin, size_t size) {
    void *block = NULL;
    if (origin == OF_EMALLOC_BEFORE || origin == OF_PEMALLOC) {
        block = pemalloc(size, origin == OF_PEMALLOC);
    }
    rq_begin_request();
    if (origin == OF_EMALLOC_IN_A_PERSISTENT_PART) {
        rq_persistent_on();
        block = emalloc(size);
        rq_persistent_off();
    } else if (block == NULL) {
        block = pemalloc(size, origin == OF_PEMALLOC_INSIDE);
    }
    if (origin == PERSISTED) {
        rq_persist(block);
    }
    return block;
}

static bool is_persistent_family(enum origin origin) {
    return origin == OF_PEMALLOC || origin == OF_PEMALLOC_INSIDE;
}

static void use_as_the_other_family(int parameter) {
    enum operation operation = (enum operation)(parameter % OPERATION_COUNT);
    int rest = parameter / OPERATION_COUNT;
    enum origin origin = (enum origin)(rest % ORIGIN_COUNT);
    void *block = block_from(origin, FEW_SIZES[rest / ORIGIN_COUNT]);
    dies_with("wrong family (address 0x%zx, block %s)", address_of(block),
              is_persistent_family(origin) ? "persistent, freed as request" : "of a request, freed as persistent");
    operate(operation, block);
}

static void use_as_its_own_family(int parameter) {
    enum operation operation = (enum operation)(parameter % OPERATION_COUNT);
    int rest = parameter / OPERATION_COUNT;
    operate(operation, block_from((enum origin)(rest % ORIGIN_COUNT), FEW_SIZES[rest / ORIGIN_COUNT]));
    rq_end_request(NULL);
}

__attribute__((constructor)) static void register_families(void) {
    for (int parameter = 0; parameter < FEW_SIZE_COUNT * ORIGIN_COUNT * OPERATION_COUNT; parameter++) {
        int operation = parameter % OPERATION_COUNT, rest = parameter / OPERATION_COUNT;
        enum origin origin = (enum origin)(rest % ORIGIN_COUNT);
        bool is_persistent = is_persistent_family(origin);
        /* What was persisted is persistent, and of either family. */
        if (origin != PERSISTED
            && (is_persistent ? OPERATIONS[operation].of_a_request : OPERATIONS[operation].persistent)) {
            char *what = NULL;
            if (asprintf(&what, "wrong_family_%s", FEW_SIZE_NAMES[rest / ORIGIN_COUNT]) < 0) {
                exit(1);
            }
            register_pair(what, OPERATIONS[operation].name, ORIGIN_NAMES[origin], parameter, use_as_the_other_family);
        }
    }
}

/* Makes sure that the matrix does not succeed by dying of everything. */
CASE(every_operation_is_right_for_some_block) {
    for (int parameter = 0; parameter < FEW_SIZE_COUNT * ORIGIN_COUNT * OPERATION_COUNT; parameter++) {
        int operation = parameter % OPERATION_COUNT;
        enum origin origin = (enum origin)(parameter / OPERATION_COUNT % ORIGIN_COUNT);
        bool is_persistent = is_persistent_family(origin);
        if (origin == PERSISTED
            || !(is_persistent ? OPERATIONS[operation].of_a_request : OPERATIONS[operation].persistent)) {
            use_as_its_own_family(parameter);
        }
    }
}

static void tell(const char *text) {
    dprintf(2, "the error handler was called: %s\n", text);
}

DEATH(misuse_is_nothing_that_a_try_or_a_handler_sees) {
    rq_set_error_handler(tell);
    rq_begin_request();
    void *block = pemalloc(100, true);
    rq_try {
        dies_with("wrong family (address 0x%zx, block persistent, freed as request)", address_of(block));
        efree(block);
    } rq_catch {
        dprintf(2, "caught\n");
    } rq_end_try
}

/* ---- twice ----------------------------------------------------------------------------------- */

enum twice { AT_ONCE, LATER, AS_ANY, RESIZED, BY_ANOTHER_THREAD, TWICE_COUNT };

static const char *const TWICE_NAMES[TWICE_COUNT] = {
    [AT_ONCE] = "at_once",
    [LATER] = "later",
    [AS_ANY] = "by_rq_free",
    [RESIZED] = "resized",
    [BY_ANOTHER_THREAD] = "after_another_thread",
};

static void *free_any(void *block) {
    rq_free(block);
    return NULL;
}

static void use_after_a_free(int parameter) {
    enum twice twice = (enum twice)(parameter % TWICE_COUNT);
    int rest = parameter / TWICE_COUNT;
    enum origin origin = (enum origin)(rest % ORIGIN_COUNT);
    size_t size = FEW_SIZES[rest / ORIGIN_COUNT];
    bool is_persistent = is_persistent_family(origin);
    void *block = block_from(origin, size);
    void *others[10];
    for (int index = 0; index < 10; index++) {
        others[index] = pemalloc(size, is_persistent);
    }
    if (twice == BY_ANOTHER_THREAD) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, free_any, block) == 0 && pthread_join(thread, NULL) == 0);
    } else {
        pefree(block, is_persistent);
    }
    if (twice == LATER) {
        for (int index = 0; index < 10; index++) {
            pefree(others[index], is_persistent);
        }
    }
    dies_with("double free (address 0x%zx)", address_of(block));
    if (twice == RESIZED) {
        unused(perealloc(opaque(block), size + 100, is_persistent));
    } else if (twice == AS_ANY) {
        rq_free(opaque(block));
    } else {
        pefree(opaque(block), is_persistent);
    }
}

__attribute__((constructor)) static void register_double_frees(void) {
    for (int parameter = 0; parameter < FEW_SIZE_COUNT * ORIGIN_COUNT * TWICE_COUNT; parameter++) {
        int rest = parameter / TWICE_COUNT;
        char *what = NULL;
        if (asprintf(&what, "double_free_%s", FEW_SIZE_NAMES[rest / ORIGIN_COUNT]) < 0) {
            exit(1);
        }
        register_pair(what, TWICE_NAMES[parameter % TWICE_COUNT], ORIGIN_NAMES[rest % ORIGIN_COUNT], parameter,
                      use_after_a_free);
    }
}

/* ---- after the end --------------------------------------------------------------------------- */

static void use_after_the_end(int parameter) {
    enum operation operation = (enum operation)(parameter % OPERATION_COUNT);
    int rest = parameter / OPERATION_COUNT;
    size_t size = FEW_SIZES[rest / 2];
    bool in_an_outer_request = rest % 2 == 1;
    if (in_an_outer_request) {
        rq_begin_request();
    }
    uint64_t request = rq_begin_request();
    void *block = emalloc(size);
    rq_report report;
    rq_end_request(&report);
    CHECK_EQUAL(report.freed_blocks, 1);
    dies_with("block of an ended request (address 0x%zx, request %llu)", address_of(block),
              (unsigned long long)request);
    operate(operation, block);
}

__attribute__((constructor)) static void register_ended_requests(void) {
    for (int parameter = 0; parameter < FEW_SIZE_COUNT * 2 * OPERATION_COUNT; parameter++) {
        int operation = parameter % OPERATION_COUNT, rest = parameter / OPERATION_COUNT;
        char *what = NULL;
        if (asprintf(&what, "ended_request_%s", FEW_SIZE_NAMES[rest / 2]) < 0) {
            exit(1);
        }
        register_pair(what, OPERATIONS[operation].name, rest % 2 == 1 ? "inside" : "outside", parameter,
                      use_after_the_end);
    }
}

/* The numbers of the last 16 requests are remembered. */
static void use_after_more_ends(int ends) {
    uint64_t request = rq_begin_request();
    void *small = emalloc(100);
    rq_end_request(NULL);
    for (int count = 0; count < ends; count++) {
        rq_begin_request();
        rq_end_request(NULL);
    }
    if (ends < 16) {
        dies_with("block of an ended request (address 0x%zx, request %llu)", address_of(small),
                  (unsigned long long)request);
    } else {
        dies_with("block of an ended request (address 0x%zx, request of long ago)", address_of(small));
    }
    efree(opaque(small));
}

__attribute__((constructor)) static void register_more_ends(void) {
    static const int ends[] = {1, 15, 16, 17, 1000};
    static char names[5][64];
    for (int index = 0; index < 5; index++) {
        snprintf(names[index], sizeof names[index], "ended_request_and_%d_more", ends[index]);
        register_case((test_case){names[index], use_after_more_ends, ends[index], true, NULL});
    }
}

/* ---- over the end of a block ----------------------------------------------------------------- */

static void overrun(bool persistent) {
    enum { COUNT = 20 };
    rq_begin_request();
    unsigned char *blocks[COUNT];
    for (int index = 0; index < COUNT; index++) {
        blocks[index] = pemalloc(100, persistent);
    }
    for (int index = 0; index < COUNT; index++) {
        size_t room = rq_block_size(blocks[index]);
        for (int other = 0; other < COUNT; other++) {
            if (address_of(blocks[other]) == address_of(blocks[index]) + room + 8) {
                memset(opaque(blocks[index] + room), 0x42, 8);
                dies_with("header overwritten (address 0x%zx, header 0x4242424242424242)", address_of(blocks[other]));
                pefree(blocks[other], persistent);
            }
        }
    }
    CHECK(!"two blocks side by side");
}

DEATH(a_block_of_a_request_whose_neighbour_was_overrun) {
    overrun(false);
}

DEATH(a_persistent_block_whose_neighbour_was_overrun) {
    overrun(true);
}

/* ---- functions that need a request, and the others ------------------------------------------- */

static void do_nothing(void *argument) {
    (void)argument;
}

DEATH(end_without_a_request) {
    dies_with("no request is open (call rq_end_request)");
    rq_end_request(NULL);
}

DEATH(close_without_a_request) {
    dies_with("no request is open (call rq_close_request)");
    rq_close_request(NULL);
}

DEATH(on_end_without_a_request) {
    dies_with("no request is open (call rq_on_end)");
    rq_on_end(do_nothing, NULL);
}

DEATH(end_twice) {
    rq_begin_request();
    rq_report report;
    rq_end_request(&report);
    dies_with("no request is open (call rq_end_request)");
    rq_end_request(&report);
}

DEATH(close_after_the_end) {
    rq_begin_request();
    rq_end_request(NULL);
    dies_with("no request is open (call rq_close_request)");
    rq_close_request(NULL);
}

static void *end_request(void *argument) {
    dies_with("no request is open (call rq_end_request)");
    rq_end_request(NULL);
    return argument;
}

DEATH(end_of_the_request_of_another_thread) {
    rq_begin_request();
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, end_request, NULL) == 0);
    pthread_join(thread, NULL);
}

DEATH(persistent_off_without_on) {
    dies_with("persistent off without on");
    rq_persistent_off();
}

DEATH(persistent_off_once_too_often) {
    rq_persistent_on();
    rq_begin_request();
    rq_persistent_on();
    rq_persistent_off();
    rq_end_request(NULL);
    rq_persistent_off();
    dies_with("persistent off without on");
    rq_persistent_off();
}

DEATH(on_end_in_a_persistent_part_without_a_request) {
    rq_persistent_on();
    dies_with("no request is open (call rq_on_end)");
    rq_on_end(do_nothing, NULL);
}
