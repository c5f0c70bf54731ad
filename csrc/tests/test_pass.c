/* Passes and batches of keys: each way that a pass can take, what changes between its steps, what its observer
 * is told, and memory that fails in the middle. */
#include "ledger.h"
#include "stage.h"

#define GROUP (KEYS / TABLES) /* keys of one table */

static const lapse_config plain = {.default_ttl = LAPSE_NEVER};

static bool belongs(uint32_t id, uint32_t table) { return id % TABLES == table && has_text(id); }

static size_t count_of(uint32_t table) {
    size_t n = 0;
    for (uint32_t id = table; id < KEYS; id += TABLES) n += has_text(id);
    return n;
}

static bool is_built(uint32_t depth) { return stage.t->index.built >> (depth - 1) & 1; }

/* Everything is there but what belongs to this table. */
static void check_all_but(uint32_t table) {
    for (uint32_t id = 0; id < KEYS; id++) CHECK(present(id) == !belongs(id, table));
}

/* --- Ways --- */

static void test_a_prefix_is_looked_up(void) {
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    CHECK(!stage.t->index.active);
    CHECK(delete_matching("t7:*") == count_of(7));
    CHECK(is_built(1) && !is_built(2));
    check_all_but(7);
    CHECK(lapse_check(stage.t));
    CHECK(delete_matching("t3:3:*") > 0);
    CHECK(is_built(1) && is_built(2));
    for (uint32_t id = 0; id < KEYS; id++)
        CHECK(present(id) == !(belongs(id, 7) || (belongs(id, 3) && id % 7 == 3)));
    close_table();
}

/* Once there is an index, what matches nothing costs nothing, and what matches few costs that. */
static void test_steps_are_those_of_the_match(void) {
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    CHECK(delete_matching("t7:*") > 0);
    struct lapse_pattern *none = compile("nothing:*"), *few = compile("t8:*");
    lapse_pass *p = begin_match(&none, 1);
    CHECK(finish(p) <= 5);
    lapse_pass_end(p);
    p = begin_match(&few, 1);
    CHECK(finish(p) <= 16);
    CHECK(lapse_pass_counts(p)[0] == count_of(8));
    lapse_pass_end(p);
    discard(none);
    discard(few);
    close_table();
}

/* A small table, a prefix that most share, and patterns without a prefix: a walk over the table. */
static void test_what_is_not_looked_up(void) {
    open_table(plain);
    put_all(0, 3000, LAPSE_NEVER);
    CHECK(delete_matching("t7:*") > 0 && !stage.t->index.active);
    for (uint32_t id = 0; id < 3000; id++) CHECK(present(id) == !belongs(id, 7));
    put_all(3000, KEYS, LAPSE_NEVER);
    CHECK(delete_matching("*:*:1*7") > 0 && !stage.t->index.active);
    clear();
    CHECK(delete_matching("*") == 0);
    close_table();
}

static void test_many_patterns_in_one_pass(void) {
    struct lapse_pattern *patterns[TABLES + 1];
    char glob[16];
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    for (uint32_t i = 0; i < TABLES; i++) {
        snprintf(glob, sizeof glob, "t%u:*", i);
        patterns[i] = compile(glob);
    }
    patterns[TABLES] = compile("*5"); /* counts only what no other pattern has taken */
    lapse_pass *p = begin_match(patterns + TABLES / 2, TABLES / 2 + 1);
    finish(p);
    for (uint32_t i = 0; i < TABLES / 2; i++) CHECK(lapse_pass_counts(p)[i] == count_of(TABLES / 2 + i));
    size_t fives = 0;
    for (uint32_t id = 5; id < KEYS; id += 10) fives += has_text(id) && id % TABLES < TABLES / 2;
    CHECK(lapse_pass_counts(p)[TABLES / 2] == fives);
    lapse_pass_end(p);
    for (uint32_t id = 0; id < KEYS; id++)
        CHECK(present(id) == (!has_text(id) || (id % TABLES < TABLES / 2 && id % 10 != 5)));
    for (uint32_t i = 0; i <= TABLES; i++) discard(patterns[i]);
    close_table();
}

