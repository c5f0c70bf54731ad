/* Removing many keys at once: sorted by hash, so that each segment is locked once for all of its keys. */
#include "table.h"

#include <string.h>

#define RADIX_BITS 8u
#define RADIX (1u << RADIX_BITS)

/* --- Sorting --- */

/* One pass of a counting sort by the byte at `shift` of the mixed hash. */
static void sort_by_byte(size_t n, const uint64_t *hashes, const uint32_t *from, uint32_t *to,
                         uint32_t shift) {
    uint32_t start[RADIX] = {0}, sum = 0;
    for (size_t i = 0; i < n; i++) start[mix_hash(hashes[i]) >> shift & (RADIX - 1)]++;
    for (uint32_t b = 0; b < RADIX; b++) {
        uint32_t count = start[b];
        start[b] = sum;
        sum += count;
    }
    for (size_t i = 0; i < n; i++) to[start[mix_hash(hashes[from[i]]) >> shift & (RADIX - 1)]++] = from[i];
}

/* Order the numbers of n keys by the leading 16 bits of their mixed hashes: keys of one segment stand together
 * in tables of up to 65,536 segments. */
void lapse_sort_hashes(size_t n, const uint64_t *hashes, uint32_t *order, uint32_t *scratch) {
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    sort_by_byte(n, hashes, order, scratch, 64 - 2 * RADIX_BITS);
    sort_by_byte(n, hashes, scratch, order, 64 - RADIX_BITS);
}

/* --- Erasing --- */

/* Find a key without running user code. OK (in `*slot`), ABSENT, or MORE: its own comparison must be asked. */
static lapse_status find_plain(const segment *s, lapse_object *key, uint64_t h, uint32_t *slot) {
    uint32_t g = hash_group(h, s->groups);
    for (uint32_t n = s->groups; n > 0; n--, g = next_group(s, g)) {
        group ctrl = group_load(s->ctrl + g * GROUP_SLOTS);
        for (group_mask m = group_match(ctrl, hash_tag(h)); m; m &= m - 1) {
            *slot = g * GROUP_SLOTS + mask_slot(m);
            lapse_object *stored = entry_at(s, *slot)->key;
            if (stored == key) return LAPSE_OK;
            if (*hash_at(s, *slot) != h) continue;
            sameness same = object_same(stored, key);
            if (same != DIFFERENT) return same == SAME ? LAPSE_OK : LAPSE_MORE;
        }
        if (group_empty(ctrl)) break;
    }
    return LAPSE_ABSENT;
}

/* What one step works with. */
typedef struct {
    lapse_table *t;
    int64_t at;
    lapse_item *removed;
    size_t n;
} erasure;

/* Erase a key of the locked segment. MORE: not without asking. */
static lapse_status erase_locked(erasure *e, segment *s, lapse_object *key, uint64_t h, uint8_t *erased) {
    uint32_t slot;
    lapse_status status = find_plain(s, key, h, &slot);
    if (status == LAPSE_MORE) return status;
    if (RELAXED(&e->t->fence.out) > 0) fence_mark_key(&e->t->fence, h, key);
    if (status == LAPSE_ABSENT) return LAPSE_OK;
    *erased = !passed(*deadline_at(s, slot), e->at) && !table_dooms(e->t, s, slot);
    table_take(e->t, s, slot, h, &e->removed[e->n++]);
    return LAPSE_OK;
}

static lapse_status erase_asking(erasure *e, lapse_object *key, uint64_t hash, uint8_t *erased) {
    lapse_item removed;
    lapse_status status = lapse_delete(e->t, key, hash, e->at, &removed);
    if (status == LAPSE_RAISED || status == LAPSE_BUSY) return status;
    *erased = status == LAPSE_OK;
    if (status == LAPSE_OK) lapse_farewell(e->t, &removed, 1, LAPSE_DELETED);
    if (status == LAPSE_EXPIRED) lapse_farewell(e->t, &removed, 1, LAPSE_BY_DEADLINE);
    return LAPSE_OK;
}

static void fetch_block(lapse_table *t, size_t n, const uint64_t *hashes, const uint32_t *order) {
    uint64_t mixed[LAPSE_BLOCK];
    for (size_t i = 0; i < n; i++) mixed[i] = mix_hash(hashes[order[i]]);
    table_prefetch(t, n, mixed);
}

/* One step: at most LAPSE_BLOCK of the n keys, from the `*done`-th in the given order on. `erased[i]` becomes 1
 * if key i was live. OK: all are done. MORE: call again. RAISED or BUSY: the comparison of the key at
 * order[*done] did that; step over it. */
lapse_status lapse_erase_keys(lapse_table *t, size_t n, lapse_object *const *keys, const uint64_t *hashes,
                              size_t *done, int64_t now, const uint32_t *order, uint8_t *erased) {
    lapse_item removed[LAPSE_BLOCK];
    erasure e = {.t = t, .at = lapse_now(t, now), .removed = removed};
    size_t end = n - *done < LAPSE_BLOCK ? n : *done + LAPSE_BLOCK;
    lapse_status status = LAPSE_OK;
    fetch_block(t, end - *done, hashes, order + *done);
    while (*done < end && status == LAPSE_OK) {
        segment *s = lock_segment(t, mix_hash(hashes[order[*done]]));
        for (; *done < end && status == LAPSE_OK; *done += status == LAPSE_OK) {
            uint32_t i = order[*done];
            uint64_t h = mix_hash(hashes[i]);
            if (!segment_covers(s, h)) break;
            status = erase_locked(&e, s, keys[i], h, &erased[i]);
        }
        lock_drop(&s->lock);
        if (status != LAPSE_MORE) continue;
        status = erase_asking(&e, keys[order[*done]], hashes[order[*done]], &erased[order[*done]]);
        *done += status == LAPSE_OK;
    }
    lapse_dismiss(t, removed, e.n, e.at, LAPSE_DELETED);
    if (status != LAPSE_OK) return status;
    return *done < n ? LAPSE_MORE : LAPSE_OK;
}
