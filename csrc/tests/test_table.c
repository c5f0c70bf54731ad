/* The table against a naive map (stream.h), its growth and shrinking, its clocks, and user code that
 * changes the table in the middle of an operation. */
#include "clearing.h"
#include "read.h"
#include "stream.h"

static const lapse_config plain = {.mode = LAPSE_FIXED, .default_ttl = 1000, .own_clock = true};

/* --- Streams --- */

static const char *const phases[] = {
    "ppppppppnnixtgghkb+",                  /* grow */
    "ppnixtddggghkkbbsrooww++",             /* churn */
    "ppppppppppppppppgL",                   /* grow by what expires at once */
    "ddddddddddooogsSrww+L",                /* shrink */
    "pppnixtdggghkbsSroowwwwww+++Lc",       /* all, clear among them */
};

static void run_stream(const lapse_config *config, flavour f, bool asking, uint64_t seed, uint32_t steps) {
    world *w = world_new(config, f, asking);
    source from = {.random = seed};
    for (size_t phase = 0; phase < 2 * sizeof phases / sizeof *phases; phase++) {
        for (uint32_t n = 0; n < steps; n++) {
            world_step(w, &from, phases[phase % (sizeof phases / sizeof *phases)]);
            if (n < 64 || n % 101 == 0) world_check(w);
        }
        world_settle(w);
    }
    world_free(w);
}

static void run_streams(lapse_config config) {
    for (uint32_t seed = 0; seed < test_scale(); seed++)
        for (flavour f = SPREAD; f <= CROWDED; f++)
            for (int asking = 0; asking < 2; asking++)
                run_stream(&config, f, asking, seed * 100 + f, f == EQUAL ? 1200 : 5000);
}

static void test_stream_fixed(void) { run_streams(plain); }

static void test_stream_sliding(void) {
    lapse_config config = plain;
    config.mode = LAPSE_SLIDING;
    run_streams(config);
    config.max_lifetime = 5000;
    run_streams(config);
}

static void test_stream_probabilistic(void) {
    lapse_config config = plain;
    config.mode = LAPSE_PROBABILISTIC;
    config.early_factor = 0.3;
    run_streams(config);
}

static void test_stream_never(void) {
    lapse_config config = plain;
    config.default_ttl = LAPSE_NEVER;
    run_stream(&config, SPREAD, false, 1, 5000);
}

static void test_stream_locked_reads(void) {
    lapse_config config = plain;
    config.locked_reads = true;
    config.mode = LAPSE_SLIDING;
    run_stream(&config, SPREAD, true, 1, 5000);
    run_stream(&config, CROWDED, false, 2, 5000);
}

/* --- Growth and shrinking --- */

#define MANY 120000u

static lapse_object *many_objects(uint32_t n) {
    lapse_object *objects = calloc(n, sizeof *objects);
    CHECK(objects != NULL);
    for (uint32_t i = 0; i < n; i++) objects[i] = (lapse_object){.references = 1, .id = i};
    return objects;
}

static void check_untouched(const lapse_object *objects, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) CHECK(objects[i].references == 1);
}

static void put(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *value, int64_t ttl,
                int64_t now) {
    lapse_object *replaced;
    CHECK(lapse_put(t, key, hash, value, ttl, now, &replaced) == LAPSE_OK);
    if (replaced) object_unref(replaced);
}

static bool holds(lapse_table *t, lapse_object *key, uint64_t hash, const lapse_object *value, int64_t now) {
    lapse_object *found;
    if (lapse_get(t, key, hash, now, &found) != LAPSE_OK) return false;
    object_unref(found);
    return found == value;
}

static size_t sweep_everything(lapse_table *t, int64_t now) {
    lapse_item removed[LAPSE_STEP];
    size_t n, all = 0;
    uint64_t cursor = 0;
    lapse_status status;
    do {
        status = lapse_sweep(t, &cursor, now, LAPSE_STEP, removed, &n);
        lapse_release(removed, n);
        all += n;
    } while (status == LAPSE_MORE);
    pack(t, false);
    return all;
}

static void clear(lapse_table *t) {
    clear_table(t);
    pack(t, false);
}

