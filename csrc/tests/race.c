/* Threads on one table, for ThreadSanitizer: readers, writers, a sweeper, an observer, and a clearer, who now and
 * then ends all lives and leaves the values.
 *
 * Each id has one writer, which gives its values rising versions, so every thread can judge what it
 * sees: a value belongs to its key, versions never fall, nothing is read after its deadline, and a
 * writer reads its own writes.
 */
#include "inside.h"
#include "packing.h"
#include "read.h"
#include "things.h"

#include <inttypes.h>
#include <pthread.h>

#define IDS 20000u
#define FEW 300u /* ids of a quiet phase, in which segments merge */
#define WRITERS 2u
#define READERS 2u
#define TTL (INT64_C(1) << 32)
#define LIFETIMES 6 /* that pass while the actors play */
#ifdef __SANITIZE_THREAD__
#  define WRITES 50000u /* of each writer */
#else
#  define WRITES 200000u
#endif
#define PATIENCE 50u /* times as many, until everything has happened */
#define NAP 100u /* microseconds between the steps of those who would drown out the rest */

typedef struct actor actor;

/* --- The stage --- */

static struct {
    lapse_table *t;
    actor *actors;
    uint32_t cast; /* how many there are */
    int64_t now, tick; /* the clock, and by how much each write moves it */
    uint32_t writes; /* of each writer */
    uint32_t writing; /* writers who have not finished: everybody else goes on until they have */
    bool deadlines_hold; /* reads do not move them */
    bool bounded;
    size_t most; /* entries */
} stage;

static int64_t now_on_stage(void) { return ACQUIRE(&stage.now); }
static bool writers_at_work(void) { return RELAXED(&stage.writing) > 0; }

/* One thread's own state. */
struct actor {
    pthread_t thread;
    void (*play)(void *);
    uint64_t random;
    uint32_t number;
    uint64_t seen, stale; /* values that it read, live ones and others */
    uint64_t versions[IDS]; /* the last that this thread saw, or wrote, of each id */
};

typedef struct {
    lapse_counters table;
    uint64_t seen, stale;
} events;

static events events_so_far(void) {
    events e = {0};
    for (uint32_t i = 0; i < stage.cast; i++) {
        e.seen += RELAXED(&stage.actors[i].seen);
        e.stale += RELAXED(&stage.actors[i].stale);
    }
    lapse_counters_read(stage.t, &e.table);
    return e;
}

/* Did everybody get to do something that counts? */
static bool all_happened(const events *e) {
    const lapse_counters *c = &e->table;
    return e->seen > 1000 && e->stale > 10 && c->splits > (stage.bounded ? 4u : 10u) && c->merges > 0 &&
           c->expirations > 100 && (!stage.bounded || c->evictions > 100);
}

/* Whom the system lets run is its own choice. So the writers go on until all has happened, within limits. */
static bool play_on(uint32_t writes) {
    if (writes < stage.writes || writes % 1024) return true;
    events e = events_so_far();
    return !all_happened(&e) && writes < PATIENCE * stage.writes;
}

/* Busy and quiet phases follow each other, as long as an entry lives at most. */
static uint32_t choose_id(actor *a) {
    bool quiet = now_on_stage() / TTL % 2;
    return random_below(&a->random, quiet ? FEW : IDS);
}

static void judge_value(actor *a, uint32_t id, const lapse_object *value, int64_t now) {
    const thing *x = thing_of(value);
    CHECK(value->id == id);
    CHECK(x->version >= a->versions[id]);
    CHECK(!stage.deadlines_hold || x->deadline == 0 || x->deadline > now);
    a->versions[id] = x->version;
    STORE(&a->seen, a->seen + 1);
}

static bool is_answer(lapse_status status) { return status <= LAPSE_EARLY || status == LAPSE_BUSY; }

/* --- Writers --- */

/* Entries that are touched have no deadline that a reader could know. */
static bool touched(uint32_t id) { return id % 5 < WRITERS; }

static thing *new_value(actor *a, uint32_t id, int64_t now, int64_t ttl) {
    thing *x = born(id, &a->random);
    x->version = ++a->versions[id];
    x->deadline = touched(id) ? 0 : now + ttl;
    return x;
}

/* What this thread wrote last is what it reads, or nothing. */
static void read_own_write(actor *a, uint32_t id) {
    lapse_object key = key_for(id), *value;
    lapse_status status = lapse_get(stage.t, &key, id, now_on_stage(), &value);
    CHECK(is_answer(status));
    if (status != LAPSE_OK) return;
    CHECK(value->id == id && thing_of(value)->version == a->versions[id]);
    object_unref(value);
}

