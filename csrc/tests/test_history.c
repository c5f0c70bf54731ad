/* What the default policy knows: marks, the window's ring, the history; that asks never overflow, and that nothing
 * depends on how many evictions there have been. */
#include "packing.h"
#include "table.h"
#include "test.h"

#define IDS 12000u
#define NO_MARK 255u

/* --- Marks --- */

static void test_marks_stop_at_their_most(void) {
    uint8_t mark = 0;
    for (uint32_t n = 1; n < 100000; n++) {
        mark_use(&mark);
        CHECK(mark_uses(mark) == (n < DUEL_USES_MOST ? n : DUEL_USES_MOST));
        CHECK(mark_asks(mark) == (n < DUEL_ASKS_MOST ? n : DUEL_ASKS_MOST));
    }
    mark = MARK_ASKS; /* the hand has taken all uses */
    mark_use(&mark);
    CHECK(mark_uses(mark) == 1 && mark_asks(mark) == DUEL_ASKS_MOST);
}

/* --- History --- */

static uint64_t hash_of(uint64_t id) { return mix_hash(id * UINT64_C(0x9E3779B97F4A7C15) + 1); }

static void open_policy(lapse_duel *d, uint64_t capacity) {
    duel_init(d, true, capacity, 1);
    duel_prepare(d, &lapse_system_memory);
    CHECK(d->history != NULL);
}

/* Let it in, and out of the window again: its asks, the one that brings it in among them. */
static uint32_t asks_of(lapse_duel *d, uint64_t hash) {
    uint8_t mark = NO_MARK;
    bool young;
    duel_item item;
    while (!duel_enter(d, hash, &mark, &young)) CHECK(duel_make_room(d, &lapse_system_memory) == LAPSE_OK);
    while (duel_leave(d, &item)) continue;
    CHECK(mark_uses(mark) == 0);
    return mark_asks(mark);
}

static void test_asks_come_back_once(void) {
    lapse_duel d;
    open_policy(&d, 100);
    for (uint32_t asks = 0; asks <= DUEL_ASKS_MOST; asks++) {
        duel_remember(&d, hash_of(asks), asks);
        CHECK(duel_knows(&d, hash_of(asks)));
    }
    for (uint32_t asks = 0; asks <= DUEL_ASKS_MOST; asks++) {
        CHECK(asks_of(&d, hash_of(asks)) == (asks < DUEL_ASKS_MOST ? asks + 1 : asks));
        CHECK(!duel_knows(&d, hash_of(asks)) && asks_of(&d, hash_of(asks)) == 1);
    }
    duel_free(&d, &lapse_system_memory);
}

/* They are halved as often as all were, and no oftener, whenever that is. */
static void test_asks_are_halved(void) {
    for (uint32_t first = 0; first < 600; first += 50)
        for (uint32_t due = 0; due < 40; due++) {
            lapse_duel d;
            open_policy(&d, 100);
            d.age = first;
            for (uint64_t id = 0; id < 200; id++) duel_remember(&d, hash_of(id), DUEL_ASKS_MOST);
            d.age += due;
            uint32_t left = due > DUEL_ASK_BITS ? 0 : DUEL_ASKS_MOST >> due;
            for (uint64_t id = 0; id < 200; id++)
                CHECK(asks_of(&d, hash_of(id)) == (left < DUEL_ASKS_MOST ? left + 1 : left));
            duel_free(&d, &lapse_system_memory);
        }
}

/* A key is known for about as many evictions as there are entries, whatever their number was before. */
static void test_how_long_a_key_is_known(void) {
    static const uint32_t starts[] = {0, (1u << 31) - 64, UINT32_MAX - 63, 4096 * 7 - 64};
    static const uint64_t capacities[] = {1, 7, 100, 2047, 4000};
    for (uint32_t i = 0; i < 4 * 5; i++) {
        lapse_duel d;
        uint64_t capacity = capacities[i % 5];
        open_policy(&d, capacity);
        d.now = starts[i / 5];
        duel_remember(&d, hash_of(0), 3);
        d.now = starts[i / 5] + (uint32_t)capacity - 1;
        CHECK(duel_knows(&d, hash_of(0)) && !duel_knows(&d, hash_of(1)));
        d.now += 1u << d.time_shift; /* a unit of the history's times */
        CHECK(!duel_knows(&d, hash_of(0)));
        CHECK(asks_of(&d, hash_of(0)) == 4);
        duel_free(&d, &lapse_system_memory);
    }
}

/* Keys that a history cannot tell apart are told apart by one of another seed. */
static void test_seeds(void) {
    static uint64_t traces[2][8000]; /* the bucket, and the fingerprint in it */
    uint32_t alike = 0, alike_to_both = 0;
    lapse_duel d;
    open_policy(&d, 100);
    for (uint32_t i = 0; i < 2 * 8000; i++) {
        d.salt = i / 8000;
        uint64_t print = duel_print(&d, hash_of(i % 8000));
        traces[i / 8000][i % 8000] =
            (uint64_t)duel_bucket_number(print, d.bucket_count) << 16 | (print >> 40 & 0xFEFF);
    }
    for (uint32_t i = 0; i < 8000; i++)
        for (uint32_t j = 0; j < i; j++) {
            if (traces[0][i] != traces[0][j]) continue;
            alike++;
            alike_to_both += traces[1][i] == traces[1][j];
        }
    CHECK(alike > 0 && alike_to_both == 0);
    duel_free(&d, &lapse_system_memory);
}

