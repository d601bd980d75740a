/* rqmalloc.h: requests and the emalloc family of PHP's Zend Memory Manager, for C and C++.
 *
 * Between rq_begin_request() and rq_end_request() every block of emalloc() belongs to the request,
 * and its end frees all of them at once, whatever was leaked and however the request was left.
 * Blocks of pemalloc(size, 1) are persistent: they live until they are freed. Every block knows
 * which of the two it is.
 *
 * Link with librqmalloc (static or shared; `pkg-config --cflags --libs rqmalloc`).
 *
 * The functions are named rq_emalloc and so on; the plain names of the Zend Memory Manager are
 * macros, which RQMALLOC_NO_ZEND_NAMES removes. With RQMALLOC_DEBUG defined, the macros pass on
 * __FILE__ and __LINE__, which the leak report of a request with trace_leaks shows.
 *
 * Failure. The emalloc family never returns NULL. When a request is at its memory limit, when the
 * system has no memory, or when a product overflows, it calls the error handler
 * (rq_set_error_handler) and then jumps back to the thread's innermost rq_try (rq_bailout); without
 * one, the process ends with the error's text and SIGABRT. Misuse (a foreign pointer, a block of
 * the other family, a double free) ends the process with one line and SIGABRT; best effort where
 * the word before a pointer cannot be read.
 *
 * The family of a block is that of the function it came from: blocks of emalloc() are of the
 * emalloc family even when they are persistent, because no request was open or rq_persistent_on()
 * was in effect. A block that outlives its request, by rq_close_request() or rq_persist(), is of
 * either family; a resize of it that moves it decides.
 *
 * Threads. pthread_cancel() with deferred cancellation, pthread_exit() inside requests and
 * longjmp() out of callers leave no lock held; asynchronous cancellation is not supported, as for
 * malloc(). A library that this one is linked into stays loaded after dlclose(), because threads
 * that used it have yet to give their caches back.
 *
 * Alignment. Every block is aligned to 16 bytes.
 */
#ifndef RQMALLOC_H
#define RQMALLOC_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define RQ_ATTRIBUTE(list) __attribute__(list)
#else
#define RQ_ATTRIBUTE(list)
#endif
#define RQ_MALLOC RQ_ATTRIBUTE((malloc, warn_unused_result, returns_nonnull))
#define RQ_RESULT RQ_ATTRIBUTE((warn_unused_result, returns_nonnull))

/* ---- requests -------------------------------------------------------------------------------- */

/* The settings of a request. Zeros are the defaults. */
typedef struct rq_options {
    /* What reports call the request: UTF-8, of which the first 64 bytes are copied. NULL: no name. */
    const char *name;
    /* Bytes of pages that the request may hold. 0: no limit. */
    size_t memory_limit;
    /* How many bytes below the limit the request is marked, which rq_check() reports. 0: an eighth
     * of the limit, at most 4 MiB. */
    size_t reserve;
    /* Whether a clean end lists on standard error what was never freed, by size class. */
    bool report_leaks;
    /* Whether it is listed after a bailout, too; implies report_leaks. */
    bool report_leaks_after_bailout;
    /* Whether each block remembers where it was allocated; implies report_leaks. RQMALLOC_TRACE=1
     * in the environment traces every request. */
    bool trace_leaks;
    /* Bytes of pages from which on the request is marked, and never refused any. 0: no such limit. */
    size_t soft_limit;
} rq_options;

/* How a request went. */
typedef enum rq_outcome {
    RQ_ENDED,
    RQ_CLOSED,
    /* It had reached its limit, or its mark, and was given up or still marked at its end. */
    RQ_OVER_LIMIT,
    RQ_BAILED_OUT,
    /* A panic of Rust code left it. */
    RQ_PANICKED,
    RQ_STILL_OPEN
} rq_outcome;