/* Few of a label's entries match, and those are its youngest: behind many steps that find nothing. */
static void test_a_label_of_which_few_match(void) {
    open_table(plain);
    put_all(0, 12000, LAPSE_NEVER);
    CHECK(delete_matching("none:*") == 0 && is_built(1));
    put_all(12000, KEYS, LAPSE_NEVER);
    CHECK(delete_matching("t7:*:239?7") > 0);
    for (uint32_t id = 0; id < KEYS; id++) CHECK(present(id) == !(belongs(id, 7) && id >= 23900));
    close_table();
}

/* Several patterns of one prefix in one pass: they walk the same label. */
static void test_patterns_of_one_prefix(void) {
    struct lapse_pattern *patterns[] = {compile("t7:3:*"), compile("t7:*7"), compile("t7:*1*"),
                                        compile("t7:*")};
    open_table(plain);
    put_all(0, KEYS, LAPSE_NEVER);
    CHECK(delete_matching("t0:*") > 0);
    lapse_pass *p = begin_match(patterns + 1, 3);
    finish(p);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 3; i++) sum += lapse_pass_counts(p)[i];
    CHECK(sum == count_of(7));
    lapse_pass_end(p);
    put_all(0, KEYS, LAPSE_NEVER);
    p = begin_match(patterns, 2);
    finish(p);
    lapse_pass_end(p);
    for (uint32_t id = 0; id < KEYS; id++)
        CHECK(present(id) == !(belongs(id, 7) && (id % 7 == 3 || id % 10 == 7)));
    for (uint32_t i = 0; i < 4; i++) discard(patterns[i]);
    close_table();
}

/* An index that was built lives until a clear, and knows what has come and gone since. */
static void test_the_index_is_kept_up(void) {
    open_table(plain);
    put_all(0, 20000, LAPSE_NEVER);
    delete_matching("t7:*");
    CHECK(is_built(1));
    put_all(20000, KEYS, LAPSE_NEVER);
    for (uint32_t id = 8; id < 20000; id += TABLES) CHECK(erase(id));
    CHECK(lapse_check(stage.t));
    size_t late = 0;
    for (uint32_t id = 20000; id < KEYS; id++) late += belongs(id, 8);
    CHECK(delete_matching("t8:*") == late);
    clear();
    CHECK(!is_built(1) && !stage.t->index.active && lapse_check(stage.t));
    put_all(0, KEYS, LAPSE_NEVER);
    CHECK(delete_matching("t9:*") == count_of(9) && is_built(1));
    close_table();
}

/* --- Between the steps --- */

/* Grow the table while a pass walks over it, and shrink it while another one does. */
static void test_splits_and_merges_meanwhile(void) {
    struct lapse_pattern *odd = compile("*[13579]");
    open_table(plain);
    put_all(0, 6000, LAPSE_NEVER);
    lapse_pass *p = begin_match(&odd, 1);
    uint32_t next = 6000;
    size_t before = lapse_segments(stage.t);
    while (step(p) == LAPSE_MORE)
        for (uint32_t n = 0; n < 600 && next < KEYS; n++) put_all(next, next + 1, LAPSE_NEVER), next++;
    lapse_pass_end(p);
    CHECK(lapse_segments(stage.t) > 2 * before);
    for (uint32_t id = 0; id < 6000; id++) CHECK(present(id) == !(has_text(id) && id % 2));
    put_all(next, KEYS, LAPSE_NEVER);
    put_all(0, 6000, LAPSE_NEVER);
    p = begin_match(&odd, 1);
    before = lapse_segments(stage.t);
    next = 0;
    while (step(p) == LAPSE_MORE) {
        for (uint32_t n = 0; n < 900 && next < KEYS / 10 * 9; n++) erase(next++);
        sweep();
    }
    lapse_pass_end(p);
    CHECK(lapse_segments(stage.t) < before);
    for (uint32_t id = next; id < KEYS; id++) CHECK(present(id) == !(has_text(id) && id % 2));
    CHECK(lapse_check(stage.t));
    discard(odd);
    close_table();
}

