/* A memory that fails: at the n-th request, for every n, the table reports it, stays whole, and in the end
 * gives every byte back. */
#include "ledger.h"
#include "stream.h"

static lapse_config config_of(lapse_mode mode) {
    return (lapse_config){.mode = mode,
                          .default_ttl = 1000,
                          .max_lifetime = mode == LAPSE_SLIDING ? 5000 : LAPSE_NEVER,
                          .own_clock = true,
                          .memory = &failing};
}

/* --- Making a table --- */

static void test_new(void) {
    lapse_config config = config_of(LAPSE_SLIDING);
    for (uint32_t n = 1;; n++) {
        expect_failures(n, false);
        lapse_table *t = lapse_table_new(&config);
        bool failed = ledger.requests >= n;
        CHECK((t == NULL) == failed);
        if (t) lapse_table_free(t);
        CHECK(ledger.held == 0);
        if (failed) continue;
        CHECK(n > 2); /* at least two requests have been made to fail */
        return;
    }
}

/* --- Growing --- */

/* What happens to a key when memory fails: nothing. Answers whether it did. */
static bool put_once(world *w, uint32_t id, int64_t ttl) {
    naive *n = &w->map[id];
    lapse_object *replaced, *key = &w->keys[id][0], *value = &w->values[id % VALUES];
    int64_t references = key->references;
    lapse_status status = lapse_put(w->t, key, w->hashes[id], value, ttl, w->now, &replaced);
    CHECK(status == LAPSE_OK || status == LAPSE_NO_MEMORY);
    if (status == LAPSE_NO_MEMORY) {
        CHECK(key->references == references && n->key == NULL);
        return false;
    }
    if (replaced) object_unref(replaced);
    store(w, n, n->key ? n->key : key, value, ttl);
    return true;
}

static bool add_once(world *w, uint32_t id) {
    lapse_object *present, *key = &w->keys[id][0], *value = &w->values[id % VALUES];
    lapse_status status = lapse_put_new(w->t, key, w->hashes[id], value, LAPSE_NEVER, w->now, &present);
    CHECK(status == LAPSE_ABSENT || status == LAPSE_NO_MEMORY);
    if (status == LAPSE_ABSENT) store(w, &w->map[id], key, value, LAPSE_NEVER);
    return status == LAPSE_ABSENT;
}

static void check_whole(world *w) {
    world_check(w);
    for (uint32_t id = 0; id < IDS; id++) {
        lapse_status status = lapse_has(w->t, &w->keys[id][1], w->hashes[id], w->now);
        CHECK((status == LAPSE_OK) == lives(w, &w->map[id]));
    }
}

/* Clear, or leave the table as it was. */
static bool clear_once(world *w) {
    lapse_status status = lapse_detach(w->t);
    CHECK(status == LAPSE_OK || status == LAPSE_NO_MEMORY);
    if (status == LAPSE_OK) bury_map(w);
    drain_all(w);
    return status == LAPSE_OK;
}

/* Do a step that failed once more, with memory at hand again; it must not fail twice. */
#define RETRY(w, step)                                                         \
    do {                                                                       \
        if (step) break;                                                       \
        check_whole(w);                                                        \
        CHECK(!ledger.fail_after || !(step)); /* as long as memory is short */ \
        expect_no_failures();                                                  \
        CHECK(step);                                                           \
    } while (0)

/* Grow through every kind of segment, shrink, clear, and grow again. Answers how many requests for
 * memory a run without failures makes. */
static uint32_t play(lapse_mode mode, flavour f, uint32_t fail_at, bool fail_after) {
    lapse_config config = config_of(mode);
    expect_no_failures();
    world *w = world_new(&config, f, false);
    expect_failures(fail_at, fail_after);
    for (uint32_t id = 0; id < 3000; id++) RETRY(w, put_once(w, id, id % 3 ? 100 : LAPSE_NEVER));
    w->now += 200;
    sweep_all(w); /* shrinking may fail to get memory, and then does not shrink */
    check_whole(w);
    for (uint32_t id = 3000; id < IDS; id++) RETRY(w, add_once(w, id));
    RETRY(w, clear_once(w));
    for (uint32_t id = 0; id < 40; id++) RETRY(w, add_once(w, id));
    uint32_t requests = ledger.requests;
    w->counters.sets = 3000 + (IDS - 3000) + 40;
    expect_no_failures();
    world_free(w);
    CHECK(ledger.held == 0);
    return requests;
}

static void fail_each(lapse_mode mode, flavour f) {
    uint32_t requests = play(mode, f, 0, false);
    CHECK(requests > 12);
    for (uint32_t n = 1; n <= requests; n++) {
        play(mode, f, n, false);
        play(mode, f, n, true);
    }
}

static void test_each_request_fails_fixed(void) { fail_each(LAPSE_FIXED, SPREAD); }
static void test_each_request_fails_sliding(void) { fail_each(LAPSE_SLIDING, SPREAD); }
static void test_each_request_fails_equal_hashes(void) { fail_each(LAPSE_FIXED, EQUAL); }

/* Reads, overwrites, touches and deletions ask for nothing. */
static void test_what_needs_no_memory(void) {
    lapse_config config = config_of(LAPSE_SLIDING);
    expect_no_failures();
    world *w = world_new(&config, SPREAD, false);
    source from = {.random = 1};
    for (uint32_t id = 0; id < 2000; id++) CHECK(put_once(w, id, LAPSE_DEFAULT));
    w->counters.sets += 2000;
    expect_failures(1, true);
    for (uint32_t n = 0; n < 5000; n++) world_step(w, &from, "ghkbtdxosw");
    for (uint32_t id = 0; id < IDS; id++)
        if (lives(w, &w->map[id])) {
            CHECK(put_once(w, id, LAPSE_DEFAULT));
            w->counters.sets++;
        }
    expect_no_failures();
    world_free(w);
    CHECK(ledger.held == 0);
}

/* A random stream, in which the table asks and gives back as it likes: nothing is left over. */
static void test_everything_is_given_back(void) {
    for (lapse_mode mode = LAPSE_FIXED; mode <= LAPSE_PROBABILISTIC; mode++) {
        lapse_config config = config_of(mode);
        expect_no_failures();
        world *w = world_new(&config, SPREAD, false);
        source from = {.random = (uint64_t)mode};
        for (uint32_t n = 0; n < 30000; n++)
            world_step(w, &from, n / 5000 % 2 ? "dosSL++rwc" : "pppppppnix+");
        world_free(w);
        CHECK(ledger.held == 0);
    }
}

int main(void) {
    RUN(test_new);
    RUN(test_each_request_fails_fixed);
    RUN(test_each_request_fails_sliding);
    RUN(test_each_request_fails_equal_hashes);
    RUN(test_what_needs_no_memory);
    RUN(test_everything_is_given_back);
    return tests_done();
}
