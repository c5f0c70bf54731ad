/* Linearizability: small histories of concurrent operations, each checked against all orders that its calls
 * allow (Wing and Gong, Testing and Verifying Concurrent Objects, 1993).
 *
 *   scenario ──► threads' operations ──► a run: one thread at a time, which may change at every shared access
 *                                            │
 *                     history: call, return, result of each operation
 *                                            │
 *                     is there an order that a plain map could have answered so? ── no ──► printed, and the end
 *
 * The threads are coroutines of one real thread, on a machine that reorders what may be reordered (machine.h).
 * So a run depends on its seed alone, many interleavings fit into a minute, and a fence that is missing shows.
 *
 *     linear [SCENARIOS [HISTORIES [SEED]]]    status 1: a history that is not linearizable, which is printed
 */
#include "clearing.h"
#include "machine.h"
#include "packing.h"
#include "read.h"

#define OPERATIONS_MOST 5u /* of one thread */
#define HISTORY_MOST (THREADS_MOST * OPERATIONS_MOST)
#define PAIR 2u
#define FILLERS 896u /* as many as a segment takes before it splits */
#define VALUES 64u
#define NONE UINT32_MAX
#define LIFETIME (1000 * LAPSE_SECOND_NS) /* the coarse clock's slack is nothing to it */
#define LONG_AGO 1
#define NOW (LONG_AGO + 2 * LIFETIME)

typedef enum {
    GET,
    SET,
    SET_LATE,
    DELETE,
    TOUCH,
    CLEAR,
    PACK,
    KINDS
} kind; /* late: it has expired already */
static const char *const names[] = {"get", "set", "set late", "delete", "touch", "clear", "pack"};

typedef struct {
    kind what;
    uint32_t key, value;  /* value: what a set stores */
    uint32_t answer;      /* a get's value or NONE; was the key there? */
    uint32_t called, returned;
} operation;

/* --- The scenario: what the threads do, and on which table --- */

typedef struct {
    uint32_t threads, operations, keys; /* operations a thread */
    uint32_t weights[KINDS];
    uint32_t fillers; /* entries beside those that the operations are about */
    bool loose;       /* which are gone again, so that there is much to pack */
    bool asking;      /* keys are compared by user code */
    bool crowded;     /* both keys have one hash */
    bool quick;       /* gets try read_quickly(), with the very keys */
    lapse_config config;
} scenario;

static scenario scenario_of(uint64_t *random) {
    static const uint32_t rooms[] = {0, 0, 13, 13, 14, 27, 27, FILLERS - 2};
    scenario s = {.threads = 2 + random_below(random, THREADS_MOST - 1),
                  .operations = 3 + random_below(random, OPERATIONS_MOST - 2),
                  .keys = random_below(random, 3) ? PAIR : 1,
                  .fillers = rooms[random_below(random, sizeof rooms / sizeof *rooms)],
                  .loose = random_below(random, 3) == 0,
                  .asking = random_below(random, 3) == 0,
                  .crowded = random_below(random, 4) == 0,
                  .config = {.mode = random_below(random, 3) ? LAPSE_FIXED : LAPSE_SLIDING,
                             .default_ttl = LIFETIME,
                             .own_clock = true}};
    for (uint32_t k = 0; k < KINDS; k++) s.weights[k] = random_below(random, 5);
    s.weights[GET] += 2;
    s.weights[SET] += 2;
    s.weights[CLEAR] /= 2;
    s.config.locked_reads = random_below(random, 8) == 0;
    s.quick = s.config.mode == LAPSE_FIXED && !s.config.locked_reads && random_below(random, 3) > 0;
    return s;
}

/* --- Objects: the memory of a value that has died is known by its count --- */

static lapse_object keys[THREADS_MOST + 1][PAIR], fillers[FILLERS], values[VALUES];

static int ask(lapse_object *stored, lapse_object *key) {
    lapse_yield();
    return stored->id == key->id;
}

