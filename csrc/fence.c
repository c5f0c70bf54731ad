/* The fence: see fence.h for how it works, its invariants and who may call it. */
#include "fence.h"

#include "table.h"

#include <assert.h>
#include <string.h>

#define JUDGE_COMPARISONS ((uint64_t)1 << 17) /* of events with tags, under the lock */
#define STEP_LEASES 256u  /* leases that one step of a pass looks at, or a bucket's more, */
#define STEP_BUCKETS 1024u /* and buckets */
#define BUCKETS_BYTES (FENCE_BUCKETS * sizeof(lapse_lease *))
#define EVENTS_BYTES (FENCE_EVENTS * sizeof(fence_event))

/* --- Making --- */

void fence_init(lapse_fence *f) {
    memset(f, 0, sizeof *f);
    fence_reset_locks(f);
}

void fence_reset_locks(lapse_fence *f) {
    lock_init(&f->lock);
    for (uint32_t i = 0; i < FENCE_LOCKS; i++) lock_init(&f->stripes[i].lock);
}

void fence_free(lapse_fence *f, const lapse_memory *memory) {
    assert(f->out == 0 && f->passes == NULL);
    if (f->buckets) memory->drop(f->buckets);
    if (f->events) memory->unmap(f->events, EVENTS_BYTES);
}

size_t fence_bytes(lapse_fence *f) {
    lock_take(&f->lock);
    size_t events = f->written < FENCE_EVENTS ? (size_t)f->written * sizeof(fence_event) : EVENTS_BYTES;
    size_t bytes = (f->buckets ? BUCKETS_BYTES : 0) + events;
    lock_drop(&f->lock);
    return bytes;
}

/* The first lease needs the arrays; they stay. */
static bool make_arrays(lapse_fence *f, const lapse_memory *memory) {
    if (RELAXED(&f->events)) return true; /* published last */
    lapse_lease **buckets = memory->grab(BUCKETS_BYTES);
    fence_event *events = memory->map(EVENTS_BYTES);
    bool have = buckets && events, used = false;
    lock_take(&f->lock);
    if (have && f->events == NULL) {
        PUBLISH(&f->buckets, buckets); /* release: pairs with the acquire in fence_pass_step() */
        STORE(&f->events, events);
        used = true;
    }
    lock_drop(&f->lock);
    if (!used && buckets) memory->drop(buckets);
    if (!used && events) memory->unmap(events, EVENTS_BYTES);
    return have || RELAXED(&f->events) != NULL;
}

/* --- Buckets --- */

static uint32_t bucket_of(uint64_t hash) { return (uint32_t)hash & (FENCE_BUCKETS - 1); }
static lapse_lock *lock_of(lapse_fence *f, uint32_t bucket) { return &f->stripes[bucket % FENCE_LOCKS].lock; }

static void link_lease(lapse_fence *f, lapse_lease *l) {
    lapse_lease **first = &f->buckets[bucket_of(l->hash)];
    l->good = true;
    l->next = *first;
    l->link = first;
    if (l->next) l->next->link = &l->next;
    STORE(first, l);
}

/* Take a lease out of its bucket: it is not good any more. */
static void unlink_lease(lapse_fence *f, lapse_lease *l) {
    l->good = false;
    if (l->next) l->next->link = l->link;
    STORE(l->link, l->next);
    ADD(&f->out, (uint64_t)-1);
}

/* --- What has happened; under the fence's lock --- */

static bool is_of_tag(const fence_pass *p) { return p->n == 0 && p->prefixes == NULL; }

static bool pass_covers_key(const fence_pass *p, const lapse_text *key) {
    if (p->prefixes) return prefixes_find(p->prefixes, key) != NO_PREFIX;
    for (size_t i = 0; i < p->n; i++)
        if (pattern_matches(p->patterns[i], key)) return true;
    return false;
}

static bool covered_by_pass(const lapse_fence *f, lapse_object *key) {
    lapse_text text;
    if (f->passes == NULL || !object_text(key, &text)) return false;
    for (const fence_pass *p = f->passes; p; p = p->next)
        if (pass_covers_key(p, &text)) return true;
    return false;
}

