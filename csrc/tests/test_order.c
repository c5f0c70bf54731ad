/* The order of use, alone and in a table: exact eviction of what was not used for longest, against a naive
 * model, with a memory that fails, and with threads. */
#include "clearing.h"
#include "table.h"
#include "test.h"

#if LAPSE_THREADS
#  include <pthread.h>
#endif

#define IDS 4000u
#define VALUES 16u
#ifdef __SANITIZE_THREAD__
#  define ALONE false /* one thread has nothing to tell it */
#else
#  define ALONE true
#endif

/* --- A memory that fails when it is told to --- */

static struct {
    uint64_t requests, fail_at; /* fail_at: the number of the request that fails; 0: none */
    bool fail_after;            /* and so do all that follow */
    int64_t held;               /* pieces asked for and not given back */
} ledger;

static bool refused(void) {
    uint64_t n = FETCH_ADD64(&ledger.requests, 1) + 1;
    if (ledger.fail_at == 0) return false;
    return ledger.fail_after ? n >= ledger.fail_at : n == ledger.fail_at;
}
static void *held(void *memory) {
    ADD(&ledger.held, memory != NULL);
    return memory;
}
static void *failing_grab(size_t bytes) { return refused() ? NULL : held(lapse_system_memory.grab(bytes)); }
static void *failing_map(size_t bytes) { return refused() ? NULL : held(lapse_system_memory.map(bytes)); }
static void failing_drop(void *memory) {
    ADD(&ledger.held, -1);
    lapse_system_memory.drop(memory);
}
static void failing_unmap(void *memory, size_t bytes) {
    ADD(&ledger.held, -1);
    lapse_system_memory.unmap(memory, bytes);
}
static const lapse_memory failing = {failing_grab, failing_grab, failing_drop, failing_map, failing_unmap};

static void expect_failures(uint64_t fail_at, bool fail_after) {
    ledger.requests = 0;
    ledger.fail_at = fail_at;
    ledger.fail_after = fail_after;
}

/* --- The order alone --- */

/* Nodes by age, oldest first, and what became of them. */
typedef struct {
    uint32_t nodes[IDS];
    uint32_t n;
} ages;

static void age_out(ages *a, uint32_t place) {
    memmove(a->nodes + place, a->nodes + place + 1, (--a->n - place) * sizeof *a->nodes);
}

static void check_ages(lapse_order *o, const ages *a) {
    uint64_t hash = 0;
    size_t entries;
    CHECK(order_check(o, &entries) && entries == a->n);
    CHECK(order_oldest(o, &hash) == (a->n ? a->nodes[0] : 0));
    CHECK(a->n == 0 || hash == 7 * (uint64_t)a->nodes[0]);
}

static void add_node(lapse_order *o, ages *a) {
    uint32_t node = a->n == 0 ? 1 : 0;
    bool takes = order_take(o, 1);
    CHECK(takes == (a->n < o->limit));
    if (!takes) return;
    while (!order_add(o, 0, &node)) CHECK(order_make_room(o, &failing) == LAPSE_OK);
    o->levels[level_of(node)][place_in_level(node, level_of(node))].hash = 7 * (uint64_t)node;
    CHECK(node != 0);
    a->nodes[a->n++] = node;
}

static void use_node(lapse_order *o, ages *a, uint32_t place) {
    uint32_t node = a->nodes[place];
    order_use(o, node);
    age_out(a, place);
    a->nodes[a->n++] = node;
}

static void drop_node(lapse_order *o, ages *a, uint32_t place) {
    order_drop(o, a->nodes[place]);
    order_give(o, 1);
    age_out(a, place);
}

/* The last node moves into a free place, if there is one. */
static bool shed_node(lapse_order *o, ages *a) {
    uint64_t hash;
    uint32_t node, place = 0;
    lapse_status status = order_last(o, &hash, &node);
    if (status != LAPSE_OK) return status == LAPSE_MORE;
    while (place < a->n && a->nodes[place] != node) place++;
    CHECK(place < a->n && hash == 7 * (uint64_t)node);
    uint32_t to = order_move(o, node);
    CHECK(to > 0 && to < node && order_move(o, node) == node); /* which is not the last any more */
    a->nodes[place] = to;
    order_node_at(o, to)->hash = 7 * (uint64_t)to;
    return true;
}

