/* Operations of a stream (stream.h) that select: tags, patterns, batches of keys, passes in steps with changes
 * between them, and the leases that all of it outdates. */
#ifndef LAPSE_TEST_SELECTION_H
#define LAPSE_TEST_SELECTION_H

#include "world.h"

#define FEW_LEASES 3u
#define BATCH 80u /* keys erased together */

/* --- Tags of one entry --- */

static void op_put_tagged(world *w, source *from) {
    operands o = choose_operands(w, from);
    int64_t ttl = choose_ttl(from);
    labels tags;
    choose_tags(w, from, &tags);
    lapse_object *replaced, *old = lives(w, o.n) ? o.n->value : NULL, *first = old ? o.n->key : o.key;
    w->replacing = o.n;
    CHECK(lapse_put_tagged(w->t, o.key, o.hash, o.value, ttl, &tags.list, w->now, &replaced) == LAPSE_OK);
    CHECK(replaced == old);
    if (replaced) object_unref(replaced);
    store(w, o.n, first, o.value, ttl);
    o.n->tags = tags.bits;
    outdate_key(w, o.id);
    w->counters.sets++;
}

static void op_tags(world *w, source *from) {
    operands o = choose_operands(w, from);
    lapse_object *names[TAGS];
    size_t n = 0, room = choose(from, TAGS + 1);
    uint32_t bits = 0;
    lapse_status status = lapse_tags_of(w->t, o.key, o.hash, w->now, names, room, &n);
    CHECK(lives(w, o.n) ? status == LAPSE_OK
                        : status == LAPSE_ABSENT || (status == LAPSE_EXPIRED && o.n->key));
    if (status != LAPSE_OK) return;
    CHECK(n == (size_t)__builtin_popcount(o.n->tags));
    for (size_t i = 0; n <= room && i < n; i++) {
        bits |= 1u << names[i]->id;
        object_unref(names[i]);
    }
    CHECK(n > room || bits == o.n->tags);
}

/* --- Passes --- */

/* Index prefixes of the first two depths from now on, as a large table does after its first pattern. Only
 * while the table is empty, so that there is nothing to build. */
static void op_keep_prefixes(world *w, source *from) {
    (void)from;
    for (uint32_t depth = 1; depth <= 2; depth++) {
        for (uint32_t id = 0; id < IDS; id++)
            if (w->map[id].key) return;
        uint64_t epoch = index_keep_prefixes(&w->t->index, depth);
        if (epoch) index_prefixes_built(&w->t->index, epoch, depth);
    }
}

static void choose_sieve(world *w, source *from, sieve *s, bool by_tag) {
    *s = (sieve){.at = w->now};
    if (by_tag) {
        s->tag = choose(from, TAGS);
        return;
    }
    s->n = 1 + choose(from, TOGETHER);
    for (uint32_t i = 0; i < s->n; i++) {
        s->globs[i] = choose(from, GLOBS - (choose(from, 16) > 0)); /* "*" takes all: seldom */
        s->patterns[i] = w->patterns[s->globs[i]];
    }
}

static void begin_pass(world *w, source *from, sieve *s, bool listing) {
    lapse_object *tag = s->n ? NULL : &w->tags[s->tag][choose(from, TWINS)];
    uint64_t hash = s->n ? 0 : tag_hash(s->tag);
    CHECK(lapse_pass_new(w->t, s->patterns, s->n, tag, hash, s->at, listing, &s->p) == LAPSE_OK);
    if (!listing) outdate_matches(w, s);
}

static lapse_status pass_step(world *w, const sieve *s) {
    lapse_item items[LAPSE_STEP];
    size_t n;
    w->at_work = s;
    lapse_status status = lapse_pass_step(s->p, items, &n);
    w->at_work = NULL;
    CHECK(status == LAPSE_OK || status == LAPSE_MORE);
    return status;
}

static void end_pass(world *w, sieve *s) {
    if (s->n == 0) outdate_tag(w, s->tag);
    lapse_pass_end(s->p);
    s->p = NULL;
}