/* Through every size, checked at each change in the number of segments, and back to one of them. */
static void test_growing_and_shrinking(void) {
    lapse_object *objects = many_objects(MANY);
    lapse_table *t = lapse_table_new(&plain);
    size_t segments = 1, empty = lapse_bytes(t);
    for (uint32_t i = 0; i < MANY; i++) {
        put(t, &objects[i], i, &objects[i], i % 100 ? 10 : LAPSE_NEVER, 1);
        if (lapse_segments(t) == segments && i > 100) continue;
        segments = lapse_segments(t);
        CHECK(lapse_check(t) && lapse_len(t, 1) == i + 1);
    }
    CHECK(segments > 100 && lapse_bytes(t) > MANY * 32);
    for (uint32_t i = 0; i < MANY; i++) CHECK(holds(t, &objects[i], i, &objects[i], 1));
    CHECK(sweep_everything(t, 11) == MANY - MANY / 100);
    CHECK(lapse_check(t) && lapse_len(t, 11) == MANY / 100);
    CHECK(lapse_segments(t) < segments / 4);
    for (uint32_t i = 0; i < MANY; i++) CHECK(holds(t, &objects[i], i, &objects[i], 11) == (i % 100 == 0));
    lapse_counters c;
    lapse_counters_read(t, &c);
    CHECK(c.splits + 1 - c.merges == lapse_segments(t) && c.merges > 0);
    clear(t);
    CHECK(lapse_check(t) && lapse_segments(t) == 1 && lapse_len(t, 11) == 0);
    sweep_everything(t, 11);
    CHECK(lapse_bytes(t) >= empty);
    lapse_table_free(t);
    check_untouched(objects, MANY);
    free(objects);
}

/* A table that has been emptied by a sweep ends as one small segment, not as one that was split. */
static void test_the_root_shrinks(void) {
    lapse_object *objects = many_objects(20000);
    lapse_table *t = lapse_table_new(&plain);
    for (uint32_t i = 0; i < 20000; i++) put(t, &objects[i], i, &objects[i], 10, 1);
    CHECK(sweep_everything(t, 11) == 20000);
    for (int again = 0; again < 3; again++) sweep_everything(t, 11);
    CHECK(lapse_check(t) && lapse_segments(t) == 1);
    segment *root = locate(t, 0);
    CHECK(segment_slots(root) <= SEGMENT_HALF_SLOTS);
    lapse_table_free(t);
    check_untouched(objects, 20000);
    free(objects);
}

/* Clearing and filling again and again needs no more memory than the first time did. */
static void test_clearing_and_filling_again(void) {
    lapse_object *objects = many_objects(5000);
    lapse_table *t = lapse_table_new(&plain);
    size_t most = 0;
    for (uint32_t round = 0; round < 20; round++) {
        for (uint32_t i = 0; i < 5000; i++) put(t, &objects[i], i, &objects[i], LAPSE_NEVER, 1);
        size_t bytes = lapse_bytes(t);
        if (round == 1) most = bytes;
        CHECK(round < 2 || bytes <= most);
        clear(t);
        CHECK(lapse_check(t));
    }
    lapse_table_free(t);
    check_untouched(objects, 5000);
    free(objects);
}

/* Equal full hashes, more than a segment holds: linear, correct, and all of it goes again. */
static void test_equal_hashes(void) {
    enum { EQUALS = 2500, OTHERS = 4000 };
    lapse_object *objects = many_objects(EQUALS + OTHERS);
    lapse_table *t = lapse_table_new(&plain);
    for (uint32_t i = 0; i < EQUALS + OTHERS; i++)
        put(t, &objects[i], i < EQUALS ? 77 : i, &objects[i], 10, 1);
    CHECK(lapse_check(t) && lapse_len(t, 1) == EQUALS + OTHERS);
    CHECK(lapse_segments(t) < 64); /* splitting does not help, so it is not tried for long */
    for (uint32_t i = 0; i < EQUALS; i += 7) CHECK(holds(t, &objects[i], 77, &objects[i], 1));
    lapse_item removed;
    for (uint32_t i = 0; i < EQUALS; i += 2) {
        CHECK(lapse_delete(t, &objects[i], 77, 1, &removed) == LAPSE_OK);
        lapse_release(&removed, 1);
    }
    CHECK(lapse_check(t));
    for (uint32_t i = 1; i < EQUALS; i += 2) CHECK(holds(t, &objects[i], 77, &objects[i], 1));
    CHECK(sweep_everything(t, 11) == EQUALS / 2 + OTHERS);
    CHECK(lapse_check(t) && lapse_len(t, 11) == 0);
    lapse_table_free(t);
    check_untouched(objects, EQUALS + OTHERS);
    free(objects);
}

