/* PHP's heap on rqmalloc: emalloc() is rq_emalloc_or_null(), and what a PHP request allocates
 * belongs to a request of rqmalloc.
 *
 * PHP lets an extension replace three functions of its heap (zend_mm_set_custom_handlers): malloc,
 * free, realloc. It does not tell the extension when a request begins or ends, and no longer asks
 * anybody about the memory limit or the usage. README.md says how this extension makes up for each
 * of these, and what it cannot make up for.
 */

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include "php.h"
#include "php_ini.h"
#include "php_output.h"
#include "ext/standard/info.h"
#include "zend_alloc.h"
#include "zend_arena.h"

#define RQMALLOC_NO_ZEND_NAMES
#include <rqmalloc.h>

#ifdef ZTS
#error "threads have a heap each: only PHP without thread safety is supported"
#endif
/* The end of a request is recognised by what PHP frees last (see `heap_phase`), which has to be
 * checked anew for another version. */
#if PHP_VERSION_ID < 80200 || PHP_VERSION_ID >= 80300
#error "written for PHP 8.2"
#endif

#define PHP_RQMALLOC_VERSION "0.1.0"

/* Length of a chunk of PHP's own heap; the first one begins with the heap's descriptor and lives as
 * long as the heap. */
#define PHP_CHUNK_BYTES ((size_t) 2 << 20)
/* What rqmalloc may take from the system for one small block: a region of at most this length. */
#define REGION_BYTES ((size_t) 256 << 10)

/* ---- state ----------------------------------------------------------------------------------- */

/* Where PHP is in the life of a request.
 *
 *  BETWEEN  No request of rqmalloc is open. The next block begins one: what a server allocates
 *           before it calls php_request_startup() (FPM: the script's path) belongs to the coming
 *           request, as in PHP's own heap.
 *  INSIDE   The request is open.
 *  ENDING   The extensions have had their last call (post_deactivate). PHP still allocates and
 *           frees: headers, streams. Then it frees the compiler's arenas, the strings that were
 *           interned, and the text of the last error. Then it would reset its own heap; with
 *           handlers it does not, and tells nobody. So the handler for free watches for the oldest
 *           arena: every request has one.
 *  OVER     That arena was freed. From here on this request only frees. The next block ends it and
 *           begins the next one. */
typedef enum { BETWEEN, INSIDE, ENDING, OVER } heap_phase;

static struct {
	/* PHP's own heap. NULL: not taken over. */
	zend_mm_heap *php;
	/* The first chunk of PHP's own heap. What was allocated before the takeover lies there and
	 * goes back to it. */
	uintptr_t php_chunk;
	/* Whether PHP's own heap has blocks outside its first chunk, too: then rqmalloc is asked
	 * about every block. */
	bool php_scattered;

	heap_phase phase;
	/* Whether the phase is BETWEEN or OVER, or the request above the limit: one flag for the
	 * fast path of an allocation. */
	bool slow;
	/* Blocks in `watched_bytes` of addresses from `watched` on take the slow path when freed or
	 * resized. One compare serves both reasons: blocks of PHP's own heap, and in phase ENDING
	 * every block. */
	uintptr_t watched;
	size_t watched_bytes;
	/* In phase ENDING: the oldest arena. */
	const void *arena;

	/* The limit of rqmalloc's request; above PHP's memory limit once that was reached. */
	size_t limit;
	bool above_limit;
	/* Whether PHP bailed out of this request, and so frees less than it usually does. */
	bool unclean;
	rq_report last;
} heap;

ZEND_BEGIN_MODULE_GLOBALS(rqmalloc)
	bool enabled;
	bool fast_shutdown;
	bool check_owner;
	bool report_leaks;
ZEND_END_MODULE_GLOBALS(rqmalloc)

static ZEND_DECLARE_MODULE_GLOBALS(rqmalloc)
#define RQ_G(name) ZEND_MODULE_GLOBALS_ACCESSOR(rqmalloc, name)

