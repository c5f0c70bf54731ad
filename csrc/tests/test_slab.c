/* Slabs: where segments lie, how they come back, and which pages are let go. */
#include "slab.h"

#include "test.h"

#include <sys/mman.h>
#include <unistd.h>

#define MOST 200u

static lapse_object object = {.references = 1};
static size_t grabbed, mapped;

static void *counting_grab(size_t bytes) {
    grabbed++;
    return lapse_system_memory.grab(bytes);
}
static void counting_drop(void *p) {
    grabbed--;
    lapse_system_memory.drop(p);
}
static void *counting_map(size_t bytes) {
    mapped += bytes;
    return lapse_system_memory.map(bytes);
}
static void counting_unmap(void *p, size_t bytes) {
    mapped -= bytes;
    lapse_system_memory.unmap(p, bytes);
}
static const lapse_memory counting = {counting_grab, counting_grab, counting_drop, counting_map,
                                      counting_unmap};

static slab_pool new_pool(uint32_t kind) {
    slab_pool p;
    pool_init(&p, &counting, (segment_arrays){.ttls = kind > 0, .limits = kind > 1});
    CHECK(p.per_slab > 0 && pool_is_empty(&p) && pool_take(&p, SEGMENT_SLOTS) == NULL);
    return p;
}

static void free_pool(slab_pool *p) {
    pool_free(p);
    CHECK(p->slabs == 0 && grabbed == 0 && mapped == 0);
}

static segment *take(slab_pool *p, uint32_t slots) {
    if (pool_is_empty(p)) pool_add(p, pool_new_slab(p));
    segment *s = pool_take(p, slots);
    CHECK(s != NULL && segment_slots(s) == slots && s->used == 0);
#if LAPSE_THREADS
    CHECK(s->seq % 2 == 1); /* outside the directory */
    write_end(s);
#endif
    return s;
}

static void empty(segment *s) {
    static record out[SEGMENT_SLOTS];
    write_begin(s); /* stays open on a free-threaded build: outside the directory */
    segment_take_all(s, out);
    segment_reset(s, segment_slots(s));
}

/* Fill every slot that the limit allows, so that arrays that overlap would show. */
static void fill(segment *s, uint64_t random) {
    write_begin(s);
    for (uint32_t n = slot_limit(segment_slots(s)); n > 0; n--) {
        record r = {.e = {&object, &object}, .hash = random_word(&random), .deadline = (int64_t)n};
        r.ttl = (int64_t)n + 1;
        r.limit = (int64_t)n + 2;
        r.foreign = true;
        segment_insert(s, &r);
    }
    write_end(s);
}

static void check_filled(const segment *s) {
    record r;
    CHECK(segment_check(s) && s->used == slot_limit(segment_slots(s)));
    for (uint32_t slot = 0; slot < segment_slots(s); slot++) {
        if (!(s->ctrl[slot] & CTRL_FULL)) continue;
        segment_read(s, slot, &r);
        CHECK(r.e.key == &object && r.e.value == &object);
        CHECK(r.ttl == (s->ttls ? r.deadline + 1 : 0));
        CHECK(r.limit == (s->limits ? r.deadline + 2 : LAPSE_NEVER));
    }
}

static void test_segments_do_not_overlap(void) {
    static segment *taken[MOST];
    for (uint32_t kind = 0; kind < 3; kind++) {
        slab_pool p = new_pool(kind);
        uint32_t n = 2 * p.per_slab;
        CHECK(n <= MOST);
        for (uint32_t i = 0; i < n; i++) {
            taken[i] = take(&p, i % 2 ? SEGMENT_SLOTS : SEGMENT_HALF_SLOTS);
            fill(taken[i], i);
        }
        CHECK(p.slabs == 2 && pool_is_empty(&p));
        for (uint32_t i = 0; i < n; i++) check_filled(taken[i]);
        free_pool(&p);
    }
}

static void test_arrays_lie_inside_the_slab(void) {
    for (uint32_t kind = 0; kind < 3; kind++) {
        slab_pool p = new_pool(kind);
        for (uint32_t i = 0; i < p.per_slab; i++) {
            segment *s = take(&p, SEGMENT_SLOTS);
            uint8_t *pages = p.first->pages, *end = pages + SLAB_BYTES;
            CHECK((uint8_t *)s >= pages && s->ctrl + SEGMENT_SLOTS <= pages + p.data_offset);
            CHECK((uintptr_t)s->ctrl % GROUP_SLOTS == 0 && (uintptr_t)s % CACHE_LINE == 0);
            CHECK((s->ttls != NULL) == (kind > 0) && (s->limits != NULL) == (kind > 1));
            CHECK(!s->ttls || (uint8_t *)(s->ttls + SEGMENT_SLOTS) <= end);
            CHECK(!s->limits || (uint8_t *)(s->limits + SEGMENT_SLOTS) <= end);
        }
        free_pool(&p);
    }
}

static void test_a_segment_comes_back_blank(void) {
    slab_pool p = new_pool(2);
    segment *s = take(&p, SEGMENT_SLOTS);
    take(&p, SEGMENT_SLOTS); /* holds the slab */
    fill(s, 1);
    uint64_t seq = s->seq;
    empty(s);
    pool_give(&p, s);
    segment *again = take(&p, SEGMENT_HALF_SLOTS);
    CHECK(again == s); /* the one that was in use is taken before a new one */
    CHECK(again->seq >= seq && again->next_rank == RANK_NEVER);
    CHECK(segment_check(again));
    fill(again, 2);
    check_filled(again);
    free_pool(&p);
}