/* What became of a request's memory. Bytes of blocks include headers and what size classes add. */
typedef struct rq_report {
    uint64_t id;
    /* The most memory the request held at any one time, in bytes of pages and of memory between
     * survivors of earlier requests. */
    size_t peak_bytes;
    uint64_t freed_blocks;
    size_t freed_bytes;
    /* Blocks that were live at a close, and are persistent now. What rq_persist() was called on is
     * not counted. */
    uint64_t surviving_blocks;
    size_t surviving_bytes;
    /* Bytes of the pages and mappings that survivors are in, or of what the request was given of pages
     * that others survive in. */
    size_t span_bytes;
    /* Bytes of those between the survivors: later requests allocate from them. */
    size_t reusable_bytes;
    /* Somebody else is still inside, or has a handle: the request was only left, and nothing was freed. */
    bool still_open;
    rq_outcome outcome;
    /* The memory limit, in bytes of pages; 0: there was none. */
    size_t limit_bytes;
    /* How long a request with a name was open, by a clock of some milliseconds. */
    uint64_t elapsed_milliseconds;
} rq_report;

/* Begins a request: from here on, what this thread allocates belongs to it. Nests. Returns the
 * request's number, which no other request of the process ever has. */
uint64_t rq_begin_request(void);
/* Begins a request with these options; NULL: the defaults. */
uint64_t rq_begin_request_with(const rq_options *options);
/* Ends this thread's innermost request: frees all of its blocks; what rq_persist() was called on is
 * no longer one of them. Nothing may use or free a freed one afterwards; an operation that the kernel
 * has not completed (io_uring, aio) uses its buffers until then: wait for it, or close the request.
 * `report` may be NULL. Fatal if no request is open on this thread. */
void rq_end_request(rq_report *report);
/* Closes this thread's innermost request, the safe way to end it: blocks that are still live become
 * persistent where they are, and stay valid until any thread frees them, as of either family.
 * `report` may be NULL. A thread that exits inside a request closes
 * it. */
void rq_close_request(rq_report *report);
/* Returns the number of the request this thread is inside; 0: none. */
uint64_t rq_current_request(void);

/* A handle of a request, which keeps it open. */
typedef struct rq_request rq_request;

/* Returns a handle of the request this thread is inside, for another thread to enter; NULL without
 * a request. Whoever ends or closes the request meanwhile only leaves it. */
rq_request *rq_request_ref(void);
/* Gives a handle back. The last one of a request that was left closes it, as rq_close_request()
 * does. NULL is ignored. */
void rq_request_unref(rq_request *request);
/* Enters a request, from here to the rq_leave(): what this thread allocates belongs to it. Nests,
 * also with rq_begin_request(). Several threads may be inside at once. */
void rq_enter(rq_request *request);
/* Undoes this thread's last rq_enter(); fatal without one. */
void rq_leave(void);

/* Calls callback(argument) inside this thread's request before its memory goes: on end, on close
 * and after a bailout, last registered first. The memory limit is suspended meanwhile; what the
 * callback allocates is freed with the request. The thread cannot be cancelled meanwhile, and
 * pthread_exit() must not be called: neither may unwind through this library. Fatal if no request
 * is open. */
void rq_on_end(void (*callback)(void *argument), void *argument);

/* From here to rq_persistent_off(), what this thread allocates is persistent. Nests, also with
 * requests. */
void rq_persistent_on(void);
/* Undoes one rq_persistent_on(); fatal without one. */
void rq_persistent_off(void);
/* Makes this block of a request persistent, at once and where it is: it leaves the request's usage
 * and report, and stays valid until any thread frees it, as of either family. NULL is ignored. */
void rq_persist(void *pointer);
/* Frees a block of any family. NULL is ignored. */
void rq_free(void *pointer);

/* ---- the emalloc family: blocks of the request --------------------------------------------------
 * Without an open request the blocks are persistent, as in the Zend Memory Manager before the first
 * request. Size 0 gives a unique pointer. */

void *rq_emalloc(size_t size) RQ_MALLOC RQ_ATTRIBUTE((alloc_size(1)));
/* Allocates count * size + offset bytes; overflow is checked. */
void *rq_safe_emalloc(size_t count, size_t size, size_t offset) RQ_MALLOC;
/* Zeroed. */
void *rq_ecalloc(size_t count, size_t size) RQ_MALLOC RQ_ATTRIBUTE((alloc_size(1, 2)));
/* NULL: as emalloc. Size 0 does not free, it shrinks. The block keeps its request, whichever is
 * open; a persistent one stays persistent. On failure, the old block is unchanged. */
