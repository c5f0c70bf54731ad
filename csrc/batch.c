/* Many keys in one call. A single read of a large table waits for memory four times in a row:
 * segment header, control words, entry, value. A block does each of these for all its keys before
 * the next, so that the waits overlap. */
#include "read.h"

/* Where one key of a block has been traced to. */
typedef struct {
    const segment *s;
    uint64_t h;
    uint32_t slot;
    lapse_status known; /* OK: the slot holds the key. ABSENT. MORE: the plain read decides */
} trace;

static void trace_segments(const lapse_table *t, size_t n, trace *at) {
    for (size_t i = 0; i < n; i++) {
        at[i].s = locate(t, at[i].h);
        PREFETCH(at[i].s);
    }
}

static void trace_hashes(size_t n, const uint64_t *hashes, trace *at) {
    for (size_t i = 0; i < n; i++) at[i].h = mix_hash(hashes[i]);
}

static void trace_groups(size_t n, trace *at) {
    for (size_t i = 0; i < n; i++) {
        at[i].slot = hash_group(at[i].h, RELAXED(&at[i].s->groups)) * GROUP_SLOTS;
        PREFETCH(at[i].s->ctrl + at[i].slot);
    }
}

/* The first tag match in the home group: nearly always the entry. */
static void trace_entries(size_t n, trace *at) {
    for (size_t i = 0; i < n; i++) {
        group ctrl = group_load(at[i].s->ctrl + at[i].slot);
        group_mask m = group_match(ctrl, hash_tag(at[i].h));
        at[i].known = m ? LAPSE_OK : group_empty(ctrl) ? LAPSE_ABSENT : LAPSE_MORE;
        if (m == 0) continue;
        at[i].slot += mask_slot(m);
        PREFETCH(entry_at(at[i].s, at[i].slot));
        PREFETCH(deadline_at(at[i].s, at[i].slot));
    }
}

#if !LAPSE_THREADS
static bool holds_key(const trace *at, const lapse_block *b, size_t i) {
    lapse_object *stored = entry_at(at->s, at->slot)->key;
    if (!b->integers && stored == b->keys[i]) return true;
    if (*hash_at(at->s, at->slot) != at->h) return false;
    if (b->integers) return object_is_int(stored, b->ints[i]);
    return b->keys[i] && object_same(stored, b->keys[i]) == SAME;
}

/* Confirm the key without running any code, and fetch its value. */
static void trace_values(const lapse_block *b, trace *at) {
    for (size_t i = 0; i < b->n; i++) {
        if (at[i].known != LAPSE_OK) continue;
        if (holds_key(&at[i], b, i)) PREFETCH(entry_at(at[i].s, at[i].slot)->value);
        else at[i].known = LAPSE_MORE;
    }
}

/* Take the value of a traced key, unless time or mode want the plain read. */
static lapse_status take_traced(lapse_table *t, const trace *at, int64_t coarse, int64_t now,
                                lapse_object **value) {
    if (at->known != LAPSE_OK) return at->known;
    if (at->s->nodes && !t->duel.on) return LAPSE_MORE;
    int64_t deadline = *deadline_at(at->s, at->slot);
    if (deadline != LAPSE_NEVER) {
        if (t->mode != LAPSE_FIXED) return LAPSE_MORE;
        if (now == LAPSE_NATIVE ? deadline - coarse <= t->slack : deadline <= now) return LAPSE_MORE;
    }
    object_ref(*value = entry_at(at->s, at->slot)->value);
    note_use(t, at->s, at->slot);
    return LAPSE_OK;
}

/* Read a block: `found[i]` is OK (`values[i]` is a new reference), ABSENT, or MORE: what cannot be
 * answered without running the user's code, or must be removed, is left for lapse_get(). */
void lapse_get_block(lapse_table *t, const lapse_block *keys, int64_t now, lapse_object **values,
                     lapse_status *found) {
    trace at[LAPSE_BLOCK];
    size_t hits = 0, misses = 0;
    int64_t coarse = now == LAPSE_NATIVE ? clock_coarse() : 0;
    if (UNLIKELY(t->storms > 0)) {
        for (size_t i = 0; i < keys->n; i++) found[i] = LAPSE_MORE;
        return;
    }
    trace_hashes(keys->n, keys->hashes, at);
    trace_segments(t, keys->n, at);
    trace_groups(keys->n, at);
    trace_entries(keys->n, at);
    trace_values(keys, at);
    for (size_t i = 0; i < keys->n; i++) {
        if (!keys->integers && keys->keys[i] == NULL) at[i].known = LAPSE_MORE;
        found[i] = take_traced(t, &at[i], coarse, now, &values[i]);
        hits += found[i] == LAPSE_OK;
        misses += found[i] == LAPSE_ABSENT;
    }
    COUNT_MANY(t, hits, hits);
    COUNT_MANY(t, misses, misses);
}

#else
/* With other threads about, a block is fetched ahead and every key read by the protocol of read.h. */
void lapse_get_block(lapse_table *t, const lapse_block *keys, int64_t now, lapse_object **values,
                     lapse_status *found) {
    (void)now, (void)values;
    lapse_prefetch(t, keys->n, keys->hashes);
    for (size_t i = 0; i < keys->n; i++) found[i] = LAPSE_MORE;
}
#endif

static void fetch_traced(const lapse_table *t, size_t n, trace *at) {
    trace_segments(t, n, at);
    trace_groups(n, at);
    trace_entries(n, at);
}

/* Bring the lines that n (at most LAPSE_BLOCK) keys of these mixed hashes will need into the cache. */
void table_prefetch(const lapse_table *t, size_t n, const uint64_t *mixed) {
    trace at[LAPSE_BLOCK];
    for (size_t i = 0; i < n; i++) at[i].h = mixed[i];
    fetch_traced(t, n, at);
}

/* The same for the keys' own hashes. */
void lapse_prefetch(lapse_table *t, size_t n, const uint64_t *hashes) {
    trace at[LAPSE_BLOCK];
    trace_hashes(n, hashes, at);
    fetch_traced(t, n, at);
}
