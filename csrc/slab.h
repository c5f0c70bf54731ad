/* Slabs: where the segments of a large cache live. One slab is 2 MiB of pages of the cache's own:
 *
 *   | sides: header + ctrl + bitmaps of segment 0, 1, 2, ... | data 0 | data 1 | ... | data n-1 |
 *     given back with the slab (96 KiB where data take 32 KiB each)    page-aligned
 *
 * Headers lie apart from data so that the pages of a freed segment, or those that one of fewer slots
 * does not use, can be given back to the system while the header stays readable.
 *
 * A slab is given back whole when nothing uses it. So that it comes to that, a table that is packed (pack.c)
 * moves what is left to new slabs: nothing is taken from the `old` ones meanwhile.
 *
 * Invariants
 *   1. On a free-threaded build a header is not unmapped before every reader who may still hold it has left the
 *      table, and its seq never falls: who holds a freed segment sees it change and starts again.
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
    bool old;      /* the table is being packed: nothing is taken from it */
    bool idle;     /* nothing has used it since pool_note_idle() */
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
void pool_age(slab_pool *p);
void pool_renew(slab_pool *p);
size_t pool_note_idle(slab_pool *p);
slab *pool_take_idle(slab_pool *p);
void pool_drop_slabs(const slab_pool *p, slab *first);
size_t pool_bytes_in_use(const slab_pool *p, const segment *s);
size_t pool_bytes_idle(const slab_pool *p);
void pool_reset_locks(slab_pool *p);
void pool_free(slab_pool *p);
bool pool_check(const slab_pool *p);

#endif
