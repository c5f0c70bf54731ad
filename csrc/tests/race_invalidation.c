/* Threads that load, and threads that invalidate, on one table: no read ever answers what was true only before an
 * invalidation that had returned when the read began.
 *
 *   origins[id]    the version that is true now; it only rises
 *   floors[id]     the lowest that a read may answer from now on
 *
 * A loader reads the origin under a lease and fills. An invalidator raises the origins of a key, or of all keys
 * that a pattern, a tag, a clear or a softening covers, then invalidates, then raises their floors to those
 * versions. A writer owns some of the ids: it raises their origins alone, and stores what it made true. A reader
 * notes the floor, reads, and compares.
 */
#include "packing.h"
#include "pattern.h"
#include "prefixes.h"
#include "table.h"
#include "things.h"

#include <inttypes.h>
#include <pthread.h>

#define IDS 16000u /* enough for an index of prefixes */
#define TABLES 80u /* "t{id % 80}:{id / 80 % 5}:{id}" */
#define PARTS 5u
#define TAGS 100u /* an entry bears the tags id % 50, and 50 + id % 49 */
#define HALF 50u
#define OWNED 4u /* every fourth id is the writer's */
#define LOADERS 2u
#define CROWD 8u
#define BATCH 64u
#define TOGETHER 3u
#define CLEARS 3u /* at least */
#ifdef __SANITIZE_THREAD__
#  define LOADS 12000u /* of each loader */
#else
#  define LOADS 60000u
#endif
#define PATIENCE 50u /* times as many, until everything has happened */
#define NAP 200u /* microseconds between the steps of those who would drown out the rest */

static uint64_t origins[IDS], floors[IDS];
static char texts[IDS][24];
static lapse_object tags[TAGS];

/* --- The stage --- */

static struct {
    lapse_table *t;
    int64_t now;
    uint32_t loads; /* of each loader */
    uint32_t loading; /* loaders who have not finished: everybody else goes on until they have */
    uint32_t clears;
    uint64_t filled, refused, told;
    size_t most; /* entries */
} stage;

typedef struct {
    pthread_t thread;
    void (*play)(void *);
    uint64_t random;
    uint64_t fresh[IDS]; /* what this thread raised origins to, before it invalidates */
} actor;

static bool at_work(void) { return RELAXED(&stage.loading) > 0; }
static int64_t now_on_stage(void) { return ACQUIRE(&stage.now); }
static bool is_owned(uint32_t id) { return id % OWNED == 0; }

static thing *key_of(uint32_t id, uint64_t *random) {
    thing *key = born(id, random);
    key->o.text = texts[id];
    return key;
}

static thing *value_of(uint32_t id, uint64_t version, uint64_t *random) {
    thing *value = born(id, random);
    value->version = version;
    return value;
}

/* Tags of an id, as the table takes them. */
typedef struct {
    lapse_object *names[2];
    uint64_t hashes[2];
    lapse_tags list;
} two_tags;

static uint64_t tag_hash(uint32_t tag) { return tag * UINT64_C(0x9E3779B97F4A7C15); }

static const lapse_tags *tags_of(uint32_t id, two_tags *out) {
    uint32_t first = id % HALF, second = HALF + id % (HALF - 1);
    *out = (two_tags){.names = {&tags[first], &tags[second]}, .hashes = {tag_hash(first), tag_hash(second)}};
    out->list = (lapse_tags){2, out->names, out->hashes};
    return &out->list;
}

/* --- Versions --- */

static uint64_t raise_origin(uint32_t id) { return __atomic_add_fetch(&origins[id], 1, __ATOMIC_ACQ_REL); }

static void raise_floor(uint32_t id, uint64_t version) {
    uint64_t seen = RELAXED(&floors[id]);
    while (seen < version)
        if (__atomic_compare_exchange_n(&floors[id], &seen, version, false, __ATOMIC_RELEASE,
                                        __ATOMIC_RELAXED))
            return;
}

