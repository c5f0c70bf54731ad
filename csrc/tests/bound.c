/* The bound, at every moment: threads on a bounded table of either policy, whose entries are counted at every access
 * to shared memory (machine.h). Every access takes effect in its turn: a count that comes late is no entry too many.
 *
 *     bound [SCENARIOS [HISTORIES [SEED]]]
 */
#include "clearing.h"
#include "machine.h"
#include "table.h"

#define OPERATIONS 8u /* of one thread */
#define KEYS 2000u
#define TTL 100
#define SEGMENTS 1100u /* a limit of two segments */

typedef struct {
    uint32_t threads, keys; /* keys: that the threads are about */
    bool full; /* from the beginning on */
    lapse_config config;
} scenario;

static struct {
    lapse_table *t;
    const scenario *s;
    int64_t now;
    uint64_t seed, most; /* most: entries that there were at a time */
} run;

static lapse_object keys[KEYS], value;

static scenario scenario_of(uint64_t *random) {
    static const uint64_t limits[] = {0, 1, 2, 3, 14, 100, SEGMENTS, SEGMENTS};
    uint64_t limit = limits[random_below(random, sizeof limits / sizeof *limits)];
    bool lru = random_below(random, 2);
    scenario s = {.threads = 2 + random_below(random, THREADS_MOST - 1),
                  .keys = 1 + random_below(random, 20),
                  .full = random_below(random, 4) > 0,
                  .config = {.own_clock = true, .lru = lru, .duel = !lru, .max_entries = limit}};
    return s;
}

/* --- Looking --- */

/* The entries of all segments that are in use. */
static uint64_t count_entries(void) {
    uint64_t entries = 0, size = UINT64_C(1) << directory_bits(run.t->directory);
    segment *const *array = directory_array(run.t->directory);
    for (uint64_t i = 0; i < size; i++)
        if ((i == 0 || array[i] != array[i - 1]) && !array[i]->dead) entries += array[i]->used;
    return entries;
}

static void look(void) {
    uint64_t entries = count_entries();
    CHECK(entries <= run.s->config.max_entries);
    if (entries > run.most) run.most = entries;
}

/* --- What the threads do --- */

static uint64_t hash_of(uint32_t id) { return id * UINT64_C(0x9E3779B97F4A7C15) + 1; }

static void set(uint32_t id, int64_t ttl, bool new) {
    lapse_object *old = NULL;
    lapse_status status = new ? lapse_put_new(run.t, &keys[id], hash_of(id), &value, ttl, run.now, &old)
                              : lapse_put(run.t, &keys[id], hash_of(id), &value, ttl, run.now, &old);
    CHECK(status == LAPSE_OK || (new && status == LAPSE_ABSENT));
    if (old) object_unref(old);
}

static void get(uint32_t id) {
    lapse_object *found;
    if (lapse_get(run.t, &keys[id], hash_of(id), run.now, &found) == LAPSE_OK) object_unref(found);
}

static void delete(uint32_t id) {
    lapse_item removed;
    lapse_status status = lapse_delete(run.t, &keys[id], hash_of(id), run.now, &removed);
    if (status == LAPSE_OK || status == LAPSE_EXPIRED) lapse_release(&removed, 1);
}

static void sweep(void) {
    lapse_item removed[LAPSE_STEP];
    uint64_t cursor = 0;
    size_t n;
    for (lapse_status status = LAPSE_MORE; status == LAPSE_MORE;) {
        status = lapse_sweep(run.t, &cursor, run.now, LAPSE_STEP, removed, &n);
        lapse_release(removed, n);
    }
}

static void act(uint64_t *random) {
    uint32_t what = random_below(random, 64), id = random_below(random, run.s->keys);
    if (what < 24) set(id, random_below(random, 2) ? TTL : LAPSE_NEVER, false);
    else if (what < 32) set(id, LAPSE_NEVER, true);
    else if (what < 44) get(id);
    else if (what < 58) delete(id);
    else if (what < 61) run.now += TTL / 2;
    else if (what < 63) sweep();
    else clear_table(run.t);
}

static void thread_body(uint32_t thread) {
    uint64_t random = run.seed * THREADS_MOST + thread;
    for (uint32_t i = 0; i < OPERATIONS; i++) act(&random);
}

/* --- Histories --- */

static void one_history(const scenario *s, uint64_t seed) {
    value = (lapse_object){.references = 1};
    for (uint32_t id = 0; id < KEYS; id++) keys[id] = (lapse_object){.references = 1, .id = id};
    run.s = s;
    run.seed = seed;
    run.now = 1000;
    run.t = lapse_table_new(&s->config);
    for (uint32_t i = 0; s->full && i < s->config.max_entries; i++) set(KEYS - 1 - i, LAPSE_NEVER, false);
    machine.random = seed;
    machine.eagerness = 2u << seed % 5;
    machine_run(s->threads, thread_body);
    CHECK(lapse_check(run.t) && run.t->order.tokens == count_entries());
    lapse_table_free(run.t);
    for (uint32_t id = 0; id < KEYS; id++) CHECK(keys[id].references == 1);
    CHECK(value.references == 1);
}

int main(int argc, char **argv) {
    unsigned long scenarios = argc > 1 ? strtoul(argv[1], NULL, 10) : 40;
    unsigned long histories = argc > 2 ? strtoul(argv[2], NULL, 10) : 500;
    test_name = "bound";
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    machine.look = look;
    machine.strong = true;
    for (unsigned long i = 0; i < scenarios; i++) {
        uint64_t random = seed + i;
        scenario s = scenario_of(&random);
        for (unsigned long n = 0; n < histories; n++) one_history(&s, random_word(&random));
    }
    CHECK(run.most == SEGMENTS);
    printf("%lu scenarios x %lu histories, seed %llu", scenarios, histories, (unsigned long long)seed);
    return 0;
}
