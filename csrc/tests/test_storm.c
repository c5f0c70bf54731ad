/* Sets of prefixes, and storms: what they remove, what nobody sees any more once they have begun, what changes
 * between their steps, and memory that fails. */
#include "ledger.h"
#include "stage.h"

#include "prefixes.h"

#define MOST 120u /* prefixes of one storm */

static const lapse_config plain = {.default_ttl = LAPSE_NEVER};

static bool belongs(uint32_t id, uint32_t table) { return id % TABLES == table && has_text(id); }

/* Is it of one of the first n tables? */
static bool covered(uint32_t id, uint32_t n) { return id % TABLES < n && has_text(id); }

static size_t count_of(uint32_t table) {
    size_t n = 0;
    for (uint32_t id = table; id < KEYS; id += TABLES) n += has_text(id);
    return n;
}

/* --- Sets --- */

static lapse_text text_of(const void *units, size_t length, uint32_t width) {
    return (lapse_text){units, length, width, false};
}

static lapse_text narrow(const char *s) { return text_of(s, strlen(s), 1); }

static lapse_prefixes *new_set(size_t most) {
    lapse_prefixes *x = NULL;
    CHECK(lapse_prefixes_new(&lapse_system_memory, most, &x) == LAPSE_OK);
    return x;
}

static void free_set(lapse_prefixes *x) { lapse_prefixes_free(&lapse_system_memory, x); }

static bool add(lapse_prefixes *x, const char *glob, uint32_t number) {
    lapse_text text = narrow(glob);
    return lapse_prefixes_add(x, &text, number);
}

static uint32_t find(const lapse_prefixes *x, const char *key) {
    lapse_text text = narrow(key);
    uint32_t block = 0, one = prefixes_find(x, &text);
    prefixes_find_block(x, &text, 1, &block);
    CHECK(block == one);
    return one;
}

static void test_what_a_set_takes(void) {
    static const char *const others[] = {"",
                                         "*",
                                         "a*",
                                         "a",
                                         "a:",
                                         "a:b",
                                         "a:b*",
                                         "a?:*",
                                         "[a]:*",
                                         "a\\",
                                         "a*:*",
                                         "a:**",
                                         "a:*:*b",
                                         "a:*b:*",
                                         "a:\\*",
                                         "a\\*",
                                         "a:b:c:d:e:f:g:h:i:*"};
    lapse_prefixes *x = new_set(4);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) CHECK(!add(x, others[i], 7));
    CHECK(lapse_prefixes_depths(x) == 0 && find(x, "a:b") == NO_PREFIX);
    CHECK(add(x, "a:*", 0) && add(x, "a:b:*", 1) && add(x, ":*", 2) && add(x, "a:b:c:d:e:f:g:h:*", 3));
    CHECK(lapse_prefixes_depths(x) == (1u | 2u | 128u));
    CHECK(find(x, "a:") == 0 && find(x, "a:b") == 0 && find(x, "a:b:c") == 0); /* the shallowest */
    CHECK(find(x, ":") == 2 && find(x, ":x") == 2);
    CHECK(find(x, "") == NO_PREFIX && find(x, "a") == NO_PREFIX && find(x, "ab:") == NO_PREFIX);
    free_set(x);
    x = new_set(2);
    CHECK(add(x, "k:1:*", 4) && add(x, "k:1:*", 5)); /* the first of equal ones */
    CHECK(find(x, "k:1:x") == 4 && find(x, "k:2:x") == NO_PREFIX);
    free_set(x);
}

/* Escaped units are literal ones; other spellings of one prefix are that prefix. */
static void test_escapes(void) {
    lapse_prefixes *x = new_set(5);
    CHECK(add(x, "a\\*b:*", 0) && add(x, "\\c\\:*", 1) && add(x, "c:*", 2) && add(x, "d:*", 3) &&
          add(x, "\\d:*", 4));
    CHECK(find(x, "a*b:x") == 0 && find(x, "a\\*b:x") == NO_PREFIX && find(x, "axb:x") == NO_PREFIX);
    CHECK(find(x, "c:") == 1 && find(x, "c:x") == 1 && find(x, "c") == NO_PREFIX && find(x, "d:x") == 3);
    free_set(x);
}