/* Live entries that are covered; those that a storm has struck count or not. */
static size_t count_covered(const world *w, const sieve *s, bool all) {
    size_t live = 0;
    for (uint32_t id = 0; id < IDS; id++) {
        const naive *n = &w->map[id];
        if (n->key && covers(w, s, id)) live += all ? !over(n, w->now) : lives(w, n);
    }
    return live;
}

/* All that is covered goes, and the counts say how much of it was live. */
static void pass_whole(world *w, source *from, bool by_tag) {
    sieve s;
    choose_sieve(w, from, &s, by_tag);
    size_t due = count_covered(w, &s, false);
    begin_pass(w, from, &s, false);
    while (pass_step(w, &s) == LAPSE_MORE) continue;
    for (uint32_t id = 0; id < IDS; id++) CHECK(w->map[id].key == NULL || !covers(w, &s, id));
    for (uint32_t i = 0; i < (s.n ? s.n : 1); i++) due -= lapse_pass_counts(s.p)[i];
    CHECK(due == 0);
    end_pass(w, &s);
}

static void op_match(world *w, source *from) { pass_whole(w, from, false); }
static void op_delete_tag(world *w, source *from) { pass_whole(w, from, true); }

/* --- Storms --- */

static void begin_storm(world *w, source *from, sieve *s) {
    *s = (sieve){.at = w->now, .n = 1 + choose(from, TOGETHER)};
    CHECK(lapse_prefixes_new(&lapse_system_memory, s->n, &s->prefixes) == LAPSE_OK);
    for (uint32_t i = 0; i < s->n; i++) {
        s->globs[i] = prefix_globs[choose(from, sizeof prefix_globs / sizeof *prefix_globs)];
        s->patterns[i] = w->patterns[s->globs[i]];
        lapse_text text = {globs[s->globs[i]], strlen(globs[s->globs[i]]), 1, false};
        CHECK(lapse_prefixes_add(s->prefixes, &text, i));
    }
    CHECK(lapse_is_storm(w->t, s->prefixes, SIZE_MAX) && !lapse_is_storm(w->t, s->prefixes, 0));
    CHECK(lapse_storm_new(w->t, s->prefixes, s->n, s->at, &s->storm) == LAPSE_OK);
    outdate_matches(w, s);
}

static void end_storm(sieve *s) {
    lapse_storm_end(s->storm);
    lapse_prefixes_free(&lapse_system_memory, s->prefixes);
    s->storm = NULL;
}

/* The same by a storm, of patterns that are prefixes. Nobody sees any of it from the beginning on. */
static void op_storm(world *w, source *from) {
    sieve *s = &w->storm;
    if (s->storm) return;
    begin_storm(w, from, s);
    size_t due = count_covered(w, s, true);
    for (uint32_t n = choose(from, 8); n > 0; n--) {
        operands o = choose_operands(w, from);
        lapse_status status = lapse_has(w->t, o.key, o.hash, w->now);
        CHECK((status == LAPSE_OK) == (lives(w, o.n) && !covers(w, s, o.id)));
    }
    w->at_work = s;
    while (lapse_storm_step(s->storm) == LAPSE_MORE) continue;
    w->at_work = NULL;
    for (uint32_t id = 0; id < IDS; id++) CHECK(w->map[id].key == NULL || !covers(w, s, id));
    for (uint32_t i = 0; i < s->n; i++) due -= lapse_storm_counts(s->storm)[i];
    CHECK(due == 0);
    end_storm(s);
}

static void begin_storm_under_way(world *w, source *from) {
    begin_storm(w, from, &w->storm);
    for (uint32_t id = 0; id < IDS; id++) {
        if (!covers_text(&w->storm, id)) continue;
        w->map[id].in_storm = w->map[id].key != NULL;
        w->map[id].due = false; /* a walk does not yield it any more */
    }
}

/* Begin a storm, or take the one that is under way a little further. In the end whatever was there at the
 * beginning, and has not been stored again, is gone. */