void *rq_erealloc(void *pointer, size_t size) RQ_RESULT RQ_ATTRIBUTE((alloc_size(2)));
/* As erealloc, but if the block moves, only the first copy_size bytes are copied. */
void *rq_erealloc2(void *pointer, size_t size, size_t copy_size) RQ_RESULT RQ_ATTRIBUTE((alloc_size(2)));
void *rq_safe_erealloc(void *pointer, size_t count, size_t size, size_t offset) RQ_RESULT;
/* NULL is ignored. Fatal ("wrong family") for a block of the pemalloc family. */
void rq_efree(void *pointer);
/* For callers with a failure path of their own: NULL instead of the error handler and a bailout;
 * rq_failure() says why. The old block of rq_erealloc_or_null is then unchanged. */
void *rq_emalloc_or_null(size_t size) RQ_ATTRIBUTE((malloc, warn_unused_result, alloc_size(1)));
void *rq_erealloc_or_null(void *pointer, size_t size) RQ_ATTRIBUTE((warn_unused_result, alloc_size(2)));
/* Why the last of these functions that returned NULL in this thread did so. */
typedef enum rq_failure_reason {
    /* None has. */
    RQ_NO_FAILURE,
    /* The request is at its memory limit. */
    RQ_MEMORY_LIMIT,
    RQ_OUT_OF_MEMORY
} rq_failure_reason;
rq_failure_reason rq_failure(void);
char *rq_estrdup(const char *text) RQ_MALLOC;
/* Copies exactly `length` bytes, including zeros, and appends a zero. */
char *rq_estrndup(const char *text, size_t length) RQ_MALLOC;

/* ---- the pemalloc family: persistent blocks if `persistent`, else as above ----------------------
 * The block remembers the flag: a different one at perealloc or pefree is fatal ("wrong family").
 * Persistent memory does not count towards any request's usage or limit. */

void *rq_pemalloc(size_t size, bool persistent) RQ_MALLOC RQ_ATTRIBUTE((alloc_size(1)));
void *rq_safe_pemalloc(size_t count, size_t size, size_t offset, bool persistent) RQ_MALLOC;
void *rq_pecalloc(size_t count, size_t size, bool persistent) RQ_MALLOC RQ_ATTRIBUTE((alloc_size(1, 2)));
void *rq_perealloc(void *pointer, size_t size, bool persistent) RQ_RESULT RQ_ATTRIBUTE((alloc_size(2)));
void *rq_safe_perealloc(void *pointer, size_t count, size_t size, size_t offset, bool persistent) RQ_RESULT;
void rq_pefree(void *pointer, bool persistent);
char *rq_pestrdup(const char *text, bool persistent) RQ_MALLOC;
char *rq_pestrndup(const char *text, size_t length, bool persistent) RQ_MALLOC;

/* For the macros of RQMALLOC_DEBUG: the emalloc family with the call site; `file` lives for the
 * life of the process. */
void *rq_emalloc_at(size_t size, const char *file, unsigned line) RQ_MALLOC;
void *rq_safe_emalloc_at(size_t count, size_t size, size_t offset, const char *file, unsigned line) RQ_MALLOC;
void *rq_ecalloc_at(size_t count, size_t size, const char *file, unsigned line) RQ_MALLOC;
void *rq_erealloc_at(void *pointer, size_t size, const char *file, unsigned line) RQ_RESULT;
void *rq_erealloc2_at(void *pointer, size_t size, size_t copy_size, const char *file, unsigned line) RQ_RESULT;
void *rq_safe_erealloc_at(void *pointer, size_t count, size_t size, size_t offset, const char *file, unsigned line)
    RQ_RESULT;
char *rq_estrdup_at(const char *text, const char *file, unsigned line) RQ_MALLOC;
char *rq_estrndup_at(const char *text, size_t length, const char *file, unsigned line) RQ_MALLOC;

/* ---- figures and the limit ------------------------------------------------------------------- */

/* Returns how many bytes fit into the block: at least what was asked for. 0 for NULL; fatal for a
 * foreign pointer. */
size_t rq_block_size(const void *pointer);
/* Returns whether the address lies in memory of rqmalloc; false for NULL. Never fatal. */
bool rq_is_ours(const void *pointer);
/* Returns what this thread's request uses; 0 without one. `real`: bytes of the pages it holds,
 * and of the memory between survivors of earlier requests that it allocates from, in units of 256;
 * otherwise bytes of its live blocks. */
