/* Passes: the removal, or listing, of every entry that some patterns match or that bears a tag.
 *
 *   leases    those that are covered are outdated first (fence.h); a listing leaves them alone
 *   labels    a tag, and each pattern with an indexable prefix that few enough entries share, walks the index
 *   build     before that, if prefixes of its depth have never been asked for: they are from now on
 *   table     all other patterns in one walk over the segments, in the order of hashes
 *
 * Each step is bounded, and takes one segment's lock at a time. Every entry that is there when the pass begins
 * and stays until the pass comes to it is met exactly once: a walk of a label starts with its oldest entry and
 * later ones follow behind, and the order of hashes does not change when segments split or merge. An entry
 * that is stored meanwhile may be met or not; a load that began before the pass ended is not stored.
 *
 * A pass belongs to one thread, and its patterns and tag to the caller, until lapse_pass_end(). */
#include "table.h"

#include "pattern.h"

#include <assert.h>
#include <string.h>

#define INDEX_FROM 8u      /* segments from which on an index is worth its memory */
#define INDEX_SHARE 8u     /* walk a label if it has at most one entry in so many */
#define BUILD_ROOM 4096u   /* nodes that the index gets at a time while it is built */
#define GROUPS_AHEAD 3u    /* keys are fetched so many groups before they are looked into */
#define KEY_LINE 64u       /* and the line behind the first one with them */

typedef enum { PASS_LEASES, PASS_LABELS, PASS_BUILD, PASS_TABLE } phase;

/* An entry that the walk over the table has found, and the pattern that matched it. */
typedef struct {
    member who;
    uint32_t pattern;
} due_entry;

struct lapse_pass {
    lapse_table *t;
    struct lapse_pattern *const *patterns; /* n of them, or */
    size_t n;
    lapse_object *tag; /* one tag */
    uint64_t tag_hash;
    int64_t at;
    bool listing;
    phase phase;
    fence_pass fence;
    size_t next; /* the pattern whose label is due */
    bool walking;
    label_walk walk;
    uint64_t cursor, epoch; /* of a build or of the walk over the table; of the build */
    bool at_end;   /* the walk over the table has come to the last segment */
    size_t rest_n;
    size_t due_n, due_room;
    due_entry *due;
    uint32_t *rest; /* the patterns that the walk over the table looks for */
    uint64_t counts[]; /* live entries that went, for each pattern, or for the tag */
};

/* --- Making --- */

/* Begin a pass over what `n` patterns match or, if n is 0, over what bears a tag. OK or NO_MEMORY. */
lapse_status lapse_pass_new(lapse_table *t, struct lapse_pattern *const *patterns, size_t n,
                            lapse_object *tag, uint64_t tag_hash, int64_t now, bool listing,
                            lapse_pass **out) {
    size_t counters = n ? n : 1, bytes = sizeof(lapse_pass) + counters * sizeof(uint64_t);
    lapse_pass *p = t->config.memory->grab(bytes + counters * sizeof(uint32_t));
    if (p == NULL) return LAPSE_NO_MEMORY;
    *p = (lapse_pass){.t = t, .patterns = patterns, .n = n, .tag = tag, .tag_hash = tag_hash};
    p->at = lapse_now(t, now);
    p->listing = listing;
    p->phase = listing ? PASS_LABELS : PASS_LEASES;
    p->rest = (uint32_t *)(void *)((uint8_t *)p + bytes);
    p->fence = (fence_pass){.patterns = patterns, .n = n, .tag = tag_hash};
    if (!listing) fence_pass_begin(&t->fence, &p->fence);
    *out = p;
    return LAPSE_OK;
}

static uint32_t build_depth(const lapse_pass *p) { return pattern_root_of(p->patterns[p->next]).depth; }

/* End a pass, done or not: another one builds what this one has not. */
void lapse_pass_end(lapse_pass *p) {
    lapse_table *t = p->t;
    if (p->walking) index_walk_end(&t->index, &p->walk);
    if (p->phase == PASS_BUILD) index_prefixes_failed(&t->index, p->epoch, build_depth(p));
    if (!p->listing) fence_pass_end(&t->fence, &p->fence);
    table_settle(t);
    if (p->due) t->config.memory->drop(p->due);
    t->config.memory->drop(p);
}

/* Live entries removed so far, for each pattern (an entry counts for the first that matched it), or for
 * the tag. */
const uint64_t *lapse_pass_counts(const lapse_pass *p) { return p->counts; }

