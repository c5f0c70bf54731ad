/* Slabs: where the segments of a large cache live. One slab is 2 MiB of pages of the cache's own:
 *
 *   | sides: header + ctrl + bitmaps of segment 0, 1, 2, ... | data 0 | data 1 | ... | data n-1 |
 *     never given back (96 KiB where data take 32 KiB each)    page-aligned
 *
 * Headers lie apart from data so that the pages of a freed segment, or those that one of 640 slots
 * does not use, can be given back to the system while the header stays readable.
 *
 * Invariants
 *   1. A header is never unmapped on a free-threaded build, and its seq never falls: a reader that
 *      still holds a freed segment sees it change and starts again.
 *   2. A segment in a free list holds no entry and its data pages are not resident.
 *
 * Threads: the caller holds the table's directory lock.
 */
#ifndef LAPSE_SLAB_H
#define LAPSE_SLAB_H

#include "segment.h"

#define SLAB_BYTES ((size_t)2 << 20)

typedef struct slab {
    struct slab *next;
    uint8_t *pages;
    segment *free;
    uint32_t count, free_count;
    uint32_t made; /* segments ever made in it; the headers behind are still blank */
} slab;

typedef struct {
    const lapse_memory *memory;
    slab *first, *open; /* open: where a free segment was last seen */
    segment_arrays arrays;
    uint32_t per_slab;
    size_t side_bytes, data_bytes, data_offset;
    size_t slabs;
} slab_pool;

void pool_init(slab_pool *p, const lapse_memory *memory, segment_arrays arrays);
void pool_add(slab_pool *p, slab *fresh);
slab *pool_new_slab(const slab_pool *p);
void pool_drop_slab(const slab_pool *p, slab *sl);
bool pool_is_empty(slab_pool *p);
segment *pool_take(slab_pool *p, uint32_t slots);
void pool_give(slab_pool *p, segment *s);
void pool_trim(const segment *s);
size_t pool_bytes_in_use(const slab_pool *p, const segment *s);
void pool_reset_locks(slab_pool *p);
void pool_free(slab_pool *p);

#endif