/* What comes, goes and is stored again while prefixes are being built is indexed exactly. */
static void test_changes_during_a_build(void) {
    struct lapse_pattern *pattern = compile("t7:*");
    open_table(plain);
    put_all(0, 20000, LAPSE_NEVER);
    lapse_pass *p = begin_match(&pattern, 1);
    uint32_t next = 20000, gone = 0;
    while (step(p) == LAPSE_MORE) {
        for (uint32_t n = 0; n < 40 && next < KEYS; n++) put_all(next, next + 1, LAPSE_NEVER), next++;
        for (uint32_t n = 0; n < 40; n++) erase(gone++ * 3);
        for (uint32_t n = 0; n < 40; n++) put_all(gone * 3 + n, gone * 3 + n + 1, LAPSE_NEVER);
    }
    lapse_pass_end(p);
    CHECK(is_built(1) && gone > 500 && next > 21000);
    CHECK(lapse_check(stage.t));
    size_t due = 0;
    for (uint32_t id = 0; id < KEYS; id++) due += belongs(id, 9) && present(id);
    CHECK(delete_matching("t9:*") == due);
    for (uint32_t id = 0; id < KEYS; id++) CHECK(!belongs(id, 9) || !present(id));
    discard(pattern);
    close_table();
}

/* Between two steps a key object dies, and another key is born at its address: that one does not match. */
static void rename_between_steps(const char *glob) {
    struct lapse_pattern *pattern = compile(glob);
    for (uint32_t steps = 1; steps < 12; steps++) {
        open_table(plain);
        put_all(0, 3000, LAPSE_NEVER);
        lapse_pass *p = begin_match(&pattern, 1);
        lapse_status status = LAPSE_MORE;
        for (uint32_t n = 0; n < steps && status == LAPSE_MORE; n++) status = step(p);
        for (uint32_t id = 7; id < 3000; id += TABLES) {
            if (!has_text(id)) continue;
            erase(id);
            keys[id].text = "another";
            put_all(id, id + 1, LAPSE_NEVER);
        }
        if (status == LAPSE_MORE) finish(p);
        lapse_pass_end(p);
        for (uint32_t id = 0; id < 3000; id++) CHECK(present(id));
        CHECK(lapse_check(stage.t));
        close_table();
    }
    discard(pattern);
}

static void test_other_keys_at_the_same_addresses(void) {
    rename_between_steps("[t]7:*");
    rename_between_steps("t7:*");
}

/* A clear in each phase of a pass: nothing is left, and what is stored afterwards is found again. */
static void test_a_clear_meanwhile(void) {
    struct lapse_pattern *pattern = compile("t7:*");
    for (uint32_t at = 0; at < 70; at += 3) {
        open_table(plain);
        put_all(0, KEYS, LAPSE_NEVER);
        lapse_pass *p = begin_match(&pattern, 1);
        uint32_t steps = 0;
        for (lapse_status status = LAPSE_MORE; status == LAPSE_MORE; steps++) {
            status = step(p);
            if (steps == at) {
                clear();
                put_all(0, 9000, LAPSE_NEVER);
            }
            CHECK(status != LAPSE_NO_MEMORY);
        }
        lapse_pass_end(p);
        CHECK(lapse_check(stage.t));
        if (steps <= at) clear();
        delete_matching("t7:*");
        for (uint32_t id = 0; id < 9000; id++) CHECK(present(id) == (steps > at && !belongs(id, 7)));
        close_table();
    }
    discard(pattern);
}

/* A pass that is given up at any step leaves the table whole, and the next one finds its way. */
static void test_passes_given_up(void) {
    struct lapse_pattern *pattern = compile("t7:*");
    for (uint32_t steps = 0; steps < 70; steps += 3) {
        open_table(plain);
        put_all(0, KEYS, LAPSE_NEVER);
        lapse_pass *p = begin_match(&pattern, 1);
        for (uint32_t n = 0; n < steps && step(p) == LAPSE_MORE;) n++;
        lapse_pass_end(p);
        CHECK(lapse_check(stage.t));
        delete_matching("t7:*");
        CHECK(is_built(1));
        check_all_but(7);
        close_table();
    }
    discard(pattern);
}

/* --- Tags --- */