/* --- One entry; under its segment's lock --- */

/* The slot that holds this very key object, or none: UINT32_MAX. */
static uint32_t slot_of(const segment *s, member m) {
    uint32_t g = hash_group(m.hash, s->groups);
    for (uint32_t n = s->groups; n > 0; n--, g = next_group(s, g)) {
        group ctrl = group_load(s->ctrl + g * GROUP_SLOTS);
        for (group_mask f = group_match(ctrl, hash_tag(m.hash)); f; f &= f - 1) {
            uint32_t slot = g * GROUP_SLOTS + mask_slot(f);
            if (entry_at(s, slot)->key == m.key) return slot;
        }
        if (group_empty(ctrl)) break;
    }
    return UINT32_MAX;
}

/* Is it still what the label said? Prefixes are known by their hash alone, and a key object's address may be
 * another's by now. */
static bool still_due(lapse_pass *p, member m, size_t pattern) {
    lapse_text text;
    if (p->n == 0) return index_bears(&p->t->index, &p->walk, m.hash, m.key);
    return object_text(m.key, &text) && pattern_matches(p->patterns[pattern], &text);
}

/* Remove or list one entry into `out`: how many that makes, 0 or 1. */
static size_t treat(lapse_pass *p, segment *s, uint32_t slot, uint64_t h, size_t counter, lapse_item *out) {
    bool live = !passed(*deadline_at(s, slot), p->at);
    p->counts[counter] += live;
    if (!p->listing) {
        table_take(p->t, s, slot, h, out);
        return 1;
    }
    if (!live) return 0;
    *out = (lapse_item){.key = entry_at(s, slot)->key};
    object_ref(out->key);
    return 1;
}

static void part(lapse_pass *p, lapse_item *items, size_t n) {
    if (!p->listing) lapse_dismiss(p->t, items, n, p->at, p->n ? LAPSE_BY_PATTERN : LAPSE_BY_TAG);
}

/* --- Labels --- */

static void fetch_members(lapse_table *t, const member *m, size_t n) {
    uint64_t hashes[LAPSE_BLOCK];
    for (size_t i = 0; i < n; i++) {
        hashes[i] = m[i].hash;
        PREFETCH(m[i].key);
    }
    table_prefetch(t, n, hashes);
    index_prefetch(&t->index, n, m);
}

/* The next block of the label's entries. False: there was none left. */
static bool walk_block(lapse_pass *p, lapse_item *out, size_t *n) {
    member m[LAPSE_BLOCK];
    size_t found = index_walk_next(&p->t->index, &p->walk, m, LAPSE_BLOCK);
    fetch_members(p->t, m, found);
    for (size_t i = 0; i < found; i++) {
        segment *s = lock_segment(p->t, m[i].hash);
        uint32_t slot = slot_of(s, m[i]);
        if (slot != UINT32_MAX && still_due(p, m[i], p->next))
            *n += treat(p, s, slot, m[i].hash, p->next, out + *n);
        lock_drop(&s->lock);
    }
    return found > 0;
}

/* Walk on; `out` has room for LAPSE_STEP. */
static void walk_step(lapse_pass *p, lapse_item *out, size_t *n) {
    bool more = true;
    while (more && *n + LAPSE_BLOCK <= LAPSE_STEP) more = walk_block(p, out, n);
    part(p, out, *n);
    if (more) return;
    index_walk_end(&p->t->index, &p->walk);
    p->walking = false;
    p->next++;
}

static lapse_status begin_walk(lapse_pass *p, uint64_t hash, lapse_object *name, size_t most) {
    tag_index *ix = &p->t->index;
    lapse_status status;
    while ((status = index_walk_begin(ix, hash, name, most, &p->walk)) == LAPSE_NO_ROOM)
        if (index_make_room(ix, p->t->config.memory, 1) != LAPSE_OK) return LAPSE_NO_MEMORY;
    p->walking = status == LAPSE_OK;
    return status;
}

/* Entries, roughly: nobody need wait for an exact number. */
static size_t entries_about(const lapse_table *t) {
    return RELAXED(&t->segments) * (size_t)slot_limit(SEGMENT_HALF_SLOTS);
}

static void leave_to_table(lapse_pass *p) { p->rest[p->rest_n++] = (uint32_t)p->next++; }

