/* Single-key writes, and what they tell the index and the fence. The layout, the invariants and the order of
 * locks stand in table.h.
 *
 * A write has one shape: lookup_begin() finds the key and leaves its segment locked, after any user
 * comparison has run outside the lock; the index and the fence are told; the change is loads and stores
 * alone; lookup_end() unlocks and only then gives up what the comparisons held. What was replaced or removed
 * is handed to the caller, who gives it up when no lock is held. */
#include "table.h"

#include "read.h"

#define NANOSECONDS 1000 /* in a microsecond, the unit of costs */

/* What a put may bring along besides its record: the entry's tags, and the lease that it fills. */
typedef struct {
    const lapse_tags *tags;
    lapse_lease *lease;
    bool change; /* the fill is a change of the key, too: other leases of it are outdated */
} terms;

static const terms NO_TERMS = {NULL, NULL, false};

/* What a put takes out to make way, if their keys are not NULL; given up when no lock is held. */
typedef struct {
    lapse_item expired, evicted;
} leaving;

/* --- Dates --- */

INLINE int64_t add_capped(int64_t at, int64_t ttl) {
    return ttl == LAPSE_NEVER || at > INT64_MAX - ttl ? LAPSE_NEVER : at + ttl;
}

static int64_t earlier(int64_t a, int64_t b) { return DEADLINE_RANK(a) < DEADLINE_RANK(b) ? a : b; }

/* Fill in lifetime, deadline and hard limit of an entry that is stored at `at`. */
INLINE void date_record(lapse_table *t, record *r, int64_t ttl, int64_t at) {
    const lapse_config *c = &t->config;
    r->ttl = ttl == LAPSE_DEFAULT ? c->default_ttl : ttl;
    r->own = c->jitter > 0 || r->ttl != c->default_ttl;
    if (c->jitter > 0 && r->ttl != LAPSE_NEVER) {
        r->ttl -= (int64_t)((double)r->ttl * c->jitter * draw(t));
        if (r->ttl < 1) r->ttl = 1;
    }
    r->cost = 0;
    r->limit = add_capped(at, c->max_lifetime);
    r->deadline = earlier(add_capped(at, r->ttl), r->limit);
}

/* The time at which an entry is stored: one that will live for ever needs no precise one. */
static int64_t time_to_put(const lapse_table *t, int64_t ttl, int64_t now) {
    const lapse_config *c = &t->config;
    bool for_ever =
        (ttl == LAPSE_DEFAULT ? c->default_ttl : ttl) == LAPSE_NEVER && c->max_lifetime == LAPSE_NEVER;
    return for_ever && now == LAPSE_NATIVE ? clock_coarse() : lapse_now(t, now);
}

/* --- Weights --- */

/* What the entry weighs: any code may run. False: the weigher has raised. */
static bool weigh(lapse_table *t, record *r) {
    const lapse_config *c = &t->config;
    r->weight = 1;
    return LIKELY(c->weigher == NULL) || c->weigher(c->context, r->e.key, r->e.value, &r->weight) == 0;
}