static void test_slabs_that_nothing_uses(void) {
    static segment *taken[MOST];
    slab_pool p = new_pool(0);
    uint32_t n = 3 * p.per_slab;
    for (uint32_t i = 0; i < n; i++) taken[i] = take(&p, SEGMENT_HALF_SLOTS);
    CHECK(p.slabs == 3 && mapped == 3 * SLAB_BYTES);
    for (uint32_t i = 0; i < n; i++) {
        empty(taken[i]);
        pool_give(&p, taken[i]);
    }
#if LAPSE_THREADS
    CHECK(p.slabs == 3); /* a late reader may still hold a header */
#else
    CHECK(p.slabs == 0 && mapped == 0);
#endif
    for (uint32_t i = 0; i < n; i++) fill(take(&p, SEGMENT_SLOTS), i);
    CHECK(p.slabs == 3);
    free_pool(&p);
}

/* What is taken when the slabs have become old comes from a new one; then the old one, which nothing uses, goes. */
static void test_old_slabs(void) {
    slab_pool p = new_pool(0);
    segment *first = take(&p, SEGMENT_SLOTS), *second = take(&p, SEGMENT_SLOTS);
    slab *old = first->slab;
    fill(first, 1);
    pool_age(&p);
    CHECK(pool_is_empty(&p));
    segment *moved = take(&p, SEGMENT_HALF_SLOTS);
    CHECK(moved->slab != old && p.slabs == 2);
    empty(first);
    pool_give(&p, first);
    CHECK(pool_note_idle(&p) == 0 && pool_take_idle(&p) == NULL && !pool_is_empty(&p));
    empty(second);
    pool_give(&p, second);
    CHECK(p.slabs == 1 + LAPSE_THREADS && pool_note_idle(&p) == LAPSE_THREADS * 2 * p.side_bytes);
    slab *idle = pool_take_idle(&p);
    CHECK(idle == (LAPSE_THREADS ? old : NULL) && p.slabs == 1);
    pool_drop_slabs(&p, idle);
    CHECK(take(&p, SEGMENT_SLOTS)->slab == moved->slab && mapped == SLAB_BYTES);
    pool_age(&p);
    CHECK(pool_is_empty(&p));
    pool_renew(&p);
    CHECK(take(&p, SEGMENT_SLOTS)->slab == moved->slab);
    free_pool(&p);
}

/* What has been used since the idle ones were noted is not taken for one. */
static void test_idle_and_used_again(void) {
    slab_pool p = new_pool(0);
    pool_add(&p, pool_new_slab(&p));
    CHECK(pool_note_idle(&p) == 0 && p.first->idle); /* none of it is resident */
    segment *s = take(&p, SEGMENT_SLOTS);
    empty(s);
    pool_give(&p, s);
    CHECK(pool_take_idle(&p) == NULL && p.slabs == LAPSE_THREADS);
    free_pool(&p);
}

/* Resident pages among those that lie wholly within [start, start + bytes). */
static size_t resident(const uint8_t *start, size_t bytes) {
    unsigned char map[SLAB_BYTES / 4096];
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = 0;
    uintptr_t first = ((uintptr_t)start + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)start + bytes) & ~(page - 1);
    CHECK(mincore((void *)first, end - first, (void *)map) == 0);
    for (size_t i = 0; i < (end - first) / page; i++) n += map[i] & 1;
    return n;
}

static void test_pages_are_let_go(void) {
    slab_pool p = new_pool(0);
    segment *first = take(&p, SEGMENT_SLOTS), *second = take(&p, SEGMENT_SLOTS);
    const uint8_t *data = p.first->pages + p.data_offset;
    fill(first, 1);
    fill(second, 2);
    size_t all = resident(data, p.data_bytes);
    CHECK(all > 0 && resident(data + p.data_bytes, p.data_bytes) == all);
    empty(first);
    pool_give(&p, first);
    CHECK(resident(data, p.data_bytes) == 0 && resident(data + p.data_bytes, p.data_bytes) == all);
    check_filled(second);
    free_pool(&p);
}

static void test_trimming_keeps_what_is_used(void) {
    slab_pool p = new_pool(0);
    segment *s = take(&p, SEGMENT_SLOTS);
    const uint8_t *data = p.first->pages + p.data_offset;
    fill(s, 1);
    size_t all = resident(data, p.data_bytes), whole = pool_bytes_in_use(&p, s);
    empty(s);
    segment_reset(s, SEGMENT_HALF_SLOTS);
    write_end(s);
    fill(s, 2);
    pool_trim(s);
    CHECK(resident(data, p.data_bytes) < all && pool_bytes_in_use(&p, s) < whole);
    check_filled(s);
    size_t saved = (all - resident(data, p.data_bytes)) * (size_t)sysconf(_SC_PAGESIZE);
    CHECK(sysconf(_SC_PAGESIZE) != (long)PAGE_BYTES || whole - pool_bytes_in_use(&p, s) == saved);
    free_pool(&p);
}

static void test_bytes_in_use(void) {
    for (uint32_t kind = 0; kind < 3; kind++) {
        slab_pool p = new_pool(kind);
        size_t whole = pool_bytes_in_use(&p, take(&p, SEGMENT_SLOTS));
        CHECK(whole == p.side_bytes + p.data_bytes);
        CHECK(p.per_slab * whole <= SLAB_BYTES && (p.per_slab + 1) * whole > SLAB_BYTES - whole);
        free_pool(&p);
    }
}

int main(void) {
    RUN(test_segments_do_not_overlap);
    RUN(test_arrays_lie_inside_the_slab);
    RUN(test_a_segment_comes_back_blank);
    RUN(test_slabs_that_nothing_uses);
    RUN(test_old_slabs);
    RUN(test_idle_and_used_again);
    RUN(test_pages_are_let_go);
    RUN(test_trimming_keeps_what_is_used);
    RUN(test_bytes_in_use);
    return tests_done();
}
