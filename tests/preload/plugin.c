/* A library that is opened and closed again. It allocates when it comes, when it is called, and when it goes. It opens
 * another one, by a bare name that is found in its own run path and in no other. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *prefix;
static __thread char *last;

__attribute__((constructor)) static void comes(void) { prefix = strdup("words of "); }
__attribute__((destructor)) static void goes(void) {
    free(prefix);
    free(last);
}

char *words(const char *whose) {
    void *inner = dlopen("librqmalloc-inner.so", RTLD_NOW);
    if (inner == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return strdup("");
    }
    dlclose(inner);
    last = realloc(last, 100);
    size_t length = strlen(prefix) + strlen(whose) + 1;
    char *text = malloc(length);
    snprintf(text, length, "%s%s", prefix, whose);
    return text;
}
