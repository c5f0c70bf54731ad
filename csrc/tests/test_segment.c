/* One segment by itself: invariants, tombstones, room, moving and expiry, against an array. */
#include "segment.h"

#include "test.h"

#define KEYS 2048u

/* What the segment should hold; a key that is NULL stands for no entry. */
static record model[KEYS];
static lapse_object keys[KEYS], value = {.references = 1}, traced = {.references = 1, .gc = true};

static segment *new_segment(uint32_t slots, bool ttls, bool limits) {
    segment *s =
        segment_on_heap(&lapse_system_memory, slots, (segment_arrays){.ttls = ttls, .limits = limits});
    CHECK(s != NULL && segment_slots(s) == slots && segment_check(s));
    memset(model, 0, sizeof model);
    for (uint32_t i = 0; i < KEYS; i++) keys[i] = (lapse_object){.references = 1, .id = i, .gc = i % 16 == 0};
    return s;
}

static void free_segment(segment *s) { lapse_system_memory.drop(s); }

static record new_record(const segment *s, uint32_t id, uint64_t hash, uint64_t *random) {
    uint64_t dice = random_word(random);
    return (record){.e = {.key = &keys[id], .value = dice % 8 ? &value : &traced},
                    .hash = hash,
                    .deadline = dice % 3 ? (int64_t)(dice % 1000) + 1 : LAPSE_NEVER,
                    .ttl = s->ttls ? (int64_t)(dice % 77) : 0,
                    .limit = s->limits ? (int64_t)(dice % 55) : LAPSE_NEVER,
                    .own = dice % 5 == 0,
                    .gc = keys[id].gc || dice % 8 == 0,
                    .foreign = true};
}

static uint64_t hash_of(uint32_t id) { return mix_hash(id); }

static void insert(segment *s, uint32_t id, uint64_t hash, uint64_t *random) {
    record r = new_record(s, id, hash, random);
    write_begin(s);
    uint32_t slot = segment_insert(s, &r);
    write_end(s);
    CHECK(slot < segment_slots(s));
    model[id] = r;
}

/* The slot of a key by a plain walk over all slots, or -1. */
static int64_t slot_of(const segment *s, uint32_t id) {
    record r;
    for (uint32_t slot = 0; slot < segment_slots(s); slot++) {
        segment_read(s, slot, &r);
        if (r.e.key == &keys[id]) return slot;
    }
    return -1;
}

/* Does the probe path of this hash, followed until an EMPTY slot, come by this slot? */
static bool probe_reaches(const segment *s, uint64_t h, uint32_t slot) {
    uint32_t g = hash_group(h, s->groups);
    for (uint32_t n = s->groups; n > 0; n--, g = next_group(s, g)) {
        group ctrl = group_load(s->ctrl + g * GROUP_SLOTS);
        for (group_mask m = group_match(ctrl, hash_tag(h)); m; m &= m - 1)
            if (g * GROUP_SLOTS + mask_slot(m) == slot) return true;
        if (group_empty(ctrl)) return false;
    }
    return false;
}

static void remove_key(segment *s, uint32_t id) {
    lapse_item gone;
    const record *r = &model[id];
    segment_remove(s, (uint32_t)slot_of(s, id), &gone);
    CHECK(gone.key == r->e.key && gone.value == r->e.value && gone.deadline == r->deadline);
    CHECK(gone.ttl == r->ttl && gone.limit == r->limit && gone.own_ttl == r->own);
    model[id] = (record){.e = {.key = NULL}};
}

static void check_entry(const segment *s, uint32_t slot) {
    record found;
    segment_read(s, slot, &found);
    const record *r = &model[found.e.key->id];
    CHECK(found.e.key == r->e.key && found.e.value == r->e.value && found.hash == r->hash);
    CHECK(found.deadline == r->deadline && found.ttl == r->ttl);
    CHECK(found.limit == r->limit && found.own == r->own && found.gc == r->gc);
    CHECK(probe_reaches(s, r->hash, slot));
}

static void check_all(const segment *s) {
    uint32_t used = 0;
    CHECK(segment_check(s));
    for (uint32_t slot = 0; slot < segment_slots(s); slot++)
        if (s->ctrl[slot] & CTRL_FULL) check_entry(s, slot);
    for (uint32_t id = 0; id < KEYS; id++) used += model[id].e.key != NULL;
    CHECK(used == s->used);
}

/* Fill until there is no room for the next key; returns how many went in. */
static uint32_t fill(segment *s, uint64_t *random) {
    uint32_t id = 0;
    for (; segment_has_room(s, hash_of(id)); id++) insert(s, id, hash_of(id), random);
    return id;
}

