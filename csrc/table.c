/* The table: making it, finding a key under the lock, and reading. The layout, the invariants and the order
 * of locks stand in table.h; single-key writes in write.c.
 *
 * Whoever needs the lock of a key's segment takes it by lookup_begin(), which runs user comparisons outside
 * the lock, and gives it back by lookup_end(), which only then gives up what the comparisons held. */
#include "table.h"

#include "read.h"

#include <math.h>

#define LOOKUP_ROUNDS 1000u /* restarts before a comparison that always changes the table is refused */
#define RELEASE_AHEAD 8u     /* items between fetching an object and giving it up */
#define GOLDEN_STEP UINT64_C(0x9E3779B97F4A7C15)
#define COST_UNIT 1000.0  /* nanoseconds */
#define LEAST_LIKELY 36.8 /* exp(-36.8) is less than 2^-53, the least draw */

const char *lapse_probe_name(void) { return LAPSE_PROBE_NAME; }

/* --- Making --- */

static bool first_segment(lapse_table *t) {
    t->arrays[0] = t->config.memory->grab(sizeof(segment *));
    if (t->arrays[0] == NULL) return false;
    segment *root = new_heap_segment(t, SEGMENT_MIN_SLOTS);
    if (root == NULL) return false;
    root->dead = false;
    write_end(root); /* in the directory: even */
    t->arrays[0][0] = root;
    t->directory = (uint64_t)(uintptr_t)t->arrays[0] | 63u;
    t->segments = t->depth_count[0] = 1;
    return true;
}

/* A new empty table, or NULL when memory is short. */
lapse_table *lapse_table_new(const lapse_config *config) {
    const lapse_memory *memory = config->memory ? config->memory : &lapse_system_memory;
    lapse_table *t = memory->grab(sizeof *t);
    if (t == NULL) return NULL;
    t->config = *config;
    t->config.memory = memory;
    t->mode = config->mode;
    t->own_clock = config->own_clock;
    t->locked_reads = config->locked_reads || config->lru; /* a read moves its entry's node */
    bool locked = LAPSE_THREADS && t->locked_reads;
    t->quick = config->mode == LAPSE_FIXED && !config->own_clock && !locked;
    t->slack = clock_slack();
    t->tick = config->own_clock ? 0 : clock_tick();
    t->random = config->seed;
    lock_init(&t->directory_lock);
    lock_init(&t->index.lock);
    t->index.epoch = 1;
    fence_init(&t->fence);
    order_init(&t->order, config->lru || config->duel, config->weigher != NULL, config->max_entries);
    duel_init(&t->duel, config->duel, config->weigher ? LEAST_CAPACITY : config->max_entries, config->seed);
    segment_arrays arrays = {
        .ttls = config->mode != LAPSE_FIXED, .nodes = config->lru, .marks = config->duel};
    arrays.weights = config->weigher != NULL && t->order.on;
    arrays.costs = config->mode == LAPSE_PROBABILISTIC;
    arrays.limits = config->mode == LAPSE_SLIDING && config->max_lifetime != LAPSE_NEVER;
    pool_init(&t->pool, memory, arrays);
    if (first_segment(t)) return t;
    lapse_table_free(t);
    return NULL;
}

/* Free a table that nobody uses any more. It may still hold entries: their references are given up. */
void lapse_table_free(lapse_table *t) {
    const lapse_memory *memory = t->config.memory;
    if (t->directory) empty_for_good(t);
    fence_free(&t->fence, memory);
    order_free(&t->order, memory);
    duel_free(&t->duel, memory);
    while (t->retired) {
        segment *s = t->retired;
        t->retired = s->next;
        memory->drop(s);
    }
    for (uint32_t d = 0; d <= MAX_DEPTH; d++)
        if (t->arrays[d]) memory->drop(t->arrays[d]);
    if (t->scratch) memory->unmap(t->scratch, SCRATCH_BYTES);
    pool_free(&t->pool);
    memory->drop(t);
}

/* May hits be read by read_quickly()? Fixed lifetimes, the native clock, reads without locks. */
bool lapse_is_quick(const lapse_table *t) { return t->quick; }