/* Is it heavier than all entries may be together? */
static bool too_heavy(const lapse_table *t, const record *r) {
    uint64_t limit = RELAXED(&t->order.limit);
    return UNLIKELY(t->order.on) && (r->weight > limit || limit == 0);
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
static NOINLINE lapse_status announce_fully(lapse_table *t, const lookup *l, const record *r,
                                            const terms *with, bool fresh) {
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

/* The same, quickly where nobody is to be told. */
INLINE lapse_status announce_put(lapse_table *t, const lookup *l, const record *r, const terms *with,
                                 bool fresh) {
    bool listeners = with->lease || with->tags || RELAXED(&t->index.active) || RELAXED(&t->fence.out) > 0;
    return UNLIKELY(listeners) ? announce_fully(t, l, r, with, fresh) : LAPSE_OK;
}

/* --- Storing --- */

/* What a bounded table knows of the entry stays. */
static void keep_seat(const segment *s, uint32_t slot, record *r) {
    if (s->counted) {
        r->mark = RELAXED(&s->marks[slot]);
        r->young = bit_test(s->young, slot);
        r->watched = bit_test(s->watched, slot);
    } else if (s->nodes) r->node = s->nodes[slot];
}

static void overwrite(lapse_table *t, lookup *l, record *r, lapse_object **replaced) {
    segment *s = l->s;
    note_use(t, s, l->slot);
    keep_seat(s, l->slot, r);
    r->gc = object_is_gc(entry_at(s, l->slot)->key) || object_is_gc(r->e.value);
    *replaced = entry_at(s, l->slot)->value;
    object_ref(r->e.value);
    object_mark(r->e.value);
    write_begin(s);
    segment_write(s, l->slot, r);
    write_end(s);
    COUNT(t, replaced);
}

INLINE void insert_new(lookup *l, record *r) {
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

/* Take an expired entry out to make way: ABSENT. OUTDATED: it stays, perhaps within its grace, because what would
 * take its place may not be stored; the lookup has ended. */
static lapse_status displace(lookup *l, lapse_table *t, uint64_t h, const terms *with, lapse_item *expired) {
    if (with->lease && !lapse_lease_holds(t, with->lease, with->tags)) {
        lookup_end(l);
        return LAPSE_OUTDATED;
    }
    table_take(t, l->s, l->slot, h, expired);
    return LAPSE_ABSENT;
}

/* Find the key or make room for it. OK and ABSENT leave the lookup begun. An entry that has expired is taken
 * out, as if it had been swept: then it is ABSENT, and `expired` owns it. */
static lapse_status begin_put(lookup *l, lapse_table *t, const record *r, int64_t at, const terms *with,
                              lapse_item *expired) {
    for (;;) {
        lapse_status status = lookup_begin(l, t, r->e.key, r->hash);
        if (LIKELY(status == LAPSE_OK) && UNLIKELY(passed(*deadline_at(l->s, l->slot), at)))
            return displace(l, t, r->hash, with, expired);
        if (status != LAPSE_ABSENT || segment_has_room(l->s, r->hash)) return status;
        lookup_end(l);
        status = make_room(t, r->hash, at);
        if (status != LAPSE_OK) return status;
    }
}

static NOINLINE void give_up(lapse_table *t, leaving *gone, int64_t at) {
    if (gone->expired.key) lapse_dismiss(t, &gone->expired, 1, INT64_MAX, LAPSE_BY_DEADLINE);
    if (gone->evicted.key) lapse_dismiss(t, &gone->evicted, 1, at, LAPSE_EVICTED);
    gone->expired.key = gone->evicted.key = NULL;
}

static void end_put(lookup *l, lapse_table *t, leaving *gone, int64_t at) {
    lookup_end(l);
    if (UNLIKELY(gone->expired.key || gone->evicted.key)) give_up(t, gone, at);
    table_settle(t);
}

/* The tokens for a new entry, whose lookup goes on. */
static bool take_tokens(lapse_table *t, const record *r, int64_t at, leaving *gone) {
    if (order_take(&t->order, r->weight)) return true;
#if LAPSE_THREADS
    (void)at, (void)gone; /* no segment may be locked beside the lookup's */
    return false;
#else
    return table_evict_beside(t, r, at, &gone->evicted) && order_take(&t->order, r->weight);
#endif
}

static void give_tokens(lapse_table *t, const record *r) {
    order_give(&t->order, r->weight);
    order_count(&t->order, -1);
}

/* A place in the order of a bounded table for a new entry. MORE: another entry must go first. NO_ROOM: the
 * order needs memory. */
static lapse_status seat(lapse_table *t, segment *s, record *r, int64_t at, leaving *gone) {
    if (LIKELY(!t->order.on)) return LAPSE_OK;
    if (!take_tokens(t, r, at, gone)) return LAPSE_MORE;
    order_count(&t->order, 1);
    if (t->duel.on) {
        table_age(t, s);
        r->watched = false;
        if (duel_enter(&t->duel, r->hash, &r->mark, &r->young)) return LAPSE_OK;
    } else if (order_add(&t->order, r->hash, &r->node)) return LAPSE_OK;
    give_tokens(t, r);
    return LAPSE_NO_ROOM;
}

static void unseat(lapse_table *t, const record *r) {
    if (!t->order.on) return;
    if (!t->duel.on) order_drop(&t->order, r->node);
    give_tokens(t, r);
}

/* By how much the entry of a bounded table becomes heavier. */
static int64_t heavier_by(const lapse_table *t, const segment *s, uint32_t slot, const record *r) {
    return UNLIKELY(t->order.weighed) ? (int64_t)r->weight - weight_at(s, slot) : 0;
}

/* Tokens for what the entry of a slot becomes heavier. MORE: another entry must go first, and not this one. */
static lapse_status reweigh(lapse_table *t, const segment *s, uint32_t slot, int64_t by) {
    if (LIKELY(by <= 0) || order_take(&t->order, (uint64_t)by)) return LAPSE_OK;
    note_use(t, s, slot);
    return LAPSE_MORE;
}

/* Its tokens are given back: of one that became lighter, or did not become heavier after all. */
static void give_difference(lapse_table *t, int64_t by) {
    if (UNLIKELY(by > 0)) order_give(&t->order, (uint64_t)by);
}

/* Store the record at the lookup. OK, OUTDATED, or what make_way() sees to. */
INLINE lapse_status store(lapse_table *t, lookup *l, record *r, int64_t at, const terms *with, bool fresh,
                          leaving *gone, lapse_object **replaced) {
    int64_t by = fresh ? 0 : heavier_by(t, l->s, l->slot, r);
    lapse_status verdict = fresh ? seat(t, l->s, r, at, gone) : reweigh(t, l->s, l->slot, by);
    if (UNLIKELY(verdict != LAPSE_OK)) return verdict;
    verdict = announce_put(t, l, r, with, fresh);
    if (UNLIKELY(verdict != LAPSE_OK)) {
        if (fresh) unseat(t, r);
        else give_difference(t, by);
        return verdict;
    }
    if (t->order.on) table_note_rank(t, DEADLINE_RANK(r->deadline));
    if (fresh) insert_new(l, r);
    else overwrite(t, l, r, replaced);
    give_difference(t, -by);
    return LAPSE_OK;
}

/* See to what store() lacked, with no lock held. */
static lapse_status make_way(lapse_table *t, const record *r, const terms *with, lapse_status verdict,
                             int64_t at) {
    if (verdict == LAPSE_MORE) {
        table_evict(t, r, at);
        return LAPSE_OK;
    }
    size_t tags = with->tags ? with->tags->n : 0;
    lapse_status room = LAPSE_OK;
    if (t->duel.on) room = duel_make_room(&t->duel, t->config.memory);
    else if (t->order.on) room = order_make_room(&t->order, t->config.memory);
    if (room != LAPSE_OK) return room;
    if (tags == 0 && !RELAXED(&t->index.active)) return LAPSE_OK;
    return index_make_room(&t->index, t->config.memory, 2 * (tags + PREFIX_DEPTHS));
}

/* An entry that is too heavy is not stored, and what its key had goes. REFUSED, OUTDATED, RAISED or BUSY. */
static NOINLINE lapse_status refuse(lapse_table *t, const record *r, int64_t at, const terms *with) {
    lookup l;
    lapse_item old = {.key = NULL};
    lapse_status status = lookup_begin(&l, t, r->e.key, r->hash);
    if (status > LAPSE_ABSENT) return status;
    bool good = with->lease == NULL || lapse_lease_holds(t, with->lease, with->tags);
    if (good && (with->lease == NULL || with->change)) key_changed(t, r->hash, r->e.key);
    if (good && status == LAPSE_OK) table_take(t, l.s, l.slot, r->hash, &old);
    lookup_end(&l);
    if (!good) return LAPSE_OUTDATED;
    if (old.key) lapse_dismiss(t, &old, 1, at, LAPSE_REPLACED);
    COUNT(t, refused);
    return LAPSE_REFUSED;
}

/* Store a record whatever was there. OK, REFUSED, OUTDATED, NO_MEMORY, RAISED or BUSY. */
INLINE lapse_status put_record(lapse_table *t, record *r, int64_t at, const terms *with,
                               lapse_object **replaced) {
    lookup l;
    leaving gone;
    gone.expired.key = gone.evicted.key = NULL; /* nothing else is looked at before these are set */
    lapse_status status, verdict = LAPSE_MORE;
    *replaced = NULL;
    if (UNLIKELY(!weigh(t, r))) return LAPSE_RAISED;
    if (UNLIKELY(policy_is_off(t))) table_refit_policy(t);
    if (UNLIKELY(fetches_ahead(t))) duel_fetch(&t->duel, r->hash);
    while (verdict == LAPSE_MORE || verdict == LAPSE_NO_ROOM) {
        if (too_heavy(t, r)) return refuse(t, r, at, with);
        status = begin_put(&l, t, r, at, with, &gone.expired);
        if (status <= LAPSE_ABSENT) {
            verdict = store(t, &l, r, at, with, status == LAPSE_ABSENT, &gone, replaced);
            end_put(&l, t, &gone, at);
            if (UNLIKELY(verdict == LAPSE_MORE || verdict == LAPSE_NO_ROOM))
                status = make_way(t, r, with, verdict, at);
        }
        if (UNLIKELY(status > LAPSE_ABSENT)) verdict = status;
    }
    return verdict;
}

/* Count what was stored. To the caller a value that was too heavy has been dealt with. */
static lapse_status count_set(lapse_table *t, lapse_status status) {
    if (LIKELY(status == LAPSE_OK)) COUNT(t, sets);
    return status == LAPSE_REFUSED ? LAPSE_OK : status;
}

/* Store a value for `ttl` nanoseconds (LAPSE_DEFAULT, LAPSE_NEVER or positive). The caller gives up
 * `*replaced`, the old value, if it is not NULL. OK, NO_MEMORY, RAISED or BUSY. */
lapse_status lapse_put(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *value, int64_t ttl,
                       int64_t now, lapse_object **replaced) {
    record r = {.e = {key, value}, .hash = mix_hash(hash)};
    int64_t at = time_to_put(t, ttl, now);
    date_record(t, &r, ttl, at);
    return count_set(t, put_record(t, &r, at, &NO_TERMS, replaced));
}

/* The same for an entry that bears tags (NULL: none). */
lapse_status lapse_put_tagged(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *value,
                              int64_t ttl, const lapse_tags *tags, int64_t now, lapse_object **replaced) {
    record r = {.e = {key, value}, .hash = mix_hash(hash)};
    int64_t at = lapse_now(t, now);
    date_record(t, &r, ttl, at);
    terms with = {tags && tags->n ? tags : NULL, NULL, false};
    return count_set(t, put_record(t, &r, at, &with, replaced));
}

/* The same for an entry that brings its own dates: for copies. */
lapse_status lapse_put_item(lapse_table *t, const lapse_item *item, uint64_t hash, const lapse_tags *tags,
                            int64_t now, lapse_object **replaced) {
    record r = {.e = {item->key, item->value},
                .hash = mix_hash(hash),
                .deadline = item->deadline,
                .ttl = item->ttl,
                .limit = item->limit,
                .cost = item->cost,
                .own = item->own_ttl};
    terms with = {tags && tags->n ? tags : NULL, NULL, false};
    lapse_status status = put_record(t, &r, lapse_now(t, now), &with, replaced);
    return status == LAPSE_REFUSED ? LAPSE_OK : status;
}

/* Store only if there is no live entry. ABSENT: stored. OK: there is one, and `*present` is a new
 * reference to its value. NO_MEMORY, RAISED or BUSY. */
lapse_status lapse_put_new(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *value, int64_t ttl,
                           int64_t now, lapse_object **present) {
    record r = {.e = {key, value}, .hash = mix_hash(hash)};
    int64_t at = lapse_now(t, now);
    lookup l;
    leaving gone;
    gone.expired.key = gone.evicted.key = NULL; /* nothing else is looked at before these are set */
    date_record(t, &r, ttl, at);
    if (UNLIKELY(!weigh(t, &r))) return LAPSE_RAISED;
    if (UNLIKELY(policy_is_off(t))) table_refit_policy(t);
    for (lapse_status status, verdict;;) {
        status = begin_put(&l, t, &r, at, &NO_TERMS, &gone.expired);
        if (status > LAPSE_ABSENT) return status;
        bool heavy = status == LAPSE_ABSENT && too_heavy(t, &r);
        verdict = LAPSE_OK;
        if (status == LAPSE_OK) object_ref(*present = entry_at(l.s, l.slot)->value);
        else if (heavy) key_changed(t, r.hash, key);
        else verdict = store(t, &l, &r, at, &NO_TERMS, true, &gone, NULL);
        end_put(&l, t, &gone, at);
        if (verdict == LAPSE_OK) {
            if (heavy) COUNT(t, refused);
            else if (status == LAPSE_ABSENT) COUNT(t, sets);
            return status;
        }
        if (make_way(t, &r, &NO_TERMS, verdict, at) != LAPSE_OK) return LAPSE_NO_MEMORY;
    }
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

/* The load begins now: its cost is kept with what it brings, if the table keeps costs. */
void lapse_lease_time(const lapse_table *t, lapse_lease *l, int64_t now) {
    if (t->mode == LAPSE_PROBABILISTIC) l->timed = lapse_now(t, now);
}

/* The cost of a load that has ended at `at`, in microseconds, at least one; 0: it was not timed. */
static uint32_t cost_of(const lapse_lease *l, int64_t at) {
    int64_t taken = at - l->timed;
    if (l->timed == 0) return 0;
    return taken < NANOSECONDS                ? 1
           : taken / NANOSECONDS > UINT32_MAX ? UINT32_MAX
                                              : (uint32_t)(taken / NANOSECONDS);
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

/* Outdate the leases of a key, as if it had been deleted; its entry stays. */
void lapse_outdate_key(lapse_table *t, lapse_object *key, uint64_t hash) {
    segment *s = lock_segment(t, mix_hash(hash));
    key_changed(t, mix_hash(hash), key);
    lock_drop(&s->lock);
}

/* Outdate every lease, as if the table had been cleared; the entries stay. */
void lapse_outdate_all(lapse_table *t) { fence_cleared(&t->fence); }

/* Store what was loaded under a lease, unless a change has outdated it; it can be filled once. A fill that
 * is a `change` outdates the other leases of the key, as lapse_put() does. OK, OUTDATED,
 * NO_MEMORY, RAISED or BUSY. */
lapse_status lapse_fill(lapse_table *t, lapse_lease *l, lapse_object *value, int64_t ttl,
                        const lapse_tags *tags, bool change, int64_t now, lapse_object **replaced) {
    record r = {.e = {l->key, value}, .hash = l->hash};
    int64_t at = lapse_now(t, now);
    *replaced = NULL;
    if (t->order.on && !lapse_lease_holds(t, l, tags)) { /* nothing makes way for it */
        COUNT(t, fenced);
        fence_dismiss(&t->fence, l);
        return LAPSE_OUTDATED;
    }
    date_record(t, &r, ttl, at);
    if (!change) r.cost = cost_of(l, at);
    terms with = {tags && tags->n ? tags : NULL, l, change};
    lapse_status status = count_set(t, put_record(t, &r, at, &with, replaced));
    if (status == LAPSE_OUTDATED) {
        COUNT(t, fenced);
        fence_dismiss(&t->fence, l);
    }
    return status;
}

/* --- Changing and removing --- */

/* Find a live entry whose value is the expected one: `*r` is what it is, and the lookup goes on after OK. */
static lapse_status find_expected(lookup *l, lapse_table *t, const record *fresh,
                                  const lapse_object *expected, int64_t at, record *r) {
    lapse_status status = lookup_begin(l, t, fresh->e.key, fresh->hash);
    if (status > LAPSE_ABSENT) return status;
    if (status == LAPSE_OK) {
        segment_read(l->s, l->slot, r);
        if (r->e.value != expected || passed(r->deadline, at)) status = LAPSE_ABSENT;
    }
    if (status == LAPSE_ABSENT) lookup_end(l);
    return status;
}

/* The new value is too heavy: the entry goes. */
static NOINLINE lapse_status exchange_for_nothing(lapse_table *t, const record *fresh,
                                                  const lapse_object *expected, int64_t at,
                                                  lapse_object **replaced) {
    lookup l;
    record r;
    lapse_item old;
    lapse_status status = find_expected(&l, t, fresh, expected, at, &r);
    if (status != LAPSE_OK) return status;
    key_changed(t, r.hash, fresh->e.key);
    table_take(t, l.s, l.slot, r.hash, &old);
    lookup_end(&l);
    object_unref(old.key);
    *replaced = old.value;
    COUNT(t, refused);
    COUNT(t, replaced);
    return LAPSE_OK;
}

/* Replace the value of a live entry, keeping its deadline, if the value is still `expected`. OK: the
 * caller gives up `*replaced`, which is `expected`. ABSENT: somebody was quicker. */
lapse_status lapse_exchange(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *expected,
                            lapse_object *value, int64_t now, lapse_object **replaced) {
    record fresh = {.e = {key, value}, .hash = mix_hash(hash)};
    int64_t at = lapse_now(t, now);
    if (UNLIKELY(!weigh(t, &fresh))) return LAPSE_RAISED;
    for (;;) {
        if (too_heavy(t, &fresh)) return exchange_for_nothing(t, &fresh, expected, at, replaced);
        lookup l;
        record r;
        lapse_status status = find_expected(&l, t, &fresh, expected, at, &r);
        if (status != LAPSE_OK) return status;
        r.e.value = value;
        r.weight = fresh.weight;
        int64_t by = heavier_by(t, l.s, l.slot, &r);
        lapse_status verdict = reweigh(t, l.s, l.slot, by);
        if (LIKELY(verdict == LAPSE_OK)) {
            key_changed(t, r.hash, key);
            overwrite(t, &l, &r, replaced);
            give_difference(t, -by);
            COUNT(t, sets);
        }
        lookup_end(&l);
        if (LIKELY(verdict == LAPSE_OK)) return LAPSE_OK;
        table_evict(t, &fresh, at);
    }
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
        note_use(t, l.s, l.slot);
        keep_seat(l.s, l.slot, &r);
        if (t->order.on) table_note_rank(t, DEADLINE_RANK(r.deadline));
        write_begin(l.s);
        segment_write(l.s, l.slot, &r);
        write_end(l.s);
    }
    lookup_end(&l);
    return status;
}

/* Take out the entry that was found, and count it: OK if it was live, else EXPIRED. */
static lapse_status take_found(lapse_table *t, lookup *l, uint64_t h, int64_t now, lapse_item *removed) {
    int64_t deadline = *deadline_at(l->s, l->slot), at;
    bool live = deadline == LAPSE_NEVER || !deadline_passed(t, deadline, now, &at);
    table_take(t, l->s, l->slot, h, removed);
    if (live) COUNT(t, deletes);
    else COUNT(t, expirations);
    return live ? LAPSE_OK : LAPSE_EXPIRED;
}

/* Take an entry out. OK: it was live; EXPIRED: it was not any more. Both fill `removed`. ABSENT, RAISED
 * and BUSY do not. */
lapse_status lapse_delete(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now,
                          lapse_item *removed) {
    lookup l;
    lapse_status status = lookup_begin(&l, t, key, mix_hash(hash));
    if (status != LAPSE_OK && status != LAPSE_ABSENT) return status;
    if (status == LAPSE_OK) status = take_found(t, &l, mix_hash(hash), now, removed);
    key_changed(t, mix_hash(hash), key);
    lookup_end(&l);
    return status;
}

/* Take an entry out if its value is still `expected`; the leases of the key stay good. OK and EXPIRED as
 * lapse_delete(). ABSENT: there is no such entry, or another value. RAISED or BUSY. */
lapse_status lapse_drop(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *expected, int64_t now,
                        lapse_item *removed) {
    lookup l;
    lapse_status status = lookup_begin(&l, t, key, mix_hash(hash));
    if (status != LAPSE_OK && status != LAPSE_ABSENT) return status;
    if (status == LAPSE_OK && entry_at(l.s, l.slot)->value != expected) status = LAPSE_ABSENT;
    if (status == LAPSE_OK) status = take_found(t, &l, mix_hash(hash), now, removed);
    lookup_end(&l);
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