static void write_event(lapse_fence *f, uint64_t tag) {
    STORE(&f->sequence, f->sequence + 1);
    if (RELAXED(&f->out) == 0) return; /* a lease that comes now finds the pass itself */
    fence_event *e = &f->events[f->written++ % FENCE_EVENTS];
    if (f->written > FENCE_EVENTS) f->forgotten = e->sequence;
    *e = (fence_event){f->sequence, tag};
}

/* Has this tag been deleted since `born`, or is it being deleted? */
static bool tag_deleted_since(const lapse_fence *f, uint64_t tag, uint64_t born) {
    uint64_t kept = f->written < FENCE_EVENTS ? f->written : FENCE_EVENTS;
    for (const fence_pass *p = f->passes; p; p = p->next)
        if (is_of_tag(p) && p->tag == tag) return true;
    for (uint64_t i = f->written; i > f->written - kept; i--) {
        const fence_event *e = &f->events[(i - 1) % FENCE_EVENTS];
        if (e->sequence <= born) return false;
        if (e->tag == tag) return true;
    }
    return false;
}

/* Whatever cannot be told, or not in bounded time, counts as deleted. */
static bool tags_deleted_since(const lapse_fence *f, const lapse_tags *tags, uint64_t born) {
    if (tags == NULL) return false;
    if (born < f->forgotten || (f->sequence - born) * tags->n > JUDGE_COMPARISONS) return true;
    for (size_t i = 0; i < tags->n; i++)
        if (tag_deleted_since(f, tags->hashes[i], born)) return true;
    return false;
}

/* --- Leases --- */

static bool is_good(lapse_fence *f, const lapse_lease *l) {
    lapse_lock *lock = lock_of(f, bucket_of(l->hash));
    lock_take(lock);
    bool good = l->good;
    lock_drop(lock);
    return good;
}

/* Forget a lease, filled or not. */
void fence_dismiss(lapse_fence *f, lapse_lease *l) {
    lapse_lock *lock = lock_of(f, bucket_of(l->hash));
    lock_take(lock);
    if (l->good) unlink_lease(f, l);
    lock_drop(lock);
}

/* Let a lease in, whose key and hash are set. It is refused, without an error, when there are too many. OK or
 * NO_MEMORY. */
lapse_status fence_admit(lapse_fence *f, const lapse_memory *memory, lapse_lease *l) {
    l->good = false;
    if (!make_arrays(f, memory)) return LAPSE_NO_MEMORY;
    if (FETCH_ADD64(&f->out, 1) >= LEASES_MAX) {
        ADD(&f->out, (uint64_t)-1);
        return LAPSE_OK;
    }
    lock_take(&f->lock);
    l->born = f->sequence;
    lock_drop(&f->lock);
    uint32_t b = bucket_of(l->hash);
    lock_take(lock_of(f, b));
    link_lease(f, l);
    lock_drop(lock_of(f, b));
    lock_take(&f->lock);
    bool late = covered_by_pass(f, l->key);
    lock_drop(&f->lock);
    if (late) fence_dismiss(f, l);
    return LAPSE_OK;
}

/* Is the lease good, for these tags too? If so the fence stays locked until fence_judged(): no pass and no
 * clear begins in between, so that it finds whatever has been done meanwhile. */
bool fence_judge(lapse_fence *f, const lapse_lease *l, const lapse_tags *tags) {
    lock_take(&f->lock);
    bool good = is_good(f, l) && f->cleared <= l->born && !covered_by_pass(f, l->key) &&
                !tags_deleted_since(f, tags, l->born);
    if (!good) lock_drop(&f->lock);
    return good;
}

void fence_judged(lapse_fence *f) { lock_drop(&f->lock); }

/* --- Changes --- */

/* The entry of this key has changed or gone, or would have if it had been there. Under its segment's lock. */
void fence_mark_key(lapse_fence *f, uint64_t hash, lapse_object *key) {
    uint32_t b = bucket_of(hash);
    if (ACQUIRE(&f->buckets) == NULL) return; /* the first lease is being made, and is younger */
    lock_take(lock_of(f, b));
    for (lapse_lease *next, *l = f->buckets[b]; l; l = next) {
        next = l->next;
        if (l->hash == hash && (l->key == key || object_same(l->key, key) != DIFFERENT)) unlink_lease(f, l);
    }
    lock_drop(lock_of(f, b));
}