static uint64_t floor_of(uint32_t id) { return ACQUIRE(&floors[id]); /* pairs with raise_floor() */ }

static void judge(uint32_t id, const lapse_object *value, uint64_t floor) {
    CHECK(value->id == id);
    CHECK(thing_of(value)->version >= floor);
}

/* --- Loaders --- */

/* Every other key is read for a ticket to reload it. */
static lapse_status read_key(uint32_t id) {
    uint64_t floor = floor_of(id);
    lapse_object key = key_for(id), *value;
    lapse_status status;
    if (id / OWNED % 2) status = lapse_get(stage.t, &key, id, now_on_stage(), &value);
    else status = lapse_get_or_ticket(stage.t, &key, id, now_on_stage(), &value);
    bool ticket = status == LAPSE_EARLY && id / OWNED % 2 == 0;
    if (status != LAPSE_OK && !ticket) return status;
    judge(id, value, floor);
    object_unref(value);
    return status;
}

static int64_t choose_ttl(actor *a) {
    return random_below(&a->random, 4) ? LAPSE_NEVER : 1 + random_below(&a->random, 20000);
}

static void load(actor *a, uint32_t id) {
    thing *key = key_of(id, &a->random), *value;
    two_tags both;
    lapse_lease *l;
    lapse_object *replaced = NULL;
    CHECK(lapse_lease_take(stage.t, &key->o, id, &l) == LAPSE_OK);
    lapse_lease_time(stage.t, l, now_on_stage());
    uint64_t version = ACQUIRE(&origins[id]); /* pairs with raise_origin() */
    if (random_below(&a->random, 4) == 0) sched_yield();
    value = value_of(id, version, &a->random);
    lapse_status status = LAPSE_OUTDATED;
    if (random_below(&a->random, 16)) /* a few are given up */
        status = lapse_fill(stage.t, l, &value->o, choose_ttl(a), tags_of(id, &both), false, now_on_stage(),
                            &replaced);
    CHECK(status == LAPSE_OK || status == LAPSE_OUTDATED || status == LAPSE_BUSY);
    if (replaced) object_unref(replaced);
    ADD(status == LAPSE_OK ? &stage.filled : &stage.refused, 1);
    lapse_lease_end(stage.t, l);
    object_unref(&key->o);
    object_unref(&value->o);
}

/* Most loads are of few tables, so that they meet what invalidates them. */
static uint32_t choose_id(actor *a) {
    uint32_t id = random_below(&a->random, IDS);
    return random_below(&a->random, 2) ? id / TABLES * TABLES + id % TABLES % CROWD : id;
}

/* Did everybody get to do something that counts? */
static bool all_happened(const lapse_counters *c) {
    bool loaded =
        RELAXED(&stage.filled) > stage.loads / 8 && RELAXED(&stage.refused) > 100 && c->fenced > 100;
    bool invalidated = c->by_pattern > 100 && c->by_tag > 100 && c->cleared > 100 && c->deletes > 100;
    return loaded && invalidated && RELAXED(&stage.clears) >= CLEARS && c->stale > 10 &&
           (stage.most == IDS || c->evictions > 100);
}

/* Whom the system lets run is its own choice. So the loaders go on until all has happened, within limits. */
static bool play_on(uint32_t loads) {
    if (loads < stage.loads || loads % 1024) return true;
    lapse_counters c;
    lapse_counters_read(stage.t, &c);
    return !all_happened(&c) && loads < PATIENCE * stage.loads;
}

static void play_loader(void *self) {
    actor *a = self;
    for (uint32_t n = 0; play_on(n); n++) {
        uint32_t id = choose_id(a);
        ADD(&stage.now, 1);
        if (read_key(id) != LAPSE_OK || random_below(&a->random, 4) == 0) load(a, id);
        read_key(id);
        if (n % OUTSIDE_EVERY == 0) nap(0);
    }
    ADD(&stage.loading, -1);
}

/* --- The writer --- */

