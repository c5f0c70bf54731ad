/* Growth: what happens when a segment has no room for one more entry; and where it goes when it has far too much.
 *
 *   expired entries in it?         they go first, at most 128, and that is all
 *   mostly tombstones?             rebuilt (a heap segment: replaced by one of its size)
 *   heap segment, < 512 slots      replaced by one of twice the slots
 *   heap segment, 512 slots        replaced by one of 1,024
 *   slab segment, fewer than 640   uses a page more
 *   slab segment, 640 slots        uses all its 1,024; in a bounded table that is full, a page more
 *   1,024 slots                    split in two, unless equal hashes would make that useless: then
 *                                  replaced by a heap segment of twice the slots
 *
 * The first few segments of a cache come from the heap, later ones from its slabs. The slowest of these
 * moves one segment's entries. Memory is asked for with no lock held; when the
 * plan has changed by the time the locks are held, the attempt ends and the caller, who loops, starts
 * over. What was supplied in vain stays with the table for the next time.
 *
 * A segment of a table that is packed (pack.c) is replaced, too: by one of the fewest slots that hold its entries, on
 * the heap or in a new slab, as a new table of so many segments would have it. */
#include "table.h"

#define SLAB_FROM 8u /* segments of a table from which on new ones come from slabs */
#define FULL_SHARE 16u /* a bounded table lacks at most one entry in so many: it is full */

typedef enum { STAY, REBUILD, REPLACE, WIDEN, SPLIT } growth_kind;

typedef struct {
    growth_kind kind;
    uint32_t slots; /* of the segment to make, or of this one afterwards */
    bool heap; /* a heap segment of that size is needed, */
    bool pool; /* or one from a slab */
    bool directory; /* the directory must double first, */
    uint32_t bits; /* to this many bits */
} plan;

/* --- Planning; under the directory lock --- */

static uint32_t log2_floor(size_t n) {
    uint32_t bits = 0;
    while (n >>= 1) bits++;
    return bits;
}

/* Hashes that were spread evenly would fill segments of nearly equal depth. */
static bool split_helps(const lapse_table *t, const segment *s) {
    return s->depth < MAX_DEPTH && s->depth < log2_floor(t->segments) + DEPTH_LEEWAY;
}

static plan plan_replace(uint32_t slots) { return (plan){.kind = REPLACE, .slots = slots, .heap = true}; }

static plan plan_split(const lapse_table *t, const segment *s) {
    uint32_t bits = directory_bits(t->directory);
    bool pool = t->segments >= SLAB_FROM;
    return (plan){.kind = SPLIT,
                  .slots = SEGMENT_SLOTS,
                  .heap = !pool,
                  .pool = pool,
                  .directory = s->depth == bits,
                  .bits = bits + 1};
}

/* A bounded table that is nearly full does not fill the room that a segment gets beyond its need. */
static bool is_full(const lapse_table *t) {
    uint64_t limit = RELAXED(&t->order.limit);
    return t->order.on && RELAXED(&t->order.tokens) >= limit - limit / FULL_SHARE;
}

/* What a slab segment uses next. */
static uint32_t wider(const lapse_table *t, uint32_t slots) {
    return slots < SEGMENT_HALF_SLOTS || is_full(t) ? slots + PAGE_SLOTS : SEGMENT_SLOTS;
}

static plan plan_growth(const lapse_table *t, const segment *s, uint64_t h) {
    uint32_t slots = segment_slots(s);
    if (segment_has_room(s, h)) return (plan){.kind = STAY};
    if (s->tombstones > 0 && s->used <= slot_limit(slots) / 8 * 7)
        return s->slab ? (plan){.kind = REBUILD, .slots = slots} : plan_replace(slots);
    if (s->slab && slots < SEGMENT_SLOTS) return (plan){.kind = WIDEN, .slots = wider(t, slots)};
    if (slots == SEGMENT_SLOTS && split_helps(t, s)) return plan_split(t, s);
    return plan_replace(slots * 2);
}

static uint32_t heap_slots_for(uint32_t entries) {
    uint32_t slots = SEGMENT_MIN_SLOTS;
    while (slot_limit(slots) < entries) slots *= 2;
    return slots;
}

static bool wants_slab(const lapse_table *t, uint32_t entries) {
    return RELAXED(&t->segments) >= SLAB_FROM && entries <= slot_limit(SEGMENT_SLOTS);
}