static void op_storm_under_way(world *w, source *from) {
    if (w->config.jitter > 0) return; /* the map cannot ask for dates that were drawn while nobody may look */
    if (w->storm.storm == NULL) begin_storm_under_way(w, from);
    lapse_status status = LAPSE_MORE;
    w->at_work = &w->storm;
    for (uint32_t steps = choose(from, 6); steps > 0 && status == LAPSE_MORE; steps--)
        status = lapse_storm_step(w->storm.storm);
    w->at_work = NULL;
    if (status == LAPSE_MORE) return;
    for (uint32_t id = 0; id < IDS; id++) CHECK(!w->map[id].in_storm);
    end_storm(&w->storm);
}

/* --- A pass in steps, with changes between them --- */

static void begin_under_way(world *w, source *from) {
    sieve *s = &w->under_way;
    choose_sieve(w, from, s, choose(from, 2));
    begin_pass(w, from, s, false);
    for (uint32_t id = 0; id < IDS; id++) w->map[id].doomed = w->map[id].key && covers(w, s, id);
}

/* Begin a pass, or take the one that is under way a little further. In the end whatever was there at the
 * beginning, and has not been stored again, is gone. */
static void op_pass(world *w, source *from) {
    sieve *s = &w->under_way;
    if (s->p == NULL) begin_under_way(w, from);
    lapse_status status = LAPSE_MORE;
    for (uint32_t steps = 1 + choose(from, 3); steps > 0 && status == LAPSE_MORE; steps--)
        status = pass_step(w, s);
    if (status == LAPSE_MORE) return;
    for (uint32_t id = 0; id < IDS; id++) CHECK(!w->map[id].doomed);
    end_pass(w, s);
}

/* Every live key that a pattern matches, or whose entry bears a tag, is listed once. */
static void op_list(world *w, source *from) {
    static lapse_item out[LAPSE_STEP];
    static bool listed[IDS];
    sieve s;
    size_t n, found = 0;
    choose_sieve(w, from, &s, choose(from, 4) == 0);
    if (s.n > 1) s.n = 1;
    memset(listed, 0, sizeof listed);
    begin_pass(w, from, &s, true);
    for (lapse_status status = LAPSE_MORE; status != LAPSE_OK;) {
        status = lapse_pass_step(s.p, out, &n);
        for (size_t i = 0; i < n; i++) {
            uint32_t id = (uint32_t)out[i].key->id;
            CHECK(out[i].key == w->map[id].key && lives(w, &w->map[id]) && !listed[id] &&
                  out[i].value == NULL);
            CHECK(covers(w, &s, id));
            listed[id] = true;
            object_unref(out[i].key);
        }
        found += n;
    }
    CHECK(found == count_covered(w, &s, false));
    lapse_pass_end(s.p);
}

/* --- Batches of keys --- */

static void op_erase(world *w, source *from) {
    operands o[BATCH];
    lapse_object *keys[BATCH];
    uint64_t hashes[BATCH];
    uint32_t order[BATCH], scratch[BATCH];
    uint8_t erased[BATCH] = {0};
    bool live[BATCH];
    size_t n = 1 + choose(from, BATCH), done = 0;
    for (size_t i = 0; i < n; i++) {
        o[i] = choose_operands(w, from);
        keys[i] = o[i].key;
        hashes[i] = o[i].hash;
        live[i] = lives(w, o[i].n);
        for (size_t k = 0; k < i; k++) live[i] &= o[k].id != o[i].id; /* named again: gone by then */
    }
    lapse_sort_hashes(n, hashes, order, scratch);
    w->erasing = true;
    while (lapse_erase_keys(w->t, n, keys, hashes, &done, w->now, order, erased) == LAPSE_MORE) continue;
    CHECK(done == n);
    for (size_t i = 0; i < n; i++) {
        CHECK(erased[i] == live[i] && o[i].n->key == NULL);
        outdate_key(w, o[i].id);
    }
}

