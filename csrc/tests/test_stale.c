/* Values past their deadline: who finds them, when they go, and tickets to reload what is still live. */
#include "stage.h"

#define GRACE 50
#define TTL 100

static const lapse_config graceful = {.default_ttl = TTL, .grace = GRACE};

static lapse_status stale(uint32_t id) {
    lapse_object *found = NULL;
    lapse_status status = lapse_stale(stage.t, &twins[id], id, stage.now, &found);
    CHECK((status == LAPSE_OK) == (found == &value));
    if (found) object_unref(found);
    return status;
}

static lapse_status get(uint32_t id) {
    lapse_object *found = NULL;
    lapse_status status = lapse_get(stage.t, &keys[id], id, stage.now, &found);
    if (status == LAPSE_OK) object_unref(found);
    return status;
}

static size_t soften(int64_t grace) {
    uint64_t cursor = 0;
    size_t n = 0;
    while (lapse_soften(stage.t, &cursor, stage.now, stage.now + grace, &n) == LAPSE_MORE) continue;
    return n;
}

/* --- Grace --- */

static void test_only_within_the_grace(void) {
    open_table(graceful);
    put_all(1, 2, LAPSE_DEFAULT);
    CHECK(stale(1) == LAPSE_ABSENT); /* live */
    CHECK(stale(2) == LAPSE_ABSENT);
    stage.now += TTL;
    CHECK(stale(1) == LAPSE_OK && !present(1) && get(1) == LAPSE_EXPIRED);
    CHECK(lapse_len(stage.t, stage.now) == 0);
    stage.now += GRACE - 1;
    CHECK(stale(1) == LAPSE_OK);
    sweep();
    CHECK(stage.gone[LAPSE_BY_DEADLINE] == 0);
    stage.now++;
    CHECK(stale(1) == LAPSE_ABSENT);
    sweep();
    CHECK(stage.gone[LAPSE_BY_DEADLINE] == 1);
    close_table();
}

static void test_a_clock_near_zero(void) {
    open_table((lapse_config){.default_ttl = TTL, .grace = INT64_MAX / 2});
    stage.now = 1;
    put_all(1, 2, LAPSE_NEVER);
    sweep();
    CHECK(present(1));
    close_table();
}

static void test_every_removal_takes_it(void) {
    open_table(graceful);
    put_all(1, 4, LAPSE_DEFAULT);
    CHECK(put(4, LAPSE_DEFAULT, tags_from(0, 1)) == LAPSE_OK);
    stage.now += TTL;
    CHECK(!erase(1) && stale(1) == LAPSE_ABSENT);
    CHECK(put(2, LAPSE_DEFAULT, NULL) == LAPSE_OK && stale(2) == LAPSE_ABSENT && present(2));
    CHECK(stage.gone[LAPSE_BY_DEADLINE] == 1);
    clear();
    CHECK(stale(3) == LAPSE_ABSENT && stale(4) == LAPSE_ABSENT);
    close_table();
}

/* What may not be stored takes nothing's place. */
static void test_a_refused_fill_leaves_it(void) {
    lapse_lease *l;
    lapse_object *old = NULL;
    open_table(graceful);
    CHECK(lapse_lease_take(stage.t, &keys[1], 1, &l) == LAPSE_OK);
    put_all(1, 2, LAPSE_DEFAULT);
    stage.now += TTL;
    CHECK(lapse_fill(stage.t, l, &other_value, TTL, NULL, false, stage.now, &old) == LAPSE_OUTDATED);
    CHECK(stale(1) == LAPSE_OK && stage.gone[LAPSE_BY_DEADLINE] == 0);
    lapse_lease_end(stage.t, l);
    close_table();
}

static void test_growth_keeps_it(void) {
    open_table(graceful);
    put_all(1, 400, LAPSE_DEFAULT);
    stage.now += TTL;
    put_all(400, KEYS, LAPSE_DEFAULT); /* every segment has been short of room */
    for (uint32_t id = 1; id < 400; id++) CHECK(stale(id) == LAPSE_OK);
    CHECK(stage.gone[LAPSE_BY_DEADLINE] == 0);
    close_table();
}

/* --- Softening --- */

static void test_soften_all(void) {
    open_table((lapse_config){.default_ttl = LAPSE_NEVER});
    put_all(0, KEYS, LAPSE_DEFAULT);
    CHECK(soften(GRACE) == KEYS);
    CHECK(lapse_len(stage.t, stage.now) == 0 && lapse_check(stage.t));
    for (uint32_t id = 0; id < KEYS; id += 7) CHECK(stale(id) == LAPSE_OK && !present(id));
    stage.now += GRACE;
    CHECK(stale(7) == LAPSE_ABSENT);
    sweep();
    CHECK(stage.gone[LAPSE_BY_DEADLINE] == KEYS);
    close_table();
}

