/* A stream of random operations on a world (world.h): each is done to the table and to its naive map, and
 * everything that the table answers is compared. world_check() also walks the table's invariants, and
 * world_settle() the reference count of every object.
 *
 * The choices come from a generator or, under the fuzzer, from its bytes.
 */
#ifndef LAPSE_TEST_STREAM_H
#define LAPSE_TEST_STREAM_H

#include "packing.h"
#include "reloading.h"
#include "selection.h"
#include "world.h"

#define SHORT_ROW 100u /* keys in a row: all that is tried where each costs much, */
#define ROW 6000u      /* and at most */

/* --- Operations on one key --- */

static void put_one(world *w, operands o, int64_t ttl) {
    lapse_object *replaced, *old = lives(w, o.n) ? o.n->value : NULL, *first = old ? o.n->key : o.key;
    w->replacing = o.n;
    CHECK(lapse_put(w->t, o.key, o.hash, o.value, ttl, w->now, &replaced) == LAPSE_OK);
    CHECK(replaced == old);
    if (replaced) lapse_farewell_value(w->t, first, replaced);
    bool due = old && o.n->due;
    store(w, o.n, first, o.value, ttl);
    outdate_key(w, o.id);
    o.n->due = due;
    w->counters.sets++;
}

static void op_put(world *w, source *from) {
    operands o = choose_operands(w, from);
    put_one(w, o, choose_ttl(from));
}

static void op_put_new(world *w, source *from) {
    operands o = choose_operands(w, from);
    int64_t ttl = choose_ttl(from);
    lapse_object *present = NULL;
    w->replacing = o.n;
    lapse_status status = lapse_put_new(w->t, o.key, o.hash, o.value, ttl, w->now, &present);
    CHECK(status == (lives(w, o.n) ? LAPSE_OK : LAPSE_ABSENT));
    if (status == LAPSE_OK) {
        CHECK(present == o.n->value);
        object_unref(present);
    } else {
        store(w, o.n, o.key, o.value, ttl);
        outdate_key(w, o.id);
        w->counters.sets++;
    }
}

static void op_put_item(world *w, source *from) {
    operands o = choose_operands(w, from);
    int64_t left = (int64_t)choose(from, 4000) - 500;
    lapse_item item = {.key = o.key, .value = o.value, .own_ttl = choose(from, 2)};
    item.ttl = 1 + choose(from, 3000);
    item.cost = choose(from, 3);
    item.deadline = w->now + left;
    item.limit = keeps_limit(w) ? w->now + left + choose(from, 3000) : LAPSE_NEVER;
    lapse_object *replaced, *old = lives(w, o.n) ? o.n->value : NULL;
    if (old) item.key = o.n->key;
    labels tags;
    choose_tags(w, from, &tags);
    w->replacing = o.n;
    CHECK(lapse_put_item(w->t, &item, o.hash, &tags.list, w->now, &replaced) == LAPSE_OK);
    CHECK(replaced == old);
    if (replaced) object_unref(replaced);
    w->counters.replaced += old != NULL;
    forget(w, o.n);
    outdate_key(w, o.id);
    *o.n = (naive){.key = item.key,
                   .value = item.value,
                   .deadline = item.deadline,
                   .ttl = item.ttl,
                   .limit = item.limit,
                   .cost = item.cost,
                   .own = item.own_ttl,
                   .walked = o.n->walked,
                   .tags = tags.bits};
    use(w, o.n);
}

static void op_exchange(world *w, source *from) {
    operands o = choose_operands(w, from);
    bool live = lives(w, o.n);
    lapse_object *replaced = NULL, *expected = live && choose(from, 2) ? o.n->value : o.value;
    lapse_object *value = &w->values[choose(from, VALUES)];
    bool fits = live && expected == o.n->value;
    lapse_status status = lapse_exchange(w->t, o.key, o.hash, expected, value, w->now, &replaced);
    CHECK(status == (fits ? LAPSE_OK : LAPSE_ABSENT));
    if (!fits) return;
    CHECK(replaced == expected);
    object_unref(replaced);
    o.n->value = value;
    use(w, o.n);
    outdate_key(w, o.id);
    w->counters.sets++;
    w->counters.replaced++;
}