static void play_order(uint64_t limit, uint64_t random) {
    static ages a;
    lapse_order o;
    a.n = 0;
    expect_failures(0, false);
    order_init(&o, true, false, limit);
    for (uint32_t turn = 0; turn < 4000 * test_scale(); turn++) {
        uint32_t what = random_below(&random, 8), place = a.n ? random_below(&random, a.n) : 0;
        if (what < 4) add_node(&o, &a);
        else if (a.n && what < 7) use_node(&o, &a, place);
        else if (a.n) drop_node(&o, &a, place);
        if (random_below(&random, 4) == 0) shed_node(&o, &a);
        if (turn % 16 == 0) check_ages(&o, &a);
    }
    check_ages(&o, &a);
    CHECK(o.made <= limit && order_bytes(&o) >= a.n * sizeof(order_node));
    order_free(&o, &failing);
    CHECK(ledger.held == 0);
}

static void test_random_uses(void) {
    static const uint64_t limits[] = {1, 2, 3, 64, 65, 1000, UINT64_MAX};
    for (uint32_t i = 0; i < sizeof limits / sizeof *limits; i++) play_order(limits[i], i);
}

/* Of many nodes a few are left: they stand together, in their order, and what lies behind is given back. */
static void test_shedding(void) {
    static ages a;
    lapse_order o;
    a.n = 0;
    expect_failures(0, false);
    order_init(&o, true, false, IDS);
    for (uint32_t i = 0; i < IDS; i++) add_node(&o, &a);
    size_t full = order_bytes(&o);
    for (uint32_t i = 0; a.n > IDS / 20; i = (i + 7) % a.n) drop_node(&o, &a, i);
    while (shed_node(&o, &a)) continue;
    while (order_trim(&o, &failing)) continue;
    check_ages(&o, &a);
    CHECK(o.made == a.n && o.freed == 0 && order_bytes(&o) < full / 5);
    while (a.n < IDS) add_node(&o, &a);
    check_ages(&o, &a);
    order_free(&o, &failing);
    CHECK(ledger.held == 0);
}

/* Pages of a level that stays go back, too, and are blank when they are used again. */
static void test_trimming_a_level(void) {
    enum { MORE = 70000, FEW = 33000 }; /* of the level that begins with node 32,704 */
    lapse_order o;
    uint64_t hash;
    uint32_t node, last;
    expect_failures(0, false);
    order_init(&o, true, false, MORE);
    for (uint32_t i = 0; i < MORE; i++) {
        CHECK(order_take(&o, 1));
        while (!order_add(&o, i, &node)) CHECK(order_make_room(&o, &failing) == LAPSE_OK);
    }
    for (uint32_t i = FEW; i < MORE; i++) order_drop(&o, i + 1);
    size_t full = order_bytes(&o), nodes;
    while (order_last(&o, &hash, &last) == LAPSE_MORE) continue;
    while (order_trim(&o, &failing)) continue;
    CHECK(order_check(&o, &nodes) && nodes == FEW && order_bytes(&o) < full / 2 + full / 8);
    for (uint32_t i = FEW; i < MORE; i++)
        while (!order_add(&o, i, &node)) CHECK(order_make_room(&o, &failing) == LAPSE_OK);
    CHECK(order_check(&o, &nodes) && nodes == MORE && order_bytes(&o) == full);
    order_free(&o, &failing);
    CHECK(ledger.held == 0);
}

static void test_starting_again(void) {
    static ages a;
    lapse_order o, old;
    a.n = 0;
    expect_failures(0, false);
    order_init(&o, true, false, 300);
    for (uint32_t i = 0; i < 300; i++) add_node(&o, &a);
    CHECK(!order_take(&o, 1));
    order_restart(&o, a.n, a.n, &old);
    a.n = 0;
    check_ages(&o, &a);
    for (uint32_t i = 0; i < 300; i++) add_node(&o, &a);
    check_ages(&o, &a);
    order_free(&old, &failing);
    order_free(&o, &failing);
    CHECK(ledger.held == 0);
}

