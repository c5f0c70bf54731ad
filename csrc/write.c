/* Single-key writes, and what they tell the index and the fence. The layout, the invariants and the order of
 * locks stand in table.h.
 *
 * A write has one shape: lookup_begin() finds the key and leaves its segment locked, after any user
 * comparison has run outside the lock; the index and the fence are told; the change is loads and stores
 * alone; lookup_end() unlocks and only then gives up what the comparisons held. What was replaced or removed
 * is handed to the caller, who gives it up when no lock is held. */
#include "table.h"

#include "read.h"

/* What a put may bring along besides its record: the entry's tags, and the lease that it fills. */
typedef struct {
    const lapse_tags *tags;
    lapse_lease *lease;
    bool change; /* the fill is a change of the key, too: other leases of it are outdated */
} terms;

static const terms NO_TERMS = {NULL, NULL, false};

/* --- Dates --- */

static int64_t add_capped(int64_t at, int64_t ttl) {
    return ttl == LAPSE_NEVER || at > INT64_MAX - ttl ? LAPSE_NEVER : at + ttl;
}

static int64_t earlier(int64_t a, int64_t b) { return DEADLINE_RANK(a) < DEADLINE_RANK(b) ? a : b; }

/* Fill in lifetime, deadline and hard limit of an entry that is stored at `at`. */
static void date_record(lapse_table *t, record *r, int64_t ttl, int64_t at) {
    const lapse_config *c = &t->config;
    r->ttl = ttl == LAPSE_DEFAULT ? c->default_ttl : ttl;
    r->own = c->jitter > 0 || r->ttl != c->default_ttl;
    if (c->jitter > 0 && r->ttl != LAPSE_NEVER) {
        r->ttl -= (int64_t)((double)r->ttl * c->jitter * draw(t));
        if (r->ttl < 1) r->ttl = 1;
    }
    r->limit = add_capped(at, c->max_lifetime);
    r->deadline = earlier(add_capped(at, r->ttl), r->limit);
}

/* --- Index and fence; under the segment's lock --- */

/* The key has changed, or would have if it had been there: leases of it are outdated. */
static void key_changed(lapse_table *t, uint64_t h, lapse_object *key) {
    if (UNLIKELY(RELAXED(&t->fence.out) > 0)) fence_mark_key(&t->fence, h, key);
}

/* The labels of a new entry. */
static label_set labels_of(lapse_table *t, lapse_object *key, const lapse_tags *tags) {
    label_set labels = {.tags = tags};
    uint32_t depths = RELAXED(&t->index.depths);
    lapse_text text;
    if (depths && object_text(key, &text))
        labels.prefix_count = text_prefixes(&text, depths, labels.prefixes);
    return labels;
}

/* Tell the index of an entry that is about to be written. False: it lacks room. */
static bool label_entry(lapse_table *t, const lookup *l, const record *r, const lapse_tags *tags,
                        bool fresh) {
    if (LIKELY(tags == NULL && !RELAXED(&t->index.active))) return true;
    if (!fresh) return index_retag(&t->index, r->hash, entry_at(l->s, l->slot)->key, tags);
    label_set labels = labels_of(t, r->e.key, tags);
    return index_need(&labels) == 0 || index_add(&t->index, r->hash, r->e.key, &labels);
}

/* May the record be stored? OK: the index knows the entry, and leases of the key are outdated, or the lease is
 * used up. OUTDATED: it may not. NO_ROOM: not before the index has more. */
static lapse_status announce_put(lapse_table *t, const lookup *l, const record *r, const terms *with,
                                 bool fresh) {
    if (LIKELY(with->lease == NULL)) {
        if (!label_entry(t, l, r, with->tags, fresh)) return LAPSE_NO_ROOM;
        key_changed(t, r->hash, r->e.key);
        return LAPSE_OK;
    }
    if (!fence_judge(&t->fence, with->lease, with->tags)) return LAPSE_OUTDATED;
    bool labelled = label_entry(t, l, r, with->tags, fresh);
    fence_judged(&t->fence);
    if (!labelled) return LAPSE_NO_ROOM;
    fence_dismiss(&t->fence, with->lease);
    if (with->change) key_changed(t, r->hash, r->e.key);
    return LAPSE_OK;
}