static void op_touch(world *w, source *from) {
    operands o = choose_operands(w, from);
    int64_t ttl = choose_ttl(from);
    bool live = lives(w, o.n);
    CHECK(lapse_touch(w->t, o.key, o.hash, ttl, w->now) == (live ? LAPSE_OK : LAPSE_ABSENT));
    if (!live) return;
    date(w, o.n, ttl);
    use(w, o.n);
}

static void delete_one(world *w, operands o) {
    bool live = lives(w, o.n);
    lapse_item removed;
    lapse_status status = lapse_delete(w->t, o.key, o.hash, w->now, &removed);
    CHECK(live ? status == LAPSE_OK : status == LAPSE_ABSENT || (status == LAPSE_EXPIRED && o.n->key));
    if (status != LAPSE_ABSENT) {
        CHECK(item_matches(w, &removed, o.n));
        give_up(&removed);
    }
    forget(w, o.n);
    outdate_key(w, o.id);
    w->counters.deletes += live;
}

static void op_delete(world *w, source *from) { delete_one(w, choose_operands(w, from)); }

/* Take out what is expected, and leave the leases alone. */
static void op_drop(world *w, source *from) {
    operands o = choose_operands(w, from);
    lapse_object *expected = o.n->key && choose(from, 2) ? o.n->value : o.value;
    bool live = lives(w, o.n), fits = o.n->key && o.n->value == expected && !struck(w, o.id);
    lapse_item removed;
    lapse_status status = lapse_drop(w->t, o.key, o.hash, expected, w->now, &removed);
    CHECK(fits ? status == (live ? LAPSE_OK : LAPSE_EXPIRED) || (!live && status == LAPSE_ABSENT)
               : status == LAPSE_ABSENT);
    if (status == LAPSE_ABSENT) return;
    CHECK(item_matches(w, &removed, o.n));
    give_up(&removed);
    forget(w, o.n);
    w->counters.deletes += live;
}

static void op_get(world *w, source *from) {
    operands o = choose_operands(w, from);
    lapse_object *value = NULL;
    naive was = *o.n;
    bool live = lives(w, o.n), was_struck = struck(w, o.id);
    lapse_status status = lapse_get(w->t, o.key, o.hash, w->now, &value);
    if (status == LAPSE_OK) {
        CHECK(live && value == o.n->value);
        object_unref(value);
        slide(w, o.n);
        use(w, o.n);
        w->counters.hits++;
        return;
    }
    w->counters.misses++;
    w->counters.early += status == LAPSE_EARLY;
    if (status == LAPSE_EARLY) CHECK(live && may_end_early(w, &was));
    else CHECK(!live && status == (was.key && !was_struck ? LAPSE_EXPIRED : LAPSE_ABSENT));
    check_gone(w, o.n, status, was_struck);
}

static void op_has(world *w, source *from) {
    operands o = choose_operands(w, from);
    lapse_status status = lapse_has(w->t, o.key, o.hash, w->now);
    CHECK((status == LAPSE_OK) == lives(w, o.n));
    CHECK(status == LAPSE_OK || status == LAPSE_ABSENT || (status == LAPSE_EXPIRED && o.n->key));
}

static void op_peek(world *w, source *from) {
    operands o = choose_operands(w, from);
    lapse_item item;
    lapse_status status = lapse_peek(w->t, o.key, o.hash, w->now, &item);
    CHECK((status == LAPSE_OK) == lives(w, o.n));
    if (status != LAPSE_OK) return;
    CHECK(item_matches(w, &item, o.n));
    give_up(&item);
}

/* --- Operations on many --- */

