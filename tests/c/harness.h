/* A harness for tests of the C interface: one program for each file of cases.
 *
 *     CASE(a_block_is_freed) { ... CHECK(condition); }    returns, with nothing on standard error
 *     DEATH(a_block_is_freed_twice) {
 *         ... dies_with("double free (address 0x%zx)", address); efree(block);
 *     }
 *
 * Each case runs in a process of its own, the program started anew: a death is observed from
 * outside, and no case finds memory that another one has used. A death is SIGABRT with exactly the
 * line given to dies_with(), and nothing else on standard error. Cases made in a loop are
 * registered by hand, from a constructor.
 *
 *     PROGRAM [--list | CASE..]
 *
 * The last line is `N passed, N failed`; a run of none fails.
 */
#ifndef HARNESS_H
#define HARNESS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rqmalloc.h"

/* Whether this program is linked with the shared library, which also replaces `malloc`. */
#ifndef LIBRARY_IS_SHARED
#error "say which library this is: -DLIBRARY_IS_SHARED=0 or 1"
#endif

#define MOST_CASES 2048
#ifndef CASE_SECONDS
#define CASE_SECONDS 120
#endif
#define TEXT_BYTES 8192
#define PAGE ((size_t)16 * 1024)
#define KIB ((size_t)1024)
#define MIB ((size_t)1024 * 1024)

typedef struct test_case {
    const char *name;
    void (*run)(int parameter);
    int parameter;
    bool dies;
    /* NAME=VALUE for the environment of the process; NULL: nothing. */
    const char *environment;
} test_case;

static test_case test_cases[MOST_CASES];
static int test_case_count;

static inline void register_case(test_case added) {
    if (test_case_count == MOST_CASES) {
        dprintf(2, "harness: more than %d cases\n", MOST_CASES);
        exit(1);
    }
    test_cases[test_case_count++] = added;
}

#define REGISTERED(case_name, does_die, in_environment)                                                                \
    static void run_##case_name(int parameter);                                                                        \
    __attribute__((constructor)) static void register_##case_name(void) {                                              \
        register_case((test_case){#case_name, run_##case_name, 0, does_die, in_environment});                          \
    }                                                                                                                  \
    static void run_##case_name(int parameter __attribute__((unused)))

#define CASE(name) REGISTERED(name, false, NULL)
#define DEATH(name) REGISTERED(name, true, NULL)
#define CASE_WITH(environment, name) REGISTERED(name, false, environment)

/* ---- in a case ------------------------------------------------------------------------------- */

/* Where the parent reads what this case must die of. */
static int expectation = -1;

__attribute__((format(printf, 3, 4), noreturn)) static inline void fail(const char *file, int line, const char *format,
                                                                        ...) {
    char text[TEXT_BYTES];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    dprintf(2, "%s:%d: %s\n", file, line, text);
    _exit(1);
}

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fail(__FILE__, __LINE__, "not so: %s", #condition);                                                        \
        }                                                                                                              \
    } while (0)