/* --- Storing --- */

static void overwrite(lapse_table *t, lookup *l, record *r, lapse_object **replaced) {
    segment *s = l->s;
    if (s->nodes) order_use(&t->order, r->node = s->nodes[l->slot]);
    r->gc = object_is_gc(entry_at(s, l->slot)->key) || object_is_gc(r->e.value);
    *replaced = entry_at(s, l->slot)->value;
    object_ref(r->e.value);
    object_mark(r->e.value);
    write_begin(s);
    segment_write(s, l->slot, r);
    write_end(s);
    COUNT(t, replaced);
}

static void insert_new(lookup *l, record *r) {
    segment *s = l->s;
    r->gc = object_is_gc(r->e.key) || object_is_gc(r->e.value);
    r->foreign = !object_is_str(r->e.key);
    object_ref(r->e.key);
    object_ref(r->e.value);
    object_mark(r->e.key);
    object_mark(r->e.value);
    write_begin(s);
    segment_insert(s, r);
    write_end(s);
}

/* Find the key or make room for it. OK and ABSENT leave the lookup begun. An entry that has expired is taken
 * out, as if it had been swept: then it is ABSENT, and `expired` owns it. */
static lapse_status begin_put(lookup *l, lapse_table *t, const record *r, int64_t at, lapse_item *expired) {
    for (;;) {
        lapse_status status = lookup_begin(l, t, r->e.key, r->hash);
        if (LIKELY(status == LAPSE_OK) && UNLIKELY(passed(*deadline_at(l->s, l->slot), at))) {
            table_take(t, l->s, l->slot, r->hash, expired);
            return LAPSE_ABSENT;
        }
        if (status != LAPSE_ABSENT || segment_has_room(l->s, r->hash)) return status;
        lookup_end(l);
        status = make_room(t, r->hash, at);
        if (status != LAPSE_OK) return status;
    }
}

static void end_put(lookup *l, lapse_table *t, lapse_item *expired) {
    lookup_end(l);
    if (UNLIKELY(expired->key != NULL)) lapse_dismiss(t, expired, 1, INT64_MAX, LAPSE_BY_DEADLINE);
    expired->key = NULL;
    table_settle(t);
}

/* A place in the order of a bounded table for a new entry. MORE: another entry must go first. NO_ROOM: the
 * order needs memory. */
static lapse_status seat(lapse_table *t, record *r) {
    if (LIKELY(!t->order.on)) return LAPSE_OK;
    if (!order_take_token(&t->order)) return LAPSE_MORE;
    if (order_add(&t->order, r->hash, &r->node)) return LAPSE_OK;
    order_give_token(&t->order);
    return LAPSE_NO_ROOM;
}

static void unseat(lapse_table *t, const record *r) {
    if (!t->order.on) return;
    order_drop(&t->order, r->node);
    order_give_token(&t->order);
}

/* Store the record at the lookup. OK, OUTDATED, or what make_way() sees to. */
INLINE lapse_status store(lapse_table *t, lookup *l, record *r, const terms *with, bool fresh,
                          lapse_object **replaced) {
    lapse_status verdict = fresh ? seat(t, r) : LAPSE_OK;
    if (UNLIKELY(verdict != LAPSE_OK)) return verdict;
    verdict = announce_put(t, l, r, with, fresh);
    if (UNLIKELY(verdict != LAPSE_OK)) {
        if (fresh) unseat(t, r);
        return verdict;
    }
    if (fresh) insert_new(l, r);
    else overwrite(t, l, r, replaced);
    return LAPSE_OK;
}

