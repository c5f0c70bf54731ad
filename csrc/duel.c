/* The default policy: see duel.h for what it is, its invariants and who may call it. */
#include "duel.h"

#include <string.h>

#define AGE_AFTER 30u /* times the capacity */
#define AGE_AFTER_LEAST 1280u
#define WINDOW 0.05
#define WINDOW_RECENCY 0.15
#define HISTORY_LEAST 1024u
#define WATCHED_LEAST 1024u /* contests */
#define WATCHED_MOST 8192u
#define RECENCY_ABOVE 0.2 /* the score that puts it in force */
#define FREQUENCY_BELOW 0.0
#define PATIENCE 40.0 /* votes that the score remembers, and more in larger caches */
#define RING_FIRST 16u
#define MAPPED_FROM ((size_t)32 << 10) /* arrays of so many bytes are pages of their own */
#define TIME_SHIFT_MOST 20u
#define TIME_MASK ((1u << DUEL_TIME_BITS) - 1)
#define ASKS_MASK (DUEL_ASKS_MOST << DUEL_TIME_BITS)

static_assert(DUEL_ASKS_MOST == (1u << DUEL_ASK_BITS) - 1 && DUEL_ASK_BITS + DUEL_TIME_BITS == 16, "a fact");

/* --- Memory --- */

static void *array_new(const lapse_memory *memory, size_t bytes) {
    return bytes < MAPPED_FROM ? memory->grab(bytes) : memory->map(bytes);
}

static void array_drop(const lapse_memory *memory, void *array, size_t bytes) {
    if (array == NULL) return;
    if (bytes < MAPPED_FROM) memory->drop(array);
    else memory->unmap(array, bytes);
}

static size_t ring_bytes(size_t room) { return room * sizeof(duel_item); }
static size_t history_bytes(size_t buckets) { return buckets * sizeof(duel_bucket); }
static size_t contests_bytes(const lapse_duel *d) { return (d->contest_mask + 1) * sizeof(duel_contest); }

static uint64_t power_of_two(uint64_t least) {
    uint64_t p = 1;
    while (p < least) p *= 2;
    return p;
}

static uint64_t within(uint64_t least, uint64_t n, uint64_t most) {
    return n < least ? least : n > most ? most : n;
}

static uint64_t share_of(uint64_t capacity, double share) {
    return within(1, (uint64_t)((double)capacity * share + 0.5), capacity > 1 ? capacity - 1 : 1);
}

static void set_capacity(lapse_duel *d, uint64_t capacity) {
    STORE(&d->capacity, capacity);
    d->time_shift = 0;
    d->window_goal = share_of(capacity, d->window_share);
    d->window_most = share_of(capacity, WINDOW_RECENCY) + 2;
    while (d->time_shift < TIME_SHIFT_MOST && capacity >> d->time_shift > TIME_MASK / 2) d->time_shift++;
    uint64_t watched = power_of_two(within(WATCHED_LEAST, capacity / 4, WATCHED_MOST));
    d->contest_mask = watched - 1;
    d->sample_mask = power_of_two(capacity / 4 / watched) - 1;
    d->step = 1.0 / (PATIENCE + (double)within(1, capacity, watched) / 50.0);
}

void duel_init(lapse_duel *d, bool on, uint64_t capacity, uint64_t seed) {
    memset(d, 0, sizeof *d);
    lock_init(&d->lock);
    lock_init(&d->evicting);
    d->on = on;
    d->salt = seed;
    d->window_share = WINDOW;
    set_capacity(d, capacity);
    d->next_age = 2 * duel_half_life(d);
}

void duel_free(lapse_duel *d, const lapse_memory *memory) {
    array_drop(memory, d->ring, ring_bytes(d->ring_room));
    array_drop(memory, d->history, history_bytes(d->bucket_count));
    array_drop(memory, d->contests, contests_bytes(d));
}