/* Everything goes: no lease that is older than this call's end may be filled. */
void fence_cleared(lapse_fence *f) {
    lock_take(&f->lock);
    STORE(&f->sequence, f->sequence + 1);
    f->cleared = f->sequence;
    lock_drop(&f->lock);
}

/* --- Passes --- */

/* From here until fence_pass_end() no new lease that the pass covers is good. */
void fence_pass_begin(lapse_fence *f, fence_pass *p) {
    p->bucket = 0;
    lock_take(&f->lock);
    if (is_of_tag(p)) write_event(f, p->tag);
    p->next = f->passes;
    f->passes = p;
    lock_drop(&f->lock);
}

static uint32_t mark_bucket(lapse_fence *f, const fence_pass *p, uint32_t b) {
    lapse_text text;
    uint32_t n = 0;
    lock_take(lock_of(f, b));
    for (lapse_lease *next, *l = f->buckets[b]; l; l = next, n++) {
        next = l->next;
        if (object_text(l->key, &text) && pass_covers_key(p, &text)) unlink_lease(f, l);
    }
    lock_drop(lock_of(f, b));
    return n;
}

/* One bounded step over the leases that were out when the pass began. True: call again. */
bool fence_pass_step(lapse_fence *f, fence_pass *p) {
    uint32_t looked = 0, end = p->bucket + STEP_BUCKETS;
    lapse_lease **buckets = ACQUIRE(&f->buckets); /* acquire: pairs with PUBLISH in make_arrays() */
    if (is_of_tag(p) || buckets == NULL || RELAXED(&f->out) == 0) return false;
    size_t comparisons = p->prefixes ? 1 : p->n;
    uint32_t most = comparisons < STEP_LEASES ? STEP_LEASES / (uint32_t)comparisons : 1;
    for (; p->bucket < FENCE_BUCKETS && p->bucket < end && looked < most; p->bucket++)
        if (RELAXED(&buckets[p->bucket])) looked += mark_bucket(f, p, p->bucket);
    return p->bucket < FENCE_BUCKETS;
}

/* In the child of a fork: passes of threads that are gone will not go on. True: there were some. */
bool fence_abandon_passes(lapse_fence *f) {
    bool some = f->passes != NULL;
    f->passes = NULL;
    return some;
}

/* False: a fork has ended it before. */
bool fence_pass_end(lapse_fence *f, fence_pass *p) {
    lock_take(&f->lock);
    if (is_of_tag(p)) write_event(f, p->tag);
    fence_pass **link = &f->passes;
    while (*link && *link != p) link = &(*link)->next;
    bool there = *link != NULL;
    if (there) *link = p->next;
    lock_drop(&f->lock);
    return there;
}

/* --- Storms; under the lock of the key's segment --- */

/* The storm that covers the key, and whose walk has not come to its hash; *number: of the prefix that does. */
static fence_pass *storm_over(const lapse_fence *f, uint64_t hash, const lapse_text *key, uint32_t *number) {
    for (fence_pass *p = f->passes; p; p = p->next) {
        if (p->prefixes == NULL || RELAXED(&p->over) || hash < RELAXED(&p->reached)) continue;
        *number = prefixes_find(p->prefixes, key);
        if (*number != NO_PREFIX) return p;
    }
    return NULL;
}

/* Is an entry of this key to be taken for absent? */
bool fence_dooms(lapse_fence *f, uint64_t hash, lapse_object *key) {
    lapse_text text;
    uint32_t number;
    if (!object_text(key, &text)) return false;
    lock_take(&f->lock);
    bool doomed = storm_over(f, hash, &text, &number) != NULL;
    lock_drop(&f->lock);
    return doomed;
}

/* The same for who then takes the entry out: it is counted for the storm, which began at `*at`. */
bool fence_strikes(lapse_fence *f, uint64_t hash, lapse_object *key, int64_t deadline, int64_t *at) {
    lapse_text text;
    uint32_t number;
    if (!object_text(key, &text)) return false;
    lock_take(&f->lock);
    const fence_pass *p = storm_over(f, hash, &text, &number);
    if (p) *at = p->at;
    if (p && !passed(deadline, p->at)) ADD(&p->counts[number], 1);
    lock_drop(&f->lock);
    return p != NULL;
}