static uint32_t largest_segment(lapse_table *t) {
    uint32_t most = 0;
    for (uint64_t cursor = 0;;) {
        const segment *s = locate(t, cursor);
        most = segment_slots(s) > most ? segment_slots(s) : most;
        if (segment_last_hash(s) == UINT64_MAX) return most;
        cursor = segment_last_hash(s) + 1;
    }
}

static void check_after_equal_hashes(uint64_t hash) {
    enum { EQUALS = 2500, OTHERS = 60000 };
    lapse_object *objects = many_objects(EQUALS + OTHERS);
    lapse_table *t = lapse_table_new(&plain);
    for (uint32_t i = 0; i < OTHERS; i += 10) put(t, &objects[i], i, &objects[i], LAPSE_NEVER, 1);
    for (uint32_t i = 0; i < EQUALS; i++) put(t, &objects[OTHERS + i], hash, &objects[i], 10, 1);
    CHECK(largest_segment(t) > SEGMENT_SLOTS);
    CHECK(sweep_everything(t, 11) == EQUALS);
    for (uint32_t i = 0; i < OTHERS; i++) put(t, &objects[i], i, &objects[i], LAPSE_NEVER, 11);
    CHECK(lapse_check(t) && lapse_len(t, 11) == OTHERS);
    CHECK(largest_segment(t) == SEGMENT_SLOTS);
    lapse_table_free(t);
    check_untouched(objects, EQUALS + OTHERS);
    free(objects);
}

/* Once equal hashes have gone, the segments that grew for them split again like any other. */
static void test_after_equal_hashes(void) {
    for (uint64_t hash = 77; hash < 81; hash++) check_after_equal_hashes(hash);
}

/* Expired entries make room before anything grows. */
static void test_expired_entries_make_room(void) {
    lapse_object *objects = many_objects(20000);
    lapse_table *t = lapse_table_new(&plain);
    for (uint32_t i = 0; i < 20000; i++) put(t, &objects[i], i, &objects[i], 10, i);
    CHECK(lapse_segments(t) == 1 && lapse_check(t));
    CHECK(segment_slots(locate(t, 0)) == SEGMENT_MIN_SLOTS);
    CHECK(lapse_len(t, 20000) == 9);
    lapse_table_free(t);
    check_untouched(objects, 20000);
    free(objects);
}

/* --- Time --- */

static void test_the_native_clock(void) {
    lapse_config config = {.mode = LAPSE_FIXED, .default_ttl = 3600 * LAPSE_SECOND_NS};
    lapse_object *objects = many_objects(3), *value = NULL;
    lapse_table *t = lapse_table_new(&config);
    put(t, &objects[0], 0, &objects[0], LAPSE_DEFAULT, LAPSE_NATIVE);
    put(t, &objects[1], 1, &objects[1], 1, LAPSE_NATIVE);
    put(t, &objects[2], 2, &objects[2], LAPSE_NEVER, LAPSE_NATIVE);
    for (int64_t start = clock_precise(); clock_precise() <= start + 1;) continue;
    CHECK(holds(t, &objects[0], 0, &objects[0], LAPSE_NATIVE));
    CHECK(lapse_get(t, &objects[1], 1, LAPSE_NATIVE, &value) == LAPSE_EXPIRED);
    CHECK(lapse_get(t, &objects[1], 1, LAPSE_NATIVE, &value) == LAPSE_ABSENT);
    CHECK(holds(t, &objects[2], 2, &objects[2], LAPSE_NATIVE));
    for (uint32_t i = 0; i < 3; i += 2) {
        bool absent = false;
        value = read_quickly(t, &objects[i], mix_hash(i), false, 0, &absent);
        CHECK(value == &objects[i]);
        object_unref(value);
    }
    bool absent = false;
    CHECK(read_quickly(t, &objects[1], mix_hash(1), false, 0, &absent) == NULL && absent);
    CHECK(clock_coarse() <= clock_precise() && clock_slack() > clock_tick());
    lapse_table_free(t);
    check_untouched(objects, 3);
    free(objects);
}