/* Hold about so many entries from now on; what was known of keys that are gone is forgotten. By the evictor. */
void duel_refit(lapse_duel *d, const lapse_memory *memory, uint64_t capacity) {
    duel_contest *contests = d->contests;
    size_t bytes = contests_bytes(d), count = d->bucket_count;
    lock_take(&d->lock);
    duel_bucket *history = d->history;
    STORE(&d->history, NULL);
    d->contests = NULL;
    d->standing = 0;
    set_capacity(d, capacity);
    lock_drop(&d->lock);
    array_drop(memory, history, history_bytes(count));
    array_drop(memory, contests, bytes);
}

/* Every entry has been put aside. */
void duel_restart(lapse_duel *d) {
    lock_take(&d->lock);
    d->ring_start = 0;
    STORE(&d->ring_size, 0);
    STORE(&d->full, false);
    lock_drop(&d->lock);
}

size_t duel_bytes(lapse_duel *d) {
    if (!d->on) return 0;
    lock_take(&d->lock);
    size_t bytes = ring_bytes(d->ring_room) + (d->history ? history_bytes(d->bucket_count) : 0);
    if (d->contests) bytes += contests_bytes(d);
    lock_drop(&d->lock);
    return bytes;
}

static size_t ring_place(const lapse_duel *d, size_t i) {
    size_t at = d->ring_start + i;
    return at >= d->ring_room ? at - d->ring_room : at;
}

/* Move the ring to one of another size, unless it has one already that is not `room`. No lock is held. OK or
 * NO_MEMORY. */
static lapse_status resize_ring(lapse_duel *d, const lapse_memory *memory, size_t room, size_t wanted) {
    duel_item *ring = array_new(memory, ring_bytes(wanted));
    if (ring == NULL) return LAPSE_NO_MEMORY;
    lock_take(&d->lock);
    duel_item *old = ring;
    size_t old_room = wanted;
    if (d->ring_room == room && d->ring_size <= wanted) {
        size_t head = room - d->ring_start < d->ring_size ? room - d->ring_start : d->ring_size;
        if (d->ring_size) {
            memcpy(ring, d->ring + d->ring_start, ring_bytes(head));
            memcpy(ring + head, d->ring, ring_bytes(d->ring_size - head));
        }
        old = d->ring, old_room = room;
        d->ring = ring, d->ring_room = wanted, d->ring_start = 0;
    }
    lock_drop(&d->lock);
    array_drop(memory, old, ring_bytes(old_room));
    return LAPSE_OK;
}

/* See to it that the window may take one more. No lock is held. OK or NO_MEMORY. */
lapse_status duel_make_room(lapse_duel *d, const lapse_memory *memory) {
    lock_take(&d->lock);
    size_t room = d->ring_room, wanted = within(RING_FIRST, 2 * room, d->window_most);
    bool enough = d->ring_size < room || room >= d->window_most;
    lock_drop(&d->lock);
    return enough ? LAPSE_OK : resize_ring(d, memory, room, wanted);
}

/* --- Beginning anew --- */

uint64_t duel_entered(lapse_duel *d) {
    lock_take(&d->lock);
    uint64_t entered = d->entered;
    lock_drop(&d->lock);
    return entered;
}

/* Does it hold more than it would for so many entries that have never filled the table? */
bool duel_remembers(lapse_duel *d, uint64_t entries) {
    lock_take(&d->lock);
    bool roomy = d->ring_room > within(RING_FIRST, 2 * entries, SIZE_MAX);
    bool remembers = d->history || d->full || roomy;
    lock_drop(&d->lock);
    return remembers;
}

/* Forget the keys that are gone, and of the window what had entered before; no entry from then is young any more. By
 * the evictor. */
void duel_forget(lapse_duel *d, const lapse_memory *memory, uint64_t entered) {
    duel_refit(d, memory, d->capacity);
    lock_take(&d->lock);
    uint64_t oldest = d->entered - d->ring_size, stale = entered > oldest ? entered - oldest : 0;
    d->ring_start = ring_place(d, stale);
    STORE(&d->ring_size, d->ring_size - stale);
    STORE(&d->full, false);
    size_t room = d->ring_room, wanted = within(RING_FIRST, 2 * d->ring_size, d->window_most);
    lock_drop(&d->lock);
    if (wanted < room) resize_ring(d, memory, room, wanted);
}

