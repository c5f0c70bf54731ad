/* The default policy in a table: the bound, what goes first, floods, a memory that fails, and threads. */
#include "clearing.h"
#include "packing.h"
#include "table.h"
#include "test.h"

#if LAPSE_THREADS
#  include <pthread.h>
#endif

#define IDS 12000u
#ifdef __SANITIZE_THREAD__
#  define ALONE false /* one thread has nothing to tell it */
#else
#  define ALONE true
#endif

/* --- A memory that fails when it is told to --- */

static uint64_t requests, fail_at; /* fail_at: the number of the request that fails; 0: none */
static int64_t held;

static void *counted(void *memory) {
    ADD(&held, memory != NULL);
    return memory;
}
static bool refused(void) { return FETCH_ADD64(&requests, 1) + 1 == fail_at; }
static void *failing_grab(size_t bytes) {
    return refused() ? NULL : counted(lapse_system_memory.grab(bytes));
}
static void *failing_map(size_t bytes) { return refused() ? NULL : counted(lapse_system_memory.map(bytes)); }
static void failing_drop(void *memory) {
    ADD(&held, -1);
    lapse_system_memory.drop(memory);
}
static void failing_unmap(void *memory, size_t bytes) {
    ADD(&held, -1);
    lapse_system_memory.unmap(memory, bytes);
}
static const lapse_memory failing = {failing_grab, failing_grab, failing_drop, failing_map, failing_unmap};

/* --- A table, and what the observer says is gone --- */

static struct {
    lapse_table *t;
    lapse_object keys[IDS], value;
    int64_t deadline[IDS]; /* of what is there; 0: it is not */
    uint64_t size, limit, evicted, expired;
    int64_t now;
} w;

static uint64_t hash_of(uint64_t id) { return id * UINT64_C(0x9E3779B97F4A7C15) + 1; }

static void observe(void *context, lapse_item *items, size_t n, lapse_cause cause) {
    (void)context;
    for (size_t i = 0; i < n; i++) {
        if (cause != LAPSE_REPLACED) {
            CHECK(w.deadline[items[i].key->id] != 0);
            w.deadline[items[i].key->id] = 0;
            w.size--;
        }
        w.evicted += cause == LAPSE_EVICTED;
        w.expired += cause == LAPSE_BY_DEADLINE;
    }
    lapse_release(items, n);
}

static void open_table(uint64_t limit, bool gets_told) {
    memset(&w, 0, sizeof w);
    w.now = 1000;
    w.limit = limit;
    for (uint32_t id = 0; id < IDS; id++) w.keys[id] = (lapse_object){.references = 1, .id = id};
    w.value = (lapse_object){.references = 1};
    lapse_config config = {.mode = LAPSE_FIXED, .own_clock = true, .duel = true, .max_entries = limit};
    config.memory = &failing;
    config.default_ttl = LAPSE_NEVER;
    config.observer = gets_told ? observe : NULL;
    w.t = lapse_table_new(&config);
    CHECK(w.t != NULL);
}

static void close_table(void) {
    lapse_table_free(w.t);
    for (uint32_t id = 0; id < IDS; id++) CHECK(w.keys[id].references == 1);
    CHECK(w.value.references == 1 && held == 0);
}

static lapse_status put(uint32_t id, int64_t ttl) {
    lapse_object *replaced;
    lapse_status status = lapse_put(w.t, &w.keys[id], hash_of(id), &w.value, ttl, w.now, &replaced);
    if (status != LAPSE_OK) return status;
    if (replaced) object_unref(replaced);
    w.size += w.deadline[id] == 0;
    w.deadline[id] = ttl == LAPSE_NEVER ? INT64_MAX : w.now + ttl;
    return status;
}

static bool get(uint32_t id) {
    lapse_object *value;
    if (lapse_get(w.t, &w.keys[id], hash_of(id), w.now, &value) != LAPSE_OK) return false;
    object_unref(value);
    return true;
}

static void drop(uint32_t id) {
    lapse_item removed;
    if (lapse_delete(w.t, &w.keys[id], hash_of(id), w.now, &removed) != LAPSE_OK) return;
    lapse_release(&removed, 1);
    w.size -= w.deadline[id] != 0;
    w.deadline[id] = 0;
}

static void clear(void) {
    clear_table(w.t);
    memset(w.deadline, 0, sizeof w.deadline);
    w.size = 0;
}

/* --- Alone --- */

