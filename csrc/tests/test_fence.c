/* The fence: what outdates a lease and what does not, at each moment of a pass, when there are too many leases or
 * too many events, and when memory fails. */
#include "ledger.h"
#include "stage.h"

#define MOST_LEASES 65536u
#define MOST_EVENTS 65536u

static const lapse_config plain = {.default_ttl = LAPSE_NEVER};

/* --- Leases --- */

static lapse_lease *take(uint32_t id) {
    lapse_lease *l;
    CHECK(lapse_lease_take(stage.t, &twins[id], id, &l) == LAPSE_OK);
    return l;
}

static void end(lapse_lease *l) { lapse_lease_end(stage.t, l); }

static bool good(const lapse_lease *l, const lapse_tags *tags) { return lapse_lease_holds(stage.t, l, tags); }

static lapse_status fill(lapse_lease *l, const lapse_tags *tags) {
    lapse_object *old = NULL;
    lapse_status status = lapse_fill(stage.t, l, &other_value, LAPSE_NEVER, tags, false, stage.now, &old);
    if (old) object_unref(old);
    return status;
}

/* Fill a lease and give it back: was it stored? */
static bool fill_and_end(lapse_lease *l, const lapse_tags *tags) {
    bool expected = good(l, tags);
    uint64_t before = stage.t->counters[0].c.fenced;
    lapse_status status = fill(l, tags);
    CHECK(status == (expected ? LAPSE_OK : LAPSE_OUTDATED));
    CHECK(fill(l, tags) == LAPSE_OUTDATED); /* once is all */
    end(l);
#if !LAPSE_THREADS
    CHECK(stage.t->counters[0].c.fenced == before + 1 + !expected);
#else
    (void)before;
#endif
    return expected;
}

/* --- Changes: key 1 is there, key 2 is not --- */

static void change_put(void) { CHECK(put(1, LAPSE_NEVER, NULL) == LAPSE_OK); }
static void change_put_absent(void) { CHECK(put(2, LAPSE_NEVER, NULL) == LAPSE_OK); }

static void put_new(uint32_t id) {
    lapse_object *there = NULL;
    lapse_put_new(stage.t, &keys[id], id, &value, LAPSE_NEVER, stage.now, &there);
    if (there) object_unref(there);
}
static void change_put_new(void) { put_new(2); }
static void change_put_new_in_vain(void) { put_new(1); }

static void change_put_item(void) {
    lapse_item item = {.key = &keys[1], .value = &value};
    lapse_object *old;
    CHECK(lapse_put_item(stage.t, &item, 1, NULL, stage.now, &old) == LAPSE_OK);
    object_unref(old);
}

static lapse_status exchange(lapse_object *expected) {
    lapse_object *old;
    lapse_status status = lapse_exchange(stage.t, &keys[1], 1, expected, &other_value, stage.now, &old);
    if (status == LAPSE_OK) object_unref(old);
    return status;
}
static void change_exchange(void) { CHECK(exchange(&value) == LAPSE_OK); }
static void change_exchange_in_vain(void) { CHECK(exchange(&other_value) == LAPSE_ABSENT); }

static void change_touch(void) { CHECK(lapse_touch(stage.t, &keys[1], 1, 500, stage.now) == LAPSE_OK); }
static void change_delete(void) { CHECK(erase(1)); }
static void change_delete_absent(void) { CHECK(!erase(2)); }

static void change_get(void) {
    lapse_object *found;
    for (uint32_t id = 1; id <= 2; id++)
        if (lapse_get(stage.t, &keys[id], id, stage.now, &found) == LAPSE_OK) object_unref(found);
}

static void change_pop(void) {
    lapse_item removed;
    uint64_t cursor = 0;
    CHECK(lapse_pop_any(stage.t, &cursor, stage.now, &removed) == LAPSE_OK);
    lapse_release(&removed, 1);
}

static void change_erase(void) {
    lapse_object *list[] = {&keys[1], &keys[2]};
    uint64_t hashes[] = {1, 2};
    uint32_t order[] = {0, 1};
    uint8_t erased[2] = {0};
    size_t done = 0;
    CHECK(lapse_erase_keys(stage.t, 2, list, hashes, &done, stage.now, order, erased) == LAPSE_OK);
    CHECK(erased[0] && !erased[1]);
}

static void expire(void) {
    change_touch();
    stage.now += 500;
}
static void change_expire(void) {
    expire();
    change_get();
    CHECK(lapse_len(stage.t, 0) == 0);
}
static void change_sweep(void) {
    expire();
    sweep();
}