static void enter_phase(heap_phase phase)
{
	heap.phase = phase;
	heap.slow = phase == BETWEEN || phase == OVER || heap.above_limit;
	if (phase == ENDING || heap.php_scattered) {
		heap.watched = 0;
		heap.watched_bytes = SIZE_MAX;
	} else {
		heap.watched = heap.php_chunk;
		heap.watched_bytes = PHP_CHUNK_BYTES;
	}
}

static bool is_watched(const void *block)
{
	return UNEXPECTED((uintptr_t) block - heap.watched < heap.watched_bytes);
}

static bool is_in_php_chunk(const void *block)
{
	return (uintptr_t) block - heap.php_chunk < PHP_CHUNK_BYTES;
}

/* Whether PHP's own heap handed out this block, before it was taken over. */
static bool is_of_php(const void *block)
{
	return is_in_php_chunk(block) || (heap.php_scattered && !rq_is_ours(block));
}

/* ---- the memory limit ------------------------------------------------------------------------ */

static size_t memory_limit(void)
{
	return PG(memory_limit) > 0 ? (size_t) PG(memory_limit) : SIZE_MAX;
}

static bool set_limit(size_t bytes)
{
	if (!rq_set_memory_limit(bytes)) {
		return false;
	}
	heap.limit = bytes;
	/* SIZE_MAX is no limit: PHP has none, or it is lifted while an error is reported. */
	heap.above_limit = bytes > memory_limit() && bytes != SIZE_MAX;
	enter_phase(heap.phase);
	return true;
}

/* Above PHP's limit, limits the request to what it has: each time it grows, PHP's state decides
 * anew. */
static void hold(void)
{
	size_t in_use = rq_memory_usage(true);

	if (in_use < heap.limit) {
		set_limit(MAX(memory_limit(), in_use));
	}
}

/* Whether a block of `size` bytes was refused because of a limit. */
static bool is_beyond(size_t limit, size_t size)
{
	size_t in_use = rq_memory_usage(true), needed = size + size / 4 + REGION_BYTES;

	return limit != SIZE_MAX && (needed < size || needed > limit || in_use > limit - needed);
}

#define LIMIT_TEXT "Allowed memory size of %zu bytes exhausted (tried to allocate %zu bytes)"
#define SYSTEM_TEXT "Out of memory (allocated %zu bytes) (tried to allocate %zu bytes)"

#ifdef ZEND_HAS_OOM
/* From 8.2.35 on, PHP no longer jumps out of an allocation. It notes that the limit was reached,
 * goes on allocating up to a hard limit, and raises the error where the executor can stop. Only
 * callers that say so may be given NULL. */

#define HARD_LIMIT_TEXT \
	"Hard memory limit of %zu bytes exhausted (tried to allocate %zu bytes) in %s on line %" PRIu32 "\n"

/* Returns the hard limit as PHP computes it: `memory_hard_limit_percent`, else twice the limit but
 * at most 1 GiB more. */
static size_t hard_memory_limit(void)
{
	const zend_ini_entry *entry = zend_hash_str_find_ptr(EG(ini_directives), ZEND_STRL("memory_hard_limit_percent"));
	zend_long percent = entry && entry->value ? ZEND_STRTOL(ZSTR_VAL(entry->value), NULL, 10) : 0;
	size_t limit = memory_limit(), most = ZEND_LONG_MAX;

	if (limit > most) {
		return limit;
	}
	if (percent < 100) {
		return limit + MIN(limit, (size_t) 1 << 30);
	}
	if (limit / 100 > most / percent) {
		return most;
	}
	return limit / 100 * percent + limit % 100 * percent / 100;
}