/* A hundred thousand times the same takes no longer than different ones. */
static void test_equal_prefixes(void) {
    enum { MANY = 200000 };
    lapse_prefixes *x = new_set(MANY);
    for (uint32_t i = 0; i < MANY; i++) CHECK(add(x, i % 2 ? "t:1:*" : "\\t:1:*", i));
    CHECK(find(x, "t:1:x") == 0);
    free_set(x);
}

/* Text of any width is the same text; str and bytes are not. */
static void test_widths_and_types(void) {
    static const uint16_t wide[] = {'a', ':', 0x3B1}, greek[] = {0x3B1, ':', '*'};
    static const uint32_t widest[] = {'a', ':', 0x1F600}, key[] = {0x3B1, ':', 0x1F600};
    lapse_prefixes *x = new_set(2);
    lapse_text pattern = text_of(greek, 3, 2);
    CHECK(add(x, "a:*", 0) && lapse_prefixes_add(x, &pattern, 1));
    lapse_text texts[] = {text_of(wide, 3, 2), text_of(widest, 3, 4), text_of(key, 3, 4),
                          text_of(greek, 2, 2)};
    uint32_t numbers[4];
    prefixes_find_block(x, texts, 4, numbers);
    CHECK(numbers[0] == 0 && numbers[1] == 0 && numbers[2] == 1 && numbers[3] == 1);
    lapse_text raw = {"a:b", 3, 1, true};
    CHECK(prefixes_find(x, &raw) == NO_PREFIX);
    free_set(x);
}

static void test_a_large_set(void) {
    enum { MANY = 50000 };
    static char globs[MANY][16];
    char key[24];
    lapse_prefixes *x = new_set(MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        snprintf(globs[i], sizeof globs[i], "t:%u:*", 2 * i);
        CHECK(add(x, globs[i], i));
    }
    for (uint32_t i = 0; i < 2 * MANY; i++) {
        snprintf(key, sizeof key, "t:%u:%u", i, i % 7);
        CHECK(find(x, key) == (i % 2 ? NO_PREFIX : i / 2));
    }
    free_set(x);
}

/* --- The stage of a storm --- */

static struct {
    lapse_prefixes *x;
    lapse_storm *s;
    char globs[MOST][16];
} storm;

/* Of the tables [first, end). */
static lapse_status try_storm(uint32_t first, uint32_t end) {
    storm.x = new_set(MOST);
    for (uint32_t i = first; i < end; i++) {
        snprintf(storm.globs[i], sizeof storm.globs[i], "t%u:*", i);
        CHECK(add(storm.x, storm.globs[i], i));
    }
    lapse_status status = lapse_storm_new(stage.t, storm.x, MOST, stage.now, &storm.s);
    if (status != LAPSE_OK) free_set(storm.x);
    return status;
}

static void begin_storm(uint32_t first, uint32_t end) { CHECK(try_storm(first, end) == LAPSE_OK); }

static void go_on(void) {
    lapse_status status = LAPSE_MORE;
    while (status == LAPSE_MORE) status = lapse_storm_step(storm.s);
    CHECK(status == LAPSE_OK);
}

static uint64_t end_storm(void) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < MOST; i++) sum += lapse_storm_counts(storm.s)[i];
    lapse_storm_end(storm.s);
    free_set(storm.x);
    return sum;
}

/* Everything is there but what the first n tables hold. */
static void check_all_but(uint32_t n) {
    for (uint32_t id = 0; id < KEYS; id++) CHECK(present(id) == !covered(id, n));
}

/* --- What goes --- */

static void test_a_storm_removes_what_it_covers(void) {
    open_table(plain);
    for (uint32_t id = 0; id < KEYS; id++) put_all(id, id + 1, id % 3 ? LAPSE_NEVER : 10);
    stage.now += 10;
    begin_storm(0, 60);
    go_on();
    size_t live = 0;
    for (uint32_t table = 0; table < MOST; table++) {
        size_t n = 0;
        for (uint32_t id = 0; id < KEYS; id++) n += table < 60 && belongs(id, table) && id % 3;
        CHECK(lapse_storm_counts(storm.s)[table] == n);
        live += n;
    }
    CHECK(end_storm() == live && stage.gone[LAPSE_BY_PATTERN] == live);
    for (uint32_t id = 0; id < KEYS; id++) {
        CHECK(stage.times[id] == covered(id, 60));
        if (covered(id, 60)) CHECK(stage.why[id] == (id % 3 ? LAPSE_BY_PATTERN : LAPSE_BY_DEADLINE));
        CHECK(present(id) == (!covered(id, 60) && id % 3));
    }
    close_table();
}

