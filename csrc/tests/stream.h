/* A stream of random operations on a table and, beside it, on a naive map of the same entries.
 *
 * A world holds both. Each operation is done to both, and everything that the table answers is
 * compared; world_check() also walks the table's invariants, and world_settle() the reference count of
 * every object. The clock is the world's own and only runs forward. Where the table may choose (an
 * expired entry may be gone already, a draw may end one early) the map follows what it says, if it
 * may say that.
 *
 * The choices come from a generator or, under the fuzzer, from its bytes.
 */
#ifndef LAPSE_TEST_STREAM_H
#define LAPSE_TEST_STREAM_H

#include "table.h"
#include "test.h"

#define IDS 4096u
#define TWINS 2u /* equal key objects of one id */
#define VALUES 256u
#define CROWD 1400u /* keys of one hash, or of one prefix: more than a whole segment */

/* --- Choices --- */

typedef struct {
    const uint8_t *data; /* NULL: the generator */
    size_t size, at;
    uint64_t random;
} source;

static uint32_t choose(source *from, uint32_t n) {
    if (from->data == NULL) return random_below(&from->random, n);
    uint32_t word = 0;
    for (uint32_t most = n - 1; most > 0; most >>= 8)
        word = word << 8 | (from->at < from->size ? from->data[from->at++] : 0);
    return word % n;
}

/* --- The world --- */

typedef enum { SPREAD, SHIFTED, EQUAL, CROWDED } flavour; /* of the keys' hashes */

/* What the table should hold under an id; `key` is NULL where there is nothing. */
typedef struct {
    lapse_object *key, *value;
    int64_t deadline, ttl, limit;
    bool own;
    bool walked, due; /* yielded by the walk under way; must be */
} naive;

/* An entry that a clear put aside: it comes back by a drain, or if it had expired it may have gone before. */
typedef struct {
    lapse_object *key, *value;
    bool expired;
} put_aside;

typedef struct {
    lapse_table *t;
    lapse_config config;
    int64_t now, walk_at;
    uint64_t sweep_cursor, walk_cursor, pop_cursor;
    uint64_t lapsed; /* expired entries that the table must count */
    lapse_counters counters;
    lapse_object keys[IDS][TWINS], values[VALUES];
    uint64_t hashes[IDS];
    naive map[IDS];
    put_aside buried[IDS];
} world;

/* The n-th number whose mixed hash begins with ten zero bits. */
static uint64_t crowded_hash(uint64_t *last) {
    do ++*last;
    while (mix_hash(*last) >> 54 != 0);
    return *last;
}

static void set_hashes(world *w, flavour f) {
    uint64_t last = 0;
    for (uint32_t id = 0; id < IDS; id++) {
        w->hashes[id] = f == SHIFTED ? (uint64_t)id << 48 : id;
        if (id >= CROWD) continue;
        if (f == EQUAL) w->hashes[id] = 99;
        if (f == CROWDED) w->hashes[id] = crowded_hash(&last);
    }
}

static world *world_new(const lapse_config *config, flavour f, bool asking) {
    world *w = calloc(1, sizeof *w);
    CHECK(w != NULL);
    w->config = *config;
    w->t = lapse_table_new(config);
    CHECK(w->t != NULL);
    w->now = 1000;
    set_hashes(w, f);
    for (uint32_t id = 0; id < IDS; id++)
        for (uint32_t twin = 0; twin < TWINS; twin++)
            w->keys[id][twin] = (lapse_object){
                .references = 1, .id = id, .gc = id % 5 == 0, .needs_asking = asking && id % 3 == 0};
    for (uint32_t i = 0; i < VALUES; i++)
        w->values[i] = (lapse_object){.references = 1, .id = i, .gc = i % 7 == 0};
    return w;
}

/* --- The naive map --- */

static bool over(const naive *n, int64_t at) { return n->deadline != LAPSE_NEVER && n->deadline <= at; }
static bool lives(const world *w, const naive *n) { return n->key != NULL && !over(n, w->now); }

static size_t count_live(const world *w) {
    size_t live = 0;
    for (uint32_t id = 0; id < IDS; id++) live += lives(w, &w->map[id]);
    return live;
}

/* The entry goes, or has gone already if it had expired. */
static void forget(world *w, naive *n) {
    if (n->key == NULL) return;
    w->lapsed += over(n, w->now);
    n->key = NULL;
    n->due = false;
}

static int64_t saturate(int64_t at, int64_t ttl) {
    return ttl == LAPSE_NEVER || ttl > INT64_MAX - at ? LAPSE_NEVER : at + ttl;
}
static int64_t sooner(int64_t a, int64_t b) {
    if (a == LAPSE_NEVER || b == LAPSE_NEVER) return a == LAPSE_NEVER ? b : a;
    return a < b ? a : b;
}

static bool keeps_ttl(const world *w) { return w->config.mode != LAPSE_FIXED; }
static bool keeps_limit(const world *w) {
    return w->config.mode == LAPSE_SLIDING && w->config.max_lifetime != LAPSE_NEVER;
}

static void date(const world *w, naive *n, int64_t ttl) {
    n->ttl = ttl == LAPSE_DEFAULT ? w->config.default_ttl : ttl;
    n->own = n->ttl != w->config.default_ttl;
    n->deadline = sooner(saturate(w->now, n->ttl), n->limit);
}

static void store(world *w, naive *n, lapse_object *key, lapse_object *value, int64_t ttl) {
    forget(w, n);
    n->key = key;
    n->value = value;
    n->limit = keeps_limit(w) ? saturate(w->now, w->config.max_lifetime) : LAPSE_NEVER;
    date(w, n, ttl);
}