/* See how the next pattern is to be looked for. */
static void route(lapse_pass *p) {
    tag_index *ix = &p->t->index;
    pattern_root root = pattern_root_of(p->patterns[p->next]);
    bool built = root.depth && (RELAXED(&ix->built) >> (root.depth - 1) & 1);
    if (!built) {
        p->epoch = 0;
        if (root.depth && RELAXED(&p->t->segments) > INDEX_FROM)
            p->epoch = index_keep_prefixes(ix, root.depth);
        p->cursor = 0;
        if (p->epoch) p->phase = PASS_BUILD;
        else leave_to_table(p);
        return;
    }
    lapse_status status = begin_walk(p, root.hash, NULL, entries_about(p->t) / INDEX_SHARE);
    if (status == LAPSE_ABSENT) p->next++;
    else if (status != LAPSE_OK) leave_to_table(p);
}

/* OK or NO_MEMORY (a tag has no other way). */
static lapse_status label_step(lapse_pass *p, lapse_item *out, size_t *n) {
    lapse_status status = LAPSE_OK;
    if (p->walking) {
        walk_step(p, out, n);
    } else if (p->next == (p->n ? p->n : 1)) {
        p->phase = PASS_TABLE;
        p->cursor = 0;
    } else if (p->n) {
        route(p);
    } else {
        status = begin_walk(p, p->tag_hash, p->tag, SIZE_MAX);
        p->next += status == LAPSE_ABSENT;
    }
    return status == LAPSE_NO_MEMORY ? status : LAPSE_OK;
}

/* --- Walking segments --- */

static void fetch_keys(const segment *s, uint32_t g) {
    if (g >= s->groups) return;
    for (group_mask m = group_full(group_load(s->ctrl + g * GROUP_SLOTS)); m; m &= m - 1) {
        const char *key = (const char *)entry_at(s, g * GROUP_SLOTS + mask_slot(m))->key;
        PREFETCH(key);
        PREFETCH(key + KEY_LINE);
    }
}

/* For each full slot, fetching keys ahead. */
#define FOR_EACH_KEY(s, slot)                                                                                \
    for (uint32_t g_ = 0; g_ < (s)->groups; g_++)                                                            \
        for (group_mask m_ =                                                                                 \
                 (fetch_keys((s), g_ + GROUPS_AHEAD), group_full(group_load((s)->ctrl + g_ * GROUP_SLOTS))); \
             m_; m_ &= m_ - 1)                                                                               \
            for (uint32_t slot = g_ * GROUP_SLOTS + mask_slot(m_), once_ = 1; once_; once_ = 0)

static bool advance(uint64_t *cursor, const segment *s) {
    *cursor = segment_last_hash(s) + 1;
    return *cursor != 0;
}

/* --- Building prefixes --- */

/* Index one segment's keys. False: the index lacks room; those that are in stay in. */
static bool build_segment(lapse_pass *p, const segment *s, uint32_t depth) {
    uint64_t prefix[PREFIX_DEPTHS];
    lapse_text text;
    FOR_EACH_KEY(s, slot) {
        lapse_object *key = entry_at(s, slot)->key;
        if (!object_text(key, &text) || !text_prefixes(&text, 1u << (depth - 1), prefix)) continue;
        if (!index_add_prefix(&p->t->index, p->epoch, *hash_at(s, slot), key, prefix[0])) return false;
    }
    return true;
}

/* Build on, one segment; without memory the pattern is left to the walk over the table. */
static void build_step(lapse_pass *p) {
    lapse_table *t = p->t;
    uint32_t depth = build_depth(p);
    segment *s = lock_segment(t, p->cursor);
    bool done = build_segment(p, s, depth), more = done ? advance(&p->cursor, s) : true;
    lock_drop(&s->lock);
    if (!done && index_make_room(&t->index, t->config.memory, BUILD_ROOM) != LAPSE_OK) {
        index_prefixes_failed(&t->index, p->epoch, depth);
        leave_to_table(p);
        p->phase = PASS_LABELS;
    } else if (!more) {
        index_prefixes_built(&t->index, p->epoch, depth);
        p->phase = PASS_LABELS;
    }
}

/* --- The walk over the table --- */

/* The first of the patterns that matches, or n. */
INLINE size_t first_match(const lapse_pass *p, const lapse_text *text) {
    for (size_t i = 0; i < p->rest_n; i++)
        if (pattern_matches(p->patterns[p->rest[i]], text)) return p->rest[i];
    return p->n;
}

/* What matches in the segment is found once, and removed thereafter: what a listener stores in its place is not
 * found again. False: it has more entries than there is room for. */