static void take_block_answer(world *w, const operands *o, lapse_status found, lapse_object *value) {
    if (found == LAPSE_OK) {
        CHECK(lives(w, o->n) && value == o->n->value);
        object_unref(value);
        w->counters.hits++;
    } else if (found == LAPSE_ABSENT) {
        CHECK(!lives(w, o->n));
        w->counters.misses++;
    } else {
        CHECK(found == LAPSE_MORE); /* left for lapse_get() */
    }
}

static void op_block(world *w, source *from) {
    lapse_block block = {.n = 1 + choose(from, LAPSE_BLOCK), .integers = choose(from, 4) == 0};
    operands o[LAPSE_BLOCK];
    lapse_object *values[LAPSE_BLOCK];
    lapse_status found[LAPSE_BLOCK];
    for (size_t i = 0; i < block.n; i++) {
        o[i] = choose_operands(w, from);
        block.hashes[i] = o[i].hash;
        block.ints[i] = o[i].id;
        block.keys[i] = block.integers || choose(from, 8) == 0 ? NULL : o[i].key;
    }
    lapse_prefetch(w->t, block.n, block.hashes);
    lapse_get_block(w->t, &block, w->now, values, found);
    for (size_t i = 0; i < block.n; i++) take_block_answer(w, &o[i], found[i], values[i]);
}

static lapse_status sweep_step(world *w, size_t limit) {
    lapse_item removed[LAPSE_STEP];
    size_t n;
    lapse_status status = lapse_sweep(w->t, &w->sweep_cursor, w->now, limit, removed, &n);
    CHECK(n <= limit && (status == LAPSE_OK || status == LAPSE_MORE));
    for (size_t i = 0; i < n; i++) {
        naive *entry = entry_of(w, &removed[i]);
        CHECK(entry->key && over(entry, kept_since(w)) && item_matches(w, &removed[i], entry));
        forget(w, entry);
        give_up(&removed[i]);
    }
    if (status == LAPSE_OK) w->sweep_cursor = 0;
    return status;
}

/* A step of a packing that goes on from sweep to sweep, whatever comes in between. */
static void op_sweep(world *w, source *from) {
    sweep_step(w, 1 + choose(from, LAPSE_STEP));
    if (lapse_pack(w->t, &w->packing) == LAPSE_MORE) return;
    w->packing = (lapse_packing){.at_once = true};
}

static void sweep_all(world *w) {
    w->sweep_cursor = 0;
    while (sweep_step(w, LAPSE_STEP) == LAPSE_MORE) continue;
    pack(w->t, false);
    for (uint32_t id = 0; id < IDS; id++) CHECK(w->map[id].key == NULL || !over(&w->map[id], kept_since(w)));
}

static void op_sweep_all(world *w, source *from) {
    (void)from;
    sweep_all(w);
}

static void unbury_one(world *w, const lapse_item *item) {
    put_aside *a = &w->buried[item->key->id];
    CHECK(a->key == item->key && a->value == item->value);
    w->lapsed -= a->expired; /* handed out, so not counted as an expiration */
    a->key = NULL;
    give_up(item);
}

static lapse_status drain_step(world *w) {
    lapse_item removed[LAPSE_STEP];
    size_t n;
    lapse_status status = lapse_drain(w->t, removed, &n);
    CHECK(n <= LAPSE_STEP);
    for (size_t i = 0; i < n; i++) unbury_one(w, &removed[i]);
    if (status == LAPSE_OK)
        for (uint32_t id = 0; id < IDS; id++) CHECK(w->buried[id].key == NULL || w->buried[id].expired);
    return status;
}

static void op_drain(world *w, source *from) {
    (void)from;
    drain_step(w);
}

static void drain_all(world *w) {
    while (drain_step(w) == LAPSE_MORE) continue;
}