static void play(uint64_t limit, uint32_t ids, uint32_t turns, uint64_t seed) {
    open_table(limit, true);
    for (uint32_t turn = 0; turn < turns; turn++) {
        uint32_t what = random_below(&seed, 100), id = random_below(&seed, ids);
        if (what < 55) {
            CHECK(put(id, LAPSE_NEVER) == LAPSE_OK);
            CHECK(limit == 0 || get(id)); /* what was stored is there */
        } else if (what < 90) CHECK(get(id) == (w.deadline[id] > 0 && limit > 0));
        else if (what < 99) drop(id);
        else if (turn % 40 == 0) clear();
        else pack(w.t, turn % 2);
        if (limit == 0) w.size = w.deadline[id] = 0;
        CHECK(w.size <= limit);
        if (turn % 500 == 0) CHECK(lapse_check(w.t) && lapse_len(w.t, w.now) == w.size);
    }
    CHECK(lapse_check(w.t) && lapse_len(w.t, w.now) == w.size);
    close_table();
}

/* Whatever is called, the bound holds, what was stored is there, and the observer knows what is not. */
static void test_random_calls(void) {
    static const uint64_t limits[] = {0, 1, 2, 3, 17, 300, 3000};
    for (uint32_t i = 0; i < sizeof limits / sizeof *limits; i++)
        play(limits[i], (uint32_t)(limits[i] * 3 + 3), 20000 * test_scale(), i);
}

/* Ten times as many keys as fit, each asked for once, leave what was asked for often. */
static void test_a_flood(void) {
    const uint32_t limit = 1000, hot = 800;
    uint32_t left = 0;
    open_table(limit, true);
    for (uint32_t round = 0; round < 4; round++)
        for (uint32_t id = 0; id < hot; id++)
            if (!get(id)) CHECK(put(id, LAPSE_NEVER) == LAPSE_OK);
    for (uint32_t id = hot; id < hot + 10 * limit; id++) CHECK(put(id, LAPSE_NEVER) == LAPSE_OK);
    for (uint32_t id = 0; id < hot; id++) left += get(id);
    CHECK(left >= hot * 9 / 10);
    close_table();
}

/* Nothing that lives goes while there is something that has expired. */
static void test_expired_entries_go_first(void) {
    open_table(2000, true);
    for (uint32_t id = 0; id < 2000; id++) CHECK(put(id, id % 4 ? LAPSE_NEVER : 100) == LAPSE_OK);
    w.now += 200;
    for (uint32_t id = 2000; id < 2500; id++) CHECK(put(id, LAPSE_NEVER) == LAPSE_OK);
    CHECK(w.evicted == 0 && w.expired == 500);
    CHECK(put(2500, LAPSE_NEVER) == LAPSE_OK);
    CHECK(w.evicted == 1);
    close_table();
}

static size_t policy_bytes(void) { return duel_bytes(&w.t->duel); }

/* A table that is not even half full forgets, and knows its window anew: nobody stays for ever, or goes too early. */
static void test_forgetting(void) {
    const uint32_t limit = 4000;
    open_table(limit, true);
    for (uint32_t id = 0; id < 2 * limit; id++) CHECK(put(id, LAPSE_NEVER) == LAPSE_OK);
    size_t full = policy_bytes();
    for (uint32_t id = 0; id < 2 * limit; id++)
        if (w.deadline[id] && w.size > limit / 2) drop(id);
    pack(w.t, true);
    CHECK(policy_bytes() == full); /* just half full */
    for (uint32_t id = 0; id < 2 * limit; id++)
        if (w.deadline[id] && w.size > limit / 4) drop(id);
    lapse_packing under_way = {.at_once = true};
    for (uint32_t id = 3 * limit - 100; lapse_pack(w.t, &under_way) == LAPSE_MORE; id++)
        CHECK(put(id, LAPSE_NEVER) == LAPSE_OK); /* new entries meanwhile */
    CHECK(lapse_check(w.t) && policy_bytes() < full / 10 && w.t->duel.history == NULL);
    uint64_t evicted = w.evicted;
    for (uint32_t id = 0; w.size < limit; id++) CHECK(put(id, LAPSE_NEVER) == LAPSE_OK);
    CHECK(w.evicted == evicted && lapse_check(w.t));
    for (uint32_t id = 0; id < 3 * limit; id++) CHECK(put(id, LAPSE_NEVER) == LAPSE_OK);
    CHECK(lapse_check(w.t) && lapse_len(w.t, w.now) == limit && policy_bytes() > full / 2);
    close_table();
}