/* --- The ring --- */

static bool enter(lapse_duel *d, uint64_t hash) {
    uint8_t mark;
    bool young;
    while (!duel_enter(d, hash, &mark, &young)) CHECK(duel_make_room(d, &lapse_system_memory) == LAPSE_OK);
    return young;
}

/* What comes first leaves first, however the ring has grown and turned. */
static void test_the_ring_is_a_queue(void) {
    lapse_duel d;
    uint64_t random = 1, ahead[3], in = 0, out = 0;
    open_policy(&d, 1000);
    duel_remember(&d, hash_of(IDS), 0);
    for (uint32_t turn = 0; turn < 20000; turn++) {
        duel_item item;
        if (random_below(&random, 200) < turn % 200) {
            bool young = enter(&d, hash_of(in));
            CHECK(young == (in - out < d.window_most));
            in += young;
        } else {
            CHECK(duel_leave(&d, &item) == (in > out));
            if (in > out) CHECK(duel_hash(&item) == hash_of(out++) && item.time == 0);
        }
        CHECK(d.ring_size == in - out);
        duel_ahead(&d, 2, 3, ahead);
        for (uint32_t i = 0; i < 3; i++)
            CHECK(ahead[i] == (out + 2 * (i + 1) < in ? hash_of(out + 2 * (i + 1)) : 0));
    }
    CHECK(out > 1000);
    duel_free(&d, &lapse_system_memory);
}

/* While a cache fills, the first time or after it was cleared, the window takes few; once it is full, more. */
static void test_when_the_window_is_wide(void) {
    lapse_duel d;
    open_policy(&d, 1000);
    for (uint32_t round = 0; round < 3; round++) {
        uint64_t id = 0;
        while (enter(&d, hash_of(id))) id++;
        CHECK(id == d.window_goal);
        duel_remember(&d, hash_of(IDS), 0);
        while (enter(&d, hash_of(id))) id++;
        CHECK(id == d.window_most);
        duel_restart(&d);
    }
    duel_free(&d, &lapse_system_memory);
}

/* --- Tables --- */

static struct {
    lapse_table *t;
    lapse_object keys[IDS], value;
    uint64_t gone; /* all that were evicted, in their order */
} w;

static void observe(void *context, lapse_item *items, size_t n, lapse_cause cause) {
    (void)context;
    for (size_t i = 0; i < n; i++)
        if (cause == LAPSE_EVICTED) w.gone = mix_hash(w.gone + items[i].key->id + 1);
    lapse_release(items, n);
}

static void open_table(uint64_t limit) {
    lapse_config config = {.own_clock = true, .duel = true, .max_entries = limit, .observer = observe};
    memset(&w, 0, sizeof w);
    for (uint32_t id = 0; id < IDS; id++) w.keys[id] = (lapse_object){.references = 1, .id = id};
    w.value = (lapse_object){.references = 1};
    w.t = lapse_table_new(&config);
    CHECK(w.t != NULL);
}

static void close_table(void) {
    CHECK(lapse_check(w.t));
    lapse_table_free(w.t);
    CHECK(w.value.references == 1);
}

static bool get(uint32_t id) {
    lapse_object *found;
    if (lapse_get(w.t, &w.keys[id], id, 1, &found) != LAPSE_OK) return false;
    object_unref(found);
    return true;
}

static void put(uint32_t id) {
    lapse_object *old;
    CHECK(lapse_put(w.t, &w.keys[id], id, &w.value, LAPSE_NEVER, 1, &old) == LAPSE_OK);
    if (old) object_unref(old);
}

static void drop(uint32_t id) {
    lapse_item removed;
    if (lapse_delete(w.t, &w.keys[id], id, 1, &removed) == LAPSE_OK) lapse_release(&removed, 1);
}

static segment *segment_at(uint64_t hash) {
    segment *s = lock_segment(w.t, hash);
    lock_drop(&s->lock);
    return s;
}

/* Few keys are asked for often, and many now and then, so that both rules are in force for a time. */
static uint64_t play_from(uint32_t start, uint64_t limit, uint64_t seed) {
    uint32_t ids = (uint32_t)(3 * limit);
    open_table(limit);
    w.t->duel.now = segment_at(0)->visited = start;
    for (uint32_t turn = 0; turn < 40000; turn++) {
        uint32_t width = turn % 8000 < 4000 ? ids : ids / 2;
        uint32_t id = random_below(&seed, 1 + random_below(&seed, width));
        if (!get(id)) put(id);
        if (turn % 50 == 0) drop(random_below(&seed, ids));
    }
    CHECK(w.t->duel.now - start > 4096);
    uint64_t gone = w.gone;
    close_table();
    return gone;
}

