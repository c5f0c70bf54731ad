/* A segment: its making, and what the holder of its lock does to its slots. Layout, invariants and
 * thread rules stand in segment.h. */
#include "segment.h"

#define BITMAPS 3u
#define BITMAP_BYTES(slots) ((((slots) + 63u) / 64u) * 8u)

/* --- Making --- */

static size_t pages_bytes(uint32_t slots) { return slots * (2 * sizeof(int64_t) + sizeof(entry)); }

size_t side_bytes(segment_arrays arrays, uint32_t slots) {
    size_t counted = slots + 2 * BITMAP_BYTES(slots);
    return slots + BITMAPS * BITMAP_BYTES(slots) + (arrays.marks ? counted : 0);
}

static size_t line_up(size_t bytes) { return (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE; }

size_t arrays_bytes(segment_arrays arrays, uint32_t slots) {
    return slots * (sizeof(int64_t) * ((size_t)arrays.ttls + arrays.limits) +
                    sizeof(uint32_t) * ((size_t)arrays.nodes + arrays.costs + arrays.weights));
}

size_t segment_heap_bytes(uint32_t slots, segment_arrays arrays) {
    return line_up(sizeof(segment)) + line_up(side_bytes(arrays, slots)) + pages_bytes(slots) +
           arrays_bytes(arrays, slots);
}

/* Point the header at its arrays: control words and bitmaps at `side`, the rest at `data`, each with
 * places for `slots`. All of it stays for the life of the memory. */
void segment_place(segment *s, uint8_t *side, uint8_t *data, uint32_t slots, segment_arrays arrays) {
    uint32_t page_slots = slots < PAGE_SLOTS ? slots : PAGE_SLOTS;
    int64_t *behind_pages = (int64_t *)(void *)(data + pages_bytes(slots));
    uint32_t *behind_times = (uint32_t *)(behind_pages + slots * ((size_t)arrays.ttls + arrays.limits));
    s->ctrl = side;
    s->gc = (uint64_t *)(void *)(side + slots);
    s->own = (uint64_t *)(void *)(side + slots + BITMAP_BYTES(slots));
    s->foreign = (uint64_t *)(void *)(side + slots + 2 * BITMAP_BYTES(slots));
    s->pages = data;
    s->hashes_at = page_slots * (uint32_t)sizeof(int64_t);
    s->entries_at = 2 * s->hashes_at;
    s->ttls = arrays.ttls ? behind_pages : NULL;
    s->limits = arrays.limits ? behind_pages + slots * arrays.ttls : NULL;
    s->nodes = arrays.nodes ? behind_times : NULL;
    if (arrays.marks) {
        s->counted = true;
        s->young = (uint64_t *)(void *)(side + slots + BITMAPS * BITMAP_BYTES(slots));
        s->watched = (uint64_t *)(void *)(side + slots + (BITMAPS + 1) * BITMAP_BYTES(slots));
        s->marks = side + slots + (BITMAPS + 2) * BITMAP_BYTES(slots);
    }
    s->costs = arrays.costs ? behind_times + slots * arrays.nodes : NULL;
    s->weights = arrays.weights ? behind_times + slots * ((size_t)arrays.nodes + arrays.costs) : NULL;
    s->next_rank = RANK_NEVER;
    lock_init(&s->lock);
}

/* One zeroed allocation that holds a whole empty segment, or NULL. */
segment *segment_on_heap(const lapse_memory *memory, uint32_t slots, segment_arrays arrays) {
    uint8_t *block = memory->grab(segment_heap_bytes(slots, arrays));
    if (block == NULL) return NULL;
    uint8_t *side = block + line_up(sizeof(segment));
    segment *s = (segment *)(void *)block;
    segment_place(s, side, side + line_up(side_bytes(arrays, slots)), slots, arrays);
    s->groups = slots / GROUP_SLOTS;
    return s;
}

/* Start over, empty, with `slots` in use. The caller has taken every entry out. */
void segment_reset(segment *s, uint32_t slots) {
    uint32_t old = segment_slots(s), most = old > slots ? old : slots;
    uint64_t *ctrl = (uint64_t *)(void *)s->ctrl;
    for (uint32_t w = 0; w < most / 8; w++) STORE(&ctrl[w], 0);
    for (uint32_t w = 0; w < BITMAP_BYTES(most) / 8; w++) {
        STORE(&s->gc[w], 0);
        STORE(&s->own[w], 0);
        STORE(&s->foreign[w], 0);
    }
    STORE(&s->groups, slots / GROUP_SLOTS);
    STORE(&s->used, 0);
    s->tombstones = s->gc_count = s->own_count = s->foreign_count = 0;
    s->next_rank = RANK_NEVER;
    s->gists_known = false;
}

/* --- Slots --- */

/* The slot where an entry with hash h goes: the first free one on its probe path. */
static uint32_t free_slot(const segment *s, uint64_t h) {
    uint32_t g = hash_group(h, s->groups);
    for (uint32_t n = s->groups; n > 0; n--, g = next_group(s, g)) {
        group_mask m = group_free(group_load(s->ctrl + g * GROUP_SLOTS));
        if (m) return g * GROUP_SLOTS + mask_slot(m);
    }
    assert(!"a segment always has a free slot");
    return 0;
}

/* Can one more entry with hash h be inserted without breaking invariant 2? */
bool segment_has_room(const segment *s, uint64_t h) {
    if (s->used + s->tombstones < slot_limit(segment_slots(s))) return true;
    return s->tombstones > 0 && s->ctrl[free_slot(s, h)] == CTRL_DELETED;
}

static void note_deadline(segment *s, int64_t deadline) {
    if (DEADLINE_RANK(deadline) < s->next_rank) STORE(&s->next_rank, DEADLINE_RANK(deadline));
}

/* Set or clear a slot's bit. While a bitmap holds no bit, and none comes, it is not even read: it
 * lies in a cache line of its own. */
static void mark_slot(uint64_t *bits, uint32_t *count, uint32_t slot, bool on) {
    if (!on && *count == 0) return;
    *count += (uint32_t)on - (uint32_t)bit_test(bits, slot);
    bit_put(bits, slot, on);
}

static bool marked(const uint64_t *bits, uint32_t count, uint32_t slot) {
    return count > 0 && bit_test(bits, slot);
}

static void put_weight(segment *s, uint32_t slot, uint32_t weight) {
    if (s->weights == NULL) return;
    s->weight += (uint64_t)weight - s->weights[slot];
    s->weights[slot] = weight;
}

/* Replace value and deadline of a full slot; the key stays. Inside the write window. */
INLINE void write_slot(segment *s, uint32_t slot, const record *r) {
    mark_slot(s->gc, &s->gc_count, slot, r->gc);
    mark_slot(s->own, &s->own_count, slot, r->own);
    PUBLISH(&entry_at(s, slot)->value, r->e.value); /* release: pairs with the acquire in read.h */
    STORE(deadline_at(s, slot), r->deadline);
    if (s->ttls) STORE(&s->ttls[slot], r->ttl);
    if (s->limits) STORE(&s->limits[slot], r->limit);
    if (s->counted) {
        STORE(&s->marks[slot], r->mark);
        bit_put(s->young, slot, r->young);
        bit_put(s->watched, slot, r->watched);
    } else if (s->nodes) STORE(&s->nodes[slot], r->node);
    if (s->costs) STORE(&s->costs[slot], r->cost);
    put_weight(s, slot, r->weight);
    note_deadline(s, r->deadline);
}

void segment_write(segment *s, uint32_t slot, const record *r) { write_slot(s, slot, r); }

/* Put a new entry on its probe path; the key must be absent and there must be room. Inside the
 * write window. Takes over the record's references. Returns the slot. */
uint32_t segment_insert(segment *s, const record *r) {
    uint32_t slot = free_slot(s, r->hash);
    s->tombstones -= s->ctrl[slot] == CTRL_DELETED;
    STORE(&s->used, s->used + 1);
    STORE(hash_at(s, slot), r->hash);
    PUBLISH(&entry_at(s, slot)->key, r->e.key); /* release: pairs with the acquire in read.h */
    mark_slot(s->foreign, &s->foreign_count, slot, r->foreign);
    if (s->gists) s->gists[slot] = 0;
    write_slot(s, slot, r);
    ctrl_store(s->ctrl, slot, hash_tag(r->hash));
    return slot;
}

/* A slot may become EMPTY again if its group has an EMPTY one: then no probe ever went past it. */
static void free_ctrl(segment *s, uint32_t slot) {
    bool stopper = group_empty(group_load(s->ctrl + slot / GROUP_SLOTS * GROUP_SLOTS)) != 0;
    ctrl_store(s->ctrl, slot, stopper ? CTRL_EMPTY : CTRL_DELETED);
    s->tombstones += !stopper;
}

/* Take the entry of a full slot out; `removed` now owns its references. Inside the write window. */
void segment_take(segment *s, uint32_t slot, lapse_item *removed) {
    entry *e = entry_at(s, slot);
    *removed = (lapse_item){.key = e->key,
                            .value = e->value,
                            .deadline = *deadline_at(s, slot),
                            .ttl = s->ttls ? s->ttls[slot] : 0,
                            .limit = s->limits ? s->limits[slot] : LAPSE_NEVER,
                            .cost = s->costs ? s->costs[slot] : 0,
                            .own_ttl = marked(s->own, s->own_count, slot)};
    free_ctrl(s, slot);
    STORE(&e->key, NULL);
    STORE(&e->value, NULL);
    STORE(deadline_at(s, slot), LAPSE_NEVER);
    put_weight(s, slot, 0);
    mark_slot(s->gc, &s->gc_count, slot, false);
    mark_slot(s->own, &s->own_count, slot, false);
    mark_slot(s->foreign, &s->foreign_count, slot, false);
    STORE(&s->used, s->used - 1);
}

/* The same in a window of its own. */
void segment_remove(segment *s, uint32_t slot, lapse_item *removed) {
    write_begin(s);
    segment_take(s, slot, removed);
    write_end(s);
}

void segment_read(const segment *s, uint32_t slot, record *out) {
    out->e = *entry_at(s, slot);
    out->hash = *hash_at(s, slot);
    out->deadline = RELAXED(deadline_at(s, slot));
    out->ttl = s->ttls ? RELAXED(&s->ttls[slot]) : 0;
    out->limit = s->limits ? s->limits[slot] : LAPSE_NEVER;
    out->node = s->nodes && !s->counted ? s->nodes[slot] : 0;
    out->mark = s->counted ? RELAXED(&s->marks[slot]) : 0;
    out->young = s->counted && bit_test(s->young, slot);
    out->watched = s->counted && bit_test(s->watched, slot);
    out->cost = s->costs ? s->costs[slot] : 0;
    out->weight = weight_at(s, slot);
    out->own = marked(s->own, s->own_count, slot);
    out->gc = marked(s->gc, s->gc_count, slot);
    out->foreign = marked(s->foreign, s->foreign_count, slot);
}

static void blank_slot(segment *s, uint32_t slot) {
    STORE(&entry_at(s, slot)->key, NULL);
    STORE(&entry_at(s, slot)->value, NULL);
    STORE(deadline_at(s, slot), LAPSE_NEVER);
    put_weight(s, slot, 0);
}

/* Take key, value and deadline out of a slot of a segment that is out of use: no counts but `used`. */
lapse_item segment_discard(segment *s, uint32_t slot) {
    lapse_item removed = {
        .key = entry_at(s, slot)->key, .value = entry_at(s, slot)->value, .deadline = *deadline_at(s, slot)};
    blank_slot(s, slot);
    ctrl_store(s->ctrl, slot, CTRL_EMPTY);
    STORE(&s->used, s->used - 1);
    return removed;
}

/* For each full slot; control words are left to the caller. */
#define FOR_EACH_FULL(s, slot)                                                                       \
    for (uint32_t g_ = 0; g_ < (s)->groups; g_++)                                                    \
        for (group_mask m_ = group_full(group_load((s)->ctrl + g_ * GROUP_SLOTS)); m_; m_ &= m_ - 1) \
            for (uint32_t slot = g_ * GROUP_SLOTS + mask_slot(m_), once_ = 1; once_; once_ = 0)

/* Move every entry into `out` (room for segment_slots()). Inside the write window; the caller then
 * resets the segment. Returns how many there were. */
uint32_t segment_take_all(segment *s, record *out) {
    uint32_t n = 0;
    FOR_EACH_FULL (s, slot) {
        segment_read(s, slot, &out[n++]);
        blank_slot(s, slot);
    }
    return n;
}

/* Move every entry of `from` into `to`, which has the room. Inside both write windows. */
void segment_move_all(segment *from, segment *to) {
    record r;
    to->aged = from->aged;
    to->visited = from->visited;
    FOR_EACH_FULL (from, slot) {
        segment_read(from, slot, &r);
        blank_slot(from, slot);
        segment_insert(to, &r);
    }
    segment_reset(from, segment_slots(from));
}

/* --- Expiry --- */

/* Scan the deadlines of one page. Returns how many have passed. */
static size_t scan_page(const segment *s, uint32_t first, int64_t now, uint64_t *bits, uint64_t *next) {
    uint32_t left = segment_slots(s) - first;
    return scan_deadlines(deadline_at(s, first), left < PAGE_SLOTS ? left : PAGE_SLOTS, now, bits, next);
}

/* Write the first `limit` expired slots; the caller removes them all. Returns how many; the lower bound
 * is raised only by a scan that nothing cut short. */
uint32_t segment_expired(segment *s, int64_t now, uint32_t limit, uint32_t *slots) {
    uint64_t bits[PAGE_SLOTS / 64], next, least = RANK_NEVER;
    uint32_t n = 0;
    if (s->next_rank >= (uint64_t)now) return 0;
    for (uint32_t first = 0; first < segment_slots(s); first += PAGE_SLOTS) {
        size_t found = scan_page(s, first, now, bits, &next);
        least = next < least ? next : least;
        for (uint32_t w = 0; found > 0; w++)
            for (uint64_t b = bits[w]; b; b &= b - 1, found--) {
                if (n == limit) return n;
                slots[n++] = first + w * 64 + lowest_bit(b);
            }
    }
    STORE(&s->next_rank, least);
    return n;
}

/* End the lives of all entries that are live at `at`, which their deadlines become. Inside the write window:
 * a sliding read that began before must not move one. Returns how many there were. */
uint32_t segment_soften(segment *s, int64_t at) {
    uint32_t n = 0;
    FOR_EACH_FULL (s, slot) {
        if (DEADLINE_RANK(*deadline_at(s, slot)) < (uint64_t)at) continue;
        STORE(deadline_at(s, slot), at);
        n++;
    }
    if (n > 0) note_deadline(s, at);
    return n;
}

/* No entry is in the window any more. */
void segment_age_young(segment *s) {
    for (uint32_t w = 0; w < BITMAP_BYTES(segment_slots(s)) / 8; w++) STORE(&s->young[w], 0);
}

uint32_t segment_count_live(const segment *s, int64_t now) {
    uint64_t bits[PAGE_SLOTS / 64], next;
    size_t gone = 0;
    if (s->next_rank >= (uint64_t)now) return s->used;
    for (uint32_t first = 0; first < segment_slots(s); first += PAGE_SLOTS)
        gone += scan_page(s, first, now, bits, &next);
    return s->used - (uint32_t)gone;
}

/* --- Garbage collection --- */

/* Visit the entries that can be in a cycle; atomic ones are never dereferenced. */
int segment_traverse(const segment *s, lapse_visit visit, void *arg) {
    if (s->gc_count == 0) return 0;
    for (uint32_t w = 0; w < (segment_slots(s) + 63) / 64; w++)
        for (uint64_t b = s->gc[w]; b; b &= b - 1) {
            const entry *e = entry_at(s, w * 64 + lowest_bit(b));
            int stop = visit(e->key, arg);
            if (!stop) stop = visit(e->value, arg);
            if (stop) return stop;
        }
    return 0;
}

/* --- Checks --- */

static bool slot_check(const segment *s, uint32_t slot) {
    const entry *e = entry_at(s, slot);
    uint8_t c = s->ctrl[slot];
    if (!(c & CTRL_FULL)) return e->key == NULL && e->value == NULL && *deadline_at(s, slot) == LAPSE_NEVER;
    return c == hash_tag(*hash_at(s, slot)) && e->key && e->value && segment_covers(s, *hash_at(s, slot)) &&
           s->next_rank <= DEADLINE_RANK(*deadline_at(s, slot)) &&
           bit_test(s->gc, slot) == (object_is_gc(e->key) || object_is_gc(e->value)) &&
           bit_test(s->foreign, slot) == !object_is_str(e->key);
}

bool segment_check(const segment *s) {
    uint32_t used = 0, tombstones = 0, gc = 0, own = 0, foreign = 0;
    uint64_t weight = 0;
    for (uint32_t slot = 0; slot < segment_slots(s); slot++) {
        if (!slot_check(s, slot)) return false;
        used += (s->ctrl[slot] & CTRL_FULL) != 0;
        tombstones += s->ctrl[slot] == CTRL_DELETED;
        gc += bit_test(s->gc, slot);
        own += bit_test(s->own, slot);
        foreign += bit_test(s->foreign, slot);
        weight += s->weights ? s->weights[slot] : 0;
        if (s->weights && !(s->ctrl[slot] & CTRL_FULL) && s->weights[slot]) return false;
    }
    return used == s->used && tombstones == s->tombstones && gc == s->gc_count && own == s->own_count &&
           foreign == s->foreign_count && weight == s->weight && s->seq % 2 == 0 &&
           used + tombstones <= slot_limit(segment_slots(s));
}
