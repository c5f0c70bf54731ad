/* Giving memory back that nothing uses any more: empty slabs, heap segments that were replaced, directories that
 * have become too large.
 *
 * On a free-threaded build a thread may still hold the address of one of these: a reader within its read, or who waits
 * for a lock, or runs a comparison. So it is done in three steps:
 *
 *   1. note what is idle; what is used after all loses the mark
 *   2. config.quiesce(): every other thread has left the table, or waits, or runs other code, or gives up a reference.
 *      Those who do so with a segment in their hands have pinned the table (table_pin()) before. If it refuses, all
 *      stays
 *   3. if nobody has: what is still marked was idle all the time, and whoever came to know its address before it
 *      became idle has let go of it
 *
 * Where nobody can tell when others have left, nothing is given back but scratch memory.
 *
 * table_release() may be called by several threads at once, which hold no lock: one of them does it. */
#include "table.h"

#include "memory.h"

#define LEAST_BYTES ((size_t)64 << 10) /* for less nobody is stopped */

/* --- What is idle; under the directory lock --- */

static size_t note_idle(lapse_table *t) {
    size_t bytes = pool_note_idle(&t->pool);
    for (segment *s = t->retired; s; s = s->next) {
        s->idle = true;
        bytes += segment_heap_bytes(segment_slots(s), t->pool.arrays);
    }
    t->idle_above = directory_bits(t->directory);
    for (uint32_t d = t->idle_above + 1; d <= MAX_DEPTH; d++)
        if (t->arrays[d]) bytes += sizeof(segment *) << d;
    return bytes;
}

/* What has been taken out of the table. */
typedef struct {
    slab *slabs;
    segment *segments;
    segment **arrays[MAX_DEPTH + 1];
} waste;

static void take_idle(lapse_table *t, waste *w) {
    w->slabs = pool_take_idle(&t->pool);
    for (segment **link = &t->retired; *link;) {
        segment *s = *link;
        if (!s->idle) {
            link = &s->next;
            continue;
        }
        *link = s->next;
        s->next = w->segments;
        w->segments = s;
    }
    for (uint32_t d = t->idle_above + 1; d <= MAX_DEPTH; d++) {
        w->arrays[d] = t->arrays[d];
        t->arrays[d] = NULL;
    }
}

static void drop_waste(const lapse_table *t, waste *w) {
    const lapse_memory *memory = t->config.memory;
    pool_drop_slabs(&t->pool, w->slabs);
    while (w->segments) {
        segment *s = w->segments;
        w->segments = s->next;
        memory->drop(s);
    }
    for (uint32_t d = 0; d <= MAX_DEPTH; d++)
        if (w->arrays[d]) memory->drop(w->arrays[d]);
}

/* --- Pins --- */

#if LAPSE_THREADS
static _Thread_local uint32_t own_pins; /* this thread's, of all tables */

/* The order is that of the stop of all threads, which comes after whatever a thread does before it waits. */
void table_pin(lapse_table *t) {
    own_pins++;
    ADD(&t->counters[thread_stripe()].pins, 1);
}

void table_unpin(lapse_table *t) {
    own_pins--;
    PUBLISH_ADD(&t->counters[thread_stripe()].pins, (uint64_t)-1); /* release: pairs with is_pinned() */
}

/* In the child of a fork: only this thread's are left. Where it has some, of whatever table, those of others stay. */
void pins_after_fork(lapse_table *t) {
    for (uint32_t i = 0; i < COUNTER_STRIPES && own_pins == 0; i++) STORE(&t->counters[i].pins, 0);
}

static bool is_pinned(const lapse_table *t) {
    for (uint32_t i = 0; i < COUNTER_STRIPES; i++)
        if (ACQUIRE(&t->counters[i].pins) != 0) return true; /* acquire: pairs with table_unpin() */
    return false;
}

/* --- When others have left --- */

/* Nobody has a segment in his hands that left the table before the call. No lock is held. */
static bool others_have_left(const lapse_table *t) {
    if (is_pinned(t)) return false; /* nobody need be stopped to know that */
    return t->config.quiesce() && !is_pinned(t);
}
static bool can_tell(const lapse_table *t, size_t bytes) { return t->config.quiesce && bytes >= LEAST_BYTES; }
#else
static bool others_have_left(const lapse_table *t) { return (void)t, true; }
static bool can_tell(const lapse_table *t, size_t bytes) { return (void)t, bytes > 0; }
#endif

/* --- Giving back --- */

/* A table of one segment has nothing to divide. */
static record *take_scratch(lapse_table *t) {
    record *scratch = t->segments > 1 ? NULL : t->scratch;
    if (scratch) t->scratch = NULL;
    return scratch;
}

/* Give back what nothing uses. No lock is held; on a free-threaded build all threads may stop for a moment. */
void table_release(lapse_table *t) {
    waste w = {.slabs = NULL};
    lock_take(&t->directory_lock);
    record *scratch = take_scratch(t);
    bool mine = !t->releasing && can_tell(t, note_idle(t));
    t->releasing = t->releasing || mine;
    lock_drop(&t->directory_lock);
    if (scratch) t->config.memory->unmap(scratch, SCRATCH_BYTES);
    if (!mine) return;
    bool left = others_have_left(t);
    lock_take(&t->directory_lock);
    if (left) take_idle(t, &w);
    t->releasing = false;
    lock_drop(&t->directory_lock);
    drop_waste(t, &w);
}