/* The same entries go in the same order, though the number of evictions goes beyond its most. */
static void test_evictions_without_end(void) {
    static const uint64_t limits[] = {1, 10, 300, 3000};
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t gone = play_from(0, limits[i], i);
        CHECK(play_from((1u << 31) - 1024, limits[i], i) == gone);
        CHECK(play_from(UINT32_MAX - 1023, limits[i], i) == gone);
        CHECK(play_from(0, limits[i], i + 1) != gone);
    }
}

/* Asks are halved after so many requests, and then after half as many each time. */
static void test_when_asks_are_halved(void) {
    open_table(100);
    for (uint32_t id = 0; id < 100; id++) put(id);
    for (uint32_t age = 0; age < 20; age++) {
        uint64_t requests = 0;
        for (; w.t->duel.age == age; requests++) {
            get((uint32_t)requests % 5);
            put(100 + (uint32_t)requests % 1000);
        }
        CHECK(requests >= (age ? 1500 : 3000) - 64 && requests <= (age ? 1500 : 3000) + 64);
    }
    close_table();
}

/* Millions of requests leave an entry's asks at their most; when it is no more asked for, it goes. */
static void test_millions_of_requests(void) {
    open_table(300);
    for (uint32_t id = 0; id < 300; id++) put(id);
    for (uint32_t n = 0; n < 3000000; n++) CHECK(get(n % 4));
    for (uint32_t id = 1000; id < 1128; id++) put(id); /* the requests are counted, at last */
    CHECK(w.t->duel.age == 1 && get(0) && get(1));
    uint32_t turns = 0;
    for (; turns < 100 * 300 && (lapse_has(w.t, &w.keys[2], 2, 1) == LAPSE_OK); turns++) {
        uint32_t id = 2000 + turns % 400;
        if (!get(id)) put(id);
    }
    CHECK(turns < 100 * 300);
    close_table();
}

/* The asks of each entry with an id below `end`, as they are by now. */
static void expect_asks(uint32_t asks, uint32_t end) {
    for (uint64_t cursor = 0, more = 1; more;) {
        segment *s = segment_at(cursor);
        table_age(w.t, s);
        for (uint32_t slot = 0; slot < segment_slots(s); slot++)
            if ((s->ctrl[slot] & CTRL_FULL) && entry_at(s, slot)->key->id < end)
                CHECK(mark_asks(s->marks[slot]) == asks);
        cursor = segment_last_hash(s) + 1;
        more = cursor != 0;
    }
}

/* Store so many, and ask for them until their asks are at their most. */
static void store_favourites(uint32_t count) {
    open_table(6000);
    for (uint32_t id = 0; id < count; id++) put(id);
    for (uint32_t n = 0; n < 20; n++)
        for (uint32_t id = 0; id < count; id++) CHECK(get(id));
}

static void sweep(void) {
    lapse_item removed[LAPSE_STEP];
    uint64_t cursor = 0;
    size_t n;
    while (lapse_sweep(w.t, &cursor, 1, LAPSE_STEP, removed, &n) == LAPSE_MORE) CHECK(n == 0);
    pack(w.t, true);
}

/* Segments whose asks were halved at different times keep them right when they become one. */
static void test_asks_in_segments_that_merge(void) {
    for (uint32_t aged = 0; aged < 8; aged++) {
        store_favourites(1800);
        CHECK(w.t->segments == 4);
        w.t->duel.age = 2;
        for (uint64_t i = 0; i < 3; i++)
            if (aged >> i & 1) table_age(w.t, segment_at(i << 62));
        for (uint32_t id = 100; id < 1800; id++) drop(id);
        sweep();
        CHECK(w.t->segments == 1 && lapse_check(w.t));
        expect_asks(DUEL_ASKS_MOST >> 2, 100);
        close_table();
    }
}

static void test_asks_in_a_segment_that_splits(void) {
    for (uint32_t aged = 0; aged < 2; aged++) {
        store_favourites(890);
        CHECK(w.t->segments == 1);
        w.t->duel.age = 3;
        if (aged) table_age(w.t, segment_at(0));
        for (uint32_t id = 890; w.t->segments == 1; id++) put(id);
        expect_asks(DUEL_ASKS_MOST >> 3, 890);
        close_table();
    }
}

int main(void) {
    RUN(test_marks_stop_at_their_most);
    RUN(test_asks_come_back_once);
    RUN(test_asks_are_halved);
    RUN(test_how_long_a_key_is_known);
    RUN(test_seeds);
    RUN(test_the_ring_is_a_queue);
    RUN(test_when_the_window_is_wide);
    RUN(test_evictions_without_end);
    RUN(test_when_asks_are_halved);
    RUN(test_millions_of_requests);
    RUN(test_asks_in_segments_that_merge);
    RUN(test_asks_in_a_segment_that_splits);
    return tests_done();
}
