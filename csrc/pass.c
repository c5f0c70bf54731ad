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

#include "keys.h"
#include "pattern.h"

#include <assert.h>
#include <string.h>

#define INDEX_FROM 8u      /* segments from which on an index is worth its memory */
#define INDEX_SHARE 8u     /* walk a label if it has at most one entry in so many */
#define BUILD_ROOM 4096u   /* nodes that the index gets at a time while it is built */
#define ROUTES 64u         /* patterns that one step looks up */
#define PATTERNS_STEP 16u  /* patterns that a segment's keys are compared with in one step */
#define NO_GIST UINT64_C(1) /* of a key without text: of no length, and looked into at worst */

typedef enum { PASS_LEASES, PASS_LABELS, PASS_BUILD, PASS_TABLE } phase;

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
    size_t next; /* the pattern whose label is due next */
    uint32_t walks_n;
    label_walk walks[WALKS];
    uint64_t cursor, epoch; /* of a build or of the walk over the table; of the build */
    size_t chunk;  /* of these patterns, those that the segment at the cursor has been compared with */
    uint64_t last; /* the last hash that all of these comparisons have covered */
    bool at_end;   /* the walk over the table has come to the last segment */
    size_t rest_n;
    size_t due_n, due_room;
    candidate *due; /* what has been found and not yet been treated */
    bool by_gist; /* each of them says something of its matches' gists */
    pattern_gist *gists;
    uint32_t *rest; /* the patterns that the walk over the table looks for */
    uint64_t counts[]; /* live entries that went, for each pattern, or for the tag */
};

/* --- Making --- */

/* Begin a pass over what `n` patterns match or, if n is 0, over what bears a tag. OK or NO_MEMORY. */
lapse_status lapse_pass_new(lapse_table *t, struct lapse_pattern *const *patterns, size_t n,
                            lapse_object *tag, uint64_t tag_hash, int64_t now, bool listing,
                            lapse_pass **out) {
    size_t counters = n ? n : 1, bytes = sizeof(lapse_pass) + counters * sizeof(uint64_t);
    lapse_pass *p = t->config.memory->grab(bytes + counters * (sizeof(pattern_gist) + sizeof(uint32_t)));
    if (p == NULL) return LAPSE_NO_MEMORY;
    *p = (lapse_pass){.t = t, .patterns = patterns, .n = n, .tag = tag, .tag_hash = tag_hash};
    p->at = lapse_now(t, now);
    p->listing = listing;
    p->phase = listing ? PASS_LABELS : PASS_LEASES;
    p->by_gist = lapse_segments(t) > INDEX_FROM;
    p->gists = (pattern_gist *)(void *)((uint8_t *)p + bytes);
    p->rest = (uint32_t *)(void *)(p->gists + counters);
    p->fence = (fence_pass){.patterns = patterns, .n = n, .tag = tag_hash};
    if (!listing) fence_pass_begin(&t->fence, &p->fence);
    *out = p;
    return LAPSE_OK;
}

static void end_walks(lapse_pass *p) {
    while (p->walks_n > 0) index_walk_end(&p->t->index, &p->walks[--p->walks_n]);
}

static uint32_t build_depth(const lapse_pass *p) { return pattern_root_of(p->patterns[p->next]).depth; }

/* End a pass, done or not: another one builds what this one has not. */
void lapse_pass_end(lapse_pass *p) {
    lapse_table *t = p->t;
    end_walks(p);
    if (p->phase == PASS_BUILD) index_prefixes_failed(&t->index, p->epoch, build_depth(p));
    if (!p->listing) fence_pass_end(&t->fence, &p->fence);
    table_settle(t);
    while (p->listing && p->phase == PASS_TABLE && p->due_n > 0) object_unref(p->due[--p->due_n].who.key);
    if (p->due) t->config.memory->drop(p->due);
    t->config.memory->drop(p);
}

/* Live entries removed so far, for each pattern (an entry counts for the first that matched it), or for
 * the tag. */
const uint64_t *lapse_pass_counts(const lapse_pass *p) { return p->counts; }