static void test_filling_every_size(void) {
    static const uint32_t sizes[] = {16, 32, 64, 128, 256, 512, 640, 1024, 2048};
    uint64_t random = 5;
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (uint32_t kind = 0; kind < 3; kind++) {
            segment *s = new_segment(sizes[i], kind > 0, kind > 1);
            CHECK(fill(s, &random) == slot_limit(sizes[i]));
            check_all(s);
            free_segment(s);
        }
}

/* A random stream of inserts and removals near full load, with the invariants walked after each. */
static void churn(uint32_t slots, uint32_t ops) {
    uint64_t random = slots;
    uint32_t tombstones = 0;
    segment *s = new_segment(slots, true, true);
    for (uint32_t n = 0; n < ops; n++) {
        uint32_t id = random_below(&random, slots);
        if (model[id].e.key == NULL && segment_has_room(s, hash_of(id))) insert(s, id, hash_of(id), &random);
        else if (model[id].e.key != NULL && random_below(&random, 3) == 0) remove_key(s, id);
        tombstones += s->tombstones;
        CHECK(segment_check(s));
        if (n % 64 == 0) check_all(s);
    }
    CHECK(slots == GROUP_SLOTS || tombstones > 0); /* one group always keeps an EMPTY slot */
    check_all(s);
    free_segment(s);
}

static void test_churn(void) {
    churn(16, 4000 * test_scale());
    churn(64, 4000 * test_scale());
    churn(SEGMENT_HALF_SLOTS, 4000 * test_scale());
}

static void test_a_tombstone_makes_room_on_its_own_path(void) {
    uint64_t random = 6, h = hash_of(7);
    segment *s = new_segment(32, false, false);
    for (uint32_t id = 0; id < slot_limit(32); id++) insert(s, id, h, &random); /* one path for all */
    CHECK(!segment_has_room(s, h));
    remove_key(s, 3); /* its group has no EMPTY slot */
    CHECK(s->tombstones == 1 && segment_has_room(s, h));
    insert(s, 100, h, &random);
    CHECK(s->tombstones == 0 && !segment_has_room(s, h));
    check_all(s);
    free_segment(s);
}

static void test_a_slot_beside_an_empty_one_becomes_empty(void) {
    uint64_t random = 7;
    segment *s = new_segment(16, false, false);
    for (uint32_t id = 0; id < 10; id++) insert(s, id, hash_of(id), &random);
    for (uint32_t id = 0; id < 10; id++) remove_key(s, id);
    CHECK(s->tombstones == 0 && s->used == 0);
    check_all(s);
    free_segment(s);
}

static void test_overwriting_keeps_the_key(void) {
    uint64_t random = 8;
    segment *s = new_segment(16, true, true);
    insert(s, 1, hash_of(1), &random);
    for (uint32_t n = 0; n < 100; n++) {
        record r = new_record(s, 17, hash_of(1), &random); /* another key object: not stored */
        uint64_t seq = s->seq;
        write_begin(s);
        segment_write(s, (uint32_t)slot_of(s, 1), &r);
        write_end(s);
        CHECK(s->seq > seq && s->seq % 2 == 0);
        r.e.key = &keys[1];
        model[1] = r;
        check_all(s);
    }
    free_segment(s);
}

static void test_taking_all(void) {
    static record out[SEGMENT_SLOTS];
    uint64_t random = 9;
    segment *s = new_segment(SEGMENT_HALF_SLOTS, true, true);
    uint32_t filled = fill(s, &random);
    write_begin(s);
    CHECK(segment_take_all(s, out) == filled);
    segment_reset(s, segment_slots(s));
    for (uint32_t i = 0; i < filled; i++) segment_insert(s, &out[i]);
    write_end(s);
    check_all(s);
    free_segment(s);
}

static void test_discarding_all(void) {
    uint64_t random = 14;
    segment *s = new_segment(256, true, true);
    uint32_t left = fill(s, &random);
    write_begin(s);
    for (uint32_t id = 0; left > 0; id++, left--) {
        lapse_item gone = segment_discard(s, (uint32_t)slot_of(s, id));
        CHECK(gone.key == &keys[id] && gone.value == model[id].e.value && s->used == left - 1);
        model[id].e.key = NULL;
    }
    segment_reset(s, 256);
    write_end(s);
    check_all(s);
    free_segment(s);
}

static void test_moving_all(void) {
    uint64_t random = 10;
    segment *from = new_segment(256, true, false), *to = new_segment(512, true, false);
    fill(from, &random);
    for (uint32_t id = 0; id < 200; id += 2) remove_key(from, id);
    write_begin(from);
    write_begin(to);
    segment_move_all(from, to);
    write_end(from);
    write_end(to);
    check_all(to);
    CHECK(segment_check(from) && from->used == 0 && from->tombstones == 0);
    free_segment(from);
    free_segment(to);
}

