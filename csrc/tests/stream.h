/* A stream of random operations on a world (world.h): each is done to the table and to its naive map, and
 * everything that the table answers is compared. world_check() also walks the table's invariants, and
 * world_settle() the reference count of every object.
 *
 * The choices come from a generator or, under the fuzzer, from its bytes.
 */
#ifndef LAPSE_TEST_STREAM_H
#define LAPSE_TEST_STREAM_H

#include "selection.h"
#include "world.h"

/* --- Operations on one key --- */

static void op_put(world *w, source *from) {
    operands o = choose_operands(w, from);
    int64_t ttl = choose_ttl(from);
    lapse_object *replaced, *old = lives(w, o.n) ? o.n->value : NULL, *first = old ? o.n->key : o.key;
    CHECK(lapse_put(w->t, o.key, o.hash, o.value, ttl, w->now, &replaced) == LAPSE_OK);
    CHECK(replaced == old);
    if (replaced) object_unref(replaced);
    bool due = old && o.n->due;
    store(w, o.n, first, o.value, ttl);
    outdate_key(w, o.id);
    o.n->due = due;
    w->counters.sets++;
}

static void op_put_new(world *w, source *from) {
    operands o = choose_operands(w, from);
    int64_t ttl = choose_ttl(from);
    lapse_object *present = NULL;
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
    item.deadline = w->now + left;
    item.limit = keeps_limit(w) ? w->now + left + choose(from, 3000) : LAPSE_NEVER;
    lapse_object *replaced, *old = lives(w, o.n) ? o.n->value : NULL;
    if (old) item.key = o.n->key;
    labels tags;
    choose_tags(w, from, &tags);
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
                   .own = item.own_ttl,
                   .walked = o.n->walked,
                   .tags = tags.bits};
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
    outdate_key(w, o.id);
    w->counters.sets++;
    w->counters.replaced++;
}

static void op_touch(world *w, source *from) {
    operands o = choose_operands(w, from);
    int64_t ttl = choose_ttl(from);
    bool live = lives(w, o.n);
    CHECK(lapse_touch(w->t, o.key, o.hash, ttl, w->now) == (live ? LAPSE_OK : LAPSE_ABSENT));
    if (live) date(w, o.n, ttl);
}

static void op_delete(world *w, source *from) {
    operands o = choose_operands(w, from);
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

static void op_get(world *w, source *from) {
    operands o = choose_operands(w, from);
    lapse_object *value = NULL;
    naive was = *o.n;
    lapse_status status = lapse_get(w->t, o.key, o.hash, w->now, &value);
    if (status == LAPSE_OK) {
        CHECK(lives(w, o.n) && value == o.n->value);
        object_unref(value);
        slide(w, o.n);
        w->counters.hits++;
        return;
    }
    w->counters.misses++;
    w->counters.early += status == LAPSE_EARLY;
    if (status == LAPSE_EARLY) CHECK(lives(w, &was) && may_end_early(w, &was));
    else CHECK(!lives(w, &was) && (status == LAPSE_ABSENT || (status == LAPSE_EXPIRED && was.key)));
    forget(w, o.n);
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
        CHECK(entry->key && over(entry, w->now) && item_matches(w, &removed[i], entry));
        forget(w, entry);
        give_up(&removed[i]);
    }
    if (status == LAPSE_OK) w->sweep_cursor = 0;
    return status;
}

static void op_sweep(world *w, source *from) { sweep_step(w, 1 + choose(from, LAPSE_STEP)); }

static void sweep_all(world *w) {
    w->sweep_cursor = 0;
    while (sweep_step(w, LAPSE_STEP) == LAPSE_MORE) continue;
    for (uint32_t id = 0; id < IDS; id++)
        if (w->map[id].key && over(&w->map[id], w->now)) forget(w, &w->map[id]);
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
        CHECK(count_live(w) == 0);
        return;
    }
    naive *n = entry_of(w, &removed);
    CHECK(status == LAPSE_OK && lives(w, n) && item_matches(w, &removed, n));
    outdate_key(w, (uint32_t)removed.key->id);
    forget(w, n);
    give_up(&removed);
    w->counters.deletes++;
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

static void op_time(world *w, source *from) { w->now += choose(from, 100); }
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
    end_loans(w);
    world_settle(w);
    lapse_table_free(w->t);
    memset(w->map, 0, sizeof w->map);
    check_references(w);
    for (uint32_t g = 0; g < GLOBS; g++) lapse_pattern_free(&lapse_system_memory, w->patterns[g]);
    free(w);
}

/* --- The stream --- */

typedef struct {
    char letter;
    void (*run)(world *, source *);
} operation;

static const operation operations[] = {
    {'p', op_put},    {'n', op_put_new},    {'i', op_put_item},      {'x', op_exchange},   {'t', op_touch},
    {'d', op_delete}, {'g', op_get},        {'h', op_has},           {'k', op_peek},       {'b', op_block},
    {'s', op_sweep},  {'S', op_sweep_all},  {'c', op_clear},         {'r', op_drain},      {'o', op_pop},
    {'w', op_walk},   {'+', op_time},       {'L', op_late},          {'T', op_put_tagged}, {'y', op_tags},
    {'M', op_match},  {'D', op_delete_tag}, {'P', op_pass},          {'q', op_list},       {'E', op_erase},
    {'l', op_lease},  {'f', op_fill},       {'K', op_keep_prefixes},
};

/* Do one of the operations that `letters` names, all equally likely. */
static void world_step(world *w, source *from, const char *letters) {
    char letter = letters[choose(from, (uint32_t)strlen(letters))];
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (operations[i].letter == letter) operations[i].run(w, from);
}

#endif