/* See to what store() lacked, with no lock held. */
static lapse_status make_way(lapse_table *t, const terms *with, lapse_status verdict, int64_t at) {
    if (verdict == LAPSE_MORE) {
        table_evict(t, at);
        return LAPSE_OK;
    }
    size_t tags = with->tags ? with->tags->n : 0;
    if (t->order.on && order_make_room(&t->order, t->config.memory) != LAPSE_OK) return LAPSE_NO_MEMORY;
    if (tags == 0 && !RELAXED(&t->index.active)) return LAPSE_OK;
    return index_make_room(&t->index, t->config.memory, 2 * (tags + PREFIX_DEPTHS));
}

static bool in_vain(const lapse_table *t) { return t->order.on && t->order.limit == 0; }

/* Store a record whatever was there; in a table that may hold nothing, do nothing. OK, OUTDATED, NO_MEMORY,
 * RAISED or BUSY. */
INLINE lapse_status put_record(lapse_table *t, record *r, int64_t at, const terms *with,
                               lapse_object **replaced) {
    lookup l;
    lapse_item expired = {.key = NULL};
    lapse_status status, verdict = in_vain(t) ? LAPSE_OK : LAPSE_MORE;
    *replaced = NULL;
    while (verdict == LAPSE_MORE || verdict == LAPSE_NO_ROOM) {
        status = begin_put(&l, t, r, at, &expired);
        if (status <= LAPSE_ABSENT) {
            verdict = store(t, &l, r, with, status == LAPSE_ABSENT, replaced);
            end_put(&l, t, &expired);
            if (UNLIKELY(verdict == LAPSE_MORE || verdict == LAPSE_NO_ROOM))
                status = make_way(t, with, verdict, at);
        }
        if (UNLIKELY(status > LAPSE_ABSENT)) verdict = status;
    }
    return verdict;
}

/* Store a value for `ttl` nanoseconds (LAPSE_DEFAULT, LAPSE_NEVER or positive). The caller gives up
 * `*replaced`, the old value, if it is not NULL. OK, NO_MEMORY, RAISED or BUSY. */
lapse_status lapse_put(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *value, int64_t ttl,
                       int64_t now, lapse_object **replaced) {
    record r = {.e = {key, value}, .hash = mix_hash(hash)};
    int64_t at = lapse_now(t, now);
    date_record(t, &r, ttl, at);
    lapse_status status = put_record(t, &r, at, &NO_TERMS, replaced);
    if (status == LAPSE_OK) COUNT(t, sets);
    return status;
}

/* The same for an entry that bears tags (NULL: none). */
lapse_status lapse_put_tagged(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *value,
                              int64_t ttl, const lapse_tags *tags, int64_t now, lapse_object **replaced) {
    record r = {.e = {key, value}, .hash = mix_hash(hash)};
    int64_t at = lapse_now(t, now);
    date_record(t, &r, ttl, at);
    lapse_status status =
        put_record(t, &r, at, &(terms){tags && tags->n ? tags : NULL, NULL, false}, replaced);
    if (status == LAPSE_OK) COUNT(t, sets);
    return status;
}

/* The same for an entry that brings its own dates: for copies. */
lapse_status lapse_put_item(lapse_table *t, const lapse_item *item, uint64_t hash, const lapse_tags *tags,
                            int64_t now, lapse_object **replaced) {
    record r = {.e = {item->key, item->value},
                .hash = mix_hash(hash),
                .deadline = item->deadline,
                .ttl = item->ttl,
                .limit = item->limit,
                .own = item->own_ttl};
    return put_record(t, &r, lapse_now(t, now), &(terms){tags && tags->n ? tags : NULL, NULL, false},
                      replaced);
}

/* Store only if there is no live entry. ABSENT: stored. OK: there is one, and `*present` is a new
 * reference to its value. NO_MEMORY, RAISED or BUSY. */