static void test_soften_outdates_leases(void) {
    lapse_lease *l;
    open_table(graceful);
    CHECK(lapse_lease_take(stage.t, &keys[1], 1, &l) == LAPSE_OK);
    CHECK(soften(GRACE) == 0);
    CHECK(!lapse_lease_holds(stage.t, l, NULL));
    lapse_lease_end(stage.t, l);
    close_table();
}

/* A sliding read that has found a live entry must not move the deadline that was softened meanwhile. */
static void test_soften_turns_rearming_away(void) {
    open_table((lapse_config){.mode = LAPSE_SLIDING, .default_ttl = TTL});
    put_all(1, 2, LAPSE_DEFAULT);
    segment *s = stage.t->arrays[0][0];
    uint64_t seen = s->seq;
    CHECK(soften(GRACE) == 1);
    for (uint32_t slot = 0; slot < segment_slots(s); slot++)
        if (s->ctrl[slot] & CTRL_FULL) rearm(stage.t, s, slot, seen, stage.now + TTL);
    CHECK(!present(1) && stale(1) == LAPSE_OK);
    close_table();
}

/* --- Tickets --- */

static void fill_timed(uint32_t id, int64_t cost) {
    lapse_lease *l;
    lapse_object *old = NULL;
    CHECK(lapse_lease_take(stage.t, &keys[id], id, &l) == LAPSE_OK);
    lapse_lease_time(stage.t, l, stage.now);
    stage.now += cost;
    CHECK(lapse_fill(stage.t, l, &value, LAPSE_DEFAULT, NULL, false, stage.now, &old) == LAPSE_OK);
    if (old) object_unref(old);
    lapse_lease_end(stage.t, l);
}

static uint32_t cost_kept(uint32_t id) {
    lapse_item item;
    CHECK(lapse_peek(stage.t, &keys[id], id, stage.now, &item) == LAPSE_OK);
    lapse_release(&item, 1);
    return item.cost;
}

static lapse_status ask(uint32_t id) {
    lapse_object *found = NULL;
    lapse_status status = lapse_get_or_ticket(stage.t, &keys[id], id, stage.now, &found);
    if (status == LAPSE_OK || status == LAPSE_EARLY) object_unref(found);
    return status;
}

static void test_costs_are_kept(void) {
    open_table((lapse_config){.mode = LAPSE_PROBABILISTIC, .default_ttl = LAPSE_NEVER});
    fill_timed(0, 5000);
    fill_timed(1, 10); /* less than the unit, but known */
    CHECK(put(2, LAPSE_DEFAULT, NULL) == LAPSE_OK);
    fill_timed(3, (int64_t)UINT32_MAX * 2000);
    put_all(4, KEYS, LAPSE_DEFAULT); /* all of them are moved */
    CHECK(cost_kept(0) == 5 && cost_kept(1) == 1 && cost_kept(2) == 0 && cost_kept(3) == UINT32_MAX);
    close_table();
    open_table((lapse_config){.default_ttl = LAPSE_NEVER});
    fill_timed(0, 5000);
    CHECK(cost_kept(0) == 0);
    close_table();
}

static void test_tickets_leave_the_entry(void) {
    open_table((lapse_config){.mode = LAPSE_PROBABILISTIC, .default_ttl = TTL, .beta = 1e12});
    fill_timed(1, 5000);
    for (int i = 0; i < 100; i++) CHECK(ask(1) == LAPSE_EARLY && present(1));
    CHECK(get(1) == LAPSE_OK); /* an ordinary read goes by the ramp */
    stage.now += TTL;
    CHECK(ask(1) == LAPSE_EXPIRED);
    close_table();
    open_table((lapse_config){.mode = LAPSE_PROBABILISTIC, .default_ttl = TTL, .beta = 0.0});
    fill_timed(1, 5000);
    for (int i = 0; i < 100; i++) CHECK(ask(1) == LAPSE_OK);
    close_table();
}

/* Whoever gets a ticket has used the entry. */
static void test_a_ticket_is_a_use(void) {
    lapse_config config = {.mode = LAPSE_PROBABILISTIC, .default_ttl = TTL, .beta = 1e12};
    config.lru = true;
    config.max_entries = 2;
    open_table(config);
    fill_timed(1, 5000);
    put_all(2, 3, LAPSE_DEFAULT);
    CHECK(ask(1) == LAPSE_EARLY);
    put_all(3, 4, LAPSE_DEFAULT);
    CHECK(present(1) && !present(2));
    close_table();
}

int main(void) {
    RUN(test_only_within_the_grace);
    RUN(test_a_clock_near_zero);
    RUN(test_every_removal_takes_it);
    RUN(test_a_refused_fill_leaves_it);
    RUN(test_growth_keeps_it);
    RUN(test_soften_all);
    RUN(test_soften_outdates_leases);
    RUN(test_soften_turns_rearming_away);
    RUN(test_costs_are_kept);
    RUN(test_tickets_leave_the_entry);
    RUN(test_a_ticket_is_a_use);
    return tests_done();
}