static void test_a_clear_forgets(void) {
    open_table(4000, true);
    size_t empty = policy_bytes();
    for (uint32_t id = 0; id < 8000; id++) CHECK(put(id, LAPSE_NEVER) == LAPSE_OK);
    CHECK(policy_bytes() > empty + 4000 * 4);
    clear();
    pack(w.t, false);
    CHECK(policy_bytes() < 1024);
    close_table();
}

/* Asks are halved again and again, and never overflow. */
static void test_asks_stay_small(void) {
    open_table(100, true);
    for (uint32_t turn = 0; turn < 200000; turn++)
        if (!get(turn % 7)) CHECK(put(turn % 7, LAPSE_NEVER) == LAPSE_OK);
    CHECK(lapse_check(w.t));
    for (uint32_t id = 10; id < 3000; id++) CHECK(put(id, LAPSE_NEVER) == LAPSE_OK);
    uint32_t left = 0;
    for (uint32_t id = 0; id < 7; id++) left += get(id);
    CHECK(left == 7 && w.t->duel.age > 0 && lapse_check(w.t));
    close_table();
}

/* A request that fails costs an entry or a history, not the table. */
static void test_each_request_fails(void) {
    uint64_t most = 40;
    for (uint64_t n = 1; n <= most; n++) {
        open_table(600, true);
        requests = 0;
        fail_at = n;
        for (uint32_t id = 0; id < 2000; id++) {
            if (put(id, LAPSE_NEVER) == LAPSE_OK) continue;
            CHECK(!get(id));
            CHECK(put(id, LAPSE_NEVER) == LAPSE_OK);
        }
        CHECK(lapse_check(w.t) && lapse_len(w.t, w.now) == 600);
        most = requests < 200 ? requests : 200;
        for (uint32_t id = 0; id < 2000; id++)
            if (w.deadline[id] && w.size > 200) drop(id);
        fail_at = requests + n % 8 + 1; /* of what packing and forgetting ask for */
        pack(w.t, true);
        fail_at = 0;
        CHECK(lapse_check(w.t) && lapse_len(w.t, w.now) == 200);
        close_table();
    }
}

/* --- With threads --- */

#if LAPSE_THREADS
#  define ACTORS 4u
#  define LIMIT 700u

typedef struct {
    pthread_t thread;
    uint64_t random;
} actor;

static void act(actor *a) {
    uint32_t what = random_below(&a->random, 4096), id = random_below(&a->random, 3 * LIMIT);
    lapse_object *old;
    lapse_item removed;
    if (what < 1800) {
        CHECK(lapse_put(w.t, &w.keys[id], hash_of(id), &w.value, LAPSE_NEVER, w.now, &old) == LAPSE_OK);
        if (old) object_unref(old);
    } else if (what < 3600) get(id);
    else if (what < 4000) {
        if (lapse_delete(w.t, &w.keys[id], hash_of(id), w.now, &removed) == LAPSE_OK)
            lapse_release(&removed, 1);
    } else if (what < 4090) CHECK(lapse_len(w.t, w.now) <= LIMIT);
    else if (what < 4094) pack(w.t, true);
    else clear_table(w.t);
}

static void *play_actor(void *arg) {
    for (uint32_t turn = 0; turn < 10000; turn++) act(arg);
    return NULL;
}

/* Threads store, read and remove; between their rounds the table is sound and within its bound. */
static void test_threads(void) {
    actor actors[ACTORS];
    open_table(LIMIT, false);
    for (uint32_t round = 0; round < 5 * test_scale(); round++) {
        for (uint32_t i = 0; i < ACTORS; i++) {
            actors[i].random = round * ACTORS + i;
            CHECK(pthread_create(&actors[i].thread, NULL, play_actor, &actors[i]) == 0);
        }
        for (uint32_t i = 0; i < ACTORS; i++) CHECK(pthread_join(actors[i].thread, NULL) == 0);
        CHECK(lapse_check(w.t) && lapse_len(w.t, w.now) <= LIMIT);
    }
    close_table();
}
#endif

int main(void) {
    if (ALONE) {
        RUN(test_random_calls);
        RUN(test_a_flood);
        RUN(test_expired_entries_go_first);
        RUN(test_forgetting);
        RUN(test_a_clear_forgets);
        RUN(test_asks_stay_small);
        RUN(test_each_request_fails);
    }
#if LAPSE_THREADS
    RUN(test_threads);
#endif
    return tests_done();
}