/* In every kind of table: with an index, an order of use, times for each entry. */
static void test_every_kind_of_table(void) {
    const lapse_config configs[] = {{.lru = true, .max_entries = KEYS},
                                    {.mode = LAPSE_SLIDING, .default_ttl = 1000, .max_lifetime = 5000},
                                    {.mode = LAPSE_PROBABILISTIC, .default_ttl = 1000, .early_factor = 0.1}};
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        open_table(configs[i]);
        for (uint32_t id = 0; id < KEYS; id++)
            CHECK(put(id, LAPSE_DEFAULT, tags_from(id % 50, 1)) == LAPSE_OK);
        CHECK(delete_matching("none:*") == 0 && stage.t->index.built == 1);
        begin_storm(0, 60);
        go_on();
        size_t due = 0;
        for (uint32_t table = 0; table < 60; table++) due += count_of(table);
        CHECK(end_storm() == due);
        check_all_but(60);
        CHECK(lapse_check(stage.t));
        uint64_t rest = 0;
        for (uint32_t id = 9; id < KEYS; id += 50) rest += !covered(id, 60);
        CHECK(delete_tag(9) == rest);
        close_table();
    }
}

static void test_when_it_is_worth_it(void) {
    open_table(plain);
    lapse_prefixes *x = new_set(1);
    CHECK(add(x, "t:*", 0));
    put_all(0, KEYS, LAPSE_NEVER);
    CHECK(lapse_is_storm(stage.t, x, 40) && !lapse_is_storm(stage.t, x, 10));
    CHECK(delete_matching("none:*") == 0); /* now these prefixes are indexed */
    CHECK(lapse_is_storm(stage.t, x, 400) && !lapse_is_storm(stage.t, x, 100));
    free_set(x);
    close_table();
}

/* More entries of one hash than one step takes. */
static void test_equal_hashes(void) {
    lapse_object *old;
    open_table(plain);
    for (uint32_t id = 0; id < 5000; id++) {
        old = NULL;
        CHECK(lapse_put(stage.t, &keys[id], 1, &value, LAPSE_NEVER, stage.now, &old) == LAPSE_OK);
    }
    begin_storm(0, 90);
    size_t due = 0;
    for (uint32_t id = 0; id < 5000; id++) due += covered(id, 90);
    go_on();
    CHECK(end_storm() == due && lapse_len(stage.t, stage.now) == 5000 - due);
    close_table();
}

/* --- What nobody sees any more --- */

static lapse_status exchange(uint32_t id) {
    lapse_object *old = NULL;
    lapse_status status = lapse_exchange(stage.t, &keys[id], id, &value, &other_value, stage.now, &old);
    if (status == LAPSE_OK) object_unref(old);
    return status;
}

static lapse_status get(uint32_t id) {
    lapse_object *found = NULL;
    lapse_status status = lapse_get(stage.t, &keys[id], id, stage.now, &found);
    if (status == LAPSE_OK) object_unref(found);
    return status;
}

static lapse_status peek(uint32_t id) {
    lapse_item item;
    lapse_status status = lapse_peek(stage.t, &keys[id], id, stage.now, &item);
    if (status == LAPSE_OK) lapse_release(&item, 1);
    return status;
}

static lapse_status touch(uint32_t id) { return lapse_touch(stage.t, &keys[id], id, LAPSE_NEVER, stage.now); }

static lapse_status names_of(uint32_t id) {
    lapse_object *found[1];
    size_t n;
    return lapse_tags_of(stage.t, &keys[id], id, stage.now, found, 0, &n);
}

static lapse_status read_block(uint32_t id) {
    lapse_block block = {.n = 1, .keys = {&keys[id]}, .hashes = {id}};
    lapse_object *found = NULL;
    lapse_status status;
    lapse_get_block(stage.t, &block, stage.now, &found, &status);
    if (status == LAPSE_OK) object_unref(found);
    return status == LAPSE_MORE ? get(id) : status;
}

static lapse_status delete_one(uint32_t id) { return erase(id) ? LAPSE_OK : LAPSE_ABSENT; }