static void test_no_memory_for_nodes(void) {
    lapse_order o;
    uint32_t node;
    order_init(&o, true, false, 1000);
    expect_failures(1, true);
    CHECK(!order_add(&o, 1, &node) && order_make_room(&o, &failing) == LAPSE_NO_MEMORY);
    expect_failures(0, false);
    CHECK(order_make_room(&o, &failing) == LAPSE_OK && order_make_room(&o, &failing) == LAPSE_OK);
    CHECK(ledger.requests == 1); /* there was room the second time */
    CHECK(order_add(&o, 1, &node));
    order_free(&o, &failing);
    CHECK(ledger.held == 0);
}

/* --- In a table --- */

/* A table and what it should hold: when each id was used, 0 if it is not there. */
static struct {
    lapse_table *t;
    lapse_object keys[IDS], values[VALUES];
    uint64_t used[IDS], turn;
    uint32_t ids, size;
    bool equal_hashes;
    int64_t now;
    size_t left[LAPSE_EVICTED + 1]; /* by cause */
} w;

static uint64_t hash_of(uint32_t id) { return w.equal_hashes ? 99 : id; }

static uint32_t oldest_id(void) {
    uint32_t oldest = IDS;
    for (uint32_t id = 0; id < w.ids; id++)
        if (w.used[id] && (oldest == IDS || w.used[id] < w.used[oldest])) oldest = id;
    return oldest;
}

static void use_id(uint32_t id) {
    w.size += w.used[id] == 0;
    w.used[id] = ++w.turn;
}

static void lose_id(uint32_t id) {
    w.size -= w.used[id] != 0;
    w.used[id] = 0;
}

/* What is evicted, or is found to have expired when its turn comes, is the oldest. */
static void observe(void *context, lapse_item *items, size_t n, lapse_cause cause) {
    CHECK(context == &w);
    for (size_t i = 0; i < n; i++) {
        uint32_t id = (uint32_t)items[i].key->id;
        if (cause == LAPSE_EVICTED) CHECK(id == oldest_id());
        lose_id(id);
    }
    w.left[cause] += n;
    lapse_release(items, n);
}

static void open_table(uint64_t limit, uint32_t ids, bool equal_hashes, bool gets_told) {
    memset(&w, 0, sizeof w);
    w.ids = ids;
    w.equal_hashes = equal_hashes;
    w.now = 1000;
    for (uint32_t id = 0; id < IDS; id++)
        w.keys[id] = (lapse_object){.references = 1, .id = id, .needs_asking = id % 13 == 0};
    for (uint32_t i = 0; i < VALUES; i++) w.values[i] = (lapse_object){.references = 1, .id = i};
    lapse_config config = {.mode = LAPSE_SLIDING, .own_clock = true, .lru = true, .max_entries = limit};
    config.memory = &failing;
    config.observer = gets_told ? observe : NULL;
    config.context = &w;
    w.t = lapse_table_new(&config);
    CHECK(w.t != NULL);
}

static void close_table(void) {
    expect_failures(0, false);
    lapse_table_free(w.t);
    for (uint32_t id = 0; id < IDS; id++) CHECK(w.keys[id].references == 1);
    for (uint32_t i = 0; i < VALUES; i++) CHECK(w.values[i].references == 1);
    CHECK(ledger.held == 0);
}

static void check_table(void) {
    CHECK(lapse_check(w.t));
    CHECK(lapse_len(w.t, w.now) == w.size);
    for (uint32_t id = 0; id < w.ids; id++) {
        lapse_status status = lapse_has(w.t, &w.keys[id], hash_of(id), w.now);
        CHECK((status == LAPSE_OK) == (w.used[id] > 0));
    }
}

/* Each answers whether there was memory enough; if not, nothing but evictions has happened. */
static bool put(uint32_t id) {
    lapse_object *replaced;
    lapse_status status =
        lapse_put(w.t, &w.keys[id], hash_of(id), &w.values[id % VALUES], LAPSE_NEVER, w.now, &replaced);
    if (status == LAPSE_NO_MEMORY) return false;
    CHECK(status == LAPSE_OK && (replaced != NULL) == (w.used[id] > 0));
    if (replaced) object_unref(replaced);
    if (w.t->order.limit > 0) use_id(id);
    return true;
}