/* How many slots the locked segment could do with. */
uint32_t table_fewest_slots(const lapse_table *t, const segment *s) {
    return wants_slab(t, s->used) ? slots_for(s->used) : heap_slots_for(s->used);
}

static plan plan_fit(const lapse_table *t, const segment *s, uint64_t h) {
    bool pool = wants_slab(t, s->used);
    uint32_t slots = table_fewest_slots(t, s);
    (void)h;
    if (segment_slots(s) == slots && (pool ? s->slab && !s->slab->old : !s->slab))
        return (plan){.kind = STAY};
    return (plan){.kind = REPLACE, .slots = slots, .heap = !pool, .pool = pool};
}

/* What would be right for the locked segment that covers h. */
typedef plan (*planner)(const lapse_table *t, const segment *s, uint64_t h);

static bool same_plan(plan a, plan b) {
    return a.kind == b.kind && a.slots == b.slots && a.heap == b.heap && a.pool == b.pool && a.bits == b.bits;
}

/* --- Memory --- */

segment *new_heap_segment(lapse_table *t, uint32_t slots) {
    segment *s = segment_on_heap(t->config.memory, slots, t->pool.arrays);
    if (s) write_begin(s); /* outside the directory: odd */
    if (s) s->dead = true;
    return s;
}

/* A retired heap segment of that size, or NULL. Under the directory lock. */
segment *retired_take(lapse_table *t, uint32_t slots) {
    for (segment **link = &t->retired; *link; link = &(*link)->next)
        if (segment_slots(*link) == slots) {
            segment *s = *link;
            *link = s->next;
            return s;
        }
    return NULL;
}

static bool retired_has(const lapse_table *t, uint32_t slots) {
    for (const segment *s = t->retired; s; s = s->next)
        if (segment_slots(s) == slots) return true;
    return false;
}

/* What a plan lacks. Under the directory lock. */
typedef struct {
    bool heap, slab, scratch, array;
} wants;

static wants plan_wants(lapse_table *t, plan p) {
    return (wants){.heap = p.heap && !retired_has(t, p.slots),
                   .slab = p.pool && pool_is_empty(&t->pool),
                   .scratch = p.kind != REPLACE && t->scratch == NULL,
                   .array = p.directory && t->arrays[p.bits] == NULL};
}

static bool wants_nothing(wants w) { return !w.heap && !w.slab && !w.scratch && !w.array; }

/* Memory made ready for a plan. */
typedef struct {
    segment *heap;
    slab *slab;
    record *scratch;
    segment **array;
} supplies;

static segment **new_array(lapse_table *t, uint32_t bits) {
    return t->config.memory->grab(((sizeof(segment *) << bits) + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1));
}

/* Ask the system for what is wanted, with no lock held. */
static bool supply(lapse_table *t, plan p, wants w, supplies *got) {
    if (w.heap && !(got->heap = new_heap_segment(t, p.slots))) return false;
    if (w.slab && !(got->slab = pool_new_slab(&t->pool))) return false;
    if (w.scratch && !(got->scratch = t->config.memory->map(SCRATCH_BYTES))) return false;
    return !w.array || (got->array = new_array(t, p.bits)) != NULL;
}

/* Hand everything over to the table; what it has by now goes back. Under the directory lock. */
static void stock(lapse_table *t, plan p, supplies *got) {
    if (got->heap) {
        got->heap->next = t->retired;
        t->retired = got->heap;
    }
    if (got->slab) pool_add(&t->pool, got->slab);
    if (!t->scratch) {
        t->scratch = got->scratch;
        got->scratch = NULL;
    }
    if (got->array && !t->arrays[p.bits]) {
        t->arrays[p.bits] = got->array;
        got->array = NULL;
    }
}

static void return_surplus(lapse_table *t, const supplies *got) {
    if (got->scratch) t->config.memory->unmap(got->scratch, SCRATCH_BYTES);
    if (got->array) t->config.memory->drop(got->array);
}

/* --- The directory; all under its lock --- */

void directory_publish(lapse_table *t, uint32_t bits) {
    if (bits > t->idle_above) t->idle_above = bits;
    uint64_t word = (uint64_t)(uintptr_t)t->arrays[bits] | (63u - bits);
    PUBLISH(&t->directory, word); /* release: pairs with the acquire in locate() */
}

