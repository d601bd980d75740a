/* A program whose malloc and free wrap the C library's own: its blocks are rqmalloc's, and what it has not defined serves
 * from there, too. With CALLS_BACK its malloc calls a function that it has not defined, at the first call of all: who is
 * in charge is asked by a malloc that asks. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern void *__libc_malloc(size_t);
extern void __libc_free(void *);

static size_t malloc_count, free_count;

void *malloc(size_t size) {
#ifdef CALLS_BACK
    /* Every one: the answer must be the same during the question. */
    void *other = memalign(64, 100);
    other = realloc(other, 200);
    void *third = calloc(1, 10);
    __libc_free(third);
    if (malloc_usable_size(other) < 200)
        return NULL;
    __libc_free(other);
#endif
    malloc_count++;
    return __libc_malloc(size);
}

void free(void *block) {
    free_count++;
    __libc_free(block);
}

int main(void) {
    bool (*is_ours)(const void *) = (bool (*)(const void *))dlsym(RTLD_DEFAULT, "rq_is_ours");
    if (is_ours == NULL)
        return 2;
    char *text = calloc(1, 10);
    bool well = text != NULL && is_ours(text) && text[9] == 0;
    strcpy(text, "text");
    text = realloc(text, 5000);
    well = well && text != NULL && is_ours(text) && strcmp(text, "text") == 0;
    free(text);
    text = strdup("text");
    well = well && is_ours(text) && malloc_count > 0;
    text = reallocarray(text, 10, 100);
    well = well && text != NULL && strcmp(text, "text") == 0 && malloc_usable_size(text) >= 1000;
    free(text);
    void *block = NULL;
    well = well && posix_memalign(&block, 256, 1000) == 0 && is_ours(block) && (uintptr_t)block % 256 == 0;
    free(block);
    block = valloc(10);
    well = well && is_ours(block);
    free(block);
    well = well && free_count >= 4 && mallinfo2().arena > 0;
    printf(well ? "1 passed, 0 failed\n" : "0 passed, 1 failed\n");
    return !well;
}