/* --- One entry; under its segment's lock --- */

/* The slot that holds this very key object with this very hash, or NOWHERE. The object may have been freed
 * since it was found, and its address be another key's, which is due too or is not, but is never mistaken. */
static uint32_t slot_of(const segment *s, member m) {
    uint32_t g = hash_group(m.hash, s->groups);
    for (uint32_t n = s->groups; n > 0; n--, g = next_group(s, g)) {
        group ctrl = group_load(s->ctrl + g * GROUP_SLOTS);
        for (group_mask f = group_match(ctrl, hash_tag(m.hash)); f; f &= f - 1) {
            uint32_t slot = g * GROUP_SLOTS + mask_slot(f);
            if (entry_at(s, slot)->key == m.key && *hash_at(s, slot) == m.hash) return slot;
        }
        if (group_empty(ctrl)) break;
    }
    return NOWHERE;
}

/* Is it still what the label said? Prefixes are known by their hash alone, and a key object's address may be
 * another's by now. */
static bool still_due(lapse_pass *p, const candidate *c) {
    lapse_text text;
    if (p->n == 0) return index_bears(&p->t->index, &p->walks[0], c->who.hash, c->who.key);
    return object_text(c->who.key, &text) && pattern_matches(p->patterns[c->number], &text);
}

/* Remove or list one entry into `out`: how many that makes, 0 or 1. */
static size_t treat(lapse_pass *p, segment *s, uint32_t slot, uint64_t h, size_t counter, lapse_item *out) {
    bool live = !passed(*deadline_at(s, slot), p->at) && !table_dooms(p->t, s, slot);
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

/* --- Candidates: found first, treated thereafter --- */

/* So what a listener stores in the place of an entry that went is not found again. */
static lapse_status make_due_room(lapse_pass *p, size_t room) {
    const lapse_memory *memory = p->t->config.memory;
    candidate *fresh = memory->grab_raw(room * sizeof(candidate));
    if (fresh == NULL) return LAPSE_NO_MEMORY;
    if (p->due) memory->drop(p->due);
    p->due = fresh;
    p->due_room = room;
    return LAPSE_OK;
}

static void fetch_candidates(lapse_table *t, const candidate *c, size_t n) {
    uint64_t hashes[LAPSE_BLOCK];
    for (size_t i = 0; i < n; i++) {
        hashes[i] = c[i].who.hash;
        PREFETCH(c[i].who.key);
    }
    table_prefetch(t, n, hashes);
    index_prefetch(&t->index, n, c);
}

static size_t treat_block(lapse_pass *p, const candidate *c, size_t count, lapse_item *out) {
    size_t n = 0;
    fetch_candidates(p->t, c, count);
    for (size_t i = 0; i < count; i++) {
        segment *s = lock_segment(p->t, c[i].who.hash);
        uint32_t slot = slot_of(s, c[i].who);
        if (slot != NOWHERE && still_due(p, &c[i]))
            n += treat(p, s, slot, c[i].who.hash, c[i].number, out + n);
        lock_drop(&s->lock);
    }
    return n;
}

/* Treat what is due, as much as there is room for: LAPSE_STEP. */
static void treat_step(lapse_pass *p, lapse_item *out, size_t *n) {
    while (p->due_n > 0 && *n + LAPSE_BLOCK <= LAPSE_STEP) {
        size_t count = p->due_n < LAPSE_BLOCK ? p->due_n : LAPSE_BLOCK;
        p->due_n -= count;
        *n += treat_block(p, p->due + p->due_n, count, out + *n);
    }
    part(p, out, *n);
}

/* --- Labels --- */

static bool is_wanted(const void *context, const candidate *c) {
    const lapse_pass *p = context;
    lapse_text text;
    return object_text(c->who.key, &text) && pattern_matches(p->patterns[c->number], &text);
}

/* Walk on along all labels that are open; end them when there is nothing left of any. */
static void walk_step(lapse_pass *p) {
    tag_index *ix = &p->t->index;
    size_t left = 0;
    p->due_n = index_walk_next(ix, p->walks, p->walks_n, p->n ? is_wanted : NULL, p, p->due, p->due_room);
    for (uint32_t i = 0; i < p->walks_n; i++) left += p->walks[i].left;
    if (left == 0 && p->due_n == 0) end_walks(p);
}

static lapse_status begin_walk(lapse_pass *p, uint64_t hash, lapse_object *name, size_t most) {
    tag_index *ix = &p->t->index;
    label_walk *w = &p->walks[p->walks_n];
    lapse_status status = p->due ? LAPSE_OK : make_due_room(p, SEGMENT_SLOTS);
    if (status != LAPSE_OK) return status;
    w->number = (uint32_t)p->next;
    while ((status = index_walk_begin(ix, hash, name, most, w)) == LAPSE_NO_ROOM)
        if (index_make_room(ix, p->t->config.memory, 1) != LAPSE_OK) return LAPSE_NO_MEMORY;
    p->walks_n += status == LAPSE_OK;
    p->next += status == LAPSE_OK || status == LAPSE_ABSENT;
    return status;
}

/* Entries, roughly: nobody need wait for an exact number. */
static size_t entries_about(const lapse_table *t) {
    return RELAXED(&t->segments) * (size_t)slot_limit(SEGMENT_HALF_SLOTS);
}

static void leave_to_table(lapse_pass *p) {
    pattern_gist gist = pattern_gist_of(p->patterns[p->next]);
    p->by_gist = p->by_gist && gist.mask != 0;
    p->gists[p->rest_n] = gist;
    p->rest[p->rest_n++] = (uint32_t)p->next++;
}

/* See how the next pattern is to be looked for. False: not while walks are open. */
static bool route(lapse_pass *p) {
    lapse_table *t = p->t;
    pattern_root root = pattern_root_of(p->patterns[p->next]);
    bool built = root.depth && (RELAXED(&t->index.built) >> (root.depth - 1) & 1);
    if (built) {
        lapse_status status = begin_walk(p, root.hash, NULL, entries_about(t) / INDEX_SHARE);
        if (status != LAPSE_OK && status != LAPSE_ABSENT) leave_to_table(p);
        return true;
    }
    if (p->walks_n > 0) return false;
    p->epoch = 0;
    if (root.depth && RELAXED(&t->segments) > INDEX_FROM)
        p->epoch = index_keep_prefixes(&t->index, root.depth);
    p->cursor = 0;
    if (p->epoch) p->phase = PASS_BUILD;
    else leave_to_table(p);
    return true;
}

/* Open walks for the next patterns, or for the tag. OK or NO_MEMORY (a tag has no other way). */
static lapse_status open_walks(lapse_pass *p) {
    if (p->n == 0) {
        lapse_status status = begin_walk(p, p->tag_hash, p->tag, SIZE_MAX);
        return status == LAPSE_NO_MEMORY ? status : LAPSE_OK;
    }
    for (uint32_t i = 0; i < ROUTES && p->phase == PASS_LABELS && p->next < p->n && p->walks_n < WALKS; i++)
        if (!route(p)) break;
    return LAPSE_OK;
}

static lapse_status label_step(lapse_pass *p, lapse_item *out, size_t *n) {
    if (p->due_n > 0) {
        treat_step(p, out, n);
    } else if (p->walks_n > 0) {
        walk_step(p);
    } else if (p->next < (p->n ? p->n : 1)) {
        return open_walks(p);
    } else {
        p->phase = PASS_TABLE;
        p->cursor = 0;
    }
    return LAPSE_OK;
}

/* --- Walking segments --- */

#define FOR_EACH_SLOT(s, slot)                                                                       \
    for (uint32_t g_ = 0; g_ < (s)->groups; g_++)                                                    \
        for (group_mask m_ = group_full(group_load((s)->ctrl + g_ * GROUP_SLOTS)); m_; m_ &= m_ - 1) \
            for (uint32_t slot = g_ * GROUP_SLOTS + mask_slot(m_), once_ = 1; once_; once_ = 0)

/* The same, fetching keys ahead. */
#define FOR_EACH_KEY(s, slot)                                                                                \
    for (uint32_t g_ = 0; g_ < (s)->groups; g_++)                                                            \
        for (group_mask m_ =                                                                                 \
                 (fetch_keys((s), g_ + GROUPS_AHEAD), group_full(group_load((s)->ctrl + g_ * GROUP_SLOTS))); \
             m_; m_ &= m_ - 1)                                                                               \
            for (uint32_t slot = g_ * GROUP_SLOTS + mask_slot(m_), once_ = 1; once_; once_ = 0)

/* --- Building prefixes --- */

/* Index one segment's keys. False: the index lacks room; those that are in stay in. */
static bool build_segment(lapse_pass *p, const segment *s, uint32_t depth) {
    uint64_t prefix[PREFIX_DEPTHS];
    lapse_text text;
    FOR_EACH_KEY(s, slot) {
        lapse_object *key = entry_at(s, slot)->key;
        if (!text_at(s, slot, &text) || !text_prefixes(&text, 1u << (depth - 1), prefix)) continue;
        if (!index_add_prefix(&p->t->index, p->epoch, *hash_at(s, slot), key, prefix[0])) return false;
    }
    return true;
}

/* Build on, one segment; without memory the pattern is left to the walk over the table. */
static void build_step(lapse_pass *p) {
    lapse_table *t = p->t;
    uint32_t depth = build_depth(p);
    segment *s = lock_segment(t, p->cursor);
    bool done = build_segment(p, s, depth), more = done ? segment_pass(&p->cursor, s) : true;
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

static size_t chunk_end(const lapse_pass *p) {
    return p->rest_n - p->chunk < PATTERNS_STEP ? p->rest_n : p->chunk + PATTERNS_STEP;
}

/* On to the next patterns or, after the last, behind what all of them have been compared with: the segment may have
 * been split or merged in between. */
static void next_chunk(lapse_pass *p, const segment *s) {
    uint64_t last = segment_last_hash(s);
    if (p->chunk == 0 || last < p->last) p->last = last;
    p->chunk = chunk_end(p);
    if (p->chunk < p->rest_n) return;
    p->chunk = 0;
    p->cursor = p->last + 1;
    p->at_end = p->cursor == 0;
}

/* The first of the chunk's patterns that matches, or n. */
INLINE size_t first_match(const lapse_pass *p, const lapse_text *text) {
    for (size_t i = p->chunk; i < chunk_end(p); i++)
        if (pattern_matches(p->patterns[p->rest[i]], text)) return p->rest[i];
    return p->n;
}

static bool gist_allows(const lapse_pass *p, uint64_t gist) {
    for (size_t i = p->chunk; i < chunk_end(p); i++)
        if ((gist & p->gists[i].mask) == p->gists[i].value) return true;
    return false;
}

/* A listing takes its reference at once, and hands it over later. */
static void note_due(lapse_pass *p, const segment *s, uint32_t slot, const lapse_text *text) {
    size_t pattern = first_match(p, text);
    if (pattern == p->n) return;
    if (p->listing && (passed(*deadline_at(s, slot), p->at) || table_dooms(p->t, s, slot))) return;
    if (p->listing) object_ref(entry_at(s, slot)->key);
    p->due[p->due_n++] = (candidate){{*hash_at(s, slot), entry_at(s, slot)->key}, (uint32_t)pattern};
}

/* Look into every key, and write down its gist. */
static void find_by_text(lapse_pass *p, segment *s) {
    lapse_text text;
    FOR_EACH_KEY(s, slot) {
        bool is_text = text_at(s, slot, &text);
        if (s->gists) s->gists[slot] = is_text ? text_gist(&text) : NO_GIST;
        if (is_text) note_due(p, s, slot, &text);
    }
    s->gists_known = s->gists != NULL;
}

static void look_into(lapse_pass *p, segment *s, const uint32_t *slots, uint32_t n) {
    lapse_text text;
    for (uint32_t i = 0; i < n; i++) {
        bool is_text = text_at(s, slots[i], &text);
        s->gists[slots[i]] = is_text ? text_gist(&text) : NO_GIST;
        if (is_text) note_due(p, s, slots[i], &text);
    }
}

/* Look into those keys only whose gists allow a match, or are not known. */
static void find_by_gist(lapse_pass *p, segment *s) {
    uint32_t slots[LAPSE_BLOCK], n = 0;
    FOR_EACH_SLOT(s, slot) {
        uint64_t gist = s->gists[slot];
        if (gist != 0 && !gist_allows(p, gist)) continue;
        const char *key = (const char *)entry_at(s, slot)->key;
        PREFETCH(key);
        PREFETCH(key + TEXT_AT);
        slots[n++] = slot;
        if (n < LAPSE_BLOCK) continue;
        look_into(p, s, slots, n);
        n = 0;
    }
    look_into(p, s, slots, n);
}

/* Give the segment that covers the cursor a place for gists; without memory the pass does without. */
static void make_gists(lapse_pass *p) {
    const lapse_memory *memory = p->t->config.memory;
    segment *s = lock_segment(p->t, p->cursor);
    uint32_t n = segment_gists(s);
    lock_drop(&s->lock);
    uint64_t *fresh = memory->grab_raw(n * sizeof *fresh);
    s = lock_segment(p->t, p->cursor);
    bool fits = fresh && s->gists == NULL && segment_gists(s) == n;
    if (fits) STORE(&s->gists, fresh);
    lock_drop(&s->lock);
    if (fresh && !fits) memory->drop(fresh);
    if (fresh == NULL) p->by_gist = false;
}

/* Find out what is due in the next segment. */
static lapse_status find_step(lapse_pass *p) {
    segment *s = lock_segment(p->t, p->cursor);
    size_t room = s->used > SEGMENT_SLOTS ? s->used : SEGMENT_SLOTS;
    bool enough = s->used <= p->due_room, gists = s->gists || !p->by_gist;
    if (enough && gists) {
        if (p->by_gist && s->gists_known) find_by_gist(p, s);
        else find_by_text(p, s);
        next_chunk(p, s);
    }
    lock_drop(&s->lock);
    if (!gists) make_gists(p);
    return enough || make_due_room(p, room) == LAPSE_OK ? LAPSE_MORE : LAPSE_NO_MEMORY;
}

static void hand_over(lapse_pass *p, lapse_item *out, size_t *n) {
    while (p->due_n > 0 && *n < LAPSE_STEP) out[(*n)++] = (lapse_item){.key = p->due[--p->due_n].who.key};
}

static lapse_status table_step(lapse_pass *p, lapse_item *out, size_t *n) {
    lapse_status status = LAPSE_MORE;
    if (p->due_n > 0 && p->listing) hand_over(p, out, n);
    else if (p->due_n > 0) treat_step(p, out, n);
    else if (p->rest_n > 0 && !p->at_end) status = find_step(p);
    bool done = p->due_n == 0 && (p->rest_n == 0 || p->at_end);
    return status == LAPSE_MORE && done ? LAPSE_OK : status;
}

/* One bounded step of a removing pass that is to outdate leases and to leave the entries alone: instead of
 * lapse_pass_step(). True: call again. */
bool lapse_pass_outdate(lapse_pass *p) { return fence_pass_step(&p->t->fence, &p->fence); }

/* One bounded step. OK: that was all. MORE: call again. `out` has room for LAPSE_STEP items: a removal, which
 * parts with what it removes, needs it as a workplace; a listing leaves `*n` items there, with new references to
 * their keys and no values. NO_MEMORY. */
lapse_status lapse_pass_step(lapse_pass *p, lapse_item *out, size_t *n) {
    *n = 0;
    switch (p->phase) {
    case PASS_LEASES:
        if (!fence_pass_step(&p->t->fence, &p->fence)) p->phase = PASS_LABELS;
        return LAPSE_MORE;
    case PASS_LABELS: return label_step(p, out, n) == LAPSE_OK ? LAPSE_MORE : LAPSE_NO_MEMORY;
    case PASS_BUILD: build_step(p); return LAPSE_MORE;
    case PASS_TABLE: break;
    }
    return table_step(p, out, n);
}
