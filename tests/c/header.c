/* Nothing runs here: the header is compiled alone, before anything else, as strict C99 and as C++,
 * and everything in it is used once. */
#include "rqmalloc.h"

/* What it includes is enough for itself. */
static rq_options options = {NULL, 0, 0, false, false, false, 0};

static void handle(const char *text) {
    (void)text;
}

static void at_end(void *argument) {
    (void)argument;
}

void use_the_functions(void);
int use_the_macros(void);
int use_a_try(void);

void use_the_functions(void) {
    rq_report report;
    rq_limit_error error;
    void *block;
    char *text;
    (void)rq_begin_request();
    (void)rq_begin_request_with(&options);
    (void)rq_current_request();
    rq_on_end(at_end, NULL);
    rq_persistent_on();
    rq_persistent_off();
    block = rq_emalloc(1);
    block = rq_safe_emalloc(1, 2, 3);
    block = rq_ecalloc(1, 2);
    block = rq_erealloc(block, 1);
    block = rq_erealloc2(block, 2, 1);
    block = rq_safe_erealloc(block, 1, 2, 3);
    block = rq_emalloc_or_null(1);
    block = rq_erealloc_or_null(block, 1);
    text = rq_estrdup("text");
    text = rq_estrndup("text", 2);
    rq_efree(block);
    block = rq_pemalloc(1, true);
    block = rq_safe_pemalloc(1, 2, 3, true);
    block = rq_pecalloc(1, 2, true);
    block = rq_perealloc(block, 1, true);
    block = rq_safe_perealloc(block, 1, 2, 3, true);
    text = rq_pestrdup("text", true);
    text = rq_pestrndup("text", 2, true);
    rq_pefree(text, true);
    block = rq_emalloc_at(1, __FILE__, __LINE__);
    block = rq_safe_emalloc_at(1, 2, 3, __FILE__, __LINE__);
    block = rq_ecalloc_at(1, 2, __FILE__, __LINE__);
    block = rq_erealloc_at(block, 1, __FILE__, __LINE__);
    block = rq_erealloc2_at(block, 2, 1, __FILE__, __LINE__);
    block = rq_safe_erealloc_at(block, 1, 2, 3, __FILE__, __LINE__);
    text = rq_estrdup_at("text", __FILE__, __LINE__);
    text = rq_estrndup_at("text", 2, __FILE__, __LINE__);
    rq_persist(text);
    rq_free(block);
    (void)rq_block_size(block);
    (void)rq_is_ours(block);
    (void)rq_memory_usage(true);
    (void)rq_memory_peak_usage(false);
    rq_memory_reset_peak_usage();
    (void)rq_set_memory_limit(SIZE_MAX);
    (void)rq_gc();
    (void)rq_check(&error);
    rq_set_error_handler(handle);
    rq_end_request(&report);
    rq_close_request(NULL);
}

#ifdef RQMALLOC_NO_ZEND_NAMES
/* The plain names are the program's own. */
static int emalloc(int size) {
    return size;
}
static int efree(int pointer) {
    return pointer;
}
static int pefree(int pointer, int persistent) {
    return pointer + persistent;
}

int use_the_macros(void) {
    int safe_emalloc = 1, ecalloc = 2, erealloc = 3, erealloc2 = 4, safe_erealloc = 5, estrdup = 6, estrndup = 7;
    int pemalloc = 8, safe_pemalloc = 9, pecalloc = 10, perealloc = 11, safe_perealloc = 12, pestrdup = 13;
    int pestrndup = 14;
    return emalloc(1) + efree(2) + pefree(3, 4) + safe_emalloc + ecalloc + erealloc + erealloc2 + safe_erealloc +
           estrdup + estrndup + pemalloc + safe_pemalloc + pecalloc + perealloc + safe_perealloc + pestrdup + pestrndup;
}
#else
int use_the_macros(void) {
    int size = 1;
    void *block = emalloc(size++);
    char *text;
    block = safe_emalloc(1, 2, 3);
    block = ecalloc(1, 2);
    block = erealloc(block, 1);
    block = erealloc2(block, 2, 1);
    block = safe_erealloc(block, 1, 2, 3);
    text = estrdup("text");
    text = estrndup("text", 2);
    efree(text);
    block = pemalloc(1, size > 1 ? true : false);
    block = safe_pemalloc(1, 2, 3, true);
    block = pecalloc(1, 2, true);
    block = perealloc(block, 1, true);
    block = safe_perealloc(block, 1, 2, 3, true);
    text = pestrdup("text", true);
    text = pestrndup("text", 2, true);
    pefree(block, true);
    pefree(text, true);
    return size;
}
#endif

/* Tries as statements of an if, in a loop, nested, without a catch part. */
int use_a_try(void) {
    int volatile count = 0;
    if (count == 0)
        rq_try {
            if (count > 3)
                return 1;
            rq_try {
                rq_bailout("reason");
            } rq_catch {
                count += rq_bailout_reason()[0] == 'r';
            } rq_end_try
        } rq_catch {
            count++;
        } rq_end_try
    else
        count--;
    while (count < 10) {
        rq_try {
            count++;
            if (count == 5)
                continue;
            if (count == 7)
                break;
        } rq_end_try
    }
    return count;
}