lapse_status lapse_put_new(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *value, int64_t ttl,
                           int64_t now, lapse_object **present) {
    record r = {.e = {key, value}, .hash = mix_hash(hash)};
    int64_t at = lapse_now(t, now);
    lookup l;
    lapse_item expired = {.key = NULL};
    date_record(t, &r, ttl, at);
    lapse_status status = LAPSE_ABSENT, verdict = in_vain(t) ? LAPSE_OK : LAPSE_MORE;
    while (verdict == LAPSE_MORE || verdict == LAPSE_NO_ROOM) {
        status = begin_put(&l, t, &r, at, &expired);
        if (status > LAPSE_ABSENT) break;
        verdict = LAPSE_OK;
        if (status == LAPSE_OK) object_ref(*present = entry_at(l.s, l.slot)->value);
        else verdict = store(t, &l, &r, &NO_TERMS, true, NULL);
        end_put(&l, t, &expired);
        if (verdict == LAPSE_OK || make_way(t, &NO_TERMS, verdict, at) == LAPSE_OK) continue;
        status = LAPSE_NO_MEMORY;
        break;
    }
    if (status == LAPSE_ABSENT) COUNT(t, sets);
    return status;
}

/* --- Leases --- */

/* A lease for loading `key`; the caller keeps the key alive until lapse_lease_end(). When too many are out it
 * is one that may never be filled. OK or NO_MEMORY. */
lapse_status lapse_lease_take(lapse_table *t, lapse_object *key, uint64_t hash, lapse_lease **out) {
    lapse_lease *l = t->config.memory->grab(sizeof *l);
    if (l == NULL) return LAPSE_NO_MEMORY;
    l->hash = mix_hash(hash);
    l->key = key;
    *out = l;
    lapse_status status = fence_admit(&t->fence, t->config.memory, l);
    if (status != LAPSE_OK) t->config.memory->drop(l);
#if LAPSE_THREADS
    /* A change of the key that is under way now has not seen the lease: what it changed is read after this. One
     * that comes later sees it. */
    if (status == LAPSE_OK) lock_drop(&lock_segment(t, l->hash)->lock);
#endif
    return status;
}

/* Could what was loaded still be stored, with these tags? */
bool lapse_lease_holds(lapse_table *t, const lapse_lease *l, const lapse_tags *tags) {
    bool good = fence_judge(&t->fence, l, tags);
    if (good) fence_judged(&t->fence);
    return good;
}

/* Give a lease back, filled or not. */
void lapse_lease_end(lapse_table *t, lapse_lease *l) {
    fence_dismiss(&t->fence, l);
    t->config.memory->drop(l);
}

/* Store what was loaded under a lease, unless a change has outdated it; it can be filled once. A fill that
 * is a `change` outdates the other leases of the key, as lapse_put() does. OK, OUTDATED,
 * NO_MEMORY, RAISED or BUSY. */
lapse_status lapse_fill(lapse_table *t, lapse_lease *l, lapse_object *value, int64_t ttl,
                        const lapse_tags *tags, bool change, int64_t now, lapse_object **replaced) {
    record r = {.e = {l->key, value}, .hash = l->hash};
    int64_t at = lapse_now(t, now);
    *replaced = NULL;
    if (t->order.on && !in_vain(t) && !lapse_lease_holds(t, l, tags)) { /* nothing makes way for it */
        COUNT(t, fenced);
        fence_dismiss(&t->fence, l);
        return LAPSE_OUTDATED;
    }
    date_record(t, &r, ttl, at);
    lapse_status status = put_record(t, &r, at, &(terms){tags && tags->n ? tags : NULL, l, change}, replaced);
    if (status == LAPSE_OK) COUNT(t, sets);
    if (status == LAPSE_OUTDATED) {
        COUNT(t, fenced);
        fence_dismiss(&t->fence, l);
    }
    return status;
}

