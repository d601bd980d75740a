/* A program with an allocator of its own is left alone: its blocks are its own, also those that the C library asks for,
 * and what it has not defined goes to the C library, as without the preloaded one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Never frees; each block knows its size. */
static alignas(16) char arena[64 << 20];
static size_t used;
static size_t own_count;

void *malloc(size_t size) {
    size_t *place = (size_t *)(arena + used);
    used += (size + 31) & ~(size_t)15;
    if (used > sizeof arena)
        return NULL;
    own_count++;
    *place = size;
    return place + 2;
}

void free(void *block) { (void)block; }

void *realloc(void *block, size_t size) {
    void *fresh = malloc(size);
    if (block != NULL && fresh != NULL) {
        size_t before = ((size_t *)block)[-2];
        memcpy(fresh, block, before < size ? before : size);
    }
    return fresh;
}

void *calloc(size_t count, size_t size) { return malloc(count * size); }

extern void *__libc_malloc(size_t), *__libc_memalign(size_t, size_t), *__libc_realloc(void *, size_t);
extern void __libc_free(void *);

/* The C library's own names are served all the same, and take what the others have passed on to the C library. */
static bool is_well_with_names_of_the_c_library(bool (*is_ours)(const void *)) {
    void *block = __libc_malloc(100);
    bool well = is_ours(block) && malloc_usable_size(block) >= 100;
    block = reallocarray(block, 100, 10);
    well = well && is_ours(block);
    block = __libc_realloc(block, 5000);
    well = well && is_ours(block);
    __libc_free(block);
    void *theirs = NULL;
    well = well && posix_memalign(&theirs, 64, 100) == 0 && !is_ours(theirs);
    theirs = __libc_realloc(theirs, 200);
    well = well && theirs != NULL && !is_ours(theirs);
    __libc_free(theirs);
    block = __libc_memalign(64, 100);
    well = well && is_ours(block);
    __libc_free(block);
    return well;
}

static bool is_own(const void *block) { return (const char *)block >= arena && (const char *)block < arena + sizeof arena; }

int main(void) {
    bool (*is_ours)(const void *) = (bool (*)(const void *))dlsym(RTLD_DEFAULT, "rq_is_ours");
    if (is_ours == NULL)
        return 2;
    char *text = strdup("text");
    void *aligned = NULL;
    bool well = is_own(text) && !is_ours(text) && own_count > 0;
    well = well && posix_memalign(&aligned, 64, 1000) == 0 && !is_ours(aligned);
    well = well && malloc_usable_size(aligned) >= 1000;
    aligned = memalign(64, 10);
    well = well && aligned != NULL && !is_ours(aligned);
    aligned = aligned_alloc(64, 64);
    well = well && aligned != NULL && !is_ours(aligned);
    text = reallocarray(text, 10, 10);
    well = well && text != NULL && strcmp(text, "text") == 0;
    well = well && is_well_with_names_of_the_c_library(is_ours);
    printf(well ? "1 passed, 0 failed\n" : "0 passed, 1 failed\n");
    return !well;
}
