/* Slabs; layout, invariants and thread rules stand in slab.h. */
#include "slab.h"

#include "memory.h"

#define ROUND_UP(n, unit) (((n) + (unit) - 1) / (unit) * (unit))

/* Work out how many segments a slab holds: sides first, then page-aligned data. */
void pool_init(slab_pool *p, const lapse_memory *memory, segment_arrays arrays) {
    *p = (slab_pool){.memory = memory, .arrays = arrays};
    p->side_bytes =
        ROUND_UP(sizeof(segment), CACHE_LINE) + ROUND_UP(side_bytes(arrays, SEGMENT_SLOTS), CACHE_LINE);
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

static bool is_open(const slab *sl) { return sl->free_count > 0 && !sl->old; }

static slab *open_slab(slab_pool *p) {
    if (p->open && is_open(p->open)) return p->open;
    for (slab *sl = p->first; sl; sl = sl->next)
        if (is_open(sl)) return p->open = sl;
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
    sl->idle = false;
    s->next = NULL;
#if LAPSE_THREADS
    if (s->seq % 2 == 0) write_begin(s); /* outside the directory: odd */
#endif
    segment_reset(s, slots);
    return s;
}

static bool is_unused(const slab *sl) { return sl->free_count == sl->count; }

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
 * a header, so does a slab that nothing uses. */
void pool_give(slab_pool *p, segment *s) {
    slab *sl = s->slab;
    memory_discard(s->pages, p->data_bytes);
    s->next = sl->free;
    sl->free = s;
    sl->free_count++;
#if !LAPSE_THREADS
    if (is_unused(sl)) release_slab(p, sl);
#endif
}

/* Let the pages go that hold only what lies behind a segment's slots, of an array with so many bytes a slot. */
static void trim_array(const segment *s, void *array, size_t bytes) {
    uint32_t slots = segment_slots(s);
    if (array) memory_discard((uint8_t *)array + slots * bytes, (SEGMENT_SLOTS - slots) * bytes);
}

/* Let the pages behind a segment's slots go. */
void pool_trim(const segment *s) {
    trim_array(s, s->pages, PAGE_BYTES / PAGE_SLOTS);
    trim_array(s, s->ttls, sizeof *s->ttls);
    trim_array(s, s->limits, sizeof *s->limits);
    trim_array(s, s->counted ? NULL : s->nodes, sizeof *s->nodes);
    trim_array(s, s->costs, sizeof *s->costs);
    trim_array(s, s->weights, sizeof *s->weights);
}

/* Bytes of a segment that are in use, by arithmetic. */
size_t pool_bytes_in_use(const slab_pool *p, const segment *s) {
    uint32_t slots = segment_slots(s);
    size_t each = ROUND_UP(slots * sizeof(int64_t), PAGE_BYTES) * ((size_t)p->arrays.ttls + p->arrays.limits);
    size_t small = ROUND_UP(slots * sizeof(uint32_t), PAGE_BYTES) *
                   ((size_t)p->arrays.nodes + p->arrays.costs + p->arrays.weights);
    return p->side_bytes + slots / PAGE_SLOTS * PAGE_BYTES + each + small;
}

/* Bytes of the headers of segments that are free: they stay. */
size_t pool_bytes_idle(const slab_pool *p) {
    size_t headers = 0;
    for (const slab *sl = p->first; sl; sl = sl->next) headers += sl->made - (sl->count - sl->free_count);
    return headers * p->side_bytes;
}

/* --- Slabs that nothing uses --- */

/* What is taken from here on comes from new slabs. */
void pool_age(slab_pool *p) {
    for (slab *sl = p->first; sl; sl = sl->next) sl->old = true;
}

/* All slabs may be used again. */
void pool_renew(slab_pool *p) {
    for (slab *sl = p->first; sl; sl = sl->next) sl->old = false;
}

/* Note which slabs nothing uses; how many bytes of them are resident: their headers. */
size_t pool_note_idle(slab_pool *p) {
    size_t bytes = 0;
    for (slab *sl = p->first; sl; sl = sl->next) {
        sl->idle = is_unused(sl);
        if (sl->idle) bytes += sl->made * p->side_bytes;
    }
    return bytes;
}

/* The slabs that nothing has used since pool_note_idle(), out of the pool, for pool_drop_slabs(). */
slab *pool_take_idle(slab_pool *p) {
    slab *taken = NULL;
    for (slab **link = &p->first; *link;) {
        slab *sl = *link;
        if (!sl->idle) {
            link = &sl->next;
            continue;
        }
        *link = sl->next;
        sl->next = taken;
        taken = sl;
        p->slabs--;
    }
    p->open = p->first;
    return taken;
}

void pool_drop_slabs(const slab_pool *p, slab *first) {
    while (first) {
        slab *sl = first;
        first = sl->next;
        pool_drop_slab(p, sl);
    }
}

/* Does every slab know what is free in it? */
bool pool_check(const slab_pool *p) {
    size_t slabs = 0;
    for (const slab *sl = p->first; sl; sl = sl->next, slabs++) {
        uint32_t free = sl->count - sl->made;
        for (const segment *s = sl->free; s; s = s->next, free++)
            if (s->slab != sl || s->used > 0 || free == sl->count) return false;
        if (free != sl->free_count) return false;
    }
    return slabs == p->slabs;
}

/* After a fork: no free segment's lock is held. */
void pool_reset_locks(slab_pool *p) {
    for (slab *sl = p->first; sl; sl = sl->next)
        for (segment *s = sl->free; s; s = s->next) lock_init(&s->lock);
}

void pool_free(slab_pool *p) {
    pool_drop_slabs(p, p->first);
    p->first = p->open = NULL;
    p->slabs = 0;
}