/* --- Changing and removing --- */

/* Replace the value of a live entry, keeping its deadline, if the value is still `expected`. OK: the
 * caller gives up `*replaced`, which is `expected`. ABSENT: somebody was quicker. */
lapse_status lapse_exchange(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *expected,
                            lapse_object *value, int64_t now, lapse_object **replaced) {
    lookup l;
    record r;
    lapse_status status = lookup_begin(&l, t, key, mix_hash(hash));
    if (status != LAPSE_OK && status != LAPSE_ABSENT) return status;
    if (status == LAPSE_OK) {
        segment_read(l.s, l.slot, &r);
        if (r.e.value != expected || passed(r.deadline, lapse_now(t, now))) status = LAPSE_ABSENT;
    }
    if (status == LAPSE_OK) {
        r.e.value = value;
        key_changed(t, r.hash, key);
        overwrite(t, &l, &r, replaced);
        COUNT(t, sets);
    }
    lookup_end(&l);
    return status;
}

/* Give a live entry a new lifetime from now. OK, ABSENT, RAISED or BUSY. */
lapse_status lapse_touch(lapse_table *t, lapse_object *key, uint64_t hash, int64_t ttl, int64_t now) {
    lookup l;
    record r, dated;
    int64_t at = lapse_now(t, now);
    lapse_status status = lookup_begin(&l, t, key, mix_hash(hash));
    if (status != LAPSE_OK && status != LAPSE_ABSENT) return status;
    if (status == LAPSE_OK) {
        segment_read(l.s, l.slot, &r);
        if (passed(r.deadline, at)) status = LAPSE_ABSENT;
    }
    if (status == LAPSE_OK) {
        date_record(t, &dated, ttl, at);
        r.deadline = earlier(add_capped(at, dated.ttl), r.limit);
        r.ttl = dated.ttl;
        r.own = dated.own;
        if (l.s->nodes) order_use(&t->order, r.node);
        write_begin(l.s);
        segment_write(l.s, l.slot, &r);
        write_end(l.s);
    }
    lookup_end(&l);
    return status;
}

/* Take an entry out. OK: it was live; EXPIRED: it was not any more. Both fill `removed`. ABSENT, RAISED
 * and BUSY do not. */
lapse_status lapse_delete(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now,
                          lapse_item *removed) {
    lookup l;
    lapse_status status = lookup_begin(&l, t, key, mix_hash(hash));
    if (status != LAPSE_OK && status != LAPSE_ABSENT) return status;
    if (status == LAPSE_OK) {
        int64_t deadline = *deadline_at(l.s, l.slot), at;
        if (deadline != LAPSE_NEVER && deadline_passed(t, deadline, now, &at)) status = LAPSE_EXPIRED;
        table_take(t, l.s, l.slot, mix_hash(hash), removed);
    }
    key_changed(t, mix_hash(hash), key);
    lookup_end(&l);
    if (status == LAPSE_OK) COUNT(t, deletes);
    if (status == LAPSE_EXPIRED) COUNT(t, expirations);
    return status;
}

/* The tags of a live entry: OK, and how many in `*n`; if there is room for them, new references. ABSENT, EXPIRED,
 * RAISED or BUSY. */
lapse_status lapse_tags_of(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now,
                           lapse_object **names, size_t room, size_t *n) {
    lookup l;
    lapse_status status = lookup_begin(&l, t, key, mix_hash(hash));
    if (status != LAPSE_OK && status != LAPSE_ABSENT) return status;
    *n = 0;
    if (status == LAPSE_OK && passed(*deadline_at(l.s, l.slot), lapse_now(t, now))) status = LAPSE_EXPIRED;
    if (status == LAPSE_OK && RELAXED(&t->index.active))
        *n = index_tags(&t->index, mix_hash(hash), entry_at(l.s, l.slot)->key, names, room);
    lookup_end(&l);
    return status;
}
