/* Put before the allocator's library, answers as a kernel whose pages have PAGE bytes: addresses must be multiples of
 * that, lengths are rounded up, and what is mapped begins at a page. With SAYS_SO the C library says so too; without,
 * the allocator has to get along with calls that fail. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PAGE
#define PAGE 65536UL
#endif

static size_t up(size_t bytes) {
    return (bytes + PAGE - 1) & ~(PAGE - 1);
}

static int is_at_a_page(const void *address) {
    if ((uintptr_t)address % PAGE == 0)
        return 1;
    errno = EINVAL;
    return 0;
}

void *mmap(void *address, size_t bytes, int access, int flags, int file, off_t offset) {
    if ((flags & MAP_FIXED) || file != -1)
        return (void *)syscall(SYS_mmap, address, bytes, access, flags, file, offset);
    bytes = up(bytes);
    char *wide = (char *)syscall(SYS_mmap, address, bytes + PAGE, access, flags, file, offset);
    if (wide == MAP_FAILED)
        return wide;
    char *start = (char *)up((uintptr_t)wide);
    if (start > wide)
        syscall(SYS_munmap, wide, start - wide);
    if (wide + PAGE > start)
        syscall(SYS_munmap, start + bytes, wide + PAGE - start);
    return start;
}

int munmap(void *address, size_t bytes) {
    return is_at_a_page(address) ? (int)syscall(SYS_munmap, address, up(bytes)) : -1;
}

int madvise(void *address, size_t bytes, int advice) {
    return is_at_a_page(address) ? (int)syscall(SYS_madvise, address, up(bytes), advice) : -1;
}

void *mremap(void *address, size_t old_bytes, size_t new_bytes, int flags, ...) {
    void *to = NULL;
    if (flags & MREMAP_FIXED) {
        va_list rest;
        va_start(rest, flags);
        to = va_arg(rest, void *);
        va_end(rest);
    }
    if (!is_at_a_page(address) || !is_at_a_page(to))
        return MAP_FAILED;
    return (void *)syscall(SYS_mremap, address, up(old_bytes), up(new_bytes), flags, to);
}

#ifdef SAYS_SO
#include <dlfcn.h>

long sysconf(int name) {
    if (name == _SC_PAGESIZE)
        return PAGE;
    return ((long (*)(int))dlsym(RTLD_NEXT, "sysconf"))(name);
}

int getpagesize(void) {
    return PAGE;
}
#endif