static void change_by_pattern(void) { CHECK(delete_matching("t1:*") == 1); }
static void change_by_pattern_absent(void) { CHECK(delete_matching("t2:?:*") == 0); }
static void change_by_tag(void) { CHECK(delete_tag(5) == 0); }
static void change_fill(void) { CHECK(fill_and_end(take(1), NULL)); }

/* Take a pass as far as its leases, and end it. */
static void outdate(lapse_pass *p) {
    while (lapse_pass_outdate(p)) continue;
    lapse_pass_end(p);
}
static void outdate_matching(const char *glob) {
    struct lapse_pattern *pattern = compile(glob);
    outdate(begin_match(&pattern, 1));
    discard(pattern);
}
static void mark_key(void) { lapse_outdate_key(stage.t, &keys[1], 1); }
static void mark_key_absent(void) { lapse_outdate_key(stage.t, &keys[2], 2); }
static void mark_by_pattern(void) { outdate_matching("t1:*"); }
static void mark_by_pattern_absent(void) { outdate_matching("t2:?:*"); }
static void mark_by_tag(void) { outdate(begin_tag(5)); }
static void mark_all(void) { lapse_outdate_all(stage.t); }

static lapse_status drop(uint32_t id, lapse_object *expected) {
    lapse_item removed;
    lapse_status status = lapse_drop(stage.t, &twins[id], id, expected, stage.now, &removed);
    if (status == LAPSE_OK || status == LAPSE_EXPIRED) lapse_release(&removed, 1);
    return status;
}
static void change_drop(void) { CHECK(drop(1, &value) == LAPSE_OK && !present(1)); }
static void change_drop_another(void) { CHECK(drop(1, &other_value) == LAPSE_ABSENT && present(1)); }
static void change_drop_absent(void) { CHECK(drop(2, &value) == LAPSE_ABSENT); }
static void change_drop_expired(void) {
    change_touch();
    stage.now += 500;
    CHECK(drop(1, &value) == LAPSE_EXPIRED && drop(1, &value) == LAPSE_ABSENT);
}

static void change_list(void) {
    struct lapse_pattern *all = compile("*");
    lapse_item out[LAPSE_STEP];
    lapse_pass *p;
    size_t n;
    lapse_status status;
    CHECK(lapse_pass_new(stage.t, &all, 1, NULL, 0, stage.now, true, &p) == LAPSE_OK);
    do {
        status = lapse_pass_step(p, out, &n);
        for (size_t i = 0; i < n; i++) object_unref(out[i].key);
    } while (status == LAPSE_MORE);
    lapse_pass_end(p);
    discard(all);
}

static const struct {
    void (*change)(void);
    bool there, absent, others; /* whose leases it outdates */
} changes[] = {
    {change_put, true, false, false},
    {change_put_absent, false, true, false},
    {change_put_new, false, true, false},
    {change_put_new_in_vain, false, false, false},
    {change_put_item, true, false, false},
    {change_exchange, true, false, false},
    {change_exchange_in_vain, false, false, false},
    {change_touch, false, false, false},
    {change_delete, true, false, false},
    {change_delete_absent, false, true, false},
    {change_get, false, false, false},
    {change_pop, true, false, false},
    {change_erase, true, true, false},
    {change_expire, false, false, false},
    {change_sweep, false, false, false},
    {change_by_pattern, true, false, false},
    {change_by_pattern_absent, false, true, false},
    {change_by_tag, false, false, false},
    {change_fill, false, false, false},
    {change_list, false, false, false},
    {clear, true, true, true},
    {mark_key, true, false, false},
    {mark_key_absent, false, true, false},
    {mark_by_pattern, true, false, false},
    {mark_by_pattern_absent, false, true, false},
    {mark_by_tag, false, false, false},
    {mark_all, true, true, true},
    {change_drop, false, false, false},
    {change_drop_another, false, false, false},
    {change_drop_absent, false, false, false},
    {change_drop_expired, false, false, false},
};