static bool put_new(uint32_t id) {
    lapse_object *present;
    lapse_status status =
        lapse_put_new(w.t, &w.keys[id], hash_of(id), &w.values[id % VALUES], LAPSE_NEVER, w.now, &present);
    if (status == LAPSE_NO_MEMORY) return false;
    CHECK((status == LAPSE_OK) == (w.used[id] > 0));
    if (status == LAPSE_OK) object_unref(present);
    else if (w.t->order.limit > 0) use_id(id);
    return true;
}

static bool fill(uint32_t id) {
    lapse_lease *lease;
    lapse_object *replaced;
    if (lapse_lease_take(w.t, &w.keys[id], hash_of(id), &lease) != LAPSE_OK) return false;
    lapse_status status =
        lapse_fill(w.t, lease, &w.values[id % VALUES], LAPSE_NEVER, NULL, id % 2, w.now, &replaced);
    CHECK(status == LAPSE_OK || status == LAPSE_NO_MEMORY);
    if (replaced) object_unref(replaced);
    if (status == LAPSE_OK && w.t->order.limit > 0) use_id(id);
    lapse_lease_end(w.t, lease);
    return status == LAPSE_OK;
}

static void drop(uint32_t id) {
    lapse_item removed;
    lapse_status status = lapse_delete(w.t, &w.keys[id], hash_of(id), w.now, &removed);
    CHECK((status == LAPSE_OK) == (w.used[id] > 0));
    if (status == LAPSE_OK) lapse_release(&removed, 1);
    lose_id(id);
}

/* An outdated load is not stored, and nothing makes way for it. */
static void fill_in_vain(uint32_t id) {
    lapse_lease *lease;
    lapse_object *replaced;
    size_t evicted = w.left[LAPSE_EVICTED];
    CHECK(lapse_lease_take(w.t, &w.keys[id], hash_of(id), &lease) == LAPSE_OK);
    drop(id);
    lapse_status status = lapse_fill(w.t, lease, &w.values[0], LAPSE_NEVER, NULL, false, w.now, &replaced);
    CHECK(status == LAPSE_OUTDATED);
    CHECK(replaced == NULL && w.left[LAPSE_EVICTED] == evicted);
    lapse_lease_end(w.t, lease);
}

static void get(uint32_t id) {
    lapse_object *value;
    lapse_status status = lapse_get(w.t, &w.keys[id], hash_of(id), w.now, &value);
    CHECK((status == LAPSE_OK) == (w.used[id] > 0));
    if (status != LAPSE_OK) return;
    object_unref(value);
    use_id(id);
}

static void get_block(uint64_t *random) {
    lapse_block keys = {.n = LAPSE_BLOCK};
    lapse_object *values[LAPSE_BLOCK];
    lapse_status found[LAPSE_BLOCK];
    uint32_t ids[LAPSE_BLOCK];
    for (uint32_t i = 0; i < LAPSE_BLOCK; i++) {
        ids[i] = random_below(random, w.ids);
        keys.keys[i] = &w.keys[ids[i]];
        keys.hashes[i] = hash_of(ids[i]);
    }
    lapse_get_block(w.t, &keys, w.now, values, found);
    for (uint32_t i = 0; i < LAPSE_BLOCK; i++) {
        if (found[i] == LAPSE_MORE) { /* left for a single read */
            get(ids[i]);
            continue;
        }
        CHECK((found[i] == LAPSE_OK) == (w.used[ids[i]] > 0));
        if (found[i] != LAPSE_OK) continue;
        object_unref(values[i]);
        use_id(ids[i]);
    }
}

static void touch(uint32_t id) {
    lapse_status status = lapse_touch(w.t, &w.keys[id], hash_of(id), LAPSE_NEVER, w.now);
    CHECK((status == LAPSE_OK) == (w.used[id] > 0));
    if (status == LAPSE_OK) use_id(id);
}

static void pop_any(uint64_t *random) {
    lapse_item removed;
    uint64_t cursor = random_word(random);
    lapse_status status = lapse_pop_any(w.t, &cursor, w.now, &removed);
    CHECK((status == LAPSE_OK) == (w.size > 0));
    if (status != LAPSE_OK) return;
    CHECK(w.used[removed.key->id] > 0);
    lose_id((uint32_t)removed.key->id);
    lapse_release(&removed, 1);
}

static bool clear(void) {
    if (lapse_detach(w.t) != LAPSE_OK) return false;
    for (uint32_t id = 0; id < w.ids; id++) lose_id(id);
    drain_table(w.t);
    return true;
}

