/* The read: no lock, no store to shared memory.
 *
 * On a GIL build it is plain loads; the one danger is that a key's __eq__ changes the table, which
 * `structure` and `seq` reveal. On a free-threaded build it is a seqlock:
 *
 *     seq (even) → probe → deadline, value → try_ref(value) → READ_FENCE → seq unchanged?
 *
 * If nothing changed between the two readings of seq, then the slot held this key and this value at
 * the second one, so the table's own reference kept the value alive while ours was taken: that is
 * the read's linearisation point. A value that was being freed meanwhile fails try_ref or the second
 * reading. Between loading a pointer and try_ref there is no call that could let the interpreter
 * pass a quiescent point, nor is there one between locate() and the last use of the segment, which may be given
 * back then (release.c). A key or value that is given up may be the last of its kind, or belong to another thread, for
 * which the interpreter may stop this one: so that comes last, or while the table is pinned. After READ_TRIES the
 * read takes the segment's lock instead.
 */
#ifndef LAPSE_READ_H
#define LAPSE_READ_H

#include "table.h"

#define READ_TRIES 16

typedef enum { PROBE_FOUND, PROBE_ABSENT, PROBE_RETRY, PROBE_RAISED } probe_result;

/* What the read saw of the table before it began; compared again after any user code has run. */
typedef struct {
    segment *s;
    uint64_t seq, structure;
} view;

INLINE bool view_holds(const lapse_table *t, view v) {
#if LAPSE_THREADS
    (void)t;
    READ_FENCE(); /* pairs with WRITE_FENCE() in write_begin() */
    return RELAXED(&v.s->seq) == v.seq;
#else
    return t->structure == v.structure && v.s->seq == v.seq; /* structure first: s may be gone */
#endif
}

/* Compare by the user's own __eq__. `k` is owned here on every build. */
static NOINLINE probe_result probe_ask(lapse_table *t, view v, lapse_object *k, lapse_object *key) {
    table_pin(t);
    int equal = object_equal(k, key);
    object_unref(k);
    bool unchanged = view_holds(t, v);
    table_unpin(t);
    if (equal < 0) return PROBE_RAISED;
    if (!unchanged) return PROBE_RETRY;
    return equal ? PROBE_FOUND : PROBE_ABSENT;
}

#if LAPSE_THREADS
/* Give up a key of equal hash that is another one. False: the segment has changed, and may be given back from here on. */
static NOINLINE bool leave_key(lapse_table *t, view v, lapse_object *k) {
    table_pin(t);
    object_unref(k);
    bool unchanged = view_holds(t, v);
    table_unpin(t);
    return unchanged;
}
#endif

/* Is the key in this slot ours? ABSENT means: no, look on. `*kept` is to be given up when the segment is not used any
 * more. */
INLINE probe_result probe_slot(lapse_table *t, view v, uint32_t slot, lapse_object *key, uint64_t h,
                               lapse_object **kept) {
    const entry *e = entry_at(v.s, slot);
    lapse_object *k = ACQUIRE(&e->key); /* acquire: pairs with PUBLISH in segment_insert() */
    if (LIKELY(k == key)) return PROBE_FOUND;
    if (RELAXED(hash_at(v.s, slot)) != h) return PROBE_ABSENT;
#if LAPSE_THREADS
    if (k == NULL || !object_try_ref(k)) return PROBE_RETRY;
    if (!view_holds(t, v)) {
        object_unref(k);
        return PROBE_RETRY;
    }
    sameness same = object_same(k, key);
    if (same == ASK) return probe_ask(t, v, k, key);
    if (LIKELY(same == SAME)) *kept = k;
    else if (!leave_key(t, v, k)) return PROBE_RETRY;
#else
    (void)kept;
    sameness same = object_same(k, key);
    if (UNLIKELY(same == ASK)) {
        object_ref(k);
        return probe_ask(t, v, k, key);
    }
#endif
    return same == SAME ? PROBE_FOUND : PROBE_ABSENT;
}