/* Each change outdates the leases of what it changes, any number of them, and no others. */
static void test_what_outdates(void) {
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        open_table(plain);
        CHECK(put(1, LAPSE_NEVER, tags_from(0, 1)) == LAPSE_OK);
        lapse_lease *there[] = {take(1), take(1)}, *absent[] = {take(2), take(2)},
                    *others[] = {take(30), take(31)};
        changes[i].change();
        for (uint32_t k = 0; k < 2; k++) {
            CHECK(good(there[k], NULL) == !changes[i].there);
            CHECK(good(absent[k], NULL) == !changes[i].absent);
            CHECK(good(others[k], NULL) == !changes[i].others);
        }
        CHECK(fill_and_end(there[0], NULL) == !changes[i].there);
        CHECK(fill_and_end(absent[0], NULL) == !changes[i].absent);
        CHECK(fill_and_end(others[0], NULL) == !changes[i].others);
        CHECK(present(30) == !changes[i].others);
        CHECK(fill_and_end(take(1), NULL) &&
              fill_and_end(take(2), NULL)); /* who comes later is not concerned */
        end(there[1]);
        end(absent[1]);
        end(others[1]);
        close_table();
    }
}

/* Keys that only their own comparison could tell apart count as equal if their hashes are. */
static void test_keys_that_must_be_asked(void) {
    open_table(plain);
    twins[50].needs_asking = true;
    lapse_lease *asking, *plain_one, *equal;
    CHECK(lapse_lease_take(stage.t, &twins[50], 9, &asking) == LAPSE_OK);
    CHECK(lapse_lease_take(stage.t, &twins[51], 9, &plain_one) == LAPSE_OK);
    CHECK(lapse_lease_take(stage.t, &twins[9], 9, &equal) == LAPSE_OK);
    CHECK(!erase(9));
    CHECK(!good(asking, NULL) && good(plain_one, NULL) && !good(equal, NULL));
    end(asking);
    end(plain_one);
    end(equal);
    close_table();
}

/* Leases are outdated with no entry touched, and without a walk over the table. */
static void test_leases_alone(void) {
    open_table(plain);
    for (uint32_t id = 0; id < KEYS; id++) CHECK(put(id, LAPSE_NEVER, tags_from(id % 3, 1)) == LAPSE_OK);
    lapse_lease *tagged = take(3), *other = take(4), *matching = take(101), *early = take(1);
    struct lapse_pattern *pattern = compile("t1:*");
    lapse_pass *p = begin_match(&pattern, 1);
    CHECK(!good(early, NULL)); /* from the beginning on */
    for (uint32_t n = 0; lapse_pass_outdate(p); n++) CHECK(n < 16);
    CHECK(!fill_and_end(take(201), NULL)); /* who comes before the end counts as older */
    lapse_pass_end(p);
    discard(pattern);
    mark_by_tag();
    lapse_outdate_key(stage.t, &keys[9], 9);
    CHECK(!good(matching, NULL) && good(tagged, tags_from(0, 1)) && !good(tagged, tags_from(5, 1)));
    CHECK(fill_and_end(take(201), NULL) && fill_and_end(take(9), tags_from(5, 1)));
    mark_all();
    CHECK(!fill_and_end(tagged, NULL) && !fill_and_end(other, NULL) && fill_and_end(take(4), NULL));
    CHECK(lapse_len(stage.t, stage.now) == KEYS);
    for (uint32_t cause = 0; cause < CAUSES; cause++) CHECK(stage.gone[cause] == 0);
    end(matching);
    end(early);
    close_table();
}

/* A drop takes what it expects, once, and tells the index. */
static void test_a_drop(void) {
    lapse_counters c;
    open_table(plain);
    CHECK(put(1, LAPSE_NEVER, tags_from(3, 2)) == LAPSE_OK && put(2, 10, NULL) == LAPSE_OK);
    lapse_lease *l = take(1);
    CHECK(drop(1, &other_value) == LAPSE_ABSENT && present(1));
    CHECK(drop(1, &value) == LAPSE_OK && drop(1, &value) == LAPSE_ABSENT && !present(1));
    CHECK(lapse_check(stage.t) && delete_tag(3) == 0);
    CHECK(fill_and_end(l, NULL) && present(1));
    stage.now += 10;
    CHECK(drop(2, &other_value) == LAPSE_ABSENT && drop(2, &value) == LAPSE_EXPIRED);
    lapse_counters_read(stage.t, &c);
    CHECK(c.deletes == 1 && c.expirations == 1);
    close_table();
}

/* --- What a fill stores --- */

