/* Somebody else's program, built with what pkg-config says. */
#include <rqmalloc.h>

#include <stdio.h>

int main(void) {
    unsigned long long request = rq_begin_request();
    rq_report report;
    rq_try {
        char *name = estrdup("leaked");
        (void)name;
        rq_bailout("no such function");
    } rq_catch {
    } rq_end_try
    rq_end_request(&report);
    printf("request %llu: freed %llu block\n", request, (unsigned long long)report.freed_blocks);
    return report.id == request ? 0 : 1;
}