static uint32_t naive_expired(int64_t now) {
    uint32_t n = 0;
    for (uint32_t id = 0; id < KEYS; id++)
        n += model[id].e.key != NULL && model[id].deadline != LAPSE_NEVER && model[id].deadline <= now;
    return n;
}

/* Remove up to `limit` expired entries; returns how many. */
static uint32_t expire(segment *s, int64_t now, uint32_t limit) {
    static uint32_t slots[2 * SEGMENT_SLOTS];
    uint32_t n = segment_expired(s, now, limit, slots);
    for (uint32_t i = 0; i < n; i++) {
        record r;
        segment_read(s, slots[i], &r);
        uint32_t id = (uint32_t)r.e.key->id;
        CHECK(model[id].deadline != LAPSE_NEVER && model[id].deadline <= now);
        remove_key(s, id);
    }
    CHECK(segment_check(s));
    return n;
}

static void check_expiry(uint32_t slots) {
    uint64_t random = slots;
    segment *s = new_segment(slots, false, false);
    uint32_t filled = fill(s, &random);
    for (int64_t now = 0; now <= 1001; now += 1 + random_below(&random, 60)) {
        uint32_t due = naive_expired(now), limit = random_below(&random, 40) + 1;
        CHECK(segment_count_live(s, now) == s->used - due);
        if (due > limit) {
            CHECK(expire(s, now, limit) == limit);
            CHECK(segment_count_live(s, now) == s->used - (due - limit));
            due -= limit;
        }
        CHECK(expire(s, now, KEYS) == due && expire(s, now, KEYS) == 0);
    }
    expire(s, 1001, KEYS);
    CHECK(s->used < filled && s->used > 0 && s->next_rank == RANK_NEVER);
    check_all(s);
    free_segment(s);
}

static void test_expiry(void) {
    check_expiry(16);
    check_expiry(SEGMENT_HALF_SLOTS);
    check_expiry(1024);
    check_expiry(2048);
}

/* Count visits; stop with 42 at the visit after which `left` is 0. */
static int count_visit(lapse_object *o, void *arg) {
    uint32_t *left = arg;
    CHECK(o->references == 1);
    return --*left == 0 ? 42 : 0;
}

static void test_traversal_sees_what_can_be_in_a_cycle(void) {
    uint64_t random = 11;
    uint32_t expected = 0, left = UINT32_MAX;
    segment *s = new_segment(1024, false, false);
    fill(s, &random);
    for (uint32_t id = 0; id < KEYS; id++)
        expected += model[id].e.key && (keys[id].gc || model[id].e.value->gc) ? 2 : 0;
    CHECK(segment_traverse(s, count_visit, &left) == 0);
    CHECK(expected > 0 && UINT32_MAX - left == expected);
    left = 3;
    CHECK(segment_traverse(s, count_visit, &left) == 42 && left == 0);
    free_segment(s);
}

static void test_hash_ranges(void) {
    uint64_t random = 12;
    for (uint32_t n = 0; n < 1000; n++) {
        uint32_t depth = random_below(&random, 41);
        uint64_t h = random_word(&random);
        segment s = {.depth = depth, .first_hash = depth ? h >> (64 - depth) << (64 - depth) : 0};
        uint64_t last = segment_last_hash(&s);
        CHECK(segment_covers(&s, s.first_hash) && segment_covers(&s, h) && segment_covers(&s, last));
        CHECK(last == UINT64_MAX || !segment_covers(&s, last + 1));
        CHECK(s.first_hash == 0 || !segment_covers(&s, s.first_hash - 1));
    }
}

static void test_the_check_sees_damage(void) {
    uint64_t random = 13;
    segment *s = new_segment(64, false, false);
    fill(s, &random);
    uint32_t slot = (uint32_t)slot_of(s, 3);
    s->used++;
    CHECK(!segment_check(s));
    s->used--;
    s->ctrl[slot] ^= 1;
    CHECK(!segment_check(s));
    s->ctrl[slot] ^= 1;
    uint64_t next = s->next_rank;
    s->next_rank = RANK_NEVER; /* some entry has a deadline */
    CHECK(!segment_check(s));
    s->next_rank = next;
    CHECK(segment_check(s));
    s->seq++;
    CHECK(!segment_check(s));
    free_segment(s);
}

int main(void) {
    RUN(test_filling_every_size);
    RUN(test_churn);
    RUN(test_a_tombstone_makes_room_on_its_own_path);
    RUN(test_a_slot_beside_an_empty_one_becomes_empty);
    RUN(test_overwriting_keeps_the_key);
    RUN(test_taking_all);
    RUN(test_discarding_all);
    RUN(test_moving_all);
    RUN(test_expiry);
    RUN(test_traversal_sees_what_can_be_in_a_cycle);
    RUN(test_hash_ranges);
    RUN(test_the_check_sees_damage);
    return tests_done();
}