static void test_a_tag_takes_its_entries(void) {
    open_table(plain);
    for (uint32_t id = 0; id < 3000; id++)
        CHECK(put(id, LAPSE_NEVER, tags_from(id % 10, 1 + id % 3)) == LAPSE_OK);
    size_t due = 0;
    for (uint32_t id = 0; id < 3000; id++) due += id % 10 <= 4 && 4 < id % 10 + 1 + id % 3;
    CHECK(delete_tag(4) == due && stage.gone[LAPSE_BY_TAG] == due);
    for (uint32_t id = 0; id < 3000; id++) CHECK(present(id) == !(id % 10 <= 4 && 4 < id % 10 + 1 + id % 3));
    CHECK(delete_tag(4) == 0 && delete_tag(77) == 0);
    close_table();
}

/* Two passes over one tag, in turn: each entry goes once. */
static void test_two_passes_over_one_tag(void) {
    open_table(plain);
    for (uint32_t id = 0; id < 2000; id++) CHECK(put(id, LAPSE_NEVER, tags_from(1, 1)) == LAPSE_OK);
    lapse_pass *a = begin_tag(1), *b = begin_tag(1);
    lapse_status first = LAPSE_MORE, second = LAPSE_MORE;
    for (uint32_t id = 2000; first == LAPSE_MORE || second == LAPSE_MORE; id++) {
        if (first == LAPSE_MORE) first = step(a);
        if (second == LAPSE_MORE) second = step(b);
        CHECK(put(id, LAPSE_NEVER, tags_from(1, 1)) == LAPSE_OK); /* neither goes on for ever */
        CHECK(lapse_check(stage.t));
    }
    size_t gone = stage.gone[LAPSE_BY_TAG];
    CHECK(lapse_pass_counts(a)[0] + lapse_pass_counts(b)[0] == gone && gone >= 2000);
    lapse_pass_end(a);
    lapse_pass_end(b);
    for (uint32_t id = 0; id < 2000; id++) CHECK(!present(id) && stage.times[id] == 1);
    close_table();
}

/* --- Listing --- */

static size_t list_keys(const char *glob, bool *listed) {
    static lapse_item out[LAPSE_STEP];
    struct lapse_pattern *pattern = compile(glob);
    lapse_pass *p;
    size_t n, total = 0;
    memset(listed, 0, KEYS * sizeof *listed);
    CHECK(lapse_pass_new(stage.t, &pattern, 1, NULL, 0, stage.now, true, &p) == LAPSE_OK);
    for (lapse_status status = LAPSE_MORE; status != LAPSE_OK;) {
        status = lapse_pass_step(p, out, &n);
        CHECK(status == LAPSE_OK || status == LAPSE_MORE);
        for (size_t i = 0; i < n; i++) {
            CHECK(!listed[out[i].key->id] && out[i].value == NULL);
            listed[out[i].key->id] = true;
            object_unref(out[i].key);
        }
        total += n;
    }
    lapse_pass_end(p);
    discard(pattern);
    return total;
}

static void test_listing(void) {
    static bool listed[KEYS];
    open_table(plain);
    for (uint32_t id = 0; id < KEYS; id++) put_all(id, id + 1, id % 3 ? LAPSE_NEVER : 10);
    stage.now += 10;
    CHECK(list_keys("t7:*", listed) > 0);
    CHECK(is_built(1));
    for (uint32_t id = 0; id < KEYS; id++) CHECK(listed[id] == (belongs(id, 7) && id % 3));
    list_keys("*7", listed);
    for (uint32_t id = 0; id < KEYS; id++) CHECK(listed[id] == (has_text(id) && id % 10 == 7 && id % 3));
    CHECK(list_keys("nothing:*", listed) == 0);
    list_keys("*", listed);
    for (uint32_t id = 0; id < KEYS; id++) CHECK(listed[id] == (has_text(id) && id % 3));
    CHECK(stage.gone[LAPSE_BY_PATTERN] == 0 && lapse_len(stage.t, stage.now) == KEYS * 2 / 3);
    close_table();
}

/* --- What the observer is told --- */