static void write_value(actor *a, uint32_t id) {
    thing *key = key_of(id, &a->random);
    uint64_t version = raise_origin(id);
    thing *value = value_of(id, version, &a->random);
    two_tags both;
    lapse_object *replaced = NULL;
    lapse_status status = lapse_put_tagged(stage.t, &key->o, id, &value->o, choose_ttl(a), tags_of(id, &both),
                                           now_on_stage(), &replaced);
    CHECK(status == LAPSE_OK || status == LAPSE_BUSY);
    if (replaced) object_unref(replaced);
    object_unref(&key->o);
    object_unref(&value->o);
    if (status == LAPSE_OK) raise_floor(id, version);
}

static void delete_key(uint32_t id) {
    lapse_object key = key_for(id);
    lapse_item removed;
    uint64_t version = raise_origin(id);
    lapse_status status = lapse_delete(stage.t, &key, id, now_on_stage(), &removed);
    CHECK(status <= LAPSE_EXPIRED || status == LAPSE_BUSY);
    if (status == LAPSE_OK || status == LAPSE_EXPIRED) lapse_release(&removed, 1);
    if (status != LAPSE_BUSY) raise_floor(id, version);
}

/* Mark a key, and take out what is there then. */
static void mark_and_drop_key(uint32_t id) {
    lapse_object key = key_for(id);
    lapse_item seen, removed;
    uint64_t version = raise_origin(id);
    lapse_outdate_key(stage.t, &key, id);
    lapse_status status = lapse_peek(stage.t, &key, id, now_on_stage(), &seen);
    CHECK(status <= LAPSE_EXPIRED || status == LAPSE_BUSY);
    if (status == LAPSE_OK) {
        status = lapse_drop(stage.t, &key, id, seen.value, now_on_stage(), &removed);
        CHECK(status <= LAPSE_EXPIRED || status == LAPSE_BUSY);
        if (status == LAPSE_OK || status == LAPSE_EXPIRED) lapse_release(&removed, 1);
        lapse_release(&seen, 1);
    }
    if (status != LAPSE_BUSY) raise_floor(id, version);
}

static void play_writer(void *self) {
    actor *a = self;
    while (at_work()) {
        uint32_t id = choose_id(a) / OWNED * OWNED;
        uint32_t kind = random_below(&a->random, 8);
        if (kind > 1) write_value(a, id);
        else if (kind) mark_and_drop_key(id);
        else delete_key(id);
        read_key(id);
        if (random_below(&a->random, 16) == 0) nap(NAP);
    }
}

/* --- Invalidators --- */

typedef bool (*in_group)(uint32_t id, const uint32_t *which);

static bool in_tables(uint32_t id, const uint32_t *which) {
    for (uint32_t i = 0; i < TOGETHER; i++)
        if (id % TABLES == which[i]) return true;
    return false;
}
static bool in_part(uint32_t id, const uint32_t *which) {
    return id % TABLES == which[0] && id / TABLES % PARTS == which[1];
}
static bool in_tag(uint32_t id, const uint32_t *which) {
    return which[0] < HALF ? id % HALF == which[0] : HALF + id % (HALF - 1) == which[0];
}
static bool in_all(uint32_t id, const uint32_t *which) {
    (void)which;
    return id < IDS;
}

static void raise_group(actor *a, in_group covers, const uint32_t *which) {
    for (uint32_t id = 0; id < IDS; id++)
        if (!is_owned(id) && covers(id, which)) a->fresh[id] = raise_origin(id);
}

static void hold_to_it(const actor *a, in_group covers, const uint32_t *which) {
    for (uint32_t id = 0; id < IDS; id++)
        if (!is_owned(id) && covers(id, which)) raise_floor(id, a->fresh[id]);
}