/* Handles a failed allocation. Returns NULL only to a caller that can take it. */
static zend_never_inline ZEND_COLD void *allocate_at_limit(void *block, size_t size)
{
	size_t hard;

	if (is_beyond(heap.limit, size)) {
		if (!ZEND_HAS_OOM()) {
			zend_mm_delayed_error_or_panic(true, LIMIT_TEXT, memory_limit(), size);
		}
		if (zend_mm_is_fallible()) {
			return NULL;
		}
		hard = hard_memory_limit();
		set_limit(hard);
		block = rq_erealloc_or_null(block, size);
		set_limit(MAX(memory_limit(), rq_memory_usage(true)));
		if (block) {
			return block;
		}
		if (is_beyond(hard, size)) {
			/* PHP's own heap exits in this way and with this status. */
			fprintf(stderr, HARD_LIMIT_TEXT, hard, size, zend_get_executed_filename(), zend_get_executed_lineno());
			_exit(137);
		}
	}
	/* Notes the error for a caller that takes NULL; for another one, ends the process. */
	zend_mm_delayed_error_or_panic(zend_mm_is_fallible(), SYSTEM_TEXT, rq_memory_usage(true), size);
	return NULL;
}

#else
/* PHP up to 8.2.34 raises the error at once and jumps out of the allocation. By then rqmalloc has
 * returned NULL: none of its frames are between here and the target of the jump. */
static zend_never_inline ZEND_COLD void *allocate_at_limit(void *block, size_t size)
{
	bool at_limit = is_beyond(heap.limit, size);

	/* Displaying and logging the error takes memory. */
	set_limit(SIZE_MAX);
	/* As PHP does when its own heap is at its limit: the buffered output makes room for the
	 * error. */
	php_output_discard_all();
	zend_try {
		if (at_limit) {
			zend_error_noreturn(E_ERROR, LIMIT_TEXT, memory_limit(), size);
		}
		zend_error_noreturn(E_ERROR, SYSTEM_TEXT, rq_memory_usage(true), size);
	} zend_end_try();
	/* Shutdown functions run with the limit, or with what is in use if that is more. */
	set_limit(MAX(memory_limit(), rq_memory_usage(true)));
	zend_bailout();
}
#endif

/* ini_set("memory_limit") and the configuration of a pool or a directory call this. */
static ZEND_INI_MH((*php_on_memory_limit));

static ZEND_INI_MH(on_memory_limit)
{
	zend_long before = PG(memory_limit);
	size_t limit;

	/* Checks the text and stores the value, whatever is in use. */
	if (php_on_memory_limit(entry, new_value, mh_arg1, mh_arg2, mh_arg3, stage) == FAILURE) {
		return FAILURE;
	}
	limit = memory_limit();
	if (rq_current_request() == 0 || set_limit(limit)) {
		return SUCCESS;
	}
	/* As in PHP: when the value is restored at the end of a request, memory may not have been
	 * freed yet. */
	if (stage == ZEND_INI_STAGE_DEACTIVATE) {
		return SUCCESS;
	}
	PG(memory_limit) = before;
	zend_set_memory_limit(before);
	zend_error(E_WARNING, "Failed to set memory limit to %zd bytes (Current memory usage is %zd bytes)",
		limit, rq_memory_usage(true));
	return FAILURE;
}

/* ---- begin and end --------------------------------------------------------------------------- */

static void end_request(void)
{
	rq_end_request(&heap.last);
	if (RQ_G(report_leaks) && heap.last.freed_blocks && !heap.unclean) {
		fprintf(stderr, "rqmalloc: request %" PRIu64 ": %" PRIu64 " blocks (%zu bytes) were never freed\n",
			heap.last.id, heap.last.freed_blocks, heap.last.freed_bytes);
	}
}

static void begin_request(void)
{
	rq_options options = {.name = "php"};

	if (heap.phase == OVER) {
		end_request();
	}
	heap.limit = memory_limit();
	options.memory_limit = heap.limit == SIZE_MAX ? 0 : heap.limit;
	rq_begin_request_with(&options);
	heap.above_limit = false;
	heap.unclean = false;
	enter_phase(INSIDE);
}

/* PHP leaves it to its own heap to free what is alive at the end of a request ("fast shutdown"),
 * but with handlers it destroys every value. This skips nearly all of them, too: their destructors
 * have been called, and the fast shutdown skips the same ones. Objects with a free function of
 * their own are still freed by it. */