static void double_directory(lapse_table *t) {
    uint32_t bits = directory_bits(t->directory);
    segment **from = t->arrays[bits], **to = t->arrays[bits + 1];
    for (uint64_t i = 0; i < UINT64_C(1) << bits; i++) {
        PUBLISH(&to[2 * i], from[i]);
        PUBLISH(&to[2 * i + 1], from[i]);
    }
    directory_publish(t, bits + 1);
}

/* Halve the directory while no segment is as deep as it. */
void directory_fit(lapse_table *t) {
    uint32_t bits = directory_bits(t->directory);
    while (bits > 0 && t->depth_count[bits] == 0) {
        segment **from = t->arrays[bits], **to = t->arrays[bits - 1];
        for (uint64_t i = 0; i < UINT64_C(1) << (bits - 1); i++) PUBLISH(&to[i], from[2 * i]);
        directory_publish(t, --bits);
    }
}

/* Make every element that covers the range of `s` name `to`. */
void directory_assign(lapse_table *t, const segment *s, segment *to) {
    uint32_t bits = directory_bits(t->directory);
    uint64_t first = hash_prefix(s->first_hash, bits);
    for (uint64_t i = 0; i < UINT64_C(1) << (bits - s->depth); i++)
        PUBLISH(&t->arrays[bits][first + i], to); /* release: pairs with the acquire in locate() */
}

/* Take an emptied segment out of use; nobody holds its lock. Its seq stays odd until it is used
 * again. */
void retire(lapse_table *t, segment *s) {
    assert(s->dead);
    if (s->gists) t->config.memory->drop(s->gists);
    STORE(&s->gists, NULL);
    if (s->slab) {
        pool_give(&t->pool, s);
        return;
    }
#if LAPSE_THREADS
    s->idle = false;
    s->next = t->retired;
    t->retired = s;
#else
    t->config.memory->drop(s);
#endif
}

/* --- Carrying a plan out; under the directory lock and the segment's --- */

/* Rebuild a slab segment with another number of slots, or without its tombstones. */
static void refit(lapse_table *t, segment *s, uint32_t slots) {
    write_begin(s);
    uint32_t n = segment_take_all(s, t->scratch);
    segment_reset(s, slots);
    for (uint32_t i = 0; i < n; i++) segment_insert(s, &t->scratch[i]);
    write_end(s);
    structure_changed(t);
}

/* Move everything into the blank segment `to`, which takes the place of `s`. A blank segment is
 * locked while it is filled: a writer may still hold its address from an earlier life. */
static void replace_segment(lapse_table *t, segment *s, segment *to) {
    lock_take(&to->lock);
    write_begin(s);
    STORE(&to->first_hash, s->first_hash);
    STORE(&to->depth, s->depth);
    to->dead = false;
    segment_move_all(s, to);
    write_end(to);
    directory_assign(t, s, to);
    s->dead = true;
    structure_changed(t);
    lock_drop(&to->lock);
}

static uint32_t half_slots_for(uint32_t entries) {
    return entries < slot_limit(SEGMENT_HALF_SLOTS) ? SEGMENT_HALF_SLOTS : SEGMENT_SLOTS;
}

static uint32_t count_upper(const record *r, uint32_t n, uint64_t bit) {
    uint32_t upper = 0;
    for (uint32_t i = 0; i < n; i++) upper += (r[i].hash & bit) != 0;
    return upper;
}

static void deepen(lapse_table *t, segment *s, segment *upper, uint64_t bit) {
    t->depth_count[s->depth]--;
    t->depth_count[s->depth + 1] += 2;
    STORE(&t->segments, t->segments + 1);
    STORE(&s->depth, s->depth + 1);
    STORE(&upper->first_hash, s->first_hash | bit);
    STORE(&upper->depth, s->depth);
    upper->dead = false;
}

/* Move the entries whose next hash bit is set into the blank segment `upper`. The old one keeps its
 * pages: it has touched them all and will fill them again, unless the table is full. */