static void test_expiry_is_exact_to_the_tick(void) {
    for (lapse_mode mode = LAPSE_FIXED; mode <= LAPSE_PROBABILISTIC; mode++) {
        lapse_config config = plain;
        config.mode = mode;
        lapse_object key = {.references = 1}, value = {.references = 1};
        lapse_table *t = lapse_table_new(&config);
        put(t, &key, 1, &value, 100, 50);
        CHECK(lapse_has(t, &key, 1, 149) == LAPSE_OK && lapse_len(t, 149) == 1);
        CHECK(lapse_has(t, &key, 1, 150) == LAPSE_EXPIRED && lapse_len(t, 150) == 0);
        CHECK(sweep_everything(t, 149) == 0 && sweep_everything(t, 150) == 1);
        lapse_table_free(t);
        CHECK(key.references == 1 && value.references == 1);
    }
}

/* A clock that goes backwards never shortens a life and breaks no invariant. */
static void test_time_going_backwards(void) {
    for (int locked = 0; locked < 2; locked++) {
        lapse_config config = plain;
        config.mode = LAPSE_SLIDING;
        config.locked_reads = locked;
        lapse_object *objects = many_objects(2000);
        lapse_table *t = lapse_table_new(&config);
        uint64_t random = 1;
        for (uint32_t n = 0; n < 20000; n++) {
            uint32_t i = random_below(&random, 2000);
            int64_t now = 1 + random_below(&random, 5000);
            lapse_object *value;
            lapse_item before, after;
            if (n % 3) put(t, &objects[i], i, &objects[i], 1 + random_below(&random, 900), now);
            if (lapse_peek(t, &objects[i], i, 0, &before) != LAPSE_OK) continue;
            lapse_release(&before, 1);
            if (lapse_get(t, &objects[i], i, now, &value) == LAPSE_OK) {
                object_unref(value);
                CHECK(lapse_peek(t, &objects[i], i, 0, &after) == LAPSE_OK);
                lapse_release(&after, 1);
                CHECK(after.deadline >= before.deadline);
            }
            if (n % 7 == 0) sweep_everything(t, now / 2);
            if (n % 53 == 0) CHECK(lapse_check(t));
        }
        CHECK(lapse_check(t));
        lapse_table_free(t);
        check_untouched(objects, 2000);
        free(objects);
    }
}

static void test_jitter_only_shortens(void) {
    lapse_config config = plain;
    config.jitter = 0.25;
    lapse_object key = {.references = 1}, value = {.references = 1};
    lapse_table *t = lapse_table_new(&config);
    int64_t least = INT64_MAX, most = 0;
    for (uint32_t n = 0; n < 5000; n++) {
        lapse_item item;
        put(t, &key, 1, &value, 1000000, 0);
        CHECK(lapse_peek(t, &key, 1, 0, &item) == LAPSE_OK);
        least = item.deadline < least ? item.deadline : least;
        most = item.deadline > most ? item.deadline : most;
        lapse_release(&item, 1);
    }
    CHECK(least > 750000 && least < 760000 && most > 990000 && most <= 1000000);
    lapse_table_free(t);
}