static ZEND_RSHUTDOWN_FUNCTION(rqmalloc)
{
	if (!heap.php || !RQ_G(fast_shutdown) || RQ_G(report_leaks)) {
		return SUCCESS;
	}
	/* Global variables. */
	EG(symbol_table).pDestructor = NULL;
	for (uint32_t handle = 1; handle < EG(objects_store).top; handle++) {
		zend_object *object = EG(objects_store).object_buckets[handle];

		if (IS_OBJ_VALID(object) && object->handlers->free_obj == zend_object_std_dtor) {
			GC_ADD_FLAGS(object, IS_OBJ_FREE_CALLED);
		}
	}
	return SUCCESS;
}

static ZEND_MODULE_POST_ZEND_DEACTIVATE_D(rqmalloc)
{
	if (heap.phase == INSIDE) {
		const zend_arena *arena = CG(arena);

		while (arena->prev) {
			arena = arena->prev;
		}
		heap.arena = arena;
		heap.unclean = CG(unclean_shutdown);
		enter_phase(ENDING);
	}
	return SUCCESS;
}

/* ---- the handlers ---------------------------------------------------------------------------- */

static zend_never_inline void prepare(void)
{
	if (heap.phase == BETWEEN || heap.phase == OVER) {
		begin_request();
	} else {
		hold();
	}
}

static void *heap_malloc(size_t size)
{
	void *block;

	if (UNEXPECTED(heap.slow)) {
		prepare();
	}
	block = rq_emalloc_or_null(size);
	return EXPECTED(block) ? block : allocate_at_limit(NULL, size);
}

/* Gives the heap's descriptor back: PHP frees it through the handler, as the last thing the process
 * does with the heap. */
static void give_back(void)
{
	zend_mm_heap *php = heap.php;

	heap.php = NULL;
	if (heap.phase != BETWEEN) {
		end_request();
	}
	zend_mm_set_custom_handlers(php, NULL, NULL, NULL);
	zend_mm_shutdown(php, true, true);
}

static zend_never_inline void free_watched(void *block)
{
	if (block == NULL) {
		return;
	}
	if (block == heap.php) {
		give_back();
		return;
	}
	if (is_of_php(block)) {
		_zend_mm_free(heap.php, block ZEND_FILE_LINE_CC ZEND_FILE_LINE_EMPTY_CC);
		return;
	}
	if (heap.phase == ENDING && block == heap.arena) {
		enter_phase(OVER);
	}
	rq_efree(block);
}

static void heap_free(void *block)
{
	if (is_watched(block)) {
		free_watched(block);
		return;
	}
	rq_efree(block);
}

static zend_never_inline void *realloc_of_php(void *block, size_t size)
{
	/* The block stays in PHP's own heap: how much of it to copy is unknown, because PHP tells
	 * no sizes of a heap with handlers. */
	void *moved = _zend_mm_realloc(heap.php, block, size ZEND_FILE_LINE_CC ZEND_FILE_LINE_EMPTY_CC);

	if (!is_in_php_chunk(moved)) {
		heap.php_scattered = true;
		enter_phase(heap.phase);
	}
	return moved;
}

static void *heap_realloc(void *block, size_t size)
{
	void *moved;

	if (UNEXPECTED(block == NULL)) {
		return heap_malloc(size);
	}
	if (is_watched(block) && is_of_php(block)) {
		return realloc_of_php(block, size);
	}
	if (UNEXPECTED(heap.above_limit)) {
		hold();
	}
	moved = rq_erealloc_or_null(block, size);
	return EXPECTED(moved) ? moved : allocate_at_limit(block, size);
}

/* ---- functions of PHP that read its own heap's figures --------------------------------------- */

static ZEND_FUNCTION(memory_get_usage)
{
	bool real = false;

	ZEND_PARSE_PARAMETERS_START(0, 1)
		Z_PARAM_OPTIONAL
		Z_PARAM_BOOL(real)
	ZEND_PARSE_PARAMETERS_END();
	RETURN_LONG(rq_memory_usage(real));
}

static ZEND_FUNCTION(memory_get_peak_usage)
{
	bool real = false;

	ZEND_PARSE_PARAMETERS_START(0, 1)
		Z_PARAM_OPTIONAL
		Z_PARAM_BOOL(real)
	ZEND_PARSE_PARAMETERS_END();
	RETURN_LONG(rq_memory_peak_usage(real));
}