/* The first eviction is due: what it needs. Without memory for it the policy does without. By the evictor. */
void duel_prepare(lapse_duel *d, const lapse_memory *memory) {
    if (d->history) return;
    duel_contest *contests = d->contests ? d->contests : array_new(memory, contests_bytes(d));
    uint64_t words = within(HISTORY_LEAST, d->capacity, UINT64_MAX - DUEL_BUCKET);
    size_t count = (size_t)((words + DUEL_BUCKET - 1) / DUEL_BUCKET);
    duel_bucket *history = array_new(memory, history_bytes(count));
    lock_take(&d->lock);
    d->contests = contests;
    STORE(&d->bucket_count, count);
    STORE(&d->history, history);
    lock_drop(&d->lock);
}

/* --- History; under `lock` --- */

#define LAST DUEL_BUCKET /* the place of what belongs to the bucket */

static duel_bucket *bucket_of(const lapse_duel *d, uint64_t print) {
    return &d->history[duel_bucket_number(print, d->bucket_count)];
}

static uint8_t tag_of(uint64_t print) { return (uint8_t)(print >> 40); }
static uint8_t rest_of(uint64_t print) { return (uint8_t)(print >> 48) | 1; }

/* Halve a bucket's asks as often as all others were. */
static void age_bucket(const lapse_duel *d, duel_bucket *b) {
    uint8_t age = (uint8_t)d->age, due = (uint8_t)(age - b->rests[LAST]);
    if (LIKELY(due == 0)) return;
    for (uint32_t i = 0; i < DUEL_BUCKET; i++) {
        uint32_t asks = due > DUEL_ASK_BITS ? 0 : (b->facts[i] & ASKS_MASK) >> due & ASKS_MASK;
        b->facts[i] = (uint16_t)((b->facts[i] & TIME_MASK) | asks);
    }
    b->rests[LAST] = age;
}

/* Where a key stands in the bucket; LAST: nowhere. */
static uint32_t place_in(const duel_bucket *b, uint64_t print) {
    for (group_mask m = group_match(group_load(b->tags), tag_of(print)); m; m &= m - 1)
        if (b->rests[mask_slot(m)] == rest_of(print) && mask_slot(m) != LAST) return mask_slot(m);
    return LAST;
}

static uint32_t time_now(const lapse_duel *d) { return d->now >> d->time_shift; }

static uint32_t away(const lapse_duel *d, uint32_t fact) {
    return ((time_now(d) - fact) & TIME_MASK) << d->time_shift;
}

/* Was it evicted not long ago? */
bool duel_knows(lapse_duel *d, uint64_t hash) {
    bool known = false;
    lock_take(&d->lock);
    if (d->history) {
        uint64_t print = duel_print(d, hash);
        duel_bucket *b = bucket_of(d, print);
        uint32_t i = place_in(b, print);
        known = i != LAST && away(d, b->facts[i]) < d->capacity;
    }
    lock_drop(&d->lock);
    return known;
}

void duel_remember(lapse_duel *d, uint64_t hash, uint32_t asks) {
    lock_take(&d->lock);
    if (d->history) {
        uint64_t print = duel_print(d, hash);
        duel_bucket *b = bucket_of(d, print);
        age_bucket(d, b);
        uint8_t i = b->tags[LAST];
        b->tags[LAST] = (uint8_t)(i + 1 == DUEL_BUCKET ? 0 : i + 1);
        b->tags[i] = tag_of(print);
        b->rests[i] = rest_of(print);
        b->facts[i] = (uint16_t)(asks << DUEL_TIME_BITS | (time_now(d) & TIME_MASK));
    }
    d->now++;
    if (UNLIKELY(!d->full)) STORE(&d->full, true);
    lock_drop(&d->lock);
}