#define CHECK_EQUAL(left, right)                                                                                       \
    do {                                                                                                               \
        unsigned long long left_value = (left), right_value = (right);                                                 \
        if (left_value != right_value) {                                                                               \
            fail(__FILE__, __LINE__, "%s is %llu, %s is %llu", #left, left_value, #right, right_value);                \
        }                                                                                                              \
    } while (0)

#define CHECK_TEXT(left, right)                                                                                        \
    do {                                                                                                               \
        const char *left_text = (left), *right_text = (right);                                                         \
        if (strcmp(left_text, right_text) != 0) {                                                                      \
            fail(__FILE__, __LINE__, "%s is\n%s\nand not\n%s", #left, left_text, right_text);                          \
        }                                                                                                              \
    } while (0)

/* What comes next must end the process with one line: `rqmalloc: ` and this text. */
__attribute__((format(printf, 1, 2))) static inline void dies_with(const char *format, ...) {
    char text[TEXT_BYTES] = "rqmalloc: ";
    size_t length = strlen(text);
    va_list values;
    va_start(values, format);
    length += (size_t)vsnprintf(text + length, sizeof text - length - 1, format, values);
    va_end(values);
    text[length++] = '\n';
    if (write(expectation, text, length) != (ssize_t)length) {
        fail(__FILE__, __LINE__, "the parent does not listen");
    }
}

/* Hides from the compiler where a pointer comes from, and so what the standard says of it. */
static inline void *opaque(const void *pointer) {
    void *result = (void *)(uintptr_t)pointer;
    __asm__ volatile("" : "+r"(result) : : "memory");
    return result;
}

static inline size_t opaque_size(size_t size) {
    __asm__ volatile("" : "+r"(size));
    return size;
}

static inline uintptr_t address_of(const void *pointer) {
    return (uintptr_t)opaque(pointer);
}

/* Marks the result of a call as unused: one made for its effect, or that does not return. */
static inline void unused(const void *pointer) {
    (void)opaque(pointer);
}

/* Returns a byte that depends on its position and on the block. */
static inline unsigned char pattern_byte(size_t index, unsigned seed) {
    return (unsigned char)(index * 31 + index / 251 + seed * 97 + 1);
}

static inline void fill(void *pointer, size_t size, unsigned seed) {
    unsigned char *bytes = pointer;
    for (size_t index = 0; index < size; index++) {
        bytes[index] = pattern_byte(index, seed);
    }
}

static inline bool is_filled(const void *pointer, size_t size, unsigned seed) {
    const unsigned char *bytes = pointer;
    for (size_t index = 0; index < size; index++) {
        if (bytes[index] != pattern_byte(index, seed)) {
            return false;
        }
    }
    return true;
}

static inline bool is_all(const void *pointer, size_t size, unsigned char value) {
    const unsigned char *bytes = pointer;
    for (size_t index = 0; index < size; index++) {
        if (bytes[index] != value) {
            return false;
        }
    }
    return true;
}

/* Returns numbers that look random and are the same in every run. */
static inline uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Returns a size like those of programs: mostly small, now and then above every bound inside the
 * allocator. */
static inline size_t random_size(uint64_t *state) {
    uint64_t random = next_random(state);
    size_t shift = random % 64 == 0 ? 21 : random % 8 == 0 ? 16 : 9;
    return (size_t)(next_random(state) >> (64 - shift));
}

/* Sizes around all boundaries: the smallest, the powers of two, one mebibyte. */
static const size_t SIZES[] = {0,    1,    7,     8,     9,     16,    24,      25,      40,      41,           100,
                               127,  128,  129,   512,   1023,  1024,  1025,    4096,    4097,    8200,         16384,
                               32768, 32776, 32777, 40968, 65536, 262144, 1048576, 1048584, 1048585, 3 * 1048576 + 5};
#define SIZE_COUNT (sizeof SIZES / sizeof SIZES[0])

/* Reads the bytes of the process from /proc/self/statm: what is mapped, and what of it is
 * resident. */
static inline void process_bytes(size_t *mapped, size_t *resident) {
    char text[128];
    int file = open("/proc/self/statm", O_RDONLY);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (length <= 0) {
        fail(__FILE__, __LINE__, "/proc/self/statm cannot be read");
    }
    close(file);
    text[length] = 0;
    char *rest;
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    size_t pages = strtoul(text, &rest, 10);
    *mapped = pages * page_bytes;
    *resident = strtoul(rest, NULL, 10) * page_bytes;
}

static inline size_t resident_bytes(void) {
    size_t mapped, resident;
    process_bytes(&mapped, &resident);
    return resident;
}

/* Lets the process map only this many more bytes from here on. The allocator must have been used
 * before: what it reserves once would count, too. */
static inline void limit_address_space(size_t more) {
    size_t mapped, resident;
    process_bytes(&mapped, &resident);
    struct rlimit limit = {mapped + more, mapped + more};
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

/* Keeps what goes to standard error until captured() returns it. */
static int capture_file = -1, capture_saved = -1;

static inline void capture(void) {
    capture_file = memfd_create("stderr", 0);
    capture_saved = dup(2);
    CHECK(capture_file >= 0 && capture_saved >= 0 && dup2(capture_file, 2) == 2);
}

static inline const char *captured(void) {
    static char text[16 * TEXT_BYTES];
    dup2(capture_saved, 2);
    close(capture_saved);
    ssize_t length = pread(capture_file, text, sizeof text - 1, 0);
    close(capture_file);
    CHECK(length >= 0);
    text[length] = 0;
    return text;
}

/* ---- the parent ------------------------------------------------------------------------------ */

/* Reads to the end, and keeps what fits. */
static inline size_t read_all(int file, char *text, size_t size) {
    size_t length = 0;
    char piece[1024];
    for (;;) {
        ssize_t got = read(file, piece, sizeof piece);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            break;
        }
        size_t kept = (size_t)got < size - 1 - length ? (size_t)got : size - 1 - length;
        memcpy(text + length, piece, kept);
        length += kept;
    }
    text[length] = 0;
    return length;
}

static inline bool run_case(const char *program, const test_case *test) {
    int errors[2], expected[2];
    if (pipe(errors) != 0 || pipe(expected) != 0) {
        perror("harness: pipe");
        exit(1);
    }
    pid_t child = fork();
    if (child == 0) {
        char number[16], pipe_number[16];
        snprintf(number, sizeof number, "%d", (int)(test - test_cases));
        snprintf(pipe_number, sizeof pipe_number, "%d", expected[1]);
        dup2(errors[1], 2);
        close(errors[0]);
        close(errors[1]);
        close(expected[0]);
        if (test->environment != NULL) {
            putenv((char *)(uintptr_t)test->environment);
        }
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        alarm(CASE_SECONDS);
        execl("/proc/self/exe", program, "--run", number, pipe_number, (char *)NULL);
        _exit(127);
    }
    close(errors[1]);
    close(expected[1]);
    static char said[TEXT_BYTES], wanted[TEXT_BYTES];
    read_all(errors[0], said, sizeof said);
    read_all(expected[0], wanted, sizeof wanted);
    close(errors[0]);
    close(expected[0]);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    bool has_aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
    bool has_left = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    bool passed = (test->dies ? has_aborted && wanted[0] != 0 : has_left) && strcmp(said, wanted) == 0;
    if (!passed) {
        printf("FAILED %s: ", test->name);
        if (WIFSIGNALED(status)) {
            printf("signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
        } else {
            printf("exit status %d", WEXITSTATUS(status));
        }
        printf("\n  on standard error: %s\n", said[0] != 0 ? said : "nothing");
        if (strcmp(said, wanted) != 0) {
            printf("  expected: %s\n", wanted[0] != 0 ? wanted : "nothing");
        }
    }
    return passed;
}

static inline bool is_asked_for(const char *name, int argc, char **argv) {
    for (int index = 1; index < argc; index++) {
        if (strcmp(argv[index], name) == 0) {
            return true;
        }
    }
    return argc == 1;
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "--run") == 0) {
        const test_case *test = &test_cases[atoi(argv[2])];
        expectation = atoi(argv[3]);
        test->run(test->parameter);
        if (test->dies) {
            dprintf(2, "still alive\n");
        }
        return 0;
    }
    setvbuf(stdout, NULL, _IONBF, 0);
    int passed = 0, failed = 0;
    for (int index = 0; index < test_case_count; index++) {
        const test_case *test = &test_cases[index];
        if (argc == 2 && strcmp(argv[1], "--list") == 0) {
            printf("%s\n", test->name);
        } else if (is_asked_for(test->name, argc, argv)) {
            *(run_case(argv[0], test) ? &passed : &failed) += 1;
        }
    }
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        return 0;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return passed > 0 && failed == 0 ? 0 : 1;
}

#endif