static ZEND_FUNCTION(memory_reset_peak_usage)
{
	ZEND_PARSE_PARAMETERS_NONE();
	rq_memory_reset_peak_usage();
}

static ZEND_FUNCTION(gc_mem_caches)
{
	ZEND_PARSE_PARAMETERS_NONE();
	RETURN_LONG(rq_gc());
}

static void replace_function(const char *name, zif_handler handler)
{
	zend_function *function = zend_hash_str_find_ptr(CG(function_table), name, strlen(name));

	/* Absent: `disable_functions` has removed it. */
	if (function && function->type == ZEND_INTERNAL_FUNCTION) {
		function->internal_function.handler = handler;
	}
}

/* ---- the takeover ---------------------------------------------------------------------------- */

static void take_over(void)
{
	zend_ini_entry *limit = zend_hash_str_find_ptr(EG(ini_directives), ZEND_STRL("memory_limit"));

	/* USE_ZEND_ALLOC=0, a debugger or a profiler came first. */
	if (!is_zend_mm() || !limit) {
		zend_error(E_CORE_WARNING, "rqmalloc: PHP's heap has other handlers already, it is left as it is");
		return;
	}
	heap.php = zend_mm_get_heap();
	heap.php_chunk = (uintptr_t) heap.php & ~(uintptr_t) (PHP_CHUNK_BYTES - 1);
	heap.php_scattered = RQ_G(check_owner) || zend_memory_usage(true) > PHP_CHUNK_BYTES;
	enter_phase(BETWEEN);
	zend_mm_set_custom_handlers(heap.php, heap_malloc, heap_free, heap_realloc);

	php_on_memory_limit = limit->on_modify;
	limit->on_modify = on_memory_limit;
	replace_function("memory_get_usage", ZEND_FN(memory_get_usage));
	replace_function("memory_get_peak_usage", ZEND_FN(memory_get_peak_usage));
	replace_function("memory_reset_peak_usage", ZEND_FN(memory_reset_peak_usage));
	replace_function("gc_mem_caches", ZEND_FN(gc_mem_caches));
}

static zend_result (*next_post_startup)(void);

/* Called once, after every extension has started, when little of what they allocated is left. */
static zend_result post_startup(void)
{
	if (next_post_startup && next_post_startup() == FAILURE) {
		return FAILURE;
	}
	take_over();
	return SUCCESS;
}

/* ---- the module ------------------------------------------------------------------------------ */