/* May an entry bear tags? A hint. */
bool lapse_is_indexed(const lapse_table *t) { return RELAXED(&t->index.active); }

/* --- Time and chance --- */

/* `now` itself, or the native clock's precise reading. */
int64_t lapse_now(const lapse_table *t, int64_t now) {
    (void)t;
    return now == LAPSE_NATIVE ? clock_precise() : now;
}

/* A uniform draw from [0, 1): a counter mixed by splitmix64 (Steele, Lea, Flood 2014). */
double draw(lapse_table *t) {
    uint64_t z = FETCH_ADD64(&t->random, GOLDEN_STEP) + GOLDEN_STEP;
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return (double)((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

/* The linear ramp: within the last `early_factor` of its lifetime an entry ends with a probability
 * that grows from 0 to 1. */
lapse_status judge_early(lapse_table *t, dates d, int64_t at) {
    double ramp = (double)d.ttl * t->config.early_factor, left = (double)(d.deadline - at);
    if (left >= ramp) return LAPSE_OK;
    return draw(t) < (ramp - left) / ramp ? LAPSE_EARLY : LAPSE_OK;
}

/* XFetch (Vattani, Chierichetti, Lowenstein, VLDB 2015): reload if now - cost * beta * ln(rand) >= deadline, which is
 * true with the probability exp(-left / (cost * beta)). Without a known cost the ramp decides. */
lapse_status judge_refresh(lapse_table *t, dates d, int64_t at) {
    if (d.cost == 0) return judge_early(t, d, at);
    double scale = (double)d.cost * COST_UNIT * t->config.beta, left = (double)(d.deadline - at);
    if (left > scale * LEAST_LIKELY) return LAPSE_OK;
    return 1.0 - draw(t) <= exp(-left / scale) ? LAPSE_EARLY : LAPSE_OK;
}

/* --- Locking and finding --- */

/* Somebody replaces segments: wait for them where the interpreter knows that we wait. Who holds this lock sees the
 * directory as it is and does not come here. */
NOINLINE void await_segments(lapse_table *t) {
    lock_take(&t->directory_lock);
    lock_drop(&t->directory_lock);
}

/* Wait for the lock of a segment that may leave the table meanwhile: table_unpin() when that is known. */
NOINLINE void wait_for_lock(lapse_table *t, segment *s) {
    table_pin(t);
    lock_take(&s->lock);
}

/* What a comparison said about this key object before, or -1. */
static int verdict_of(const lookup *l, const lapse_object *k) {
    for (uint32_t i = 0; i < l->verdicts && i < VERDICTS; i++)
        if (l->judged[i] == k) return l->equal[i];
    return -1;
}

static void verdict_add(lookup *l, lapse_object *k, bool equal) {
    uint32_t i = l->verdicts++ % VERDICTS;
    lapse_object *old = l->verdicts > VERDICTS ? l->judged[i] : NULL;
    l->judged[i] = k;
    l->equal[i] = equal;
    if (old) object_unref(old);
}

/* Lock the segment of the view again, if it has not changed. */
static bool lock_again(const lapse_table *t, view v) {
    if (!view_holds(t, v)) return false;
    lock_take(&v.s->lock);
    if (view_holds(t, v)) return true;
    lock_drop(&v.s->lock);
    return false;
}

/* Run the user's comparison with no lock held, then lock again. OK: equal; ABSENT: not equal; MORE:
 * the segment changed meanwhile; RAISED. Only after OK and ABSENT is the segment locked. */
static lapse_status ask_unlocked(lookup *l, lapse_table *t, lapse_object *k, lapse_object *key) {
    view v = {.s = l->s, .seq = l->s->seq, .structure = structure_of(t)};
    object_ref(k);
    table_pin(t);
    lock_drop(&l->s->lock);
    int equal = object_equal(k, key);
    if (equal < 0) object_unref(k);
    else verdict_add(l, k, equal > 0);
    bool locked = equal >= 0 && lock_again(t, v);
    table_unpin(t);
    if (equal < 0) return LAPSE_RAISED;
    if (!locked) return LAPSE_MORE;
    return equal ? LAPSE_OK : LAPSE_ABSENT;
}

static lapse_status judge_slot(lookup *l, lapse_table *t, uint32_t slot, lapse_object *key, uint64_t h) {
    const entry *e = entry_at(l->s, slot);
    if (e->key == key) return LAPSE_OK;
    if (*hash_at(l->s, slot) != h) return LAPSE_ABSENT;
    sameness same = object_same(e->key, key);
    if (same != ASK) return same == SAME ? LAPSE_OK : LAPSE_ABSENT;
    int known = verdict_of(l, e->key);
    if (known >= 0) return known ? LAPSE_OK : LAPSE_ABSENT;
    return ask_unlocked(l, t, e->key, key);
}

/* Walk the probe path of h in the locked segment. */
static lapse_status search_locked(lookup *l, lapse_table *t, lapse_object *key, uint64_t h) {
    segment *s = l->s;
    uint32_t g = hash_group(h, s->groups);
    fetch_home(s, g);
    for (uint32_t n = s->groups; n > 0; n--, g = next_group(s, g)) {
        group ctrl = group_load(s->ctrl + g * GROUP_SLOTS);
        for (group_mask m = group_match(ctrl, hash_tag(h)); m; m &= m - 1) {
            l->slot = g * GROUP_SLOTS + mask_slot(m);
            lapse_status status = judge_slot(l, t, l->slot, key, h);
            if (status != LAPSE_ABSENT) return status;
        }
        if (group_empty(ctrl)) break;
    }
    return LAPSE_ABSENT;
}

static void forget_verdicts(lookup *l) {
    uint32_t n = l->verdicts < VERDICTS ? l->verdicts : VERDICTS;
    l->verdicts = 0;
    while (n > 0) object_unref(l->judged[--n]);
}

/* What a storm has doomed is taken out: then it is ABSENT. */
static lapse_status strike(lookup *l, lapse_table *t, uint64_t h) {
    segment *s = l->s;
    if (!fence_strikes(&t->fence, h, entry_at(s, l->slot)->key, *deadline_at(s, l->slot), &l->at))
        return LAPSE_OK;
    table_take(t, s, l->slot, h, &l->struck);
    l->struck_from = t;
    return LAPSE_ABSENT;
}

/* Find a key. OK (at l->s, l->slot) and ABSENT leave the segment locked: call lookup_end(). RAISED and
 * BUSY leave nothing to end. */
lapse_status lookup_begin(lookup *l, lapse_table *t, lapse_object *key, uint64_t h) {
    l->verdicts = 0;
    l->struck_from = NULL;
    for (uint32_t round = 0; round < LOOKUP_ROUNDS; round++) {
        l->s = lock_segment(t, h);
        lapse_status status = search_locked(l, t, key, h);
        if (status == LAPSE_OK && UNLIKELY(RELAXED(&t->storms) > 0)) return strike(l, t, h);
        if (status == LAPSE_OK || status == LAPSE_ABSENT) return status;
        if (status == LAPSE_RAISED) {
            forget_verdicts(l);
            return LAPSE_RAISED;
        }
    }
    forget_verdicts(l);
    return LAPSE_BUSY;
}

void lookup_end(lookup *l) {
    lock_drop(&l->s->lock);
    if (l->verdicts) forget_verdicts(l);
    if (UNLIKELY(l->struck_from != NULL))
        lapse_dismiss(l->struck_from, &l->struck, 1, l->at, LAPSE_BY_PATTERN);
}

/* --- Bounds --- */

/* Halve the asks of the locked segment as often as all others were: `age` times by now. */
NOINLINE void age_segment(segment *s, uint32_t age) {
    uint32_t due = age - s->aged;
    for (uint32_t slot = 0; slot < segment_slots(s); slot++) {
        uint8_t mark = RELAXED(&s->marks[slot]),
                asks = due > DUEL_ASK_BITS ? 0 : (uint8_t)(mark_asks(mark) >> due);
        STORE(&s->marks[slot], (uint8_t)((mark & MARK_USES) | asks * MARK_ASK));
    }
    s->aged = age;
}

/* Something has this deadline, or may have an earlier one. */
void table_note_rank(lapse_table *t, uint64_t rank) {
    for (uint64_t seen = RELAXED(&t->earliest); rank < seen; seen = RELAXED(&t->earliest))
        if (COMPARE_SWAP64(&t->earliest, seen, rank)) return;
}

/* --- Removing and giving up --- */

/* table_take() for a caller who does not know the hash. */
void table_remove(lapse_table *t, segment *s, uint32_t slot, lapse_item *removed) {
    if (UNLIKELY(RELAXED(&t->index.active)) || s->nodes) table_take(t, s, slot, *hash_at(s, slot), removed);
    else segment_remove(s, slot, removed);
}

void lapse_release(lapse_item *items, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (i + RELEASE_AHEAD < n) {
            PREFETCH(items[i + RELEASE_AHEAD].key);
            PREFETCH(items[i + RELEASE_AHEAD].value);
        }
        object_unref(items[i].key);
        object_unref(items[i].value);
    }
}

/* Part with entries that have left the table for one reason: the observer gets them, if there is one. No
 * lock is held. */
void lapse_farewell(lapse_table *t, lapse_item *items, size_t n, lapse_cause cause) {
    if (n > 0 && t->config.observer) t->config.observer(t->config.context, items, n, cause);
    else lapse_release(items, n);
    table_settle(t);
}

/* Part with a value that another one has replaced; the key is the caller's. */
void lapse_farewell_value(lapse_table *t, lapse_object *key, lapse_object *value) {
    if (t->config.observer == NULL) {
        object_unref(value);
        return;
    }
    object_ref(key);
    lapse_farewell(t, &(lapse_item){.key = key, .value = value}, 1, LAPSE_REPLACED);
}

static void count_cause(lapse_table *t, lapse_cause cause, size_t n) {
    switch (cause) {
    case LAPSE_DELETED: COUNT_MANY(t, deletes, n); break;
    case LAPSE_BY_PATTERN: COUNT_MANY(t, by_pattern, n); break;
    case LAPSE_BY_TAG: COUNT_MANY(t, by_tag, n); break;
    case LAPSE_CLEARED: COUNT_MANY(t, cleared, n); break;
    case LAPSE_BY_DEADLINE: COUNT_MANY(t, expirations, n); break;
    case LAPSE_BY_DRAW: COUNT_MANY(t, early, n); break;
    case LAPSE_REPLACED: COUNT_MANY(t, replaced, n); break;
    case LAPSE_EVICTED: COUNT_MANY(t, evictions, n); break;
    }
}

/* Count and part with entries that were removed for one reason; those whose deadline had passed at `at` had
 * expired. Answers how many had not. */
size_t lapse_dismiss(lapse_table *t, lapse_item *items, size_t n, int64_t at, lapse_cause cause) {
    size_t live = 0;
    if (n == 1) {
        bool late = passed(items->deadline, at);
        if (late) cause = LAPSE_BY_DEADLINE;
        count_cause(t, cause, 1);
        lapse_farewell(t, items, 1, cause);
        return !late;
    }
    for (size_t i = 0; i < n; i++) {
        if (passed(items[i].deadline, at)) continue;
        if (live < i) {
            lapse_item item = items[live];
            items[live] = items[i];
            items[i] = item;
        }
        live++;
    }
    count_cause(t, cause, live);
    count_cause(t, LAPSE_BY_DEADLINE, n - live);
    lapse_farewell(t, items, live, cause);
    lapse_farewell(t, items + live, n - live, LAPSE_BY_DEADLINE);
    return live;
}

/* --- Reading --- */

/* Move a sliding entry's deadline, forward only: two readers may come in either order. The lock, and seq
 * unchanged under it, make sure that the slot was not deleted and used again meanwhile; once a tick and
 * entry at most, so readers seldom meet. */
NOINLINE void rearm(lapse_table *t, segment *s, uint32_t slot, uint64_t seq, int64_t deadline) {
    bool waits = !lock_try(&s->lock);
    if (waits) wait_for_lock(t, s);
    if (s->seq == seq && *deadline_at(s, slot) < deadline) STORE(deadline_at(s, slot), deadline);
    lock_drop(&s->lock);
    if (waits) table_unpin(t);
}

static lapse_status settle_hit(lapse_table *t, segment *s, uint32_t slot, int64_t now, read_kind kind) {
    dates d = dates_at(s, slot);
    int64_t at = 0;
    if (d.deadline != LAPSE_NEVER && deadline_passed(t, d.deadline, now, &at)) return LAPSE_EXPIRED;
    if (kind != READ_QUIET) note_use(t, s, slot);
    if (kind == READ_QUIET || d.deadline == LAPSE_NEVER) return LAPSE_OK;
    if (t->mode == LAPSE_PROBABILISTIC)
        return kind == READ_TO_REFRESH ? judge_refresh(t, d, at) : judge_early(t, d, at);
    if (t->mode != LAPSE_SLIDING || d.ttl == LAPSE_NEVER) return LAPSE_OK;
    int64_t slid = slid_deadline(d, at);
    if (slid - d.deadline > t->tick) STORE(deadline_at(s, slot), slid);
    return LAPSE_OK;
}

/* The read that no writer can turn away: it holds the segment's lock. */
NOINLINE lapse_status read_under_lock(lapse_table *t, lapse_object *key, uint64_t h, int64_t now,
                                      read_kind kind, lapse_object **value) {
    lookup l;
    lapse_status status = lookup_begin(&l, t, key, h);
    if (status != LAPSE_OK && status != LAPSE_ABSENT) return status;
    if (status == LAPSE_OK) status = settle_hit(t, l.s, l.slot, now, kind);
    if (status == LAPSE_OK || status == LAPSE_EARLY) object_ref(*value = entry_at(l.s, l.slot)->value);
    lookup_end(&l);
    return status;
}

/* Remove the entry that a read found EXPIRED, or ended EARLY while its value was `doomed`; not one that
 * somebody has stored meanwhile. Answers `why`, or RAISED or BUSY. */
static NOINLINE lapse_status discard(lapse_table *t, lapse_object *key, uint64_t h, lapse_status why,
                                     const lapse_object *doomed, int64_t now) {
    lookup l;
    lapse_item removed;
    lapse_status status = lookup_begin(&l, t, key, h);
    if (status > LAPSE_ABSENT) return status;
    bool gone = status == LAPSE_OK;
    if (gone && why == LAPSE_EARLY) gone = entry_at(l.s, l.slot)->value == doomed;
    else if (gone) gone = passed(*deadline_at(l.s, l.slot), grace_before(t, lapse_now(t, now)));
    if (gone) table_take(t, l.s, l.slot, h, &removed);
    lookup_end(&l);
    if (!gone) return why;
    lapse_cause cause = why == LAPSE_EARLY ? LAPSE_BY_DRAW : LAPSE_BY_DEADLINE;
    count_cause(t, cause, 1);
    lapse_farewell(t, &removed, 1, cause);
    return why;
}

/* Read a key: OK gives a new reference in `*value`; ABSENT, EXPIRED, EARLY, RAISED, BUSY give none.
 * An entry found expired, or ended by the draw, is removed. Counts a hit or a miss. */
lapse_status lapse_get(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now, lapse_object **value) {
    uint64_t h = mix_hash(hash);
    lapse_status status = table_read(t, key, h, now, READ_PLAIN, value);
    if (LIKELY(status == LAPSE_OK)) {
        COUNT(t, hits);
        return LAPSE_OK;
    }
    if (status == LAPSE_EXPIRED) status = discard(t, key, h, LAPSE_EXPIRED, NULL, now);
    if (status == LAPSE_EARLY) {
        lapse_object *doomed = *value;
        status = discard(t, key, h, LAPSE_EARLY, doomed, now);
        object_unref(doomed);
    }
    if (status < LAPSE_MORE) COUNT(t, misses);
    return status;
}

/* The same, but EARLY is a ticket: the caller alone should reload the entry, which stays, and `*value` is a new
 * reference to what it holds. Counts a hit. */
lapse_status lapse_get_or_ticket(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now,
                                 lapse_object **value) {
    uint64_t h = mix_hash(hash);
    lapse_status status = table_read(t, key, h, now, READ_TO_REFRESH, value);
    if (status == LAPSE_EXPIRED) status = discard(t, key, h, LAPSE_EXPIRED, NULL, now);
    if (status == LAPSE_ABSENT || status == LAPSE_EXPIRED) COUNT(t, misses);
    if (status == LAPSE_OK || status == LAPSE_EARLY) COUNT(t, hits);
    if (status == LAPSE_EARLY) COUNT(t, tickets);
    return status;
}

/* Is there a live entry? OK, ABSENT, EXPIRED, RAISED or BUSY; nothing is touched, drawn or counted. */
lapse_status lapse_has(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now) {
    lapse_object *value;
    lapse_status status = table_read(t, key, mix_hash(hash), now, READ_QUIET, &value);
    if (status == LAPSE_OK) object_unref(value);
    return status;
}

/* Look at an entry without touching, drawing or counting. OK: `out` holds new references. */
lapse_status lapse_peek(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now, lapse_item *out) {
    lookup l;
    record r;
    lapse_status status = lookup_begin(&l, t, key, mix_hash(hash));
    if (status != LAPSE_OK && status != LAPSE_ABSENT) return status;
    if (status == LAPSE_OK) {
        segment_read(l.s, l.slot, &r);
        if (passed(r.deadline, lapse_now(t, now))) status = LAPSE_EXPIRED;
    }
    if (status == LAPSE_OK) {
        *out = (lapse_item){r.e.key, r.e.value, r.deadline, r.ttl, r.limit, r.cost, r.own};
        object_ref(r.e.key);
        object_ref(r.e.value);
    }
    lookup_end(&l);
    return status;
}

/* --- Whole-table facts --- */

/* Entries live at `now`. Segments whose earliest deadline lies ahead are not looked into. */
size_t lapse_len(lapse_table *t, int64_t now) {
    size_t live = 0;
    int64_t at = lapse_now(t, now);
    for (uint64_t cursor = 0, more = 1; more;) {
        segment *s = lock_segment(t, cursor);
        live += segment_count_live(s, at);
        cursor = segment_last_hash(s) + 1;
        lock_drop(&s->lock);
        more = cursor != 0;
    }
    /* Segments are counted one after the other: an entry that makes way may be counted, and the other one too. */
    uint64_t limit = t->order.on && !t->order.weighed ? RELAXED(&t->order.limit) : UINT64_MAX;
    return live > limit ? (size_t)limit : live;
}

/* What the entries of a bounded table weigh together; of another one, 0. */
uint64_t lapse_weight(const lapse_table *t) { return RELAXED(&t->order.tokens); }

size_t lapse_segments(const lapse_table *t) { return RELAXED(&t->segments); }

static size_t segment_bytes(const lapse_table *t, const segment *s) {
    size_t gists = RELAXED(&s->gists) ? segment_gists(s) * sizeof *s->gists : 0;
    if (s->slab) return pool_bytes_in_use(&t->pool, s) + gists;
    return segment_heap_bytes(segment_slots(s), t->pool.arrays) + gists;
}

/* Bytes that know tags, prefixes and leases. */
size_t lapse_tracking_bytes(lapse_table *t) { return index_bytes(&t->index) + fence_bytes(&t->fence); }

/* Bytes of native memory: what segments use of slabs, by arithmetic, and every other allocation. */
size_t lapse_bytes(lapse_table *t) {
    lock_take(&t->directory_lock); /* nobody makes, replaces or refits a segment now */
    size_t bytes = sizeof *t + t->pool.slabs * sizeof(slab) + lapse_tracking_bytes(t);
    bytes += pool_bytes_idle(&t->pool);
    bytes += order_bytes(&t->order) + duel_bytes(&t->duel);
    if (t->scratch) bytes += SCRATCH_BYTES;
    for (uint32_t d = 0; d <= MAX_DEPTH; d++)
        if (t->arrays[d]) bytes += sizeof(segment *) << d;
    for (const segment *s = t->retired; s; s = s->next) bytes += segment_bytes(t, s);
    for (uint64_t cursor = 0, more = 1; more;) {
        const segment *s = locate(t, cursor);
        bytes += segment_bytes(t, s);
        cursor = segment_last_hash(s) + 1;
        more = cursor != 0;
    }
    lock_drop(&t->directory_lock);
    return bytes;
}

void lapse_counters_read(const lapse_table *t, lapse_counters *out) {
    uint64_t *sum = (uint64_t *)out;
    memset(out, 0, sizeof *out);
    for (uint32_t i = 0; i < COUNTER_STRIPES; i++) {
        const uint64_t *one = (const uint64_t *)&t->counters[i].c;
        for (size_t w = 0; w < sizeof *out / sizeof *sum; w++) sum[w] += RELAXED(&one[w]);
    }
}

/* Visit what can be part of a reference cycle. The interpreter has stopped every other thread. */
int lapse_traverse(lapse_table *t, lapse_visit visit, void *arg) {
    for (uint64_t cursor = 0;;) {
        const segment *s = locate(t, cursor);
        int stop = segment_traverse(s, visit, arg);
        uint64_t last = segment_last_hash(s);
        if (stop || last == UINT64_MAX) return stop;
        cursor = last + 1;
    }
}

/* --- Checks --- */

/* Every posting is of an entry that is there: one walk over the segments counts them all. */
static bool check_index(lapse_table *t) {
    size_t postings, found = 0;
    if (!index_check(&t->index, &postings)) return false;
    for (uint64_t cursor = 0, more = 1; more && t->index.active;) {
        const segment *s = locate(t, cursor);
        for (uint32_t slot = 0; slot < segment_slots(s); slot++)
            if (s->ctrl[slot] & CTRL_FULL)
                found += index_count(&t->index, *hash_at(s, slot), entry_at(s, slot)->key);
        cursor = segment_last_hash(s) + 1;
        more = cursor != 0;
    }
    return found == postings;
}

/* Every entry has its tokens, and a node, or if it is young an item of the ring; no count has overflowed. */
static bool check_bound(lapse_table *t) {
    size_t nodes;
    uint64_t entries = 0, young = 0, weight = 0;
    if (!order_check(&t->order, &nodes)) return false;
    for (uint64_t cursor = 0, more = 1; more && t->order.on;) {
        const segment *s = locate(t, cursor);
        entries += s->used;
        weight += s->weights ? s->weight : s->used;
        for (uint32_t slot = 0; slot < segment_slots(s) && s->counted; slot++) {
            young += (s->ctrl[slot] & CTRL_FULL) && bit_test(s->young, slot);
            if (s->marks[slot] > (MARK_USES | MARK_ASKS)) return false;
        }
        cursor = segment_last_hash(s) + 1;
        more = cursor != 0;
    }
    if (weight != t->order.tokens || (t->order.weighed && entries != t->order.entries)) return false;
    return t->duel.on ? young <= t->duel.ring_size : entries == nodes || !t->order.on;
}

/* Walk every invariant of the table and its segments; nobody else may be using it meanwhile. */
bool lapse_check(lapse_table *t) {
    size_t segments = 0;
    uint32_t bits = directory_bits(t->directory), deepest = 0;
    segment **array = directory_array(t->directory);
    for (uint64_t i = 0; i < UINT64_C(1) << bits; i++) {
        segment *s = array[i];
        uint64_t first = bits ? i << (64 - bits) : 0;
        if (s->dead || !segment_covers(s, first) || s->depth > bits) return false;
        if (s->first_hash != first) continue;
        if (!segment_check(s)) return false;
        segments++;
        deepest = s->depth > deepest ? s->depth : deepest;
    }
    if (segments != t->segments || deepest != bits || !pool_check(&t->pool)) return false;
    return check_index(t) && check_bound(t);
}