static void make_objects(const scenario *s) {
    for (uint32_t t = 0; t <= THREADS_MOST; t++)
        for (uint32_t k = 0; k < PAIR; k++)
            keys[t][k] = (lapse_object){
                .references = 1, .id = k, .needs_asking = s->asking, .on_equal = s->asking ? ask : NULL};
    for (uint32_t i = 0; i < FILLERS; i++) fillers[i] = (lapse_object){.references = 1, .id = PAIR + i};
    for (uint32_t i = 0; i < VALUES; i++) values[i] = (lapse_object){.id = i};
}

/* --- A run --- */

static struct {
    lapse_table *t;
    const scenario *s;
    operation history[HISTORY_MOST];
    uint32_t clock; /* numbers calls and returns */
} run;

static uint64_t hash_of(const scenario *s, uint32_t id) { return s->crowded && id < PAIR ? 7 : id; }

static uint32_t get(lapse_object *key, uint64_t hash) {
    bool absent = false;
    lapse_object *found = run.s->quick ? read_quickly(run.t, key, mix_hash(hash), true, NOW, &absent) : NULL;
    if (absent) return NONE;
    if (found == NULL && lapse_get(run.t, key, hash, NOW, &found) != LAPSE_OK) return NONE;
    CHECK(found->references > 0);
    uint32_t id = (uint32_t)found->id;
    object_unref(found);
    return id;
}

static void set(lapse_object *key, uint64_t hash, uint32_t value, int64_t now) {
    lapse_object *old = NULL;
    values[value].references++; /* ours, until it is stored */
    CHECK(lapse_put(run.t, key, hash, &values[value], LAPSE_DEFAULT, now, &old) == LAPSE_OK);
    object_unref(&values[value]);
    if (old) object_unref(old);
}

static bool delete(lapse_object *key, uint64_t hash) {
    lapse_item removed;
    lapse_status status = lapse_delete(run.t, key, hash, NOW, &removed);
    if (status == LAPSE_OK || status == LAPSE_EXPIRED) lapse_release(&removed, 1);
    return status == LAPSE_OK;
}

static void perform(operation *o, uint32_t thread) {
    lapse_object *key = &keys[run.s->quick ? 0 : thread][o->key];
    uint64_t hash = hash_of(run.s, o->key);
    o->called = run.clock++;
    FULL_FENCE(); /* no load is of before the call */
    lapse_yield();
    switch (o->what) {
    case GET: o->answer = get(key, hash); break;
    case SET: set(key, hash, o->value, NOW); break;
    case SET_LATE: set(key, hash, o->value, LONG_AGO); break;
    case DELETE: o->answer = delete(key, hash); break;
    case TOUCH: o->answer = lapse_touch(run.t, key, hash, LAPSE_DEFAULT, NOW) == LAPSE_OK; break;
    case PACK: pack(run.t, true); break;
    default: clear_table(run.t);
    }
    lapse_yield();
    FULL_FENCE();
    o->returned = run.clock++;
}

static void thread_body(uint32_t thread) {
    for (uint32_t i = 0; i < run.s->operations; i++)
        perform(&run.history[thread * run.s->operations + i], thread);
}

static kind choose_kind(const scenario *s, uint64_t *random) {
    uint32_t total = 0, k = 0;
    for (k = 0; k < KINDS; k++) total += s->weights[k];
    uint32_t n = random_below(random, total);
    for (k = 0; n >= s->weights[k]; k++) n -= s->weights[k];
    return (kind)k;
}

static void plan(const scenario *s, uint64_t *random) {
    uint32_t value = 1;
    for (uint32_t i = 0; i < s->threads * s->operations; i++) {
        operation o = {.what = choose_kind(s, random), .key = random_below(random, s->keys)};
        if (o.what == SET || o.what == SET_LATE) o.value = value++;
        run.history[i] = o;
    }
}

/* --- The checker --- */

typedef struct {
    uint32_t value[PAIR]; /* or NONE */
} model;