static void run_pass(struct lapse_pattern *const *patterns, size_t n, uint32_t tag) {
    lapse_item work[LAPSE_STEP];
    lapse_pass *p;
    size_t found;
    lapse_status status;
    lapse_object *name = n ? NULL : &tags[tag];
    CHECK(lapse_pass_new(stage.t, patterns, n, name, n ? 0 : tag_hash(tag), now_on_stage(), false, &p) ==
          LAPSE_OK);
    do status = lapse_pass_step(p, work, &found);
    while (status == LAPSE_MORE);
    CHECK(status == LAPSE_OK);
    lapse_pass_end(p);
}

static struct lapse_pattern *compile(const char *glob) {
    struct lapse_pattern *p = NULL;
    lapse_text source = {glob, strlen(glob), 1, false};
    CHECK(lapse_pattern_new(&lapse_system_memory, &source, &p) == LAPSE_OK);
    return p;
}

static uint32_t choose_table(actor *a) {
    return random_below(&a->random, random_below(&a->random, 2) ? CROWD : TABLES);
}

/* Several tables in one pass, each by its prefix or by a pattern that has none. */
static void match_tables(actor *a) {
    struct lapse_pattern *patterns[TOGETHER];
    uint32_t which[TOGETHER];
    char glob[24];
    for (uint32_t i = 0; i < TOGETHER; i++) {
        which[i] = choose_table(a);
        snprintf(glob, sizeof glob, random_below(&a->random, 4) ? "t%u:*" : "[t]%u:*", which[i]);
        patterns[i] = compile(glob);
    }
    raise_group(a, in_tables, which);
    run_pass(patterns, TOGETHER, 0);
    hold_to_it(a, in_tables, which);
    for (uint32_t i = 0; i < TOGETHER; i++) lapse_pattern_free(&lapse_system_memory, patterns[i]);
}

/* The same by a storm: nobody reads what was true before it, from its beginning on. */
static void storm_over_tables(actor *a) {
    char globs[TOGETHER][24];
    uint32_t which[TOGETHER];
    lapse_prefixes *x;
    lapse_storm *s;
    CHECK(lapse_prefixes_new(&lapse_system_memory, TOGETHER, &x) == LAPSE_OK);
    for (uint32_t i = 0; i < TOGETHER; i++) {
        which[i] = choose_table(a);
        snprintf(globs[i], sizeof globs[i], "t%u:*", which[i]);
        lapse_text text = {globs[i], strlen(globs[i]), 1, false};
        CHECK(lapse_prefixes_add(x, &text, i));
    }
    raise_group(a, in_tables, which);
    CHECK(lapse_storm_new(stage.t, x, TOGETHER, now_on_stage(), &s) == LAPSE_OK);
    hold_to_it(a, in_tables, which);
    while (lapse_storm_step(s) == LAPSE_MORE) continue;
    lapse_storm_end(s);
    lapse_prefixes_free(&lapse_system_memory, x);
}

static void match_part(actor *a) {
    uint32_t which[] = {choose_table(a), random_below(&a->random, PARTS)};
    char glob[24];
    snprintf(glob, sizeof glob, "t%u:%u:*", which[0], which[1]);
    struct lapse_pattern *pattern = compile(glob);
    raise_group(a, in_part, which);
    run_pass(&pattern, 1, 0);
    hold_to_it(a, in_part, which);
    lapse_pattern_free(&lapse_system_memory, pattern);
}

static void play_matcher(void *self) {
    actor *a = self;
    for (; at_work(); nap(NAP)) {
        if (random_below(&a->random, 4) == 0) storm_over_tables(a);
        else if (random_below(&a->random, 2)) match_tables(a);
        else match_part(a);
    }
}

static void play_tagger(void *self) {
    actor *a = self;
    for (; at_work(); nap(NAP)) {
        uint32_t tag = random_below(&a->random, TAGS);
        raise_group(a, in_tag, &tag);
        run_pass(NULL, 0, tag);
        hold_to_it(a, in_tag, &tag);
    }
}