/* Each entry once, and for the right reason; what had expired has expired, whatever took it out. */
static void test_causes(void) {
    open_table(plain);
    for (uint32_t id = 0; id < KEYS; id++)
        CHECK(put(id, id % 2 ? LAPSE_NEVER : 10, tags_from(id % 50, 1)) == LAPSE_OK);
    stage.now += 10;
    uint64_t by_pattern = delete_matching("t7:*"), by_tag = delete_tag(9);
    for (uint32_t id = 0; id < KEYS; id++) {
        bool pattern = belongs(id, 7), tag = id % 50 == 9;
        CHECK(stage.times[id] == (pattern || tag));
        if (!pattern && !tag) continue;
        lapse_cause live = pattern ? LAPSE_BY_PATTERN : LAPSE_BY_TAG;
        CHECK(stage.why[id] == (id % 2 ? live : LAPSE_BY_DEADLINE));
    }
    lapse_counters c;
    lapse_counters_read(stage.t, &c);
    CHECK(c.by_pattern == by_pattern && c.by_tag == by_tag && by_tag == KEYS / 50);
    CHECK(c.expirations == stage.gone[LAPSE_BY_DEADLINE]);
    CHECK(stage.gone[LAPSE_BY_PATTERN] == by_pattern && stage.gone[LAPSE_BY_TAG] == by_tag);
    close_table();
}

static void store_again(uint32_t id) { CHECK(put(id, LAPSE_NEVER, tags_from(id % 50, 1)) == LAPSE_OK); }

/* A listener that stores again what went: no pass finds it a second time, or goes on for ever. */
static void test_a_listener_that_stores_again(void) {
    open_table(plain);
    for (uint32_t id = 0; id < KEYS; id++) store_again(id);
    stage.listener = store_again;
    CHECK(delete_matching("[t]*") > 0);
    for (uint32_t id = 0; id < KEYS; id++) CHECK(present(id) && stage.times[id] == has_text(id));
    forget_what_went();
    CHECK(delete_matching("t7:*") == count_of(7) && is_built(1));
    CHECK(delete_tag(9) == KEYS / 50);
    for (uint32_t id = 0; id < KEYS; id++)
        CHECK(present(id) && stage.times[id] == belongs(id, 7) + (id % 50 == 9));
    stage.listener = NULL;
    close_table();
}

/* The causes that callers report: a value that was replaced, a key deleted, a table cleared. */
static void test_causes_of_callers(void) {
    lapse_object *old;
    lapse_item removed;
    open_table(plain);
    put_all(0, 300, LAPSE_NEVER);
    CHECK(lapse_put(stage.t, &twins[1], 1, &other_value, LAPSE_NEVER, stage.now, &old) == LAPSE_OK &&
          old == &value);
    lapse_farewell_value(stage.t, &twins[1], old);
    CHECK(stage.why[1] == LAPSE_REPLACED && stage.times[1] == 1);
    CHECK(lapse_delete(stage.t, &keys[2], 2, stage.now, &removed) == LAPSE_OK);
    lapse_farewell(stage.t, &removed, 1, LAPSE_DELETED);
    CHECK(stage.why[2] == LAPSE_DELETED && stage.times[2] == 1);
    put_all(3, 4, 10);
    stage.now += 10;
    forget_what_went();
    clear();
    CHECK(stage.gone[LAPSE_CLEARED] == 298 && stage.gone[LAPSE_BY_DEADLINE] == 1);
    CHECK(stage.why[3] == LAPSE_BY_DEADLINE && stage.times[2] == 0);
    close_table();
}

static void test_causes_of_reads(void) {
    lapse_object *found;
    open_table((lapse_config){.mode = LAPSE_PROBABILISTIC, .default_ttl = 1000, .early_factor = 1});
    put_all(0, 2000, LAPSE_DEFAULT);
    stage.now += 999;
    for (uint32_t id = 0; id < 1000; id++)
        if (lapse_get(stage.t, &keys[id], id, stage.now, &found) == LAPSE_OK) object_unref(found);
    stage.now += 1;
    for (uint32_t id = 1000; id < 2000; id++)
        CHECK(lapse_get(stage.t, &keys[id], id, stage.now, &found) == LAPSE_EXPIRED);
    CHECK(stage.gone[LAPSE_BY_DRAW] > 900 && stage.gone[LAPSE_BY_DEADLINE] == 1000);
    for (uint32_t id = 0; id < 2000; id++) CHECK(stage.times[id] == (id >= 1000 || !present(id)));
    close_table();
}

/* --- Batches of keys --- */

#define BATCH 5000u

static uint32_t order[BATCH], scratch[BATCH];
static uint8_t erased[BATCH];
static lapse_object *batch[BATCH];
static uint64_t hashes[BATCH];