/* Would a plain map answer so? It becomes what the operation leaves. */
static bool answers(model *m, const operation *o) {
    uint32_t there = m->value[o->key];
    switch (o->what) {
    case GET: return o->answer == there;
    case SET: m->value[o->key] = o->value; return true;
    case SET_LATE: m->value[o->key] = NONE; return true;
    case DELETE: m->value[o->key] = NONE; return o->answer == (there != NONE);
    case TOUCH: return o->answer == (there != NONE);
    case PACK: return true;
    default: m->value[0] = m->value[1] = NONE; return true;
    }
}

/* May the operation come first of those that are left? Not if another one had returned before it was called. */
static bool may_be_first(uint32_t left, uint32_t n, uint32_t i) {
    for (uint32_t j = 0; j < n; j++)
        if ((left >> j & 1) && run.history[j].returned < run.history[i].called) return false;
    return true;
}

static bool linearizable(uint32_t left, uint32_t n, model m) {
    if (left == 0) return true;
    for (uint32_t i = 0; i < n; i++) {
        model after = m;
        if (!(left >> i & 1) || !may_be_first(left, n, i) || !answers(&after, &run.history[i])) continue;
        if (linearizable(left & ~(UINT32_C(1) << i), n, after)) return true;
    }
    return false;
}

static void print_history(uint64_t seed) {
    printf("not linearizable (seed %llu):\n", (unsigned long long)seed);
    for (uint32_t i = 0; i < run.s->threads * run.s->operations; i++) {
        const operation *o = &run.history[i];
        printf("  thread %u  %2u..%2u  %-8s key %u", i / run.s->operations, o->called, o->returned,
               names[o->what], o->key);
        if (o->what == SET || o->what == SET_LATE) printf(" = %u", o->value);
        else if (o->answer == NONE) printf(" -> nothing");
        else if (o->what != CLEAR && o->what != PACK) printf(" -> %u", o->answer);
        printf("\n");
    }
}

/* --- Histories --- */

static void fill(const scenario *s) {
    lapse_object *old;
    set(&keys[s->quick ? 0 : THREADS_MOST][0], hash_of(s, 0), 0, NOW);
    for (uint32_t i = 0; i < s->fillers; i++)
        CHECK(lapse_put(run.t, &fillers[i], PAIR + i, &values[0], LAPSE_NEVER, NOW, &old) == LAPSE_OK);
    for (uint32_t i = 0; i < s->fillers && s->loose; i++) CHECK(delete(&fillers[i], PAIR + i));
}

static bool one_history(const scenario *s, uint64_t seed) {
    uint64_t random = seed;
    make_objects(s);
    run.s = s;
    run.t = lapse_table_new(&s->config);
    run.clock = 0;
    machine.random = seed ^ UINT64_C(0x5DEECE66D);
    machine.eagerness = 2u << random_below(&random, 8);
    fill(s);
    plan(s, &random);
    machine_run(s->threads, thread_body);
    uint32_t n = s->threads * s->operations;
    bool fine = linearizable((UINT32_C(1) << n) - 1, n, (model){{0, NONE}});
    if (!fine) print_history(seed);
    fine = fine && lapse_check(run.t);
    lapse_table_free(run.t);
    for (uint32_t i = 0; i < VALUES && fine; i++) CHECK(values[i].references == 0);
    return fine;
}

static unsigned long argument(int argc, char **argv, int i, unsigned long otherwise) {
    return argc > i ? strtoul(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char **argv) {
    unsigned long scenarios = argument(argc, argv, 1, 40), histories = argument(argc, argv, 2, 500);
    unsigned long seed = argument(argc, argv, 3, 0);
    for (unsigned long i = 0; i < scenarios; i++) {
        uint64_t random = (uint64_t)seed << 32 | i;
        scenario s = scenario_of(&random);
        for (unsigned long n = 0; n < histories; n++)
            if (!one_history(&s, random_word(&random))) return 1;
    }
    printf("%lu scenarios x %lu histories, seed %lu", scenarios, histories, seed);
    return 0;
}
