/* Slabs; layout, invariants and thread rules stand in slab.h. */
#include "slab.h"

#include "memory.h"

#define ROUND_UP(n, unit) (((n) + (unit) - 1) / (unit) * (unit))

/* Work out how many segments a slab holds: sides first, then page-aligned data. */
void pool_init(slab_pool *p, const lapse_memory *memory, segment_arrays arrays) {
    *p = (slab_pool){.memory = memory, .arrays = arrays};
    p->side_bytes = ROUND_UP(sizeof(segment), CACHE_LINE) + SEGMENT_SLOTS + 3 * SEGMENT_SLOTS / 8;
    p->data_bytes = SEGMENT_SLOTS / PAGE_SLOTS * PAGE_BYTES;
    p->data_bytes += arrays_bytes(arrays, SEGMENT_SLOTS);
    p->per_slab = (uint32_t)(SLAB_BYTES / (p->side_bytes + p->data_bytes));
    while (ROUND_UP(p->per_slab * p->side_bytes, PAGE_BYTES) + p->per_slab * p->data_bytes > SLAB_BYTES)
        p->per_slab--;
    p->data_offset = SLAB_BYTES - p->per_slab * p->data_bytes;
}

/* --- Slabs --- */

/* A slab that belongs to nobody yet, or NULL. Takes no lock, so that memory is asked for before one
 * is held. */
slab *pool_new_slab(const slab_pool *p) {
    slab *sl = p->memory->grab(sizeof(slab));
    if (sl == NULL) return NULL;
    sl->pages = p->memory->map(SLAB_BYTES);
    if (sl->pages == NULL) {
        p->memory->drop(sl);
        return NULL;
    }
    sl->count = sl->free_count = p->per_slab;
    return sl;
}

void pool_drop_slab(const slab_pool *p, slab *sl) {
    p->memory->unmap(sl->pages, SLAB_BYTES);
    p->memory->drop(sl);
}

void pool_add(slab_pool *p, slab *fresh) {
    fresh->next = p->first;
    p->first = p->open = fresh;
    p->slabs++;
}

static slab *open_slab(slab_pool *p) {
    if (p->open && p->open->free_count > 0) return p->open;
    for (slab *sl = p->first; sl; sl = sl->next)
        if (sl->free_count > 0) return p->open = sl;
    return p->open = NULL;
}

bool pool_is_empty(slab_pool *p) { return open_slab(p) == NULL; }

/* --- Segments --- */

static segment *fresh_header(slab_pool *p, slab *sl) {
    uint32_t i = sl->made++;
    uint8_t *side = sl->pages + i * p->side_bytes;
    segment *s = (segment *)(void *)side;
    s->slab = sl;
    segment_place(s, side + ROUND_UP(sizeof(segment), CACHE_LINE),
                  sl->pages + p->data_offset + i * p->data_bytes, SEGMENT_SLOTS, p->arrays);
    return s;
}

/* An empty segment with `slots` in use, or NULL when no slab has one left. */
segment *pool_take(slab_pool *p, uint32_t slots) {
    slab *sl = open_slab(p);
    if (sl == NULL) return NULL;
    segment *s = sl->free;
    if (s) sl->free = s->next;
    else s = fresh_header(p, sl);
    sl->free_count--;
    s->next = NULL;
#if LAPSE_THREADS
    if (s->seq % 2 == 0) write_begin(s); /* outside the directory: odd */
#endif
    segment_reset(s, slots);
    return s;
}

#if !LAPSE_THREADS
static void release_slab(slab_pool *p, slab *gone) {
    slab **link = &p->first;
    while (*link != gone) link = &(*link)->next;
    *link = gone->next;
    p->open = p->first;
    p->slabs--;
    pool_drop_slab(p, gone);
}
#endif

/* Give an emptied segment back: its data pages go at once; on a GIL build, where no reader can hold
 * a header, so does a slab that nothing uses, unless it is the only one. */
void pool_give(slab_pool *p, segment *s) {
    slab *sl = s->slab;
    memory_discard(s->pages, p->data_bytes);
    s->next = sl->free;
    sl->free = s;
    sl->free_count++;
#if !LAPSE_THREADS
    if (sl->free_count == sl->count && p->slabs > 1) release_slab(p, sl);
#endif
}

/* Let the pages behind a segment's slots go. */
void pool_trim(const segment *s) {
    uint32_t slots = segment_slots(s);
    memory_discard(s->pages + slots / PAGE_SLOTS * PAGE_BYTES,
                   (SEGMENT_SLOTS - slots) / PAGE_SLOTS * PAGE_BYTES);
}

/* Bytes of a segment that are in use, by arithmetic. */
size_t pool_bytes_in_use(const slab_pool *p, const segment *s) {
    uint32_t slots = segment_slots(s);
    size_t each = ROUND_UP(slots * sizeof(int64_t), PAGE_BYTES) * ((size_t)p->arrays.ttls + p->arrays.limits);
    size_t nodes = ROUND_UP(slots * sizeof(uint32_t), PAGE_BYTES) * p->arrays.nodes;
    return p->side_bytes + slots / PAGE_SLOTS * PAGE_BYTES + each + nodes;
}

/* After a fork: no free segment's lock is held. */
void pool_reset_locks(slab_pool *p) {
    for (slab *sl = p->first; sl; sl = sl->next)
        for (segment *s = sl->free; s; s = s->next) lock_init(&s->lock);
}

void pool_free(slab_pool *p) {
    while (p->first) {
        slab *sl = p->first;
        p->first = sl->next;
        pool_drop_slab(p, sl);
    }
    p->open = NULL;
    p->slabs = 0;
}