size_t rq_memory_usage(bool real);
/* Returns the most used so far, in bytes of pages either way: live blocks are not counted one by
 * one. */
size_t rq_memory_peak_usage(bool real);
/* Measures the peak anew from now on. */
void rq_memory_reset_peak_usage(void);
/* Sets the limit of this thread's request in bytes of pages; SIZE_MAX: no limit. Returns false, and
 * changes nothing, if the request holds more than that even after reclaiming, or if no request is
 * open. */
bool rq_set_memory_limit(size_t bytes);
/* Gives back the pages that contain only free blocks of this thread's request; without a request,
 * the idle memory of the process. Returns the bytes given back. */
size_t rq_gc(void);

/* A request has reached its limit, or its mark below it. */
typedef struct rq_limit_error {
    /* The limit, in bytes of pages; what was in use when it was reached; the size of the block that
     * was asked for. */
    size_t limit_bytes;
    size_t in_use_bytes;
    size_t asked_bytes;
    enum { RQ_LIMIT_MEMORY, RQ_LIMIT_SOFT, RQ_LIMIT_PROCESS } kind;
} rq_limit_error;

/* Returns false if this thread's request has come within the reserve of its limit: it should give
 * up, for instance with rq_bailout(), while allocation still goes on. That does not change,
 * whatever is freed, until rq_set_memory_limit() makes room. `error` may be NULL. */
bool rq_check(rq_limit_error *error);

/* What the process uses and where it is, in bytes: mapped = live + adopted + descriptor +
 * thread_cache + depot + slab + warm + cached_mapping + free; in_use and cached are sums of those
 * before and after thread_cache. README.md says more about each. */
typedef struct rq_process_stats {
    size_t mapped_bytes;
    size_t in_use_bytes;
    size_t live_bytes;
    size_t adopted_bytes;
    size_t descriptor_bytes;
    size_t cached_bytes;
    size_t thread_cache_bytes;
    /* Of what those caches may keep, not a part of the sum. */
    size_t thread_cache_credit_bytes;
    size_t depot_bytes;
    size_t slab_bytes;
    size_t warm_bytes;
    size_t cached_mapping_bytes;
    size_t free_bytes;
    /* Of those, what is still resident. */
    size_t free_resident_bytes;
    uint64_t open_request_count;
} rq_process_stats;

void rq_stats(rq_process_stats *stats);
/* Gives idle memory of the process back to the system. Returns the bytes given back. */
size_t rq_trim(void);
/* Sets what the process should have in use at most, in bytes; SIZE_MAX: no limit. Nothing is refused
 * because of it: while the process is above it, the requests that hold most are marked, largest
 * first, and their rq_check() returns false. */
void rq_set_process_limit(size_t bytes);
/* Returns false if the process is above its limit: a request had better not begin now. `error` may be
 * NULL. */
bool rq_check_process(rq_limit_error *error);

/* Sets the handler that is called with the text of every failure of the emalloc family before it
 * bails out or is fatal. The memory limit and cancellation of the thread are suspended meanwhile,
 * as in a callback of rq_on_end(). The handler is not told of its own failures. NULL: none. For the
 * whole process. */
void rq_set_error_handler(void (*handler)(const char *text));

/* ---- bailout ------------------------------------------------------------------------------------
 *
 *     rq_try {
 *         ... emalloc() at its limit, or rq_bailout("no such function") ...
 *     } rq_catch {
 *         ... rq_bailout_reason() ...
 *     } rq_end_try
 *
 * Tries are per thread and nest: in the rq_catch part, the next outer rq_try counts. A bailout also
 * leaves the requests and persistent parts entered inside the rq_try, and closes those requests. It
 * frees nothing else: the end of the request does. The body may be left by return, break and goto.
 * Local variables that change inside must be volatile, as for setjmp. No frame between rq_try and
 * the bailout may be one of Rust or C++ with destructors to run. A callback of rq_on_end() and the
 * error handler cannot bail out past themselves. GCC and Clang only.
 *
 * longjmp() out of the body to a function further up skips the end of the rq_try, which is then
 * dead: a bailout goes to the next outer one that is not dead, or is fatal. A dead one is
 * recognised by the stack pointer, by its words and its function's return address, which later
 * calls overwrite, and by the unwinder. Undefined: a bailout after longjmp() out of the body to the
 * same function, which may land in the dead rq_catch; one from a function without unwind tables
 * that has since reached as deep without writing there; one past an rq_try on a stack that is no
 * longer mapped; longjmp() out of a callback of rq_on_end() or the error handler. */