/* Take out what is known of a hash: its asks, and when it was evicted, doubled, and one, or 0 if that is long ago. */
static uint32_t recall(lapse_duel *d, uint64_t hash, uint32_t *time) {
    *time = 0;
    if (d->history == NULL) return 0;
    uint64_t print = duel_print(d, hash);
    duel_bucket *b = bucket_of(d, print);
    uint32_t i = place_in(b, print);
    if (i == LAST) return 0;
    age_bucket(d, b);
    uint32_t fact = b->facts[i], gone = away(d, fact);
    b->rests[i] = 0;
    if (gone < d->capacity) *time = (d->now - gone) << 1 | 1;
    return fact >> DUEL_TIME_BITS;
}

/* --- Window --- */

/* A new entry comes in; `mark` is for its slot, and so is whether it is young. False: duel_make_room() first. While
 * the cache fills, what comes when the window is full belongs to the main part. */
bool duel_enter(lapse_duel *d, uint64_t hash, uint8_t *mark, bool *young) {
    uint32_t time;
    lock_take(&d->lock);
    *young = d->ring_size < (d->full ? d->window_most : d->window_goal);
    bool room = !*young || d->ring_size < d->ring_room;
    if (room) {
        uint32_t asks = recall(d, hash, &time);
        *mark = (uint8_t)((asks < DUEL_ASKS_MOST ? asks + 1 : asks) * MARK_ASK);
        if (*young) {
            d->ring[ring_place(d, d->ring_size)] = (duel_item){(uint32_t)(hash >> 32), (uint32_t)hash, time};
            STORE(&d->ring_size, d->ring_size + 1);
            d->entered++;
        }
    }
    lock_drop(&d->lock);
    return room;
}

/* Take the oldest out. False: there is none. */
bool duel_leave(lapse_duel *d, duel_item *item) {
    lock_take(&d->lock);
    bool any = d->ring_size > 0;
    if (any) {
        *item = d->ring[d->ring_start];
        d->ring_start = ring_place(d, 1);
        STORE(&d->ring_size, d->ring_size - 1);
    }
    lock_drop(&d->lock);
    return any;
}

/* The hashes of the n in the window that have `step`, 2 * `step`, ... older ones; 0 where there are not so many. */
void duel_ahead(lapse_duel *d, size_t step, size_t n, uint64_t *hashes) {
    lock_take(&d->lock);
    for (size_t i = 0, older = step; i < n; i++, older += step)
        hashes[i] = older < d->ring_size ? duel_hash(&d->ring[ring_place(d, older)]) : 0;
    lock_drop(&d->lock);
}

/* The window's size goes where the rule wants it, one entry at a time. */
void duel_set_window(lapse_duel *d) {
    double by = (d->rule == BY_RECENCY ? WINDOW_RECENCY : WINDOW) - d->window_share;
    if (LIKELY(by == 0)) return;
    double one = 1.0 / (double)d->capacity;
    lock_take(&d->lock);
    d->window_share += by > one ? one : by < -one ? -one : by;
    d->window_goal = share_of(d->capacity, d->window_share);
    lock_drop(&d->lock);
}

/* Requests until asks are halved again, the first time aside. */
uint64_t duel_half_life(const lapse_duel *d) {
    return within(AGE_AFTER_LEAST, d->capacity * AGE_AFTER, UINT64_MAX) / 2;
}

/* --- Votes; by the evictor --- */

void duel_vote(lapse_duel *d, duel_rule rule) {
    d->score += d->step * (rule == BY_RECENCY ? 1 - d->score : -1 - d->score);
    if (d->score > RECENCY_ABOVE) d->rule = BY_RECENCY;
    if (d->score < FREQUENCY_BELOW) d->rule = BY_FREQUENCY;
}

/* Where the contest of that loser is kept, if it is one of the sample. */
duel_contest *duel_contest_of(lapse_duel *d, uint64_t loser) {
    if (d->contests == NULL || (loser >> 20 & d->sample_mask)) return NULL;
    return &d->contests[loser >> 36 & d->contest_mask];
}