static bool find_due(lapse_pass *p, const segment *s) {
    lapse_text text;
    if (s->used > p->due_room) return false;
    FOR_EACH_KEY(s, slot) {
        lapse_object *key = entry_at(s, slot)->key;
        size_t pattern = object_text(key, &text) ? first_match(p, &text) : p->n;
        if (pattern == p->n) continue;
        p->due[p->due_n++] = (due_entry){{*hash_at(s, slot), key}, (uint32_t)pattern};
    }
    return true;
}

static lapse_status make_due_room(lapse_pass *p, size_t room) {
    const lapse_memory *memory = p->t->config.memory;
    due_entry *fresh = memory->grab_raw(room * sizeof(due_entry));
    if (fresh == NULL) return LAPSE_NO_MEMORY;
    if (p->due) memory->drop(p->due);
    p->due = fresh;
    p->due_room = room;
    return LAPSE_OK;
}

/* Find out what is due in the next segment. */
static lapse_status find_step(lapse_pass *p) {
    segment *s = lock_segment(p->t, p->cursor);
    size_t room = s->used > SEGMENT_SLOTS ? s->used : SEGMENT_SLOTS;
    bool found = find_due(p, s);
    if (found) p->at_end = !advance(&p->cursor, s);
    lock_drop(&s->lock);
    return found ? LAPSE_MORE : make_due_room(p, room) == LAPSE_OK ? LAPSE_MORE : LAPSE_NO_MEMORY;
}

/* Remove what is due, as much as there is room for. */
static void remove_step(lapse_pass *p, lapse_item *out, size_t *n) {
    while (p->due_n > 0 && *n < LAPSE_STEP) {
        const due_entry *d = &p->due[--p->due_n];
        segment *s = lock_segment(p->t, d->who.hash);
        uint32_t slot = slot_of(s, d->who);
        if (slot != UINT32_MAX && still_due(p, d->who, d->pattern))
            *n += treat(p, s, slot, d->who.hash, d->pattern, out + *n);
        lock_drop(&s->lock);
    }
    part(p, out, *n);
}

/* List a segment. NO_ROOM: `out` lacks room for `*n`, and nothing was done. */
static lapse_status list_step(lapse_pass *p, lapse_item *out, size_t room, size_t *n) {
    lapse_text text;
    segment *s = lock_segment(p->t, p->cursor);
    bool fits = s->used <= room;
    if (!fits) *n = s->used;
    else FOR_EACH_KEY(s, slot) {
            if (!object_text(entry_at(s, slot)->key, &text) || first_match(p, &text) == p->n) continue;
            *n += treat(p, s, slot, *hash_at(s, slot), 0, out + *n);
        }
    if (fits) p->at_end = !advance(&p->cursor, s);
    lock_drop(&s->lock);
    return fits ? LAPSE_MORE : LAPSE_NO_ROOM;
}

static lapse_status table_step(lapse_pass *p, lapse_item *out, size_t room, size_t *n) {
    lapse_status status = LAPSE_MORE;
    if (p->rest_n == 0 || (p->at_end && p->due_n == 0)) return LAPSE_OK;
    if (p->listing) status = list_step(p, out, room, n);
    else if (p->due_n > 0) remove_step(p, out, n);
    else status = find_step(p);
    return status == LAPSE_MORE && p->at_end && p->due_n == 0 ? LAPSE_OK : status;
}

/* One bounded step. OK: that was all. MORE: call again. A removal parts with what it removes, and needs `out`
 * (at least LAPSE_STEP) as a workplace; a listing leaves `*n` items there, with new references to their keys and
 * no values. NO_ROOM: a listing needs room for `*n` items; nothing was done. NO_MEMORY. */
lapse_status lapse_pass_step(lapse_pass *p, lapse_item *out, size_t room, size_t *n) {
    assert(room >= LAPSE_STEP);
    *n = 0;
    switch (p->phase) {
    case PASS_LEASES:
        if (!fence_pass_step(&p->t->fence, &p->fence)) p->phase = PASS_LABELS;
        return LAPSE_MORE;
    case PASS_LABELS: return label_step(p, out, n) == LAPSE_OK ? LAPSE_MORE : LAPSE_NO_MEMORY;
    case PASS_BUILD: build_step(p); return LAPSE_MORE;
    case PASS_TABLE: break;
    }
    return table_step(p, out, room, n);
}