typedef struct rq_try_frame {
    struct rq_try_frame *previous;
    uint64_t entry;
    uint64_t depth;
    const void *function;
    uintptr_t returns_to;
    uint64_t check;
    sigjmp_buf place;
} rq_try_frame;

/* For the macros only. */
void rq_try_enter(rq_try_frame *frame);
void rq_try_leave(rq_try_frame *frame);

/* The stack frame of a function; its second word is the address that the function returns to. */
#if defined(__x86_64__) || defined(__aarch64__)
#define RQ_FUNCTION __builtin_frame_address(0)
#else
#define RQ_FUNCTION NULL
#endif

#define rq_try                                                                                                         \
    {                                                                                                                  \
        rq_try_frame rq_frame RQ_ATTRIBUTE((cleanup(rq_try_leave)));                                                   \
        rq_frame.function = RQ_FUNCTION;                                                                               \
        rq_try_enter(&rq_frame);                                                                                       \
        if (sigsetjmp(rq_frame.place, 0) == 0)
#define rq_catch else
#define rq_end_try }

/* Jumps back to this thread's innermost rq_try; fatal without one. `reason` is copied, at most 255
 * bytes of it; NULL: no reason. */
void rq_bailout(const char *reason) RQ_ATTRIBUTE((noreturn));
/* Returns the text of this thread's last bailout; "" before the first one. Valid until the next
 * one. */
const char *rq_bailout_reason(void);

#ifdef __cplusplus
}
#endif

/* ---- the plain names ------------------------------------------------------------------------- */

#ifndef RQMALLOC_NO_ZEND_NAMES
#ifdef RQMALLOC_DEBUG
#define emalloc(size) rq_emalloc_at((size), __FILE__, __LINE__)
#define safe_emalloc(count, size, offset) rq_safe_emalloc_at((count), (size), (offset), __FILE__, __LINE__)
#define ecalloc(count, size) rq_ecalloc_at((count), (size), __FILE__, __LINE__)
#define erealloc(pointer, size) rq_erealloc_at((pointer), (size), __FILE__, __LINE__)
#define erealloc2(pointer, size, copy_size) rq_erealloc2_at((pointer), (size), (copy_size), __FILE__, __LINE__)
#define safe_erealloc(pointer, count, size, offset)                                                                    \
    rq_safe_erealloc_at((pointer), (count), (size), (offset), __FILE__, __LINE__)
#define estrdup(text) rq_estrdup_at((text), __FILE__, __LINE__)
#define estrndup(text, length) rq_estrndup_at((text), (length), __FILE__, __LINE__)
#else
#define emalloc(size) rq_emalloc(size)
#define safe_emalloc(count, size, offset) rq_safe_emalloc((count), (size), (offset))
#define ecalloc(count, size) rq_ecalloc((count), (size))
#define erealloc(pointer, size) rq_erealloc((pointer), (size))
#define erealloc2(pointer, size, copy_size) rq_erealloc2((pointer), (size), (copy_size))
#define safe_erealloc(pointer, count, size, offset) rq_safe_erealloc((pointer), (count), (size), (offset))
#define estrdup(text) rq_estrdup(text)
#define estrndup(text, length) rq_estrndup((text), (length))
#endif
#define efree(pointer) rq_efree(pointer)
#define pemalloc(size, persistent) rq_pemalloc((size), (persistent))
#define safe_pemalloc(count, size, offset, persistent) rq_safe_pemalloc((count), (size), (offset), (persistent))
#define pecalloc(count, size, persistent) rq_pecalloc((count), (size), (persistent))
#define perealloc(pointer, size, persistent) rq_perealloc((pointer), (size), (persistent))
#define safe_perealloc(pointer, count, size, offset, persistent)                                                       \
    rq_safe_perealloc((pointer), (count), (size), (offset), (persistent))
#define pefree(pointer, persistent) rq_pefree((pointer), (persistent))
#define pestrdup(text, persistent) rq_pestrdup((text), (persistent))
#define pestrndup(text, length, persistent) rq_pestrndup((text), (length), (persistent))
#endif

#endif