static void test_a_fill_is_a_write(void) {
    lapse_object *found, *old;
    open_table(plain);
    put_all(1, 3, 10);
    lapse_lease *live = take(1), *expired = take(2), *fresh = take(3);
    CHECK(lapse_fill(stage.t, live, &other_value, 100, NULL, false, stage.now, &old) == LAPSE_OK &&
          old == &value);
    object_unref(old);
    stage.now += 10;
    CHECK(lapse_fill(stage.t, expired, &other_value, 100, NULL, false, stage.now, &old) == LAPSE_OK &&
          old == NULL);
    CHECK(stage.gone[LAPSE_BY_DEADLINE] == 1 && stage.why[2] == LAPSE_BY_DEADLINE);
    CHECK(lapse_fill(stage.t, fresh, &other_value, 100, NULL, false, stage.now, &old) == LAPSE_OK &&
          old == NULL);
    for (uint32_t id = 1; id <= 3; id++) {
        CHECK(lapse_get(stage.t, &keys[id], id, stage.now, &found) == LAPSE_OK && found == &other_value);
        object_unref(found);
    }
    stage.now += 100;
    CHECK(lapse_len(stage.t, stage.now) == 0);
    end(live);
    end(expired);
    end(fresh);
    close_table();
}

/* The index knows what was filled. */
static void test_a_fill_is_indexed(void) {
    open_table(plain);
    put_all(100, KEYS, LAPSE_NEVER);
    CHECK(delete_matching("none:*") == 0 && stage.t->index.built != 0);
    CHECK(fill_and_end(take(1), tags_from(3, 2)) && fill_and_end(take(2), tags_from(4, 20)));
    CHECK(lapse_check(stage.t));
    CHECK(delete_tag(3) == 1 && !present(1) && delete_tag(4) == 1 && !present(2));
    CHECK(fill_and_end(take(7), NULL) && put(8, LAPSE_NEVER, NULL) == LAPSE_OK &&
          fill_and_end(take(8), NULL));
    CHECK(delete_matching("t7:0:*") > 0 && !present(7));
    CHECK(delete_matching("t8:1:*") > 0 && !present(8));
    close_table();
}

/* --- Passes, in steps --- */

static void test_a_pattern_at_each_moment(void) {
    struct lapse_pattern *pattern = compile("t1:*");
    for (uint32_t steps = 0;; steps++) {
        open_table(plain);
        put_all(100, 5000, LAPSE_NEVER);
        lapse_lease *before[] = {take(1), take(101), take(2)}, *early = take(201);
        lapse_pass *p = begin_match(&pattern, 1);
        CHECK(!fill_and_end(early, NULL));
        lapse_status status = LAPSE_MORE;
        for (uint32_t n = 0; n < steps && status == LAPSE_MORE; n++) status = step(p);
        lapse_lease *during[] = {take(1), take(101), take(2)};
        CHECK(!good(before[0], NULL) && !fill_and_end(before[1], NULL) && fill_and_end(before[2], NULL));
        CHECK(!good(during[0], NULL) && !fill_and_end(during[1], NULL) && fill_and_end(during[2], NULL));
        if (status == LAPSE_MORE) finish(p);
        lapse_pass_end(p);
        CHECK(!fill_and_end(before[0], NULL) && !fill_and_end(during[0], NULL));
        CHECK(fill_and_end(take(1), NULL));
        CHECK(delete_matching("t1:*") == 1); /* that one alone: nothing else has come back */
        close_table();
        if (status == LAPSE_OK) break;
    }
    discard(pattern);
}

static void test_a_tag_at_each_moment(void) {
    for (uint32_t steps = 0;; steps++) {
        open_table(plain);
        for (uint32_t id = 100; id < 1000; id++) CHECK(put(id, LAPSE_NEVER, tags_from(5, 1)) == LAPSE_OK);
        lapse_lease *before[] = {take(1), take(1), take(2), take(3)}, *early = take(200);
        lapse_pass *p = begin_tag(5);
        CHECK(!fill_and_end(early, tags_from(4, 2)));
        lapse_status status = LAPSE_MORE;
        for (uint32_t n = 0; n < steps && status == LAPSE_MORE; n++) status = step(p);
        lapse_lease *during[] = {take(1), take(2), take(3)};
        CHECK(!good(before[0], tags_from(5, 1)) && good(before[0], NULL) && good(before[0], tags_from(6, 9)));
        CHECK(!good(during[0], tags_from(5, 1)) && good(during[0], NULL) && good(during[0], tags_from(6, 9)));
        if (status == LAPSE_MORE) finish(p);
        lapse_pass_end(p);
        CHECK(!fill_and_end(before[0], tags_from(5, 1)) && !fill_and_end(before[1], tags_from(0, 9)));
        CHECK(fill_and_end(before[2], NULL) && fill_and_end(before[3], tags_from(6, 9)));
        CHECK(!fill_and_end(during[0], tags_from(5, 1)) && fill_and_end(during[1], NULL));
        CHECK(fill_and_end(during[2], tags_from(6, 9)) && fill_and_end(take(1), tags_from(5, 1)));
        CHECK(delete_tag(5) == 1);
        close_table();
        if (status == LAPSE_OK) return;
    }
}