static void test_sorting(void) {
    uint64_t random = 3;
    static bool seen[BATCH];
    for (uint32_t i = 0; i < BATCH; i++) hashes[i] = random_word(&random) % 4000; /* some of them equal */
    lapse_sort_hashes(BATCH, hashes, order, scratch);
    for (uint32_t i = 0; i < BATCH; i++) {
        CHECK(order[i] < BATCH && !seen[order[i]]);
        seen[order[i]] = true;
        if (i == 0) continue;
        uint64_t before = mix_hash(hashes[order[i - 1]]) >> 48, here = mix_hash(hashes[order[i]]) >> 48;
        CHECK(before < here || (before == here && order[i - 1] < order[i]));
    }
    lapse_sort_hashes(0, hashes, order, scratch);
    lapse_sort_hashes(1, hashes, order, scratch);
    CHECK(order[0] == 0);
}

/* Erase the batch; answers RAISED keys, stepping over them. */
static uint32_t erase_batch(size_t n) {
    size_t done = 0, before;
    uint32_t raised = 0;
    memset(erased, 0, sizeof erased);
    lapse_sort_hashes(n, hashes, order, scratch);
    for (lapse_status status = LAPSE_MORE; status != LAPSE_OK;) {
        before = done;
        status = lapse_erase_keys(stage.t, n, batch, hashes, &done, stage.now, order, erased);
        CHECK(done <= n && done - before <= LAPSE_BLOCK);
        if (status != LAPSE_RAISED) continue;
        raised++;
        CHECK(batch[order[done]]->on_equal && done < n);
        done++;
        if (done == n) break;
    }
    CHECK(done == n);
    return raised;
}

static void test_erasing(void) {
    open_table(plain);
    put_all(0, 20000, LAPSE_NEVER);
    for (uint32_t id = 0; id < 20000; id += 8) put_all(id, id + 1, 10);
    stage.now += 10;
    forget_what_went();
    for (uint32_t i = 0; i < BATCH; i++) {
        uint32_t id = i % 4000 * 6; /* the last thousand stand twice; some are not there */
        batch[i] = i % 2 ? &keys[id] : &twins[id];
        hashes[i] = id;
    }
    CHECK(erase_batch(BATCH) == 0);
    size_t live = 0;
    for (uint32_t i = 0; i < BATCH; i++) {
        uint32_t id = (uint32_t)batch[i]->id;
        CHECK(erased[i] == (i < 4000 && id < 20000 && id % 8 != 0));
        CHECK(!present(id) && stage.times[id] == (id < 20000));
        CHECK(id >= 20000 || stage.why[id] == (id % 8 ? LAPSE_DELETED : LAPSE_BY_DEADLINE));
        live += erased[i];
    }
    lapse_counters c;
    lapse_counters_read(stage.t, &c);
    CHECK(c.deletes == live && c.deletes == stage.gone[LAPSE_DELETED]);
    CHECK(c.expirations == stage.gone[LAPSE_BY_DEADLINE]);
    CHECK(erase_batch(0) == 0);
    close_table();
}

static int raise(lapse_object *stored, lapse_object *key) {
    (void)stored;
    return key->id % 3 ? key->id == stored->id : -1;
}

/* Keys that must be asked: some answer, some raise, and what one raises costs no other its turn. */
static void test_erasing_what_must_be_asked(void) {
    open_table(plain);
    for (uint32_t id = 0; id < 600; id++) twins[id].needs_asking = id % 2;
    put_all(0, 600, LAPSE_NEVER);
    for (uint32_t id = 0; id < 600; id++) {
        batch[id] = &twins[id];
        hashes[id] = id;
        if (id % 2) twins[id].on_equal = raise;
    }
    CHECK(erase_batch(600) == 100);
    for (uint32_t id = 0; id < 600; id++) {
        bool raises = id % 2 && id % 3 == 0;
        CHECK(erased[id] == !raises && present(id) == raises);
        CHECK(stage.times[id] == !raises);
    }
    close_table();
}

/* --- Memory that fails --- */