static void split(lapse_table *t, segment *s, segment *upper) {
    uint64_t bit = UINT64_C(1) << (63 - s->depth);
    lock_take(&upper->lock);
    upper->aged = s->aged;
    upper->visited = s->visited;
    write_begin(s);
    uint32_t n = segment_take_all(s, t->scratch), above = count_upper(t->scratch, n, bit);
    bool tight = s->slab && is_full(t);
    segment_reset(s, tight ? half_slots_for(n - above) : segment_slots(s));
    if (upper->slab) segment_reset(upper, half_slots_for(above));
    deepen(t, s, upper, bit);
    for (uint32_t i = 0; i < n; i++) segment_insert(t->scratch[i].hash & bit ? upper : s, &t->scratch[i]);
    write_end(upper);
    directory_assign(t, upper, upper);
    write_end(s);
    structure_changed(t);
    if (tight) pool_trim(s);
    lock_drop(&upper->lock);
}

static void carry_out(lapse_table *t, segment *s, plan p) {
    if (p.kind == REBUILD || p.kind == WIDEN) {
        refit(t, s, p.slots);
        return;
    }
    if (p.directory) double_directory(t);
    uint32_t slots = p.kind == SPLIT ? SEGMENT_HALF_SLOTS : p.slots;
    segment *blank = p.pool ? pool_take(&t->pool, slots) : retired_take(t, p.slots);
    if (p.kind == REPLACE) {
        replace_segment(t, s, blank);
    } else {
        split(t, s, blank);
        COUNT(t, splits);
    }
}

/* --- Changing a segment --- */

/* What should be done, and what it lacks; false: nothing. */
static bool survey(lapse_table *t, uint64_t h, planner choose, plan *p, wants *w) {
    lock_take(&t->directory_lock);
    segment *s = lock_segment(t, h);
    *p = choose(t, s, h);
    *w = plan_wants(t, *p);
    lock_drop(&s->lock);
    lock_drop(&t->directory_lock);
    return p->kind != STAY;
}

/* Carry the plan out if it still is the right one and nothing is lacking: was it? */
static bool execute(lapse_table *t, uint64_t h, planner choose, plan p, supplies *got) {
    lock_take(&t->directory_lock);
    stock(t, p, got);
    segment *s = lock_segment(t, h);
    bool due = same_plan(p, choose(t, s, h)) && wants_nothing(plan_wants(t, p));
    if (due) carry_out(t, s, p);
    bool dead = s->dead;
    lock_drop(&s->lock);
    if (dead) retire(t, s);
    lock_drop(&t->directory_lock);
    return due;
}

/* OK: it is as it should be. MORE: not yet, as it has changed meanwhile. */
static lapse_status change(lapse_table *t, uint64_t h, planner choose) {
    plan p;
    wants w;
    supplies got = {0};
    if (!survey(t, h, choose, &p, &w)) return LAPSE_OK;
    bool supplied = supply(t, p, w, &got);
    bool done = execute(t, h, choose, p, &got);
    return_surplus(t, &got);
    if (!supplied) return LAPSE_NO_MEMORY;
    return done ? LAPSE_OK : LAPSE_MORE;
}

/* --- Making room --- */

/* Remove what has expired in the segment that covers h. Returns how many entries went. */
static size_t purge(lapse_table *t, uint64_t h, int64_t now) {
    uint32_t slots[LAPSE_STEP];
    lapse_item removed[LAPSE_STEP];
    segment *s = lock_segment(t, h);
    uint32_t n = segment_expired(s, grace_before(t, now), LAPSE_STEP, slots);
    for (uint32_t i = 0; i < n; i++) table_remove(t, s, slots[i], &removed[i]);
    lock_drop(&s->lock);
    COUNT_MANY(t, expirations, n);
    lapse_farewell(t, removed, n, LAPSE_BY_DEADLINE);
    return n;
}

/* Make room for one more entry with hash h, or at least come nearer to it: the caller tries again.
 * Expired entries go first; their references are given up here, so any code may run. */
lapse_status make_room(lapse_table *t, uint64_t h, int64_t now) {
    if (purge(t, h, now) > 0) return LAPSE_OK;
    STORE(&t->grown, true);
    return change(t, h, plan_growth) == LAPSE_NO_MEMORY ? LAPSE_NO_MEMORY : LAPSE_OK;
}

/* Put the segment that covers h where it needs no more memory than it must. NO_MEMORY: it stays. */
lapse_status table_fit(lapse_table *t, uint64_t h) { return change(t, h, plan_fit); }
