/* Storms: the removal of what so many prefixes cover that one walk over the table is cheaper than a look-up of each.
 *
 *   begin    from here on nobody meets an entry that the storm covers, long before the walk has come to it
 *   leases   those that are covered are outdated (fence.h)
 *   walk     over the segments, in the order of hashes: what is covered goes
 *   end
 *
 *                hashes   0 ──── walked ────► reached ──── doomed, where covered ────► end
 *
 * While a storm is under way, `storms` of its table is above 0. Reads then take their segment's lock, as writes do,
 * and whoever finds an entry under that lock asks the fence whether it is doomed: then it is taken out at once, on
 * the storm's behalf (lookup_begin()). `reached` moves under the lock of the segment that has just been walked. So
 * an entry that is stored behind it stays, one that is stored ahead of it goes, as if it had been stored before; and
 * nobody sees an entry come back that somebody has missed. lapse_len() and the sizes count an entry until it has
 * been taken out.
 *
 * Each step is bounded, and takes one segment's lock at a time. A storm has all the memory that it needs when it
 * begins: it cannot fail half way. It belongs to one thread, and its prefixes to the caller, until
 * lapse_storm_end(). */
#include "table.h"

#include "keys.h"

#define STORM_SHARE \
    128u /* a storm: a prefix for every so many entries; then a walk is quicker than look-ups, */
#define BUILD_SHARE 1024u /* for so many, than to index prefixes first */
#define STORM_ITEMS SEGMENT_SLOTS /* that one step removes at most: all of any segment that can be split */

struct lapse_storm {
    lapse_table *t;
    fence_pass fence;
    bool outdating; /* leases are being outdated */
    lapse_item items[STORM_ITEMS]; /* what one step has removed */
    uint64_t counts[]; /* live entries that went, for each pattern */
};

/* Is it worth a storm to remove what `n` prefixes of this set cover? */
bool lapse_is_storm(const lapse_table *t, const lapse_prefixes *x, size_t n) {
    size_t entries = RELAXED(&t->segments) * (size_t)slot_limit(SEGMENT_HALF_SLOTS);
    bool indexed = (lapse_prefixes_depths(x) & ~RELAXED(&t->index.built)) == 0;
    return n > 0 && n >= entries / (indexed ? STORM_SHARE : BUILD_SHARE);
}

/* Begin to remove what the set covers, whose numbers are below `n`. OK: it is in force. NO_MEMORY. */
lapse_status lapse_storm_new(lapse_table *t, const lapse_prefixes *x, size_t n, int64_t now,
                             lapse_storm **out) {
    lapse_storm *s = t->config.memory->grab(sizeof *s + n * sizeof *s->counts);
    if (s == NULL) return LAPSE_NO_MEMORY;
    s->t = t;
    s->outdating = true;
    s->fence = (fence_pass){.prefixes = x, .counts = s->counts, .at = lapse_now(t, now)};
    ADD(&t->storms, 1); /* first: who reads 0 has begun before */
    fence_pass_begin(&t->fence, &s->fence);
    *out = s;
    return LAPSE_OK;
}

/* Live entries removed so far, for each pattern. */
const uint64_t *lapse_storm_counts(const lapse_storm *s) { return s->counts; }

/* End a storm, done or not: what it has not come to stays. */
void lapse_storm_end(lapse_storm *s) {
    lapse_table *t = s->t;
    if (fence_pass_end(&t->fence, &s->fence)) ADD(&t->storms, (uint64_t)-1);
    table_settle(t);
    t->config.memory->drop(s);
}

/* --- The walk; under a segment's lock --- */

/* Full slots from group `*g` on, at most a block: how many. */
static uint32_t next_slots(const segment *s, uint32_t *g, uint32_t *slots) {
    uint32_t n = 0;
    for (; *g < s->groups && n + GROUP_SLOTS <= LAPSE_BLOCK; ++*g) {
        fetch_keys(s, *g + GROUPS_AHEAD);
        for (group_mask m = group_full(group_load(s->ctrl + *g * GROUP_SLOTS)); m; m &= m - 1)
            slots[n++] = *g * GROUP_SLOTS + mask_slot(m);
    }
    return n;
}

/* Remove those of n entries that are covered: how many. What has been stored behind the walk stays: a segment that has
 * merged meanwhile holds such entries, too. */
static uint32_t take_block(lapse_storm *storm, segment *s, const uint32_t *slots, uint32_t n,
                           lapse_item *out) {
    lapse_text texts[LAPSE_BLOCK];
    uint32_t where[LAPSE_BLOCK], numbers[LAPSE_BLOCK], count = 0, taken = 0;
    for (uint32_t i = 0; i < n; i++)
        if (text_at(s, slots[i], &texts[count])) where[count++] = slots[i];
    prefixes_find_block(storm->fence.prefixes, texts, count, numbers);
    for (uint32_t i = 0; i < count; i++) {
        if (numbers[i] == NO_PREFIX || *hash_at(s, where[i]) < storm->fence.reached) continue;
        bool live = !passed(*deadline_at(s, where[i]), storm->fence.at);
        if (live) ADD(&storm->counts[numbers[i]], 1);
        table_take(storm->t, s, where[i], *hash_at(s, where[i]), &out[taken++]);
    }
    return taken;
}

/* Remove what is covered in a segment, as far as there is room: how many. *done: that was all. */
static uint32_t take_covered(lapse_storm *storm, segment *s, bool *done) {
    uint32_t slots[LAPSE_BLOCK], g = 0, taken = 0;
    while (g < s->groups && taken + LAPSE_BLOCK <= STORM_ITEMS) {
        uint32_t n = next_slots(s, &g, slots);
        taken += take_block(storm, s, slots, n, storm->items + taken);
    }
    *done = g == s->groups;
    return taken;
}

static uint32_t walk_segment(lapse_storm *storm) {
    fence_pass *f = &storm->fence;
    bool done = false;
    segment *s = lock_segment(storm->t, f->reached);
    uint32_t taken = take_covered(storm, s, &done);
    uint64_t last = segment_last_hash(s);
    if (done && last == UINT64_MAX) STORE(&f->over, true);
    else if (done) STORE(&f->reached, last + 1);
    lock_drop(&s->lock);
    return taken;
}

static void part(lapse_storm *s, uint32_t n) {
    for (uint32_t i = 0; i < n; i += LAPSE_STEP)
        lapse_dismiss(s->t, s->items + i, n - i < LAPSE_STEP ? n - i : LAPSE_STEP, s->fence.at,
                      LAPSE_BY_PATTERN);
}

/* One bounded step: a segment. OK: that was all. MORE: call again. */
lapse_status lapse_storm_step(lapse_storm *s) {
    if (s->outdating) {
        s->outdating = fence_pass_step(&s->t->fence, &s->fence);
        return LAPSE_MORE;
    }
    if (!s->fence.over) part(s, walk_segment(s));
    return s->fence.over ? LAPSE_OK : LAPSE_MORE;
}