/* Nothing ends early before the ramp; within it about as many as its slope says. */
static void test_early_expiry(void) {
    lapse_config config = plain;
    config.mode = LAPSE_PROBABILISTIC;
    config.early_factor = 0.5;
    lapse_object key = {.references = 1}, value = {.references = 1}, *found;
    lapse_table *t = lapse_table_new(&config);
    uint32_t early = 0, rounds = 4000;
    for (uint32_t n = 0; n < rounds; n++) {
        put(t, &key, 1, &value, 1000, 0);
        CHECK(holds(t, &key, 1, &value, 500));
        lapse_status status = lapse_get(t, &key, 1, 750, &found); /* half-way down the ramp */
        CHECK(status == LAPSE_OK || status == LAPSE_EARLY);
        if (status == LAPSE_OK) object_unref(found);
        early += status == LAPSE_EARLY;
        CHECK((lapse_has(t, &key, 1, 750) == LAPSE_OK) == (status == LAPSE_OK));
    }
    CHECK(early > rounds * 45 / 100 && early < rounds * 55 / 100);
    lapse_table_free(t);
    CHECK(key.references == 1 && value.references == 1);
}

/* --- User code --- */

/* What the hooks of the tests below work on. */
static struct {
    lapse_table *t;
    lapse_object *objects;
    uint32_t calls, most; /* a hook acts in its first `most` calls */
} stage;

#define HASH 5u /* of every key on stage, so that every lookup compares */

static lapse_object *stage_open(uint32_t n, bool asking) {
    stage.objects = many_objects(n);
    for (uint32_t i = 0; i < n; i++) stage.objects[i].needs_asking = asking;
    stage.t = lapse_table_new(&plain);
    stage.calls = 0;
    stage.most = UINT32_MAX;
    return stage.objects;
}

static void stage_close(uint32_t n) {
    CHECK(lapse_check(stage.t));
    for (uint32_t i = 0; i < n; i++) stage.objects[i].on_death = NULL;
    lapse_table_free(stage.t);
    check_untouched(stage.objects, n);
    free(stage.objects);
}

static bool stage_acts(void) { return ++stage.calls <= stage.most; }

static int delete_probed(lapse_object *stored, lapse_object *key) {
    lapse_item removed;
    if (stage_acts()) {
        int (*hook)(lapse_object *, lapse_object *) = stored->on_equal;
        stored->on_equal = NULL; /* the deletion below compares too */
        lapse_object twin = {.references = 1, .id = stored->id, .needs_asking = true};
        if (lapse_delete(stage.t, &twin, HASH, 1, &removed) == LAPSE_OK) lapse_release(&removed, 1);
        stored->on_equal = hook;
    }
    return stored->id == key->id;
}

static int clear_on_equal(lapse_object *stored, lapse_object *key) {
    if (stage_acts()) clear(stage.t);
    return stored->id == key->id;
}

static int insert_others(lapse_object *stored, lapse_object *key) {
    for (uint32_t i = 100; stage_acts() && i < 2100; i++)
        put(stage.t, &stage.objects[i], i, &stage.objects[i], LAPSE_NEVER, 1);
    return stored->id == key->id;
}

static int overwrite_probed(lapse_object *stored, lapse_object *key) {
    lapse_object twin = {.references = 1, .id = stored->id, .needs_asking = true};
    if (stage_acts()) put(stage.t, &twin, HASH, &stage.objects[50], LAPSE_NEVER, 1);
    return stored->id == key->id;
}

static int raise_at_once(lapse_object *stored, lapse_object *key) {
    (void)stored, (void)key;
    stage.calls++;
    return -1;
}

typedef int (*equal_hook)(lapse_object *, lapse_object *);

/* Every operation that looks a key up, with a key that is equal to the stored one but another object. */
static void each_lookup(lapse_object *key, lapse_status *out) {
    lapse_object *value = NULL, *replaced = NULL, *fresh = &stage.objects[60];
    lapse_item item;
    out[0] = lapse_get(stage.t, key, HASH, 1, &value);
    if (out[0] == LAPSE_OK) object_unref(value);
    out[1] = lapse_has(stage.t, key, HASH, 1);
    out[2] = lapse_peek(stage.t, key, HASH, 1, &item);
    if (out[2] == LAPSE_OK) lapse_release(&item, 1);
    out[3] = lapse_touch(stage.t, key, HASH, 500, 1);
    out[4] = lapse_exchange(stage.t, key, HASH, &stage.objects[1], fresh, 1, &replaced);
    if (out[4] == LAPSE_OK) object_unref(replaced);
    out[5] = lapse_put_new(stage.t, key, HASH, fresh, 500, 1, &value);
    if (out[5] == LAPSE_OK) object_unref(value);
    out[6] = lapse_put(stage.t, key, HASH, fresh, 500, 1, &replaced);
    if (out[6] == LAPSE_OK && replaced) object_unref(replaced);
    out[7] = lapse_delete(stage.t, key, HASH, 1, &item);
    if (out[7] == LAPSE_OK) lapse_release(&item, 1);
}