INLINE probe_result probe_segment(lapse_table *t, view v, lapse_object *key, uint64_t h, uint32_t *slot,
                                  lapse_object **kept) {
    const segment *s = v.s;
    uint32_t groups = RELAXED(&s->groups), g = hash_group(h, groups);
    uint8_t tag = hash_tag(h);
    fetch_home(s, g);
    for (uint32_t n = groups; n > 0; n--) {
        group ctrl = group_load(s->ctrl + g * GROUP_SLOTS);
        for (group_mask m = group_match(ctrl, tag); m; m &= m - 1) {
            uint32_t i = g * GROUP_SLOTS + mask_slot(m);
            probe_result r = probe_slot(t, v, i, key, h, kept);
            if (LIKELY(r == PROBE_FOUND)) *slot = i;
            if (LIKELY(r != PROBE_ABSENT)) return r;
        }
        if (LIKELY(group_empty(ctrl))) return PROBE_ABSENT;
        g = g + 1 == groups ? 0 : g + 1;
    }
    return PROBE_ABSENT;
}

/* Has a deadline passed? `*at` becomes the time that decided it. LAPSE_NATIVE reads the coarse clock,
 * and the precise one only where the coarse one cannot tell. */
INLINE bool deadline_passed(const lapse_table *t, int64_t deadline, int64_t now, int64_t *at) {
    if (now != LAPSE_NATIVE) {
        *at = now;
        return deadline <= now;
    }
    *at = clock_coarse();
    if (UNLIKELY(deadline <= *at)) return true;
    if (LIKELY(deadline - *at > t->slack)) return false;
    *at = clock_precise();
    return deadline <= *at;
}

INLINE dates dates_at(const segment *s, uint32_t slot) {
    return (dates){.deadline = RELAXED(deadline_at(s, slot)),
                   .ttl = s->ttls ? RELAXED(&s->ttls[slot]) : 0,
                   .limit = s->limits ? RELAXED(&s->limits[slot]) : LAPSE_NEVER,
                   .cost = s->costs ? RELAXED(&s->costs[slot]) : 0};
}

/* Where a sliding entry's deadline goes when it is read at `at`: never past its hard limit. */
INLINE int64_t slid_deadline(dates d, int64_t at) {
    int64_t slid = at > INT64_MAX - d.ttl ? INT64_MAX : at + d.ttl;
    return d.limit != LAPSE_NEVER && d.limit < slid ? d.limit : slid;
}

/* An entry is read without a lock. Where that is a matter of threads, exact LRU has none such. */
INLINE void note_read(lapse_table *t, const segment *s, uint32_t slot) {
#if LAPSE_THREADS
    if (t->duel.on) mark_use(&s->marks[slot]);
#else
    note_use(t, s, slot);
#endif
}

/* A live hit with a deadline on a sliding or probabilistic cache. Last: a segment that is waited for may be gone. */
INLINE lapse_status after_hit(lapse_table *t, view v, uint32_t slot, dates d, int64_t at, read_kind kind) {
    if (t->mode == LAPSE_PROBABILISTIC)
        return kind == READ_TO_REFRESH ? judge_refresh(t, d, at) : judge_early(t, d, at);
    if (d.ttl == LAPSE_NEVER) return LAPSE_OK;
    int64_t slid = slid_deadline(d, at);
    if (slid - d.deadline > t->tick) rearm(t, v.s, slot, v.seq, slid);
    return LAPSE_OK;
}

/* One attempt, but for giving up what was `*kept`. */
INLINE lapse_status read_keeping(lapse_table *t, lapse_object *key, uint64_t h, int64_t now, read_kind kind,
                                 lapse_object **value, lapse_object **kept) {
    view v = {.s = locate(t, h)};
    v.seq = ACQUIRE(&v.s->seq); /* acquire: pairs with PUBLISH in write_end() */
#if LAPSE_THREADS
    if ((v.seq & 1) || !segment_covers(v.s, h)) return LAPSE_MORE;
#else
    v.structure = t->structure;
#endif
    uint32_t slot = 0;
    probe_result found = probe_segment(t, v, key, h, &slot, kept);
    if (found == PROBE_ABSENT) return view_holds(t, v) ? LAPSE_ABSENT : LAPSE_MORE;
    if (UNLIKELY(found != PROBE_FOUND)) return found == PROBE_RAISED ? LAPSE_RAISED : LAPSE_MORE;
    dates d = dates_at(v.s, slot);
    lapse_object *x = ACQUIRE(&entry_at(v.s, slot)->value); /* pairs with PUBLISH in segment_write() */
#if LAPSE_THREADS
    if (x == NULL || !object_try_ref(x)) return LAPSE_MORE;
    if (!view_holds(t, v)) {
        object_unref(x);
        return LAPSE_MORE;
    }
#endif
    int64_t at = 0;
    bool timed = d.deadline != LAPSE_NEVER;
    *value = x;
    if (timed && UNLIKELY(deadline_passed(t, d.deadline, now, &at))) {
#if LAPSE_THREADS
        object_unref(x);
#endif
        return LAPSE_EXPIRED;
    }
#if !LAPSE_THREADS
    object_ref(x);
#endif
    if (kind == READ_QUIET) return LAPSE_OK;
    note_read(t, v.s, slot);
    return timed && t->mode != LAPSE_FIXED ? after_hit(t, v, slot, d, at, kind) : LAPSE_OK;
}