static void write_put(actor *a, uint32_t id, bool only_new) {
    int64_t now = now_on_stage(), ttl = 1 + (int64_t)(random_word(&a->random) % TTL);
    uint64_t before = a->versions[id];
    thing *key = born(id, &a->random), *value = new_value(a, id, now, ttl);
    lapse_object *old = NULL;
    lapse_status status = only_new ? lapse_put_new(stage.t, &key->o, id, &value->o, ttl, now, &old)
                                   : lapse_put(stage.t, &key->o, id, &value->o, ttl, now, &old);
    CHECK(status == LAPSE_OK || status == LAPSE_BUSY || (only_new && status == LAPSE_ABSENT));
    if (status == LAPSE_BUSY || (only_new && status == LAPSE_OK)) a->versions[id] = before;
    if (status == LAPSE_OK && old) object_unref(old);
    object_unref(&key->o);
    object_unref(&value->o);
}

static void write_exchange(actor *a, uint32_t id) {
    lapse_object key = key_for(id), *old, *replaced;
    int64_t now = now_on_stage();
    lapse_item item;
    if (lapse_peek(stage.t, &key, id, now, &item) != LAPSE_OK) return;
    uint64_t before = a->versions[id];
    thing *value = new_value(a, id, now, TTL);
    value->deadline = 0;
    old = item.value;
    if (lapse_exchange(stage.t, &key, id, old, &value->o, now, &replaced) == LAPSE_OK) {
        CHECK(replaced == old);
        object_unref(replaced);
    } else {
        a->versions[id] = before;
    }
    lapse_release(&item, 1);
    object_unref(&value->o);
}

static void write_delete(uint32_t id) {
    lapse_object key = key_for(id);
    lapse_item removed;
    lapse_status status = lapse_delete(stage.t, &key, id, now_on_stage(), &removed);
    CHECK(is_answer(status));
    if (status == LAPSE_BUSY) return;
    if (status != LAPSE_ABSENT) lapse_release(&removed, 1);
    CHECK(lapse_has(stage.t, &key, id, now_on_stage()) != LAPSE_OK); /* no one else stores it */
}

static void write_touch(uint32_t id) {
    lapse_object key = key_for(id);
    if (touched(id)) CHECK(is_answer(lapse_touch(stage.t, &key, id, TTL, now_on_stage())));
}

static void play_writer(void *self) {
    actor *a = self;
    for (uint32_t n = 0; play_on(n); n++) {
        ADD(&stage.now, stage.tick);
        uint32_t id = choose_id(a) / WRITERS * WRITERS + a->number;
        switch (random_below(&a->random, 16)) {
        case 0: write_delete(id); break;
        case 1: write_touch(id); break;
        case 2: write_exchange(a, id); break;
        case 3: write_put(a, id, true); break;
        default: write_put(a, id, false);
        }
        read_own_write(a, id);
        if (n % OUTSIDE_EVERY == 0) nap(0);
    }
    ADD(&stage.writing, -1);
}

/* --- Readers --- */

static void read_one(actor *a) {
    uint32_t id = choose_id(a);
    lapse_object key = key_for(id), *value;
    int64_t now = now_on_stage();
    lapse_status status = lapse_get(stage.t, &key, id, now, &value);
    CHECK(is_answer(status));
    if (status != LAPSE_OK) return;
    judge_value(a, id, value, now);
    object_unref(value);
}

static void peek_one(actor *a) {
    uint32_t id = choose_id(a);
    lapse_object key = key_for(id);
    lapse_item item;
    int64_t now = now_on_stage();
    if (lapse_peek(stage.t, &key, id, now, &item) != LAPSE_OK) return;
    CHECK(item.key->id == id);
    judge_value(a, id, item.value, now);
    lapse_release(&item, 1);
}

/* A value past its deadline is the last that was stored, too. */
static void read_stale(actor *a) {
    uint32_t id = choose_id(a);
    lapse_object key = key_for(id), *value;
    int64_t now = now_on_stage();
    lapse_status status = lapse_stale(stage.t, &key, id, now, &value);
    CHECK(is_answer(status));
    if (status != LAPSE_OK) return;
    const thing *x = thing_of(value);
    CHECK(value->id == id && x->version >= a->versions[id]);
    a->versions[id] = x->version;
    STORE(&a->stale, a->stale + 1);
    object_unref(value);
}