/* Take a pass to its end; where memory fails it may say so, and goes on when there is some again. */
static void finish_at_last(lapse_pass *p, uint32_t fail_at) {
    lapse_status status;
    while ((status = step(p)) != LAPSE_OK) {
        CHECK(status == LAPSE_MORE || (status == LAPSE_NO_MEMORY && ledger.requests >= fail_at));
        CHECK(lapse_check(stage.t));
        if (status == LAPSE_NO_MEMORY) expect_no_failures();
    }
}

/* A pass of which the n-th request fails, and perhaps all that follow: what is due goes, the rest stays, and the
 * next pass has an index. Answers how many requests a pass makes. */
static uint32_t play(const char *glob, uint32_t fail_at, bool fail_after) {
    struct lapse_pattern *pattern = compile(glob);
    lapse_pass *p = NULL;
    lapse_config config = plain;
    config.memory = &failing;
    expect_no_failures();
    open_table(config);
    put_all(0, KEYS, LAPSE_NEVER);
    expect_failures(fail_at, fail_after);
    lapse_status status = lapse_pass_new(stage.t, &pattern, 1, NULL, 0, stage.now, false, &p);
    CHECK(status == (fail_at == 1 ? LAPSE_NO_MEMORY : LAPSE_OK));
    if (status == LAPSE_NO_MEMORY) expect_no_failures(), p = begin_match(&pattern, 1);
    finish_at_last(p, fail_at);
    CHECK(lapse_pass_counts(p)[0] == count_of(7));
    uint32_t requests = ledger.requests;
    expect_no_failures();
    lapse_pass_end(p);
    check_all_but(7);
    CHECK(lapse_check(stage.t));
    CHECK(delete_matching("t9:*") == count_of(9) && is_built(1));
    close_table();
    CHECK(ledger.held == 0);
    discard(pattern);
    return requests;
}

static void test_each_request_of_a_pass_fails(void) {
    uint32_t requests = play("t7:*", 0, false);
    CHECK(requests > 8);
    for (uint32_t n = 1; n <= requests; n++) {
        play("t7:*", n, false);
        play("t7:*", n, true);
        play("[t]7:*", n, false);
    }
}

/* A walk needs a node of the index; a tag has no other way, so it says so, and works the next time. */
static void test_a_walk_without_memory(void) {
    lapse_config config = plain;
    lapse_status status;
    config.memory = &failing;
    expect_no_failures();
    open_table(config);
    for (uint32_t id = 0; id < 61; id++) CHECK(put(id, LAPSE_NEVER, tags_from(0, 1)) == LAPSE_OK);
    lapse_pass *a = begin_tag(0), *b = begin_tag(0);
    CHECK(step(a) == LAPSE_MORE && step(a) == LAPSE_MORE); /* its node is the last of the first level */
    expect_failures(1, true);
    do status = step(b);
    while (status == LAPSE_MORE);
    CHECK(status == LAPSE_NO_MEMORY && present(0) && lapse_check(stage.t));
    expect_no_failures();
    finish(b);
    CHECK(lapse_pass_counts(b)[0] == 61 && !present(0));
    lapse_pass_end(b);
    finish(a);
    CHECK(lapse_pass_counts(a)[0] == 0);
    lapse_pass_end(a);
    close_table();
    CHECK(ledger.held == 0);
}

int main(void) {
    RUN(test_a_prefix_is_looked_up);
    RUN(test_steps_are_those_of_the_match);
    RUN(test_what_is_not_looked_up);
    RUN(test_many_patterns_in_one_pass);
    RUN(test_a_label_of_which_few_match);
    RUN(test_patterns_of_one_prefix);
    RUN(test_the_index_is_kept_up);
    RUN(test_splits_and_merges_meanwhile);
    RUN(test_changes_during_a_build);
    RUN(test_other_keys_at_the_same_addresses);
    RUN(test_a_clear_meanwhile);
    RUN(test_a_tag_takes_its_entries);
    RUN(test_two_passes_over_one_tag);
    RUN(test_listing);
    RUN(test_causes);
    RUN(test_a_listener_that_stores_again);
    RUN(test_causes_of_callers);
    RUN(test_causes_of_reads);
    RUN(test_sorting);
    RUN(test_erasing);
    RUN(test_erasing_what_must_be_asked);
    RUN(test_a_walk_without_memory);
    RUN(test_passes_given_up);
    RUN(test_each_request_of_a_pass_fails);
    return tests_done();
}
