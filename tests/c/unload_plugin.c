/* A library that uses rqmalloc; unload_host opens and closes it. */
#include <string.h>

#include "rqmalloc.h"

int use_memory(void) {
    char *kept = pemalloc(1000, true);
    rq_begin_request();
    char *copy = estrdup("of a request");
    int is_well = strcmp(copy, "of a request") == 0;
    efree(copy);
    /* Left to the end of the request. */
    copy = emalloc(5000);
    memset(copy, 1, 5000);
    rq_end_request(NULL);
    pefree(kept, true);
    return is_well;
}