/* One attempt. RETRY is told by LAPSE_MORE. OK gives a new reference in `*value`, and so does EARLY: the
 * caller removes the entry, or reloads it, only while it holds that value. */
INLINE lapse_status read_once(lapse_table *t, lapse_object *key, uint64_t h, int64_t now, read_kind kind,
                              lapse_object **value) {
    lapse_object *kept = NULL;
    lapse_status status = read_keeping(t, key, h, now, kind, value, &kept);
    if (kept) object_unref(kept);
    return status;
}

/* The commonest reads, and nothing else: the very key object, in the first slot of its home group that
 * has its tag, with a deadline that the coarse clock `coarse` puts clearly ahead; or no slot there that has the
 * tag, and an empty one: then the key is `*absent`. NULL: it is, or the whole read must decide. Only for tables of
 * fixed lifetimes under the native clock. */
INLINE lapse_object *read_quickly(lapse_table *t, const lapse_object *key, uint64_t h, bool timed,
                                  int64_t coarse, bool *absent) {
    if (UNLIKELY(RELAXED(&t->storms) > 0)) return NULL;
    segment *s = locate(t, h);
#if LAPSE_THREADS
    uint64_t seq = ACQUIRE(&s->seq); /* acquire: pairs with PUBLISH in write_end() */
    if ((seq & 1) || !segment_covers(s, h)) return NULL;
#endif
    uint32_t first = hash_group(h, RELAXED(&s->groups)) * GROUP_SLOTS;
    fetch_home(s, first / GROUP_SLOTS);
    group ctrl = group_load(s->ctrl + first);
    group_mask m = group_match(ctrl, hash_tag(h));
    if (UNLIKELY(m == 0)) {
        *absent = group_empty(ctrl) != 0;
#if LAPSE_THREADS
        READ_FENCE(); /* pairs with WRITE_FENCE() in write_begin() */
        *absent = *absent && RELAXED(&s->seq) == seq;
#endif
        return NULL;
    }
    uint32_t slot = first + mask_slot(m);
    const entry *e = entry_at(s, slot);
    if (UNLIKELY(ACQUIRE(&e->key) != key)) return NULL; /* pairs with PUBLISH in segment_insert() */
    int64_t deadline = RELAXED(deadline_at(s, slot));
    lapse_object *value = ACQUIRE(&e->value); /* pairs with PUBLISH in segment_write() */
    if (deadline != LAPSE_NEVER) {
        int64_t at = timed ? coarse : clock_coarse();
        if (UNLIKELY(deadline - at <= t->slack)) return NULL;
    }
#if LAPSE_THREADS
    if (value == NULL || !object_try_ref(value)) return NULL;
    READ_FENCE(); /* pairs with WRITE_FENCE() in write_begin() */
    if (UNLIKELY(RELAXED(&s->seq) != seq)) {
        object_unref(value);
        return NULL;
    }
#else
    object_ref(value);
#endif
    note_read(t, s, slot);
    return value;
}

/* The whole read: OK (a new reference), ABSENT, EXPIRED, EARLY, RAISED or BUSY. Counts nothing. */
INLINE lapse_status table_read(lapse_table *t, lapse_object *key, uint64_t h, int64_t now, read_kind kind,
                               lapse_object **value) {
#if LAPSE_THREADS
    if (t->locked_reads) return read_under_lock(t, key, h, now, kind, value);
#endif
    if (UNLIKELY(RELAXED(&t->storms) > 0)) return read_under_lock(t, key, h, now, kind, value);
    lapse_status status = read_once(t, key, h, now, kind, value);
    for (int n = 1; UNLIKELY(status == LAPSE_MORE); n++) {
        if (n == READ_TRIES) return read_under_lock(t, key, h, now, kind, value);
        PAUSE();
        status = read_once(t, key, h, now, kind, value);
    }
    return status;
}

#endif