/* --- Leases --- */

static void end_loan(world *w, loan *one) {
    if (one->l) lapse_lease_end(w->t, one->l);
    one->l = NULL;
}

static void end_loans(world *w) {
    for (uint32_t i = 0; i < LEASES; i++) end_loan(w, &w->loans[i]);
}

/* Give up the pass under way. Nobody knows which leases it has come to, so they are given back. */
static void give_up_pass(world *w) {
    if (w->under_way.p == NULL) return;
    end_pass(w, &w->under_way);
    end_loans(w);
    for (uint32_t id = 0; id < IDS; id++) w->map[id].doomed = false;
}

/* The same of the storm under way. What it has not come to comes back. */
static void give_up_storm(world *w) {
    if (w->storm.storm == NULL) return;
    end_storm(&w->storm);
    end_loans(w);
    for (uint32_t id = 0; id < IDS; id++) w->map[id].in_storm = false;
}

static loan *choose_loan(world *w, source *from) {
    return &w->loans[choose(from, w->among_few ? FEW_LEASES : LEASES)];
}

static void op_lease(world *w, source *from) {
    loan *one = choose_loan(w, from);
    operands o = choose_operands(w, from);
    end_loan(w, one);
    *one = (loan){.id = o.id, .key = o.key, .born = w->sequence};
    one->outdated = w->under_way.p && covers_text(&w->under_way, o.id);
    one->outdated |= w->storm.storm && covers_text(&w->storm, o.id);
    CHECK(lapse_lease_take(w->t, o.key, o.hash, &one->l) == LAPSE_OK);
    if (choose(from, 2)) return;
    lapse_lease_time(w->t, one->l, w->now);
    one->timed = w->now;
}

/* Outdate the leases of a key, of a pattern, of a tag, or all, and touch no entry. */
static void op_outdate(world *w, source *from) {
    operands o = choose_operands(w, from);
    uint32_t kind = choose(from, 16);
    if (kind == 0) {
        lapse_outdate_all(w->t);
        outdate_all(w);
        return;
    }
    if (kind < 8) {
        lapse_outdate_key(w->t, o.key, o.hash);
        outdate_key(w, o.id);
        return;
    }
    sieve s;
    choose_sieve(w, from, &s, kind < 12);
    begin_pass(w, from, &s, false);
    while (lapse_pass_outdate(s.p)) continue;
    end_pass(w, &s);
}

/* Microseconds that a load has taken, if anybody timed it. */
static uint32_t cost_after(const world *w, const loan *one) {
    int64_t taken = (w->now - one->timed) / 1000;
    if (one->timed == 0) return 0;
    return taken < 1 ? 1 : taken > UINT32_MAX ? UINT32_MAX : (uint32_t)taken;
}

static void op_fill(world *w, source *from) {
    loan *one = choose_loan(w, from);
    if (one->l == NULL) return;
    int64_t ttl = choose_ttl(from);
    lapse_object *value = &w->values[choose(from, VALUES)], *replaced;
    labels tags;
    choose_tags(w, from, &tags);
    naive *n = &w->map[one->id];
    bool good = is_good(w, one, tags.bits), change = choose(from, 4) == 0;
    if (good) w->replacing = n;
    CHECK(lapse_lease_holds(w->t, one->l, &tags.list) == good);
    lapse_status status = lapse_fill(w->t, one->l, value, ttl, &tags.list, change, w->now, &replaced);
    CHECK(status == (good ? LAPSE_OK : LAPSE_OUTDATED));
    one->outdated = true; /* used up */
    w->counters.fenced += !good;
    if (!good) return;
    CHECK(replaced == (lives(w, n) ? n->value : NULL));
    if (replaced) object_unref(replaced);
    store(w, n, lives(w, n) ? n->key : one->key, value, ttl);
    n->tags = tags.bits;
    if (change) outdate_key(w, one->id);
    else n->cost = cost_after(w, one);
    w->counters.sets++;
}

#endif