static void erase_batch(actor *a) {
    lapse_object objects[BATCH], *list[BATCH];
    uint64_t hashes[BATCH], versions[BATCH];
    uint32_t order[BATCH], scratch[BATCH];
    uint8_t erased[BATCH] = {0};
    bool refused[BATCH] = {false};
    for (uint32_t i = 0; i < BATCH; i++) {
        uint32_t id = choose_id(a) | 1; /* nobody's own */
        objects[i] = key_for(id);
        list[i] = &objects[i];
        hashes[i] = id;
        versions[i] = raise_origin(id);
    }
    lapse_sort_hashes(BATCH, hashes, order, scratch);
    for (size_t done = 0; done < BATCH;) {
        lapse_status status =
            lapse_erase_keys(stage.t, BATCH, list, hashes, &done, now_on_stage(), order, erased);
        CHECK(status == LAPSE_OK || status == LAPSE_MORE || status == LAPSE_BUSY);
        if (status == LAPSE_BUSY) refused[order[done++]] = true;
    }
    for (uint32_t i = 0; i < BATCH; i++)
        if (!refused[i]) raise_floor((uint32_t)hashes[i], versions[i]);
}

static void clear(actor *a) {
    lapse_item removed[LAPSE_STEP];
    lapse_status status;
    size_t n;
    raise_group(a, in_all, NULL);
    CHECK(lapse_detach(stage.t) == LAPSE_OK);
    hold_to_it(a, in_all, NULL);
    do {
        status = lapse_drain(stage.t, removed, &n);
        lapse_dismiss(stage.t, removed, n, now_on_stage(), LAPSE_CLEARED);
    } while (status == LAPSE_MORE);
    ADD(&stage.clears, 1);
}

/* All lives end, which is as good as a clear to every read but that of stale values. */
static void soften(actor *a) {
    uint64_t cursor = 0;
    size_t n = 0;
    int64_t now = now_on_stage();
    raise_group(a, in_all, NULL);
    while (lapse_soften(stage.t, &cursor, now, now + 2000, &n) == LAPSE_MORE) continue;
    hold_to_it(a, in_all, NULL);
}

/* Keys one by one and in batches, any that is there, and now and then everything. */
static void play_eraser(void *self) {
    actor *a = self;
    int64_t lull = (int64_t)LOADERS * stage.loads / (2 * CLEARS + 1), cleared = now_on_stage();
    bool soft = true;
    uint64_t cursor = 0;
    lapse_item removed;
    for (; at_work(); nap(NAP)) {
        erase_batch(a);
        for (uint32_t n = 0; n < 8; n++) delete_key(choose_id(a) | 1);
        if (lapse_pop_any(stage.t, &cursor, now_on_stage(), &removed) == LAPSE_OK) lapse_release(&removed, 1);
        if (now_on_stage() - cleared < lull) continue;
        cleared = now_on_stage();
        if (soft) soften(a);
        else clear(a);
        soft = !soft;
    }
}

/* --- Everybody else --- */

static void list_part(actor *a) {
    static lapse_item out[8 * SEGMENT_SLOTS];
    char glob[24];
    lapse_pass *p;
    lapse_status status;
    size_t n;
    snprintf(glob, sizeof glob, random_below(&a->random, 4) ? "t%u:*" : "*:%u", choose_table(a));
    struct lapse_pattern *pattern = compile(glob);
    CHECK(lapse_pass_new(stage.t, &pattern, 1, NULL, 0, now_on_stage(), true, &p) == LAPSE_OK);
    do {
        status = lapse_pass_step(p, out, &n);
        CHECK(status == LAPSE_OK || status == LAPSE_MORE);
        for (size_t i = 0; i < n; i++) {
            lapse_text text;
            CHECK(object_text(out[i].key, &text) && pattern_matches(pattern, &text));
            object_unref(out[i].key);
        }
    } while (status == LAPSE_MORE);
    lapse_pass_end(p);
    lapse_pattern_free(&lapse_system_memory, pattern);
}