static void read_block(actor *a) {
    lapse_block block = {.n = LAPSE_BLOCK};
    lapse_object keys[LAPSE_BLOCK], *values[LAPSE_BLOCK];
    lapse_status found[LAPSE_BLOCK];
    int64_t now = now_on_stage();
    for (uint32_t i = 0; i < LAPSE_BLOCK; i++) {
        keys[i] = key_for(choose_id(a));
        block.keys[i] = &keys[i];
        block.hashes[i] = keys[i].id;
    }
    lapse_get_block(stage.t, &block, now, values, found);
    for (uint32_t i = 0; i < LAPSE_BLOCK; i++) {
        if (found[i] != LAPSE_OK) continue;
        judge_value(a, (uint32_t)keys[i].id, values[i], now);
        object_unref(values[i]);
    }
}

static void play_reader(void *self) {
    actor *a = self;
    while (writers_at_work()) {
        uint32_t dice = random_below(&a->random, 64);
        if (dice == 0) read_block(a);
        else if (dice < 4) peek_one(a);
        else if (dice < 12) read_stale(a);
        else read_one(a);
        if (dice % OUTSIDE_EVERY == 0) nap(0);
    }
}

/* --- The observer: whole-table reads, and the quickest read of keys that it has found --- */

static void read_found_keys(actor *a, const lapse_item *items, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t id = (uint32_t)items[i].key->id;
        int64_t now = now_on_stage();
        bool absent;
        lapse_object *value = read_quickly(stage.t, items[i].key, mix_hash(id), true, now, &absent);
        if (value == NULL) continue;
        judge_value(a, id, value, now);
        object_unref(value);
    }
}

static void collect_all(actor *a) {
    static lapse_item items[4 * SEGMENT_SLOTS];
    uint64_t cursor = 0;
    lapse_status status;
    do {
        size_t n;
        int64_t now = now_on_stage();
        status = lapse_collect(stage.t, &cursor, now, items, sizeof items / sizeof *items, &n);
        CHECK(status != LAPSE_NO_ROOM);
        for (size_t i = 0; i < n; i++) {
            CHECK(items[i].key->id == items[i].value->id);
            judge_value(a, (uint32_t)items[i].key->id, items[i].value, now);
        }
        read_found_keys(a, items, n);
        lapse_release(items, n);
    } while (status == LAPSE_MORE);
}

static void play_observer(void *self) {
    actor *a = self;
    lapse_counters c;
    for (; writers_at_work(); nap(20 * NAP)) {
        collect_all(a);
        CHECK(lapse_len(stage.t, now_on_stage()) <= stage.most);
        CHECK(lapse_segments(stage.t) >= 1 && lapse_bytes(stage.t) > 0);
        lapse_counters_read(stage.t, &c);
    }
}

/* --- The sweeper and the clearer --- */

static void release_expired(lapse_item *items, size_t n, int64_t now) {
    for (size_t i = 0; i < n; i++) {
        CHECK(items[i].key->id == items[i].value->id);
        CHECK(items[i].deadline != LAPSE_NEVER && items[i].deadline <= now);
    }
    lapse_release(items, n);
}

static void play_sweeper(void *self) {
    (void)self;
    lapse_item removed[LAPSE_STEP];
    uint64_t cursor = 0;
    uint32_t sweeps = 0;
    for (; writers_at_work(); nap(NAP)) {
        size_t count;
        int64_t now = now_on_stage();
        lapse_status status = lapse_sweep(stage.t, &cursor, now, LAPSE_STEP, removed, &count);
        release_expired(removed, count, now);
        if (status == LAPSE_MORE) continue;
        cursor = 0;
        pack(stage.t, ++sweeps % 2);
    }
}

static void drain(void) {
    lapse_item removed[LAPSE_STEP];
    lapse_status status;
    do {
        size_t n;
        status = lapse_drain(stage.t, removed, &n);
        for (size_t i = 0; i < n; i++) CHECK(removed[i].key->id == removed[i].value->id);
        lapse_release(removed, n);
    } while (status == LAPSE_MORE);
    pack(stage.t, false);
}

static void pop_one(uint64_t *cursor) {
    lapse_item removed;
    if (lapse_pop_any(stage.t, cursor, now_on_stage(), &removed) != LAPSE_OK) return;
    CHECK(removed.key->id == removed.value->id);
    lapse_release(&removed, 1);
}

/* All lives end, and the values stay for a while. */
static void soften_all(void) {
    uint64_t cursor = 0;
    size_t n = 0;
    int64_t now = now_on_stage();
    while (lapse_soften(stage.t, &cursor, now, now + TTL / 16, &n) == LAPSE_MORE) continue;
}