static lapse_status erase_one(uint32_t id) {
    lapse_object *key = &keys[id];
    uint64_t hash = id;
    uint32_t order = 0;
    uint8_t erased = 0;
    size_t done = 0;
    CHECK(lapse_erase_keys(stage.t, 1, &key, &hash, &done, stage.now, &order, &erased) == LAPSE_OK);
    return erased ? LAPSE_OK : LAPSE_ABSENT;
}

static lapse_status put_new(uint32_t id) {
    lapse_object *found = NULL;
    lapse_status status = lapse_put_new(stage.t, &keys[id], id, &value, LAPSE_NEVER, stage.now, &found);
    if (status == LAPSE_OK) object_unref(found);
    return status;
}

/* Before its first step a storm is in force, for whoever asks by key. What they meet goes at once, by the pattern. */
static void test_no_key_is_found(void) {
    lapse_status (*const asks[])(uint32_t) = {get,        peek,      touch,   names_of, read_block,
                                              delete_one, erase_one, put_new, exchange};
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    begin_storm(0, 60);
    for (uint32_t i = 0; i < sizeof asks / sizeof *asks; i++)
        for (uint32_t id = i * 1000; id < i * 1000 + 1000; id++) {
            bool known = !covered(id, 60);
            CHECK(asks[i](id) == (known ? LAPSE_OK : LAPSE_ABSENT));
            if (known || asks[i] == erase_one) continue;
            CHECK(stage.times[id] == 1 && stage.why[id] == LAPSE_BY_PATTERN);
        }
    for (uint32_t id = 0; id < KEYS; id++) CHECK(!covered(id, 60) || !present(id));
    CHECK(lapse_check(stage.t));
    go_on();
    end_storm();
    for (uint32_t id = 0; id < KEYS; id++) CHECK(!covered(id, 60) || !present(id));
    close_table();
}

/* Each entry is counted once, whoever took it out. */
static void test_counts_of_what_others_take_out(void) {
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    begin_storm(3, 60);
    for (uint32_t id = 0; id < KEYS; id += 2) get(id);
    go_on();
    for (uint32_t i = 0; i < MOST; i++)
        CHECK(lapse_storm_counts(storm.s)[i] == (i >= 3 && i < 60 ? count_of(i) : 0));
    uint64_t sum = end_storm();
    lapse_counters c;
    lapse_counters_read(stage.t, &c);
    CHECK(c.by_pattern == sum && stage.gone[LAPSE_BY_PATTERN] == sum);
    for (uint32_t id = 0; id < KEYS; id++) CHECK(stage.times[id] == (id % TABLES >= 3 && covered(id, 60)));
    close_table();
}

/* Nor does anybody who walks over the table meet one. */
static void test_no_walk_finds_one(void) {
    static lapse_item out[2 * SEGMENT_SLOTS];
    size_t n, found = 0;
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    begin_storm(0, 60);
    lapse_status status = LAPSE_MORE;
    for (uint64_t cursor = 0; status == LAPSE_MORE; found += n) {
        status = lapse_collect(stage.t, &cursor, stage.now, out, sizeof out / sizeof *out, &n);
        for (size_t i = 0; i < n; i++) CHECK(!covered((uint32_t)out[i].key->id, 60));
        lapse_release(out, n);
    }
    for (uint32_t id = 0; id < KEYS; id++) found += covered(id, 60);
    CHECK(found == KEYS);
    struct lapse_pattern *all = compile("*");
    lapse_pass *p;
    CHECK(lapse_pass_new(stage.t, &all, 1, NULL, 0, stage.now, true, &p) == LAPSE_OK);
    for (status = LAPSE_MORE; status != LAPSE_OK;) {
        status = lapse_pass_step(p, out, &n);
        for (size_t i = 0; i < n; i++) {
            CHECK(!covered((uint32_t)out[i].key->id, 60));
            object_unref(out[i].key);
        }
    }
    lapse_pass_end(p);
    discard(all);
    uint64_t cursor = 0;
    while (lapse_pop_any(stage.t, &cursor, stage.now, out) == LAPSE_OK) {
        CHECK(!covered((uint32_t)out->key->id, 60));
        lapse_release(out, 1);
    }
    go_on();
    end_storm();
    CHECK(lapse_len(stage.t, stage.now) == 0);
    close_table();
}