static void look_at_tags(actor *a) {
    uint32_t id = choose_id(a);
    lapse_object key = key_for(id), *found[2];
    size_t n;
    if (lapse_tags_of(stage.t, &key, id, now_on_stage(), found, 2, &n) != LAPSE_OK) return;
    CHECK(n == 2);
    for (size_t i = 0; i < n; i++) {
        CHECK(found[i] == &tags[id % HALF] || found[i] == &tags[HALF + id % (HALF - 1)]);
        object_unref(found[i]);
    }
}

static void look_for_stale_values(actor *a) {
    uint32_t id = choose_id(a);
    lapse_object key = key_for(id), *value;
    if (lapse_stale(stage.t, &key, id, now_on_stage(), &value) != LAPSE_OK) return;
    CHECK(value->id == id);
    object_unref(value);
}

static void play_observer(void *self) {
    actor *a = self;
    lapse_item removed[LAPSE_STEP];
    uint64_t cursor = 0;
    size_t n;
    for (; at_work(); nap(10 * NAP)) {
        list_part(a);
        for (uint32_t i = 0; i < 50; i++) look_at_tags(a);
        for (uint32_t i = 0; i < 200; i++) look_for_stale_values(a);
        CHECK(lapse_bytes(stage.t) > 0 && lapse_len(stage.t, now_on_stage()) <= stage.most);
        lapse_status status = lapse_sweep(stage.t, &cursor, now_on_stage(), LAPSE_STEP, removed, &n);
        lapse_release(removed, n);
        if (status == LAPSE_MORE) continue;
        cursor = 0;
        pack(stage.t, true);
    }
}

/* --- Playing --- */

static void be_told(void *context, lapse_item *items, size_t n, lapse_cause cause) {
    (void)context;
    CHECK(cause != LAPSE_REPLACED && n > 0);
    for (size_t i = 0; i < n; i++) CHECK(items[i].key->id == items[i].value->id);
    ADD(&stage.told, n);
    lapse_release(items, n);
}

static void *play(void *self) {
    actor *a = self;
    begin_visit();
    a->play(a);
    end_visit();
    return NULL;
}

/* A large table to begin with, so that prefixes are indexed. */
static void fill_up(actor *a) {
    for (uint32_t id = 0; id < IDS; id++) {
        origins[id] = floors[id] = 0;
        write_value(a, id);
    }
}

static void check_the_end(void) {
    lapse_counters c;
    for (uint32_t id = 0; id < IDS; id++) read_key(id);
    lapse_counters_read(stage.t, &c);
    if (!all_happened(&c))
        fprintf(stderr,
                "%" PRIu64 " filled, %" PRIu64 " refused, %" PRIu64 " fenced, %" PRIu64
                " by pattern, %" PRIu64 " by tag, %" PRIu64 " cleared, %" PRIu64 " deleted, %" PRIu64
                " stale, %" PRIu64 " evicted, %" PRIu32 " clears\n",
                stage.filled, stage.refused, c.fenced, c.by_pattern, c.by_tag, c.cleared, c.deletes, c.stale,
                c.evictions, stage.clears);
    CHECK(all_happened(&c));
    CHECK(stage.refused >= c.fenced && (stage.most < IDS || c.evictions == 0));
    CHECK(stage.t->fence.out == 0 && stage.t->fence.passes == NULL);
    CHECK(lapse_check(stage.t));
}

static void perform(lapse_config config) {
    void (*const roles[])(void *) = {play_loader, play_loader, play_writer,  play_matcher,
                                     play_tagger, play_eraser, play_observer};
    enum { CAST = sizeof roles / sizeof *roles };
    actor *actors = calloc(CAST, sizeof *actors);
    CHECK(actors != NULL);
    memset(&stage, 0, sizeof stage);
    stage.loads = LOADS * test_scale();
    stage.loading = LOADERS;
    stage.most = config.lru || config.duel ? config.max_entries : IDS;
    stage.now = 1;
    config.quiesce = quiesce;
    stage.t = lapse_table_new(&config);
    fill_up(&actors[0]);
    for (uint32_t i = 0; i < CAST; i++) {
        actors[i].play = roles[i];
        actors[i].random = i + 1;
        CHECK(pthread_create(&actors[i].thread, NULL, play, &actors[i]) == 0);
    }
    for (uint32_t i = 0; i < CAST; i++) CHECK(pthread_join(actors[i].thread, NULL) == 0);
    check_the_end();
    lapse_table_free(stage.t);
    check_everything_died();
    for (uint32_t i = 0; i < TAGS; i++) CHECK(tags[i].references == 1);
    free(actors);
}

