/* Memory from the system; see memory.h, and lapse_memory in lapse.h. */
#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE 1
#endif
#include "memory.h"

#include "atomics.h"
#include "lapse.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define GRAB_ALIGN 64u

#if defined(_WIN32)
#  include <malloc.h>
#  include <windows.h>

static void *system_grab(size_t bytes) { return _aligned_malloc(bytes, GRAB_ALIGN); }
static void drop(void *p) { _aligned_free(p); }
static void *system_map(size_t bytes) {
    return VirtualAlloc(NULL, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}
static void unmap(void *p, size_t bytes) {
    (void)bytes;
    VirtualFree(p, 0, MEM_RELEASE);
}
/* Decommitted pages must not be read, so a free-threaded build, where a late reader may, keeps them. */
void memory_discard(void *start, size_t bytes) {
#  if LAPSE_THREADS
    (void)start, (void)bytes;
#  else
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    uintptr_t page = info.dwPageSize, first = ((uintptr_t)start + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)start + bytes) & ~(page - 1);
    if (end <= first || !VirtualFree((void *)first, end - first, MEM_DECOMMIT)) return;
    VirtualAlloc((void *)first, end - first, MEM_COMMIT, PAGE_READWRITE);
#  endif
}
#else
#  include <sys/mman.h>
#  include <unistd.h>

static void *system_grab(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, GRAB_ALIGN, bytes) == 0 ? p : NULL;
}
static void drop(void *p) { free(p); }
static void *system_map(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#  ifdef MADV_NOHUGEPAGE
    /* A huge page would make the unused part of every segment resident. */
    madvise(p, bytes, MADV_NOHUGEPAGE);
#  endif
    return p;
}
static void unmap(void *p, size_t bytes) { munmap(p, bytes); }

void memory_discard(void *start, size_t bytes) {
    static_assert(sizeof(uintptr_t) == sizeof(void *), "pointers as numbers");
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)start + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)start + bytes) & ~(page - 1);
    if (end <= first) return;
#  if defined(__linux__)
    madvise((void *)first, end - first, MADV_DONTNEED);
#  else
    /* Elsewhere DONTNEED need not zero: new zero pages replace the old ones in one step. */
    mmap((void *)first, end - first, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
#  endif
}
#endif

/* --- Refusing --- */

/* Requests since memory_refuse() was called, and which of them get nothing; plain numbers, as a test that sets
 * them lets nobody else ask. */
static uint64_t asked, refused_from, refused_to;

/* From now on refuse the requests `from` to before `to`, counted from 0; two zeros: none. For tests. Answers
 * how many there have been since the last such call, if that was to refuse any. */
uint64_t memory_refuse(uint64_t from, uint64_t to) {
    uint64_t requests = asked;
    asked = 0;
    refused_from = from;
    refused_to = to;
    return requests;
}

static bool refuses(void) {
    if (LIKELY(refused_to == 0)) return false;
    uint64_t n = asked++;
    return n >= refused_from && n < refused_to;
}

/* --- What the table is given --- */

static void *grab_raw(size_t bytes) { return refuses() ? NULL : system_grab(bytes); }
static void *map(size_t bytes) { return refuses() ? NULL : system_map(bytes); }
static void *grab(size_t bytes) {
    void *p = grab_raw(bytes);
    return p ? memset(p, 0, bytes) : NULL;
}

const lapse_memory lapse_system_memory = {grab, grab_raw, drop, map, unmap};