/* --- Between the steps --- */

/* What is stored behind the walk stays, what is stored ahead of it goes; nothing comes back that was missed. */
static void test_stores_meanwhile(void) {
    static bool seen[KEYS];
    open_table(plain);
    put_all(0, KEYS / 2, LAPSE_NEVER);
    begin_storm(0, TABLES);
    memset(seen, 0, sizeof seen);
    lapse_status status = LAPSE_MORE;
    for (uint32_t next = KEYS / 2; status == LAPSE_MORE; status = lapse_storm_step(storm.s))
        for (uint32_t n = 0; n < 700 && next < KEYS; n++, next++) {
            put_all(next, next + 1, LAPSE_NEVER);
            bool stays = !has_text(next) || mix_hash(next) < stage.t->fence.passes->reached;
            if (next % 2) CHECK((seen[next] = present(next)) == stays);
        }
    end_storm();
    for (uint32_t id = 0; id < KEYS / 2; id++) CHECK(present(id) == !has_text(id));
    for (uint32_t id = KEYS / 2; id < KEYS; id++)
        if (id % 2) CHECK(present(id) == seen[id]);
    CHECK(lapse_check(stage.t));
    close_table();
}

/* Store one that was erased where the walk has just been. */
static void put_behind(uint32_t erased, uint64_t before, bool *stored) {
    uint64_t reached = stage.t->fence.passes->reached;
    for (uint32_t id = 0; id < erased; id++) {
        if (!covered(id, 60) || mix_hash(id) < before || mix_hash(id) >= reached) continue;
        put_all(id, id + 1, LAPSE_NEVER);
        stored[id] = true;
        return;
    }
}

/* Segments that merge, and a clear, while the walk goes on. What is stored behind it stays. */
static void test_shrinking_meanwhile(void) {
    static bool stored[KEYS];
    memset(stored, 0, sizeof stored);
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    begin_storm(0, 60);
    size_t before = lapse_segments(stage.t);
    uint64_t reached = 0;
    uint32_t next = 0;
    while (lapse_storm_step(storm.s) == LAPSE_MORE) {
        put_behind(next, reached, stored);
        reached = stage.t->fence.passes->reached;
        for (uint32_t n = 0; n < 1500 && next < KEYS / 10 * 9; n++) erase(next++);
        sweep();
    }
    end_storm();
    CHECK(lapse_segments(stage.t) < before && lapse_check(stage.t));
    for (uint32_t id = 0; id < KEYS / 10 * 9; id++) CHECK(present(id) == stored[id]);
    for (uint32_t id = KEYS / 10 * 9; id < KEYS; id++) CHECK(present(id) == !covered(id, 60));
    put_all(0, KEYS, LAPSE_NEVER);
    begin_storm(0, 60);
    CHECK(lapse_storm_step(storm.s) == LAPSE_MORE && lapse_storm_step(storm.s) == LAPSE_MORE);
    clear();
    go_on();
    end_storm();
    CHECK(lapse_len(stage.t, stage.now) == 0);
    close_table();
}

/* Two at once; the one that ends first leaves the other in force. */
static void test_two_storms(void) {
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    begin_storm(0, 20);
    lapse_prefixes *x = storm.x;
    lapse_storm *first = storm.s;
    begin_storm(20, 60);
    CHECK(lapse_storm_step(first) == LAPSE_MORE && !present(1) && !present(21) && present(61));
    go_on();
    end_storm();
    for (uint32_t id = 0; id < KEYS; id++) CHECK(present(id) == !covered(id, 60));
    storm.s = first;
    storm.x = x;
    go_on();
    end_storm();
    check_all_but(60);
    CHECK(stage.t->storms == 0);
    close_table();
}

/* One that is given up half way leaves what it has not come to. */
static void test_giving_up(void) {
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    begin_storm(0, 60);
    for (uint32_t i = 0; i < 10; i++) CHECK(lapse_storm_step(storm.s) == LAPSE_MORE);
    uint64_t reached = stage.t->fence.passes->reached;
    end_storm();
    for (uint32_t id = 0; id < KEYS; id++)
        CHECK(present(id) == (!covered(id, 60) || mix_hash(id) >= reached));
    close_table();
}