#define SETTING(name, value) \
	STD_PHP_INI_BOOLEAN("rqmalloc." #name, value, PHP_INI_SYSTEM, OnUpdateBool, name, zend_rqmalloc_globals, rqmalloc_globals)

PHP_INI_BEGIN()
	/* Whether to take PHP's heap over. */
	SETTING(enabled, "1")
	/* Whether to leave what is alive at the end of a request to that end. */
	SETTING(fast_shutdown, "1")
	/* Whether to ask rqmalloc about every block that is freed, even if PHP's own heap has only
	 * one chunk. */
	SETTING(check_owner, "0")
	/* Whether to say on standard error how much a request never freed, unless PHP bailed out of
	 * it. */
	SETTING(report_leaks, "0")
PHP_INI_END()

static ZEND_MINIT_FUNCTION(rqmalloc)
{
	REGISTER_INI_ENTRIES();
	if (!RQ_G(enabled)) {
		return SUCCESS;
	}
	if (type != MODULE_PERSISTENT) {
		zend_error(E_CORE_WARNING, "rqmalloc: a running request keeps its heap, dl() does not change it");
		return SUCCESS;
	}
	next_post_startup = zend_post_startup_cb;
	zend_post_startup_cb = post_startup;
	return SUCCESS;
}

static ZEND_MSHUTDOWN_FUNCTION(rqmalloc)
{
	/* The handlers stay: PHP frees blocks after this, and at last the heap itself (see
	 * give_back). */
	UNREGISTER_INI_ENTRIES();
	return SUCCESS;
}

static ZEND_MINFO_FUNCTION(rqmalloc)
{
	php_info_print_table_start();
	php_info_print_table_row(2, "PHP's heap", heap.php ? "rqmalloc" : "PHP's own or another");
	php_info_print_table_row(2, "Version", PHP_RQMALLOC_VERSION);
	php_info_print_table_end();
	DISPLAY_INI_ENTRIES();
}

/* Returns the figures of the current request, and what the end of the one before it found. */
static ZEND_FUNCTION(rqmalloc_usage)
{
	bool ours = heap.php != NULL;
	zval previous;

	ZEND_PARSE_PARAMETERS_NONE();
	array_init(return_value);
	add_assoc_bool(return_value, "enabled", ours);
	add_assoc_long(return_value, "request", ours ? (zend_long) rq_current_request() : 0);
	add_assoc_long(return_value, "live_bytes", ours ? rq_memory_usage(false) : zend_memory_usage(false));
	add_assoc_long(return_value, "page_bytes", ours ? rq_memory_usage(true) : zend_memory_usage(true));
	add_assoc_long(return_value, "peak_bytes", ours ? rq_memory_peak_usage(true) : zend_memory_peak_usage(true));
	if (heap.last.id == 0) {
		add_assoc_null(return_value, "previous");
		return;
	}
	array_init(&previous);
	add_assoc_long(&previous, "request", (zend_long) heap.last.id);
	add_assoc_long(&previous, "peak_bytes", heap.last.peak_bytes);
	add_assoc_long(&previous, "freed_blocks", (zend_long) heap.last.freed_blocks);
	add_assoc_long(&previous, "freed_bytes", heap.last.freed_bytes);
	add_assoc_long(&previous, "surviving_blocks", (zend_long) heap.last.surviving_blocks);
	add_assoc_zval(return_value, "previous", &previous);
}

/* Leaks a block of the request on purpose. */
static ZEND_FUNCTION(rqmalloc_leak)
{
	/* Volatile, so that the compiler keeps the allocation. */
	static void *volatile leaked;
	zend_long bytes;

	ZEND_PARSE_PARAMETERS_START(1, 1)
		Z_PARAM_LONG(bytes)
	ZEND_PARSE_PARAMETERS_END();
	if (bytes < 0) {
		zend_argument_value_error(1, "must be greater than or equal to 0");
		RETURN_THROWS();
	}
	leaked = emalloc((size_t) bytes);
	memset(leaked, 0x5a, (size_t) bytes);
}

ZEND_BEGIN_ARG_WITH_RETURN_TYPE_INFO_EX(arginfo_rqmalloc_usage, 0, 0, IS_ARRAY, 0)
ZEND_END_ARG_INFO()

ZEND_BEGIN_ARG_WITH_RETURN_TYPE_INFO_EX(arginfo_rqmalloc_leak, 0, 1, IS_VOID, 0)
	ZEND_ARG_TYPE_INFO(0, bytes, IS_LONG, 0)
ZEND_END_ARG_INFO()

static const zend_function_entry rqmalloc_functions[] = {
	ZEND_FE(rqmalloc_usage, arginfo_rqmalloc_usage)
	ZEND_FE(rqmalloc_leak, arginfo_rqmalloc_leak)
	ZEND_FE_END
};

zend_module_entry rqmalloc_module_entry = {
	STANDARD_MODULE_HEADER,
	"rqmalloc",
	rqmalloc_functions,
	ZEND_MINIT(rqmalloc),
	ZEND_MSHUTDOWN(rqmalloc),
	NULL,
	ZEND_RSHUTDOWN(rqmalloc),
	ZEND_MINFO(rqmalloc),
	PHP_RQMALLOC_VERSION,
	ZEND_MODULE_GLOBALS(rqmalloc),
	NULL,
	NULL,
	ZEND_MODULE_POST_ZEND_DEACTIVATE_N(rqmalloc),
	STANDARD_MODULE_PROPERTIES_EX
};

#ifdef COMPILE_DL_RQMALLOC
ZEND_GET_MODULE(rqmalloc)
#endif