/* A pass over many leases goes in steps, and reaches all of them. */
static void test_a_pattern_over_many_leases(void) {
    static lapse_lease *leases[KEYS];
    struct lapse_pattern *pattern = compile("t?:*");
    open_table(plain);
    for (uint32_t id = 0; id < KEYS; id++) leases[id] = take(id);
    lapse_pass *p = begin_match(&pattern, 1);
    CHECK(finish(p) > 10);
    lapse_pass_end(p);
    for (uint32_t id = 0; id < KEYS; id++)
        CHECK(fill_and_end(leases[id], NULL) == !(has_text(id) && id % TABLES < 10));
    discard(pattern);
    close_table();
}

/* A clear between two steps of its own: leases from before are outdated, those from after are not. */
static void test_a_clear(void) {
    lapse_item removed[LAPSE_STEP];
    size_t n;
    open_table(plain);
    put_all(100, 2000, LAPSE_NEVER);
    lapse_lease *before = take(1);
    CHECK(lapse_detach(stage.t) == LAPSE_OK);
    lapse_lease *after = take(1);
    CHECK(!fill_and_end(before, NULL) && fill_and_end(after, NULL));
    while (lapse_drain(stage.t, removed, &n) == LAPSE_MORE) lapse_release(removed, n);
    lapse_release(removed, n);
    CHECK(lapse_len(stage.t, stage.now) == 1 && present(1));
    close_table();
}

/* In the child of a fork a pass of a thread that is gone covers nothing any more. */
static void test_a_fork_in_a_pass(void) {
    struct lapse_pattern *pattern = compile("t1:*");
    open_table(plain);
    put_all(0, 300, LAPSE_NEVER);
    CHECK(!lapse_after_fork(stage.t) && lapse_len(stage.t, stage.now) == 300);
    lapse_lease *before = take(1);
    lapse_pass *p = begin_match(&pattern, 1);
    CHECK(lapse_after_fork(stage.t));
    CHECK(lapse_len(stage.t, stage.now) == 0); /* it removes what the pass would have */
    CHECK(!fill_and_end(before, NULL) && fill_and_end(take(1), NULL));
    lapse_pass_end(p); /* the thread that forked goes on */
    clear();
    discard(pattern);
    close_table();
}

/* --- Too many --- */

static void test_one_lease_too_many(void) {
    static lapse_lease *leases[MOST_LEASES];
    open_table(plain);
    for (uint32_t i = 0; i < MOST_LEASES; i++) leases[i] = take(i % KEYS);
    size_t bytes = lapse_bytes(stage.t);
    for (uint32_t i = 0; i < MOST_LEASES; i += 97) CHECK(good(leases[i], NULL));
    for (uint32_t n = 0; n < 100; n++) CHECK(!fill_and_end(take(n), NULL)); /* given, but not honoured */
    CHECK(lapse_bytes(stage.t) == bytes);
    lapse_lease *late = take(5);
    end(leases[0]);
    CHECK(!good(late, NULL)); /* nor afterwards: nobody has watched its key */
    CHECK(fill_and_end(take(5), NULL));
    end(late);
    CHECK(fill(leases[1], NULL) == LAPSE_OK && fill_and_end(take(6), NULL)); /* a filled one counts no more */
    CHECK(erase(5) && !erase(7));
    for (uint32_t i = 1; i < MOST_LEASES; i++) {
        uint32_t id = i % KEYS;
        if (i % 61 == 0 || id < 10) CHECK(good(leases[i], NULL) == (id != 5 && id != 7 && i != 1));
        end(leases[i]);
    }
    CHECK(stage.t->fence.out == 0);
    close_table();
}