static void random_step(uint64_t *random) {
    uint32_t what = random_below(random, 64), id = random_below(random, w.ids);
    if (what < 16) CHECK(put(id));
    else if (what < 22) CHECK(put_new(id));
    else if (what < 26) CHECK(fill(id));
    else if (what < 44) get(id);
    else if (what < 46) get_block(random);
    else if (what < 52) touch(id);
    else if (what < 60) drop(id);
    else if (what < 62) fill_in_vain(id);
    else if (what < 63) pop_any(random);
    else if (id == 0) CHECK(clear());
}

static void play_table(uint64_t limit, uint32_t ids, bool equal_hashes, uint32_t turns) {
    uint64_t random = limit + ids;
    expect_failures(0, false);
    open_table(limit, ids, equal_hashes, true);
    for (uint32_t turn = 0; turn < turns * test_scale(); turn++) {
        random_step(&random);
        CHECK(w.size <= limit);
        if (turn % 256 == 0) check_table();
    }
    for (uint32_t id = 0; id < w.ids; id++) CHECK(put(id));
    check_table();
    CHECK(w.size == (limit < ids ? limit : ids));
    lapse_counters counters;
    lapse_counters_read(w.t, &counters);
    CHECK(counters.evictions == w.left[LAPSE_EVICTED]);
    CHECK((counters.evictions > 0) == (limit > 0 && limit < ids));
    close_table();
}

static void test_holding_nothing(void) { play_table(0, 10, false, 500); }
static void test_few_entries(void) {
    play_table(1, 4, false, 3000);
    play_table(2, 5, false, 3000);
    play_table(7, 20, false, 5000);
}
static void test_one_segment(void) { play_table(300, 700, false, 8000); }
static void test_many_segments(void) { play_table(2500, IDS, false, 12000); }
static void test_equal_hashes(void) { play_table(150, 400, true, 3000); }
static void test_a_limit_that_is_not_reached(void) { play_table(IDS, 500, false, 2000); }

/* An expired entry whose turn it is goes as expired; it is as good a place as another. */
static void test_expired_entries_make_way(void) {
    lapse_object *replaced;
    lapse_counters counters;
    expect_failures(0, false);
    open_table(10, 40, false, true);
    for (uint32_t id = 0; id < 10; id++) {
        CHECK(lapse_put(w.t, &w.keys[id], id, &w.values[0], id < 5 ? 1 : LAPSE_NEVER, w.now, &replaced) ==
              LAPSE_OK);
        use_id(id);
    }
    w.now += 1;
    for (uint32_t id = 10; id < 18; id++) CHECK(put(id));
    check_table();
    lapse_counters_read(w.t, &counters);
    CHECK(w.left[LAPSE_BY_DEADLINE] == 5 && counters.expirations == 5);
    CHECK(w.left[LAPSE_EVICTED] == 3 && counters.evictions == 3);
    close_table();
}

/* --- With a memory that fails --- */

/* Do a step that failed once more, with memory at hand again; the table is whole in between. */
#define RETRY(step)                                                            \
    do {                                                                       \
        if (step) break;                                                       \
        check_table();                                                         \
        CHECK(!ledger.fail_after || !(step)); /* as long as memory is short */ \
        expect_failures(0, false);                                             \
        CHECK(step);                                                           \
    } while (0)

/* Fill a table beyond its limit, clear it and fill it again. Answers how many requests for memory that makes. */
static uint64_t play_failing(uint64_t limit, uint64_t fail_at, bool fail_after) {
    expect_failures(0, false);
    open_table(limit, 2 * (uint32_t)limit, false, true);
    expect_failures(fail_at, fail_after);
    for (uint32_t id = 0; id < w.ids; id += 2) RETRY(put(id));
    for (uint32_t id = 1; id < w.ids; id += 2) RETRY(id % 4 == 1 ? put_new(id) : fill(id));
    RETRY(clear());
    for (uint32_t id = 0; id < w.ids; id += 3) RETRY(put(id));
    uint64_t requests = ledger.requests;
    check_table();
    close_table();
    return requests;
}