static void slide(const world *w, naive *n) {
    if (w->config.mode != LAPSE_SLIDING || n->deadline == LAPSE_NEVER || n->ttl == LAPSE_NEVER) return;
    int64_t slid = n->ttl > INT64_MAX - w->now ? INT64_MAX : w->now + n->ttl;
    slid = sooner(slid, n->limit);
    if (slid > n->deadline) n->deadline = slid;
}

/* Is the entry in the last part of its life, where the draw may end it? */
static bool may_end_early(const world *w, const naive *n) {
    if (w->config.mode != LAPSE_PROBABILISTIC || n->deadline == LAPSE_NEVER) return false;
    return (double)(n->deadline - w->now) < (double)n->ttl * w->config.early_factor;
}

static bool item_matches(const world *w, const lapse_item *item, const naive *n) {
    return item->key == n->key && item->value == n->value && item->deadline == n->deadline &&
           item->own_ttl == n->own && item->ttl == (keeps_ttl(w) ? n->ttl : 0) &&
           item->limit == (keeps_limit(w) ? n->limit : LAPSE_NEVER);
}

static naive *entry_of(world *w, const lapse_item *item) { return &w->map[item->key->id]; }

static void give_up(const lapse_item *item) {
    object_unref(item->key);
    object_unref(item->value);
}

/* --- Choosing operands --- */

typedef struct {
    uint32_t id;
    lapse_object *key, *value;
    uint64_t hash;
    naive *n;
} operands;

static operands choose_operands(world *w, source *from) {
    uint32_t id = choose(from, IDS);
    return (operands){.id = id,
                      .key = &w->keys[id][choose(from, TWINS)],
                      .value = &w->values[choose(from, VALUES)],
                      .hash = w->hashes[id],
                      .n = &w->map[id]};
}

static int64_t choose_ttl(source *from) {
    switch (choose(from, 8)) {
    case 0: return LAPSE_NEVER;
    case 1: return 1 + choose(from, 200);
    case 2: return INT64_MAX - choose(from, 3000);
    case 3: return 1 + choose(from, 60000);
    default: return LAPSE_DEFAULT;
    }
}

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
    CHECK(lapse_put_item(w->t, &item, o.hash, NULL, w->now, &replaced) == LAPSE_OK);
    CHECK(replaced == old);
    if (replaced) object_unref(replaced);
    forget(w, o.n);
    *o.n = (naive){.key = item.key,
                   .value = item.value,
                   .deadline = item.deadline,
                   .ttl = item.ttl,
                   .limit = item.limit,
                   .own = item.own_ttl,
                   .walked = o.n->walked};
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
    w->counters.sets++;
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
    w->counters.deletes += live;
}

static void op_get(world *w, source *from) {
    operands o = choose_operands(w, from);
    lapse_object *value = NULL;
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
    if (status == LAPSE_EARLY) CHECK(lives(w, o.n) && may_end_early(w, o.n));
    else CHECK(!lives(w, o.n) && (status == LAPSE_ABSENT || (status == LAPSE_EXPIRED && o.n->key)));
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

static void world_check(world *w) {
    CHECK(lapse_check(w->t));
    CHECK(lapse_len(w->t, w->now) == count_live(w));
    CHECK(lapse_segments(w->t) >= 1 && lapse_bytes(w->t) > sizeof *w->t);
}

static void check_counters(const world *w) {
    lapse_counters c;
    lapse_counters_read(w->t, &c);
    CHECK(c.hits == w->counters.hits && c.misses == w->counters.misses);
    CHECK(c.sets == w->counters.sets && c.deletes == w->counters.deletes);
    CHECK(c.early == w->counters.early && c.expirations == w->lapsed);
}

static void check_references(const world *w) {
    uint32_t values[VALUES] = {0};
    for (uint32_t id = 0; id < IDS; id++) {
        const naive *n = &w->map[id];
        for (uint32_t twin = 0; twin < TWINS; twin++)
            CHECK(w->keys[id][twin].references == 1 + (n->key == &w->keys[id][twin]));
        if (n->key) values[n->value - w->values]++;
    }
    for (uint32_t i = 0; i < VALUES; i++) CHECK(w->values[i].references == 1 + values[i]);
}

/* After a whole sweep and drain nothing is left to chance: counters and references are exact. */
static void world_settle(world *w) {
    sweep_all(w);
    drain_all(w);
    world_check(w);
    check_counters(w);
    check_references(w);
}

static void world_free(world *w) {
    world_settle(w);
    lapse_table_free(w->t);
    memset(w->map, 0, sizeof w->map);
    check_references(w);
    free(w);
}

/* --- The stream --- */

typedef struct {
    char letter;
    void (*run)(world *, source *);
} operation;

static const operation operations[] = {
    {'p', op_put},    {'n', op_put_new},   {'i', op_put_item}, {'x', op_exchange}, {'t', op_touch},
    {'d', op_delete}, {'g', op_get},       {'h', op_has},      {'k', op_peek},     {'b', op_block},
    {'s', op_sweep},  {'S', op_sweep_all}, {'c', op_clear},    {'r', op_drain},    {'o', op_pop},
    {'w', op_walk},   {'+', op_time},      {'L', op_late},
};

/* Do one of the operations that `letters` names, all equally likely. */
static void world_step(world *w, source *from, const char *letters) {
    char letter = letters[choose(from, (uint32_t)strlen(letters))];
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (operations[i].letter == letter) operations[i].run(w, from);
}

#endif