/* Everything goes from the map to what is put aside. */
static void bury_map(world *w) {
    for (uint32_t id = 0; id < IDS; id++) {
        naive *n = &w->map[id];
        w->buried[id] = (put_aside){n->key, n->value, n->key != NULL && over(n, w->now)};
        forget(w, n);
    }
    outdate_all(w);
}

static void op_clear(world *w, source *from) {
    drain_all(w);
    CHECK(lapse_detach(w->t) == LAPSE_OK);
    bury_map(w);
    if (choose(from, 2)) drain_all(w);
}

static void op_pop(world *w, source *from) {
    lapse_item removed;
    if (choose(from, 4) == 0) w->pop_cursor = 0;
    lapse_status status = lapse_pop_any(w->t, &w->pop_cursor, w->now, &removed);
    if (status == LAPSE_ABSENT) {
        CHECK(count_live(w, false) == 0);
        return;
    }
    naive *n = entry_of(w, &removed);
    CHECK(status == LAPSE_OK && lives(w, n) && item_matches(w, &removed, n));
    outdate_key(w, (uint32_t)removed.key->id);
    forget(w, n);
    give_up(&removed);
    w->counters.deletes++;
}

/* --- Many keys in a row, so that few bytes make a large table, and a small one of it again --- */

static operands operands_in_a_row(world *w, source *from, uint32_t *n) {
    operands first = choose_operands(w, from);
    bool slow = is_bounded(w) || w->hashes[0] == w->hashes[1]; /* looking for who goes; equal hashes */
    *n = 1 + choose(from, slow || choose(from, 2) ? SHORT_ROW : ROW);
    return first;
}

static operands next_in_row(world *w, operands o) {
    o.id = (o.id + 1) % IDS;
    o.key = &w->keys[o.id][o.key == &w->keys[(o.id + IDS - 1) % IDS][1]];
    o.hash = w->hashes[o.id];
    o.n = &w->map[o.id];
    return o;
}

static void op_put_row(world *w, source *from) {
    uint32_t n;
    operands o = operands_in_a_row(w, from, &n);
    for (int64_t ttl = choose_ttl(from); n > 0; n--, o = next_in_row(w, o)) put_one(w, o, ttl);
}

static void op_delete_row(world *w, source *from) {
    uint32_t n;
    for (operands o = operands_in_a_row(w, from, &n); n > 0; n--, o = next_in_row(w, o)) delete_one(w, o);
}

/* --- A walk in steps, with changes between them --- */

static void begin_walk(world *w) {
    w->walk_at = w->now;
    for (uint32_t id = 0; id < IDS; id++) {
        w->map[id].due = lives(w, &w->map[id]);
        w->map[id].walked = false;
    }
}

/* Every entry that lived through the whole walk has been yielded. */
static void end_walk(world *w) {
    for (uint32_t id = 0; id < IDS; id++) {
        naive *n = &w->map[id];
        CHECK(!n->due || n->walked || over(n, w->now));
        n->due = false;
    }
    w->walk_cursor = 0;
}

static void op_walk(world *w, source *from) {
    static lapse_item out[4 * IDS];
    if (w->walk_cursor == 0) begin_walk(w);
    size_t n = 0, room = choose(from, 2) ? sizeof out / sizeof *out : choose(from, 64);
    lapse_status status = lapse_collect(w->t, &w->walk_cursor, w->walk_at, out, room, &n);
    if (status == LAPSE_NO_ROOM) {
        CHECK(n > room);
        return;
    }
    CHECK(n <= room);
    for (size_t i = 0; i < n; i++) {
        naive *entry = entry_of(w, &out[i]);
        CHECK(entry->key && item_matches(w, &out[i], entry) && !over(entry, w->walk_at));
        CHECK(!entry->walked);
        entry->walked = true;
        give_up(&out[i]);
    }
    if (status == LAPSE_OK) end_walk(w);
}

/* --- The child of a fork, and the collector --- */