static void test_each_request_fails(void) {
    static const uint64_t limits[] = {5, 1200};
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t requests = play_failing(limits[i], 0, false);
        uint64_t step = requests > 100 ? requests / 100 : 1; /* leases are requests too, all alike */
        CHECK(requests > 4);
        for (uint64_t n = 1; n <= requests; n += n < 60 ? 1 : step) {
            play_failing(limits[i], n, false);
            play_failing(limits[i], n, true);
        }
    }
}

/* --- With threads --- */

#if LAPSE_THREADS
#  define ACTORS 4u
#  define LIMIT 700u

typedef struct {
    pthread_t thread;
    uint64_t random;
    uint32_t turns;
} actor;

static void store_any(uint32_t id, uint32_t how) {
    lapse_object *key = &w.keys[id], *value = &w.values[id % VALUES], *old = NULL;
    lapse_lease *lease;
    lapse_status status;
    if (how == 0) status = lapse_put_new(w.t, key, id, value, LAPSE_NEVER, 1000, &old);
    else if (how == 1) {
        CHECK(lapse_lease_take(w.t, key, id, &lease) == LAPSE_OK);
        status = lapse_fill(w.t, lease, value, LAPSE_NEVER, NULL, id % 2, 1000, &old);
        lapse_lease_end(w.t, lease);
    } else status = lapse_put(w.t, key, id, value, LAPSE_NEVER, 1000, &old);
    CHECK(status <= LAPSE_ABSENT || (how == 1 && status == LAPSE_OUTDATED));
    if (old && status != LAPSE_ABSENT) object_unref(old);
}

static void act(actor *a) {
    uint32_t what = random_below(&a->random, 4096), id = random_below(&a->random, 3 * LIMIT);
    lapse_object *value;
    lapse_item removed;
    if (what < 1500) store_any(id, what % 8);
    else if (what < 3000) {
        if (lapse_get(w.t, &w.keys[id], id, 1000, &value) == LAPSE_OK) {
            CHECK(value == &w.values[id % VALUES]);
            object_unref(value);
        }
    } else if (what < 3500) lapse_touch(w.t, &w.keys[id], id, LAPSE_NEVER, 1000);
    else if (what < 4000) {
        if (lapse_delete(w.t, &w.keys[id], id, 1000, &removed) == LAPSE_OK) lapse_release(&removed, 1);
    } else if (what < 4090) CHECK(lapse_len(w.t, 1000) <= LIMIT);
    else if (what == 4090) clear_table(w.t);
}

static void *play_actor(void *arg) {
    actor *a = arg;
    for (uint32_t turn = 0; turn < a->turns; turn++) act(a);
    return NULL;
}

/* Threads store, read and remove; between their rounds the table is sound and within its bound. */
static void test_threads(void) {
    actor actors[ACTORS];
    expect_failures(0, false);
    open_table(LIMIT, 3 * LIMIT, false, false);
    for (uint32_t id = 0; id < IDS; id++) w.keys[id].needs_asking = false;
    for (uint32_t round = 0; round < 5 * test_scale(); round++) {
        for (uint32_t i = 0; i < ACTORS; i++) {
            actors[i] = (actor){.random = round * ACTORS + i, .turns = 10000};
            CHECK(pthread_create(&actors[i].thread, NULL, play_actor, &actors[i]) == 0);
        }
        for (uint32_t i = 0; i < ACTORS; i++) CHECK(pthread_join(actors[i].thread, NULL) == 0);
        CHECK(lapse_check(w.t) && w.t->order.tokens == lapse_len(w.t, 1000));
        CHECK(lapse_len(w.t, 1000) <= LIMIT);
    }
    close_table();
}
#endif

static void run_alone(void) {
    RUN(test_random_uses);
    RUN(test_shedding);
    RUN(test_trimming_a_level);
    RUN(test_starting_again);
    RUN(test_no_memory_for_nodes);
    RUN(test_holding_nothing);
    RUN(test_few_entries);
    RUN(test_one_segment);
    RUN(test_many_segments);
    RUN(test_equal_hashes);
    RUN(test_a_limit_that_is_not_reached);
    RUN(test_expired_entries_make_way);
    RUN(test_each_request_fails);
}

int main(void) {
    if (ALONE) run_alone();
#if LAPSE_THREADS
    RUN(test_threads);
#endif
    return tests_done();
}