/* Run each lookup with a comparison that acts in its first `most` calls, again and again. */
static void run_hook(equal_hook hook, uint32_t most) {
    lapse_object *objects = stage_open(2200, true);
    lapse_status out[8];
    for (uint32_t round = 0; round < 10; round++) {
        for (uint32_t i = 1; i < 12; i++) put(stage.t, &objects[i], HASH, &objects[i], LAPSE_NEVER, 1);
        lapse_object key = {.references = 1, .id = 1 + round, .needs_asking = true, .on_equal = hook};
        stage.calls = 0;
        stage.most = most;
        each_lookup(&key, out);
        CHECK(stage.calls > 0);
        for (int i = 0; i < 8; i++)
            CHECK(out[i] == LAPSE_OK || out[i] == LAPSE_ABSENT || out[i] == LAPSE_BUSY);
        CHECK(lapse_check(stage.t));
        key.on_equal = NULL;
        lapse_item removed; /* `key` is on the stack: no trace of it may stay */
        if (lapse_delete(stage.t, &key, HASH, 1, &removed) == LAPSE_OK) lapse_release(&removed, 1);
        CHECK(key.references == 1);
    }
    stage_close(2200);
}

static void test_a_comparison_that_deletes(void) {
    run_hook(delete_probed, 1);
    run_hook(delete_probed, 3);
    run_hook(delete_probed, UINT32_MAX);
}

static void test_a_comparison_that_clears(void) {
    run_hook(clear_on_equal, 1);
    run_hook(clear_on_equal, UINT32_MAX);
}

static void test_a_comparison_that_inserts(void) {
    run_hook(insert_others, 1);
    run_hook(insert_others, 2);
}

static void test_a_comparison_that_overwrites(void) {
    run_hook(overwrite_probed, 1);
    run_hook(overwrite_probed, UINT32_MAX);
}

/* Put another equal key in the place of the one that is being compared. */
static int replace_probed(lapse_object *stored, lapse_object *key) {
    lapse_item removed;
    lapse_object twin = {.references = 1, .id = 1, .needs_asking = true};
    lapse_object *next = &stage.objects[2 + ++stage.calls % 40];
    CHECK(lapse_delete(stage.t, &twin, HASH, 1, &removed) == LAPSE_OK);
    lapse_release(&removed, 1);
    put(stage.t, next, HASH, next, LAPSE_NEVER, 1);
    return stored->id == key->id;
}

static void test_a_comparison_that_always_replaces_the_key_is_refused(void) {
    lapse_object *objects = stage_open(100, true);
    lapse_status out[8];
    for (uint32_t i = 2; i < 42; i++) objects[i].id = 1;
    put(stage.t, &objects[1], HASH, &objects[1], LAPSE_NEVER, 1);
    lapse_object key = {.references = 1, .id = 1, .needs_asking = true, .on_equal = replace_probed};
    each_lookup(&key, out);
    for (int i = 0; i < 8; i++) CHECK(out[i] == LAPSE_BUSY);
    CHECK(lapse_len(stage.t, 1) == 1 && key.references == 1);
    stage_close(100);
}

/* One that only overwrites does not keep a lookup from its answer. */
static void test_a_comparison_that_always_overwrites_is_answered(void) {
    lapse_object *objects = stage_open(100, true);
    lapse_status out[8];
    put(stage.t, &objects[1], HASH, &objects[1], LAPSE_NEVER, 1);
    lapse_object key = {.references = 1, .id = 1, .needs_asking = true, .on_equal = overwrite_probed};
    each_lookup(&key, out);
    for (int i = 0; i < 8; i++) CHECK(out[i] == (i == 4 ? LAPSE_ABSENT : LAPSE_OK));
    CHECK(lapse_len(stage.t, 1) == 0 && key.references == 1);
    stage_close(100);
}