/* A listener that stores again what went, and one that deletes: the walk ends. */
static void store_again(uint32_t id) { put_all(id, id + 1, LAPSE_NEVER); }
static void delete_next(uint32_t id) { erase((id + 1) % KEYS); }

static void test_listeners(void) {
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    stage.listener = store_again;
    begin_storm(0, 60);
    go_on();
    end_storm();
    stage.listener = NULL;
    for (uint32_t id = 0; id < KEYS; id++) CHECK(present(id) && stage.times[id] == covered(id, 60));
    stage.listener = delete_next;
    begin_storm(0, 60);
    go_on();
    end_storm();
    stage.listener = NULL;
    for (uint32_t id = 0; id < KEYS; id++) CHECK(!covered(id, 60) || !present(id));
    close_table();
}

/* --- Loads --- */

static lapse_lease *lease_of(uint32_t id) {
    lapse_lease *l = NULL;
    CHECK(lapse_lease_take(stage.t, &keys[id], id, &l) == LAPSE_OK);
    return l;
}

static bool fill(lapse_lease *l) {
    lapse_object *old = NULL;
    lapse_status status = lapse_fill(stage.t, l, &value, LAPSE_NEVER, NULL, false, stage.now, &old);
    if (status == LAPSE_OK && old) object_unref(old);
    lapse_lease_end(stage.t, l);
    return status == LAPSE_OK;
}

/* Loads that began before the end are not stored if it covers them; all others are. */
static void test_leases(void) {
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    lapse_lease *at_once = lease_of(1), *before = lease_of(2), *other = lease_of(61), *textless = lease_of(5);
    begin_storm(0, 60);
    CHECK(!fill(at_once) && fill(other));
    lapse_lease *meanwhile = lease_of(3);
    go_on();
    lapse_lease *late = lease_of(4);
    end_storm();
    CHECK(!fill(before) && !fill(meanwhile) && !fill(late) && fill(textless) && fill(lease_of(7)));
    for (uint32_t id = 1; id <= 4; id++) CHECK(!present(id));
    CHECK(present(7) && present(61) && present(5));
    close_table();
}

/* --- Memory and forks --- */

static void test_refused_memory(void) {
    lapse_config config = plain;
    config.memory = &failing;
    expect_no_failures();
    open_table(config);
    put_all(0, KEYS, LAPSE_NEVER);
    expect_failures(1, true);
    CHECK(try_storm(0, 60) == LAPSE_NO_MEMORY && stage.t->storms == 0 && present(1));
    expect_no_failures();
    begin_storm(0, 60);
    expect_failures(1, true); /* from here on it needs none */
    go_on();
    end_storm();
    expect_no_failures();
    check_all_but(60);
    close_table();
    CHECK(ledger.held == 0);
}

/* In the child of a fork nobody goes on with it: everything goes instead. */
static void test_a_fork(void) {
    lapse_item removed[LAPSE_STEP];
    size_t n;
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    begin_storm(0, 60);
    CHECK(lapse_after_fork(stage.t));
    while (lapse_drain(stage.t, removed, &n) == LAPSE_MORE) lapse_release(removed, n);
    lapse_release(removed, n);
    CHECK(stage.t->storms == 0 && lapse_len(stage.t, stage.now) == 0);
    put_all(0, 100, LAPSE_NEVER);
    CHECK(present(1));
    end_storm(); /* by the thread that forked, in the midst of it */
    CHECK(stage.t->storms == 0 && present(1));
    close_table();
}

int main(void) {
    RUN(test_what_a_set_takes);
    RUN(test_escapes);
    RUN(test_equal_prefixes);
    RUN(test_widths_and_types);
    RUN(test_a_large_set);
    RUN(test_a_storm_removes_what_it_covers);
    RUN(test_every_kind_of_table);
    RUN(test_when_it_is_worth_it);
    RUN(test_equal_hashes);
    RUN(test_no_key_is_found);
    RUN(test_counts_of_what_others_take_out);
    RUN(test_no_walk_finds_one);
    RUN(test_stores_meanwhile);
    RUN(test_shrinking_meanwhile);
    RUN(test_two_storms);
    RUN(test_giving_up);
    RUN(test_listeners);
    RUN(test_leases);
    RUN(test_refused_memory);
    RUN(test_a_fork);
    return tests_done();
}