static const lapse_config plain = {.default_ttl = LAPSE_NEVER, .own_clock = true};

static void test_no_stale_comeback(void) { perform(plain); }

static void test_no_stale_comeback_locked_and_observed(void) {
    lapse_config config = plain;
    config.locked_reads = true;
    config.observer = be_told;
    perform(config);
    CHECK(stage.told > 1000);
}

static void test_no_stale_comeback_bounded_and_early(void) {
    lapse_config config = {.mode = LAPSE_PROBABILISTIC, .default_ttl = LAPSE_NEVER, .own_clock = true};
    config.early_factor = 0.2;
    config.beta = 1.0;
    config.grace = 3000;
    config.lru = true;
    config.max_entries = IDS / 4;
    perform(config);
}

/* --- Short rounds --- */

#define ROUNDS 150u
#define SOME 400u /* ids of a round */

static void play_short_writer(void *self) {
    actor *a = self;
    for (uint32_t n = 0; n < SOME; n++) {
        uint32_t id = random_below(&a->random, SOME);
        if (n % 4) write_value(a, id);
        else load(a, id);
    }
}

static void play_one_clear(void *self) {
    lapse_item removed[LAPSE_STEP];
    lapse_status status;
    size_t n;
    (void)self;
    CHECK(lapse_detach(stage.t) == LAPSE_OK);
    do {
        status = lapse_drain(stage.t, removed, &n);
        lapse_release(removed, n);
    } while (status == LAPSE_MORE);
    pack(stage.t, false);
}

static void play_all_tags(void *self) {
    (void)self;
    for (uint32_t tag = 0; tag < HALF; tag++) run_pass(NULL, 0, tag);
}

/* What a clear or passes leave of an index that others fill meanwhile: whole after every round. */
static void play_rounds(void (*invalidator)(void *)) {
    void (*const roles[])(void *) = {play_short_writer, play_short_writer, invalidator};
    static actor actors[3];
    lapse_config config = plain;
    config.quiesce = quiesce;
    memset(&stage, 0, sizeof stage);
    stage.t = lapse_table_new(&config);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < 3; i++) {
            actors[i].play = roles[i];
            actors[i].random = 3 * round + i;
            CHECK(pthread_create(&actors[i].thread, NULL, play, &actors[i]) == 0);
        }
        for (uint32_t i = 0; i < 3; i++) CHECK(pthread_join(actors[i].thread, NULL) == 0);
        CHECK(lapse_check(stage.t));
    }
    lapse_table_free(stage.t);
    check_everything_died();
}

static void test_clears_in_short_rounds(void) { play_rounds(play_one_clear); }
static void test_tags_in_short_rounds(void) { play_rounds(play_all_tags); }

int main(void) {
    let_things_die();
    for (uint32_t id = 0; id < IDS; id++)
        snprintf(texts[id], sizeof texts[id], "t%u:%u:%u", id % TABLES, id / TABLES % PARTS, id);
    for (uint32_t i = 0; i < TAGS; i++) tags[i] = (lapse_object){.references = 1, .id = i};
    RUN(test_no_stale_comeback);
    RUN(test_no_stale_comeback_locked_and_observed);
    RUN(test_no_stale_comeback_bounded_and_early);
    RUN(test_clears_in_short_rounds);
    RUN(test_tags_in_short_rounds);
    return tests_done();
}