/* More deleted tags than are remembered: leases from before may be filled without tags, but with none. */
static void test_more_events_than_are_remembered(void) {
    open_table(plain);
    lapse_lease *tagged = take(1), *untagged = take(2);
    for (uint32_t n = 0; n < 100; n++) CHECK(delete_tag(1) == 0);
    CHECK(good(tagged, tags_from(2, 5)) && !good(tagged, tags_from(1, 5)));
    for (uint32_t n = 0; n < MOST_EVENTS / 2; n++) CHECK(delete_tag(1) == 0);
    CHECK(!good(tagged, tags_from(2, 1)) && !good(untagged, tags_from(2, 1)) && good(untagged, NULL));
    lapse_lease *late = take(3);
    CHECK(!fill_and_end(tagged, tags_from(2, 1)) && fill_and_end(untagged, NULL));
    CHECK(delete_tag(1) == 0 && !good(late, tags_from(1, 1)) && good(late, tags_from(2, 5)));
    CHECK(fill_and_end(late, tags_from(2, 5)));
    CHECK(delete_tag(2) == 1);
    close_table();
}

/* Without leases nothing is written down. */
static void test_nothing_is_kept_without_leases(void) {
    open_table(plain);
    size_t bytes = lapse_bytes(stage.t);
    for (uint32_t n = 0; n < 1000; n++) delete_tag(n % 7);
    CHECK(lapse_bytes(stage.t) == bytes && stage.t->fence.written == 0);
    CHECK(fill_and_end(take(1), tags_from(1, 1)));
    for (uint32_t n = 0; n < 1000; n++) delete_tag(n % 7);
    CHECK(stage.t->fence.written == 0);
    close_table();
}

/* --- Memory that fails --- */

static void open_failing(void) {
    lapse_config config = plain;
    config.memory = &failing;
    expect_no_failures();
    open_table(config);
}

static void test_leases_without_memory(void) {
    for (uint32_t n = 1; n <= 5; n++) {
        lapse_lease *l;
        open_failing();
        uint32_t held = ledger.held;
        expect_failures(n, false);
        lapse_status status = lapse_lease_take(stage.t, &keys[1], 1, &l);
        bool failed = ledger.requests >= n;
        CHECK(status == (failed ? LAPSE_NO_MEMORY : LAPSE_OK) && failed == (n <= 3));
        CHECK(stage.t->fence.out == !failed);
        CHECK(!failed || ledger.held == held);
        expect_no_failures();
        if (failed) CHECK(lapse_lease_take(stage.t, &keys[1], 1, &l) == LAPSE_OK);
        CHECK(fill_and_end(l, NULL));
        close_table();
        CHECK(ledger.held == 0);
    }
}

/* A fill that memory fails stores nothing, and the lease stays good for another. */
static uint32_t play_fills(uint32_t fail_at) {
    open_failing();
    lapse_lease *first = take(0);
    expect_failures(fail_at, false);
    for (uint32_t id = 0; id < 2000; id++) {
        lapse_lease *l = id ? NULL : first;
        if (l == NULL && lapse_lease_take(stage.t, &twins[id], id, &l) == LAPSE_NO_MEMORY) l = take(id);
        lapse_status status = fill(l, tags_from(id % 90, id % 5));
        CHECK(status == LAPSE_OK || (status == LAPSE_NO_MEMORY && ledger.requests >= fail_at));
        if (status == LAPSE_NO_MEMORY) {
            CHECK(!present(id) && lapse_check(stage.t) && good(l, NULL));
            CHECK(fill(l, tags_from(id % 90, id % 5)) == LAPSE_OK);
        }
        CHECK(present(id));
        end(l);
    }
    uint32_t requests = ledger.requests;
    expect_no_failures();
    close_table();
    CHECK(ledger.held == 0);
    return requests;
}

static void test_fills_without_memory(void) {
    uint32_t requests = play_fills(0);
    CHECK(requests > 2000);
    for (uint32_t n = 1; n <= requests; n += n < 120 ? 1 : 53) play_fills(n);
}

int main(void) {
    RUN(test_what_outdates);
    RUN(test_keys_that_must_be_asked);
    RUN(test_leases_alone);
    RUN(test_a_drop);
    RUN(test_a_fill_is_a_write);
    RUN(test_a_fill_is_indexed);
    RUN(test_a_pattern_at_each_moment);
    RUN(test_a_tag_at_each_moment);
    RUN(test_a_pattern_over_many_leases);
    RUN(test_a_clear);
    RUN(test_a_fork_in_a_pass);
    RUN(test_one_lease_too_many);
    RUN(test_more_events_than_are_remembered);
    RUN(test_nothing_is_kept_without_leases);
    RUN(test_leases_without_memory);
    RUN(test_fills_without_memory);
    return tests_done();
}