static void play_clearer(void *self) {
    (void)self;
    uint64_t cursor = 0;
    int64_t popped = now_on_stage(), cleared = popped, softened = popped;
    for (; writers_at_work(); nap(NAP)) {
        for (; popped < now_on_stage(); popped += 32 * stage.tick) pop_one(&cursor);
        if (popped - softened > TTL / 4) {
            softened = popped;
            soften_all();
        }
        if (popped - cleared < LIFETIMES * TTL * 3 / 5) continue;
        cleared = popped;
        CHECK(lapse_detach(stage.t) == LAPSE_OK);
        drain();
    }
}

/* --- Playing --- */

static void *play(void *self) {
    actor *a = self;
    begin_visit();
    a->play(a);
    end_visit();
    return NULL;
}

static void cast(actor *actors, void (*role)(void *), uint32_t count, uint32_t *n) {
    for (uint32_t i = 0; i < count; i++, ++*n) {
        actors[*n].play = role;
        actors[*n].random = *n + 1;
        actors[*n].number = i;
    }
}

static void check_events(void) {
    events e = events_so_far();
    const lapse_counters *c = &e.table;
    if (!all_happened(&e))
        fprintf(stderr,
                "%" PRIu64 " seen, %" PRIu64 " stale, %" PRIu64 " splits, %" PRIu64 " merges, %" PRIu64
                " expired, %" PRIu64 " evicted\n",
                e.seen, e.stale, c->splits, c->merges, c->expirations, c->evictions);
    CHECK(all_happened(&e));
    CHECK(c->stale == e.stale && (stage.bounded || c->evictions == 0));
}

static void set_stage(lapse_config config) {
    stage.writes = WRITES * test_scale();
    stage.now = stage.tick = LIFETIMES * TTL / (WRITERS * stage.writes);
    stage.writing = WRITERS;
    stage.deadlines_hold = config.mode == LAPSE_FIXED;
    stage.bounded = config.lru || config.duel;
    stage.most = stage.bounded ? config.max_entries : IDS;
    config.quiesce = quiesce;
    stage.t = lapse_table_new(&config);
    stage.actors = calloc(WRITERS + READERS + 3, sizeof *stage.actors);
    CHECK(stage.t != NULL && stage.actors != NULL);
}

static void perform(lapse_config config) {
    uint32_t n = 0;
    set_stage(config);
    cast(stage.actors, play_writer, WRITERS, &n);
    cast(stage.actors, play_reader, READERS, &n);
    cast(stage.actors, play_observer, 1, &n);
    cast(stage.actors, play_sweeper, 1, &n);
    cast(stage.actors, play_clearer, 1, &n);
    stage.cast = n;
    for (uint32_t i = 0; i < n; i++)
        CHECK(pthread_create(&stage.actors[i].thread, NULL, play, &stage.actors[i]) == 0);
    for (uint32_t i = 0; i < n; i++) CHECK(pthread_join(stage.actors[i].thread, NULL) == 0);
    check_events();
    CHECK(lapse_check(stage.t));
    lapse_table_free(stage.t);
    check_everything_died();
    free(stage.actors);
}

static const lapse_config plain = {.mode = LAPSE_FIXED, .default_ttl = TTL, .own_clock = true};

static void test_fixed(void) { perform(plain); }

static void test_fixed_locked(void) {
    lapse_config config = plain;
    config.locked_reads = true;
    perform(config);
}

static void test_sliding(void) {
    lapse_config config = plain;
    config.mode = LAPSE_SLIDING;
    config.max_lifetime = 2 * TTL;
    perform(config);
}

static void test_probabilistic(void) {
    lapse_config config = plain;
    config.mode = LAPSE_PROBABILISTIC;
    config.early_factor = 0.5;
    perform(config);
}

static void test_bounded_with_grace(void) {
    lapse_config config = plain;
    config.grace = TTL / 8;
    config.lru = true;
    config.max_entries = IDS / 10;
    perform(config);
}

static void test_bounded_by_default(void) {
    lapse_config config = plain;
    config.grace = TTL / 8;
    config.duel = true;
    config.max_entries = IDS / 10;
    perform(config);
}

static int weigh(void *context, lapse_object *key, lapse_object *value, uint32_t *weight) {
    (void)context;
    *weight = 1 + (uint32_t)(key->id + value->id) % 4;
    return 0;
}

static void test_bounded_by_weight(void) {
    lapse_config config = plain;
    config.grace = TTL / 8;
    config.duel = true;
    config.weigher = weigh;
    config.max_entries = IDS / 5;
    perform(config);
}

int main(void) {
    let_things_die();
    RUN(test_fixed);
    RUN(test_fixed_locked);
    RUN(test_sliding);
    RUN(test_probabilistic);
    RUN(test_bounded_with_grace);
    RUN(test_bounded_by_default);
    RUN(test_bounded_by_weight);
    return tests_done();
}