static void test_a_comparison_that_raises(void) {
    lapse_object *objects = stage_open(100, true);
    lapse_status out[8];
    for (uint32_t i = 1; i < 12; i++) put(stage.t, &objects[i], HASH, &objects[i], LAPSE_NEVER, 1);
    lapse_object key = {.references = 1, .id = 3, .needs_asking = true, .on_equal = raise_at_once};
    each_lookup(&key, out);
    for (int i = 0; i < 8; i++) CHECK(out[i] == LAPSE_RAISED);
    CHECK(stage.calls == 8 && key.references == 1);
    for (uint32_t i = 1; i < 12; i++) CHECK(holds(stage.t, &objects[i], HASH, &objects[i], 1));
    stage_close(100);
}

static int raise_second(lapse_object *stored, lapse_object *key) {
    return ++stage.calls > 1 ? -1 : stored->id == key->id;
}

/* The read finds the entry expired, then the comparison raises while it is being removed. */
static void test_a_comparison_that_raises_on_removal(void) {
    lapse_object *objects = stage_open(100, true), *value;
    put(stage.t, &objects[1], HASH, &objects[1], 5, 1);
    lapse_object key = {.references = 1, .id = 1, .needs_asking = true, .on_equal = raise_second};
    CHECK(lapse_get(stage.t, &key, HASH, 100, &value) == LAPSE_RAISED);
    stage_close(100);
}

static int overwrite_second(lapse_object *stored, lapse_object *key) {
    lapse_object twin = {.references = 1, .id = stored->id, .needs_asking = true};
    if (++stage.calls == 2) put(stage.t, &twin, HASH, &stage.objects[50], LAPSE_NEVER, 1000);
    return stored->id == key->id;
}

/* The draw ends an entry, but it is stored anew before it can be removed: the new one stays. */
static void test_an_early_end_spares_what_came_after(void) {
    lapse_config config = plain;
    config.mode = LAPSE_PROBABILISTIC;
    config.early_factor = 1;
    lapse_object *objects = stage_open(100, true), *value;
    lapse_table_free(stage.t);
    stage.t = lapse_table_new(&config);
    put(stage.t, &objects[1], HASH, &objects[1], INT64_C(1) << 40, 0);
    lapse_object key = {.references = 1, .id = 1, .needs_asking = true, .on_equal = overwrite_second};
    CHECK(lapse_get(stage.t, &key, HASH, (INT64_C(1) << 40) - 1, &value) == LAPSE_EARLY);
    CHECK(stage.calls > 1);
    CHECK(holds(stage.t, &objects[1], HASH, &objects[50], 1000));
    stage_close(100);
}

/* --- Death that re-enters --- */

static void insert_on_death(lapse_object *o) {
    o->references = 1; /* what follows is a resurrection of the test's own reference */
    if (!stage_acts()) return;
    uint32_t i = 100 + stage.calls % 1000;
    put(stage.t, &stage.objects[i], i, &stage.objects[i], 50, 1);
}

static void clear_on_death(lapse_object *o) {
    o->references = 1;
    if (stage_acts()) clear(stage.t);
}

static void delete_on_death(lapse_object *o) {
    lapse_item removed;
    o->references = 1;
    if (!stage_acts()) return;
    for (uint32_t i = 0; i < 40; i++)
        if (lapse_delete(stage.t, &stage.objects[i], i, 1, &removed) == LAPSE_OK) lapse_release(&removed, 1);
}

/* Fill the table with keys that only it holds, so that removing one runs `hook`. */
static void give_away(void (*hook)(lapse_object *), uint32_t from, uint32_t to, int64_t ttl) {
    for (uint32_t i = from; i < to; i++) {
        lapse_object *o = &stage.objects[i];
        if (o->on_death) continue;
        put(stage.t, o, i, o, ttl, 1);
        o->on_death = hook;
        object_unref(o);
    }
}