/* A pass or a storm under way has no one to go on with it: everything goes. */
static void op_fork(world *w, source *from) {
    (void)from;
    bool due = w->under_way.p || w->storm.storm;
    if (due) drain_all(w);
    CHECK(lapse_after_fork(w->t) == due);
    if (!due) return;
    bury_map(w);
    give_up_pass(w);
    give_up_storm(w);
    drain_all(w);
}

static int visit_one(lapse_object *o, void *count) {
    CHECK(o->references > 1);
    ++*(size_t *)count;
    return 0;
}

/* Keys and values of those entries are visited of which either can be part of a cycle. */
static void op_traverse(world *w, source *from) {
    (void)from;
    size_t visits = 0, due = 0;
    CHECK(lapse_traverse(w->t, visit_one, &visits) == 0);
    for (uint32_t id = 0; id < IDS; id++) {
        const naive *n = &w->map[id];
        if (n->key) due += n->key->gc || n->value->gc ? 2 : 0;
    }
    CHECK(visits == due);
}

/* --- Time --- */

/* Round steps meet round lifetimes: then it matters on which side the very moment is. */
static void op_time(world *w, source *from) { w->now += choose(from, 2) ? ROUND_TIME : choose(from, 100); }
static void op_late(world *w, source *from) { w->now += choose(from, 3) ? 700 : 70000; }

/* --- Checks --- */

/* After a whole sweep and drain nothing is left to chance: counters and references are exact. */
static void world_settle(world *w) {
    sweep_all(w);
    drain_all(w);
    world_check(w);
    check_counters(w);
    check_references(w);
}

static void world_free(world *w) {
    give_up_pass(w);
    give_up_storm(w);
    end_loans(w);
    world_settle(w);
    lapse_table_free(w->t);
    memset(w->map, 0, sizeof w->map);
    check_references(w);
    for (uint32_t g = 0; g < GLOBS; g++) lapse_pattern_free(&lapse_system_memory, w->patterns[g]);
    w->t = NULL;
}

/* --- The stream --- */

/* Another bound, in a bounded table. */
static void op_resize(world *w, source *from) {
    uint64_t most = 1 + choose(from, choose(from, 2) ? 8 : 2000);
    bool bounded = is_bounded(w);
    CHECK((lapse_resize(w->t, bounded ? most : 0) == LAPSE_OK) == bounded);
    if (!bounded) return;
    w->config.max_entries = most;
    while (lapse_fit(w->t, w->now) == LAPSE_MORE) continue;
}

typedef struct {
    char letter;
    void (*run)(world *, source *);
} operation;

static const operation operations[] = {
    {'p', op_put},        {'n', op_put_new},       {'i', op_put_item},
    {'x', op_exchange},   {'t', op_touch},         {'d', op_delete},
    {'g', op_get},        {'h', op_has},           {'k', op_peek},
    {'b', op_block},      {'s', op_sweep},         {'S', op_sweep_all},
    {'c', op_clear},      {'r', op_drain},         {'o', op_pop},
    {'w', op_walk},       {'+', op_time},          {'L', op_late},
    {'T', op_put_tagged}, {'y', op_tags},          {'M', op_match},
    {'D', op_delete_tag}, {'P', op_pass},          {'q', op_list},
    {'E', op_erase},      {'Z', op_storm},         {'l', op_lease},
    {'f', op_fill},       {'K', op_keep_prefixes}, {'j', op_drop},
    {'m', op_outdate},    {'B', op_put_row},       {'X', op_delete_row},
    {'F', op_fork},       {'v', op_traverse},      {'a', op_stale},
    {'A', op_soften},     {'e', op_ticket},        {'W', op_storm_under_way},
    {'R', op_resize},
};

/* Do one of the operations that `letters` names, all equally likely. */
static void world_step(world *w, source *from, const char *letters) {
    char letter = letters[choose(from, (uint32_t)strlen(letters))];
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (operations[i].letter == letter) operations[i].run(w, from);
    w->replacing = NULL;
    w->erasing = false;
}

#endif
