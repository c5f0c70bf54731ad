/* A segment: its making, and what the holder of its lock does to its slots. Layout, invariants and
 * thread rules stand in segment.h. */
#include "segment.h"

#define BITMAP_BYTES(slots) ((((slots) + 63u) / 64u) * 8u)

/* --- Making --- */

static size_t data_bytes(uint32_t slots, bool ttls, bool limits) {
    return slots * (sizeof(int64_t) * (1u + ttls + limits) + sizeof(entry));
}

static size_t side_bytes(uint32_t slots) { return slots + 2u * BITMAP_BYTES(slots); }

size_t segment_heap_bytes(uint32_t slots, bool ttls, bool limits) {
    size_t header = (sizeof(segment) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    size_t side = (side_bytes(slots) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    return header + side + data_bytes(slots, ttls, limits);
}

/* Point the header at its arrays: control words and bitmaps at `side`, the rest at `data`, each with
 * places for `slots`. The pointers stay for the life of the memory. */
void segment_place(segment *s, uint8_t *side, uint8_t *data, uint32_t slots, bool ttls, bool limits) {
    s->ctrl = side;
    s->gc = (uint64_t *)(void *)(side + slots);
    s->own = (uint64_t *)(void *)(side + slots + BITMAP_BYTES(slots));
    int64_t *words = (int64_t *)(void *)data;
    s->deadlines = words;
    s->ttls = ttls ? words + slots : NULL;
    s->limits = limits ? words + slots * (1u + ttls) : NULL;
    s->entries = (entry *)(void *)(words + slots * (1u + ttls + limits));
    s->next_rank = RANK_NEVER;
    lock_init(&s->lock);
}

/* One zeroed allocation that holds a whole empty segment, or NULL. */
segment *segment_on_heap(const lapse_memory *memory, uint32_t slots, bool ttls, bool limits) {
    uint8_t *block = memory->grab(segment_heap_bytes(slots, ttls, limits));
    if (block == NULL) return NULL;
    size_t header = (sizeof(segment) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    size_t side = (side_bytes(slots) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    segment *s = (segment *)(void *)block;
    segment_place(s, block + header, block + header + side, slots, ttls, limits);
    s->groups = slots / GROUP_SLOTS;
    return s;
}

/* Start over, empty, with `slots` in use. The caller has taken every entry out; deadlines are 0. */
void segment_reset(segment *s, uint32_t slots) {
    uint32_t old = segment_slots(s), most = old > slots ? old : slots;
    uint64_t *ctrl = (uint64_t *)(void *)s->ctrl;
    for (uint32_t w = 0; w < most / 8; w++) STORE(&ctrl[w], 0);
    for (uint32_t w = 0; w < BITMAP_BYTES(most) / 8; w++) {
        STORE(&s->gc[w], 0);
        STORE(&s->own[w], 0);
    }
    STORE(&s->groups, slots / GROUP_SLOTS);
    s->used = s->tombstones = s->gc_count = s->own_count = 0;
    s->next_rank = RANK_NEVER;
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

/* Replace value and deadline of a full slot; the key stays. Inside the write window. */
void segment_write(segment *s, uint32_t slot, const record *r) {
    mark_slot(s->gc, &s->gc_count, slot, object_is_gc(s->entries[slot].key) || object_is_gc(r->e.value));
    mark_slot(s->own, &s->own_count, slot, r->own);
    PUBLISH(&s->entries[slot].value, r->e.value); /* release: pairs with the acquire in read.h */
    STORE(&s->deadlines[slot], r->deadline);
    if (s->ttls) STORE(&s->ttls[slot], r->ttl);
    if (s->limits) STORE(&s->limits[slot], r->limit);
    note_deadline(s, r->deadline);
}

/* Put a new entry on its probe path; the key must be absent and there must be room. Inside the
 * write window. Takes over the record's references. Returns the slot. */
uint32_t segment_insert(segment *s, const record *r) {
    uint32_t slot = free_slot(s, r->e.hash);
    s->tombstones -= s->ctrl[slot] == CTRL_DELETED;
    s->used++;
    STORE(&s->entries[slot].hash, r->e.hash);
    PUBLISH(&s->entries[slot].key, r->e.key); /* release: pairs with the acquire in read.h */
    segment_write(s, slot, r);
    ctrl_store(s->ctrl, slot, hash_tag(r->e.hash));
    return slot;
}

/* A slot may become EMPTY again if its group has an EMPTY one: then no probe ever went past it. */
static void free_ctrl(segment *s, uint32_t slot) {
    bool stopper = group_empty(group_load(s->ctrl + slot / GROUP_SLOTS * GROUP_SLOTS)) != 0;
    ctrl_store(s->ctrl, slot, stopper ? CTRL_EMPTY : CTRL_DELETED);
    s->tombstones += !stopper;
}

/* Take the entry of a full slot out; `removed` now owns its references. Opens its own window. */
void segment_remove(segment *s, uint32_t slot, lapse_item *removed) {
    entry *e = &s->entries[slot];
    *removed = (lapse_item){.key = e->key,
                            .value = e->value,
                            .deadline = s->deadlines[slot],
                            .ttl = s->ttls ? s->ttls[slot] : 0,
                            .limit = s->limits ? s->limits[slot] : LAPSE_NEVER,
                            .own_ttl = marked(s->own, s->own_count, slot)};
    write_begin(s);
    free_ctrl(s, slot);
    STORE(&e->key, NULL);
    STORE(&e->value, NULL);
    STORE(&s->deadlines[slot], LAPSE_NEVER);
    mark_slot(s->gc, &s->gc_count, slot, false);
    mark_slot(s->own, &s->own_count, slot, false);
    s->used--;
    write_end(s);
}

void segment_read(const segment *s, uint32_t slot, record *out) {
    out->e = s->entries[slot];
    out->deadline = RELAXED(&s->deadlines[slot]);
    out->ttl = s->ttls ? RELAXED(&s->ttls[slot]) : 0;
    out->limit = s->limits ? s->limits[slot] : LAPSE_NEVER;
    out->own = marked(s->own, s->own_count, slot);
}

static void blank_slot(segment *s, uint32_t slot) {
    STORE(&s->entries[slot].key, NULL);
    STORE(&s->entries[slot].value, NULL);
    STORE(&s->deadlines[slot], LAPSE_NEVER);
}

/* Call `use` for each full slot's record and blank the slot; control words are left to the caller. */
#define FOR_EACH_FULL(s, slot)                                                                        \
    for (uint32_t g_ = 0; g_ < (s)->groups; g_++)                                                     \
        for (group_mask m_ = group_full(group_load((s)->ctrl + g_ * GROUP_SLOTS)); m_; m_ &= m_ - 1)  \
            for (uint32_t slot = g_ * GROUP_SLOTS + mask_slot(m_), once_ = 1; once_; once_ = 0)

/* Move every entry into `out` (room for segment_slots()). Inside the write window; the caller then
 * resets the segment. Returns how many there were. */
uint32_t segment_take_all(segment *s, record *out) {
    uint32_t n = 0;
    FOR_EACH_FULL(s, slot) {
        segment_read(s, slot, &out[n++]);
        blank_slot(s, slot);
    }
    return n;
}

/* Move every entry of `from` into `to`, which has the room. Inside both write windows. */
void segment_move_all(segment *from, segment *to) {
    record r;
    FOR_EACH_FULL(from, slot) {
        segment_read(from, slot, &r);
        blank_slot(from, slot);
        segment_insert(to, &r);
    }
    segment_reset(from, segment_slots(from));
}

/* --- Expiry --- */

/* Scan 1,024 slots at a time. Writes the first `limit` expired slots and returns how many it wrote;
 * the lower bound is raised only by a scan that nothing cut short. */
uint32_t segment_expired(segment *s, int64_t now, uint32_t limit, uint32_t *slots) {
    uint64_t bits[SEGMENT_SLOTS / 64], next, least = RANK_NEVER;
    uint32_t n = 0, all = segment_slots(s);
    if (RELAXED(&s->next_rank) >= (uint64_t)now) return 0;
    for (uint32_t base = 0; base < all; base += SEGMENT_SLOTS) {
        uint32_t run = all - base < SEGMENT_SLOTS ? all - base : SEGMENT_SLOTS;
        scan_deadlines(s->deadlines + base, run, now, bits, &next);
        least = next < least ? next : least;
        for (uint32_t w = 0; w < (run + 63) / 64; w++)
            for (uint64_t b = bits[w]; b; b &= b - 1) {
                if (n == limit) return n;
                slots[n++] = base + w * 64 + lowest_bit(b);
            }
    }
    STORE(&s->next_rank, least);
    return n;
}

uint32_t segment_count_live(const segment *s, int64_t now) {
    uint64_t bits[SEGMENT_SLOTS / 64], next;
    uint32_t used = RELAXED(&s->used), all = RELAXED(&s->groups) * GROUP_SLOTS;
    if (RELAXED(&s->next_rank) >= (uint64_t)now) return used;
    size_t gone = 0;
    for (uint32_t base = 0; base < all; base += SEGMENT_SLOTS) {
        uint32_t run = all - base < SEGMENT_SLOTS ? all - base : SEGMENT_SLOTS;
        gone += scan_deadlines(s->deadlines + base, run, now, bits, &next);
    }
    return gone > used ? 0 : used - (uint32_t)gone;
}

/* --- Garbage collection --- */

/* Visit the entries that can be in a cycle; atomic ones are never dereferenced. */
int segment_traverse(const segment *s, lapse_visit visit, void *arg) {
    if (s->gc_count == 0) return 0;
    for (uint32_t w = 0; w < (segment_slots(s) + 63) / 64; w++)
        for (uint64_t b = s->gc[w]; b; b &= b - 1) {
            const entry *e = &s->entries[w * 64 + lowest_bit(b)];
            int stop = visit(e->key, arg);
            if (!stop) stop = visit(e->value, arg);
            if (stop) return stop;
        }
    return 0;
}

/* --- Checks --- */

static bool slot_check(const segment *s, uint32_t slot) {
    const entry *e = &s->entries[slot];
    uint8_t c = s->ctrl[slot];
    if (!(c & CTRL_FULL)) return e->key == NULL && e->value == NULL && s->deadlines[slot] == LAPSE_NEVER;
    return c == hash_tag(e->hash) && e->key && e->value && segment_covers(s, e->hash) &&
           s->next_rank <= DEADLINE_RANK(s->deadlines[slot]) &&
           bit_test(s->gc, slot) == (object_is_gc(e->key) || object_is_gc(e->value));
}

bool segment_check(const segment *s) {
    uint32_t used = 0, tombstones = 0, gc = 0, own = 0;
    for (uint32_t slot = 0; slot < segment_slots(s); slot++) {
        if (!slot_check(s, slot)) return false;
        used += (s->ctrl[slot] & CTRL_FULL) != 0;
        tombstones += s->ctrl[slot] == CTRL_DELETED;
        gc += bit_test(s->gc, slot);
        own += bit_test(s->own, slot);
    }
    return used == s->used && tombstones == s->tombstones && gc == s->gc_count && own == s->own_count &&
           s->seq % 2 == 0 &&
           used + tombstones <= slot_limit(segment_slots(s));
}