static void run_deaths(void (*hook)(lapse_object *)) {
    lapse_object *objects = stage_open(1200, false), *value;
    stage.most = 500;
    give_away(hook, 0, 90, 50);
    for (uint32_t i = 0; i < 40; i++)
        if (lapse_get(stage.t, &objects[i], i, 60, &value) == LAPSE_OK) object_unref(value);
    CHECK(lapse_check(stage.t));
    sweep_everything(stage.t, 60);
    CHECK(lapse_check(stage.t) && stage.calls > 0);
    for (uint32_t i = 0; i < 90; i++) objects[i].on_death = NULL;
    give_away(hook, 0, 90, LAPSE_NEVER);
    clear(stage.t);
    CHECK(lapse_check(stage.t));
    for (uint32_t i = 0; i < 90; i++) objects[i].on_death = NULL;
    give_away(hook, 0, 14, 50);
    put(stage.t, &objects[1100], 1100, &objects[1100], LAPSE_NEVER, 200); /* purges a full segment */
    CHECK(holds(stage.t, &objects[1100], 1100, &objects[1100], 200) || hook == clear_on_death);
    sweep_everything(stage.t, 1000);
    stage_close(1200);
}

static void test_deaths_that_insert(void) { run_deaths(insert_on_death); }
static void test_deaths_that_clear(void) { run_deaths(clear_on_death); }
static void test_deaths_that_delete(void) { run_deaths(delete_on_death); }

/* --- Garbage collection --- */

static int count_visit(lapse_object *o, void *arg) {
    CHECK(o->references > 0);
    ++*(uint32_t *)arg;
    return 0;
}

static void test_traversal(void) {
    lapse_object *objects = many_objects(5000);
    lapse_table *t = lapse_table_new(&plain);
    uint32_t visits = 0;
    for (uint32_t i = 0; i < 5000; i++) {
        objects[i].gc = i % 10 == 0;
        put(t, &objects[i], i, &objects[i], LAPSE_NEVER, 1);
    }
    CHECK(lapse_traverse(t, count_visit, &visits) == 0 && visits == 2 * 500);
    lapse_table_free(t);
    check_untouched(objects, 5000);
    free(objects);
}

static void test_a_sweep_without_room_does_nothing(void) {
    lapse_object key = {.references = 1};
    lapse_table *t = lapse_table_new(&plain);
    lapse_item removed;
    size_t n = 9;
    uint64_t cursor = 0;
    put(t, &key, 1, &key, 5, 1);
    CHECK(lapse_sweep(t, &cursor, 100, 0, &removed, &n) == LAPSE_MORE && n == 0 && cursor == 0);
    lapse_table_free(t);
    CHECK(key.references == 1);
}

int main(void) {
    RUN(test_growing_and_shrinking);
    RUN(test_the_root_shrinks);
    RUN(test_clearing_and_filling_again);
    RUN(test_equal_hashes);
    RUN(test_after_equal_hashes);
    RUN(test_expired_entries_make_room);
    RUN(test_the_native_clock);
    RUN(test_expiry_is_exact_to_the_tick);
    RUN(test_time_going_backwards);
    RUN(test_jitter_only_shortens);
    RUN(test_early_expiry);
    RUN(test_a_comparison_that_deletes);
    RUN(test_a_comparison_that_clears);
    RUN(test_a_comparison_that_inserts);
    RUN(test_a_comparison_that_overwrites);
    RUN(test_a_comparison_that_always_replaces_the_key_is_refused);
    RUN(test_a_comparison_that_always_overwrites_is_answered);
    RUN(test_a_comparison_that_raises);
    RUN(test_a_comparison_that_raises_on_removal);
    RUN(test_an_early_end_spares_what_came_after);
    RUN(test_deaths_that_insert);
    RUN(test_deaths_that_clear);
    RUN(test_deaths_that_delete);
    RUN(test_traversal);
    RUN(test_a_sweep_without_room_does_nothing);
    RUN(test_stream_fixed);
    RUN(test_stream_sliding);
    RUN(test_stream_probabilistic);
    RUN(test_stream_never);
    RUN(test_stream_locked_reads);
    return tests_done();
}
