/* Packing: what a table has in memory after it has lost entries, beside what a new one of those that are left has.
 *
 * Pages that were mapped are counted if they are resident, and other pieces by what was asked for. */
#if LAPSE_THREADS
static void at_unref(void);
#  undef AT_UNREF
#  define AT_UNREF() at_unref() /* in the reads of this file */
#endif
#include "packing.h"
#include "read.h"
#include "test.h"

#include <sys/mman.h>
#include <unistd.h>
#if LAPSE_THREADS
#  include <pthread.h>
#endif

#define MANY 40000u
#define CONSTANT ((size_t)64 << 10) /* bytes that a table may keep beyond its share, and */
#define MOST_PERCENT 120u /* of what a new one of its entries has */
#define PIECES 4096u
#define TTL 100
#define SWEEPS 2 /* at the second one a table has not grown since the first */

/* --- Others --- */

static uint32_t quiet; /* how often others were waited for: nobody is there */
static lapse_table *table;
static size_t asked_for;
/* What others do, once: while they are waited for, or memory of `asked_for` bytes is mapped, or a reference given up. */
static void (*meanwhile)(lapse_table *t);

static void let_others(void) {
    void (*act)(lapse_table *) = meanwhile;
    meanwhile = NULL;
    if (act) act(table);
}

#if LAPSE_THREADS
static uint32_t unrefs;
static void at_unref(void) {
    unrefs++;
    let_others();
}
#endif

static bool quiesce(void) {
    quiet++;
    let_others();
    return true;
}
static bool refuse_to_wait(void) {
    quiet++;
    return false;
}

/* --- A memory that knows what it has given --- */

typedef struct {
    void *at;
    size_t bytes;
    bool mapped;
} piece;

static struct {
    piece pieces[PIECES];
    uint32_t n;
    bool refusing;
    uint32_t refuse_after; /* so many more are granted */
} given;

static bool refused(void) { return given.refusing && given.refuse_after-- == 0; }

static void *note(void *at, size_t bytes, bool mapped) {
    CHECK(at != NULL && given.n < PIECES);
    given.pieces[given.n++] = (piece){at, bytes, mapped};
    return at;
}

static size_t forget_piece(const void *at) {
    uint32_t i = 0;
    while (i < given.n && given.pieces[i].at != at) i++;
    CHECK(i < given.n);
    size_t bytes = given.pieces[i].bytes;
    given.pieces[i] = given.pieces[--given.n];
    return bytes;
}

static void *noting_grab(size_t bytes) {
    return refused() ? NULL : note(lapse_system_memory.grab(bytes), bytes, false);
}
static void *noting_map(size_t bytes) {
    if (bytes == asked_for) let_others();
    return refused() ? NULL : note(lapse_system_memory.map(bytes), bytes, true);
}
static void noting_drop(void *at) {
    forget_piece(at);
    lapse_system_memory.drop(at);
}
static void noting_unmap(void *at, size_t bytes) {
    CHECK(forget_piece(at) == bytes);
    lapse_system_memory.unmap(at, bytes);
}
static const lapse_memory noting = {noting_grab, noting_grab, noting_drop, noting_map, noting_unmap};

static size_t resident_pages(const piece *p) {
    static unsigned char there[1u << 16];
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = 0;
    CHECK(p->bytes / page < sizeof there && mincore(p->at, p->bytes, there) == 0);
    for (size_t i = 0; i < (p->bytes + page - 1) / page; i++) n += there[i] & 1;
    return n * page;
}

static size_t resident(void) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < given.n; i++)
        bytes += given.pieces[i].mapped ? resident_pages(&given.pieces[i]) : given.pieces[i].bytes;
    return bytes;
}

/* --- Tables --- */

static lapse_object objects[MANY];

static lapse_table *new_table(lapse_config config) {
    CHECK(given.n == 0);
    config.own_clock = true;
    config.memory = &noting;
    config.max_entries = MANY;
    config.quiesce = quiesce;
    return table = lapse_table_new(&config);
}

static void free_table(lapse_table *t) {
    CHECK(lapse_check(t));
    lapse_table_free(t);
    CHECK(given.n == 0);
}

static void fill(lapse_table *t, uint32_t from, uint32_t to, int64_t ttl) {
    lapse_object *replaced;
    for (uint32_t id = from; id < to; id++) {
        CHECK(lapse_put(t, &objects[id], id, &objects[id], ttl, 1, &replaced) == LAPSE_OK);
        CHECK(replaced == NULL);
    }
}

static void sweep(lapse_table *t, int64_t now) {
    lapse_item removed[LAPSE_STEP];
    uint64_t cursor = 0;
    for (lapse_status status = LAPSE_MORE; status == LAPSE_MORE;) {
        size_t n;
        status = lapse_sweep(t, &cursor, now, LAPSE_STEP, removed, &n);
        lapse_release(removed, n);
    }
    pack(t, false);
}

static void empty(lapse_table *t) {
    lapse_item removed[LAPSE_STEP];
    for (lapse_status status = LAPSE_MORE; status == LAPSE_MORE;) {
        size_t n;
        status = lapse_drain(t, removed, &n);
        lapse_release(removed, n);
    }
    pack(t, false);
}

static void lose_all(lapse_table *t) {
    CHECK(lapse_detach(t) == LAPSE_OK);
    empty(t);
}

/* --- Events: entries `kept` and above are lost --- */

static void lose_by_expiry(lapse_table *t, uint32_t kept) {
    fill(t, kept, MANY, TTL);
    fill(t, 0, kept, LAPSE_NEVER);
    for (int n = 0; n < SWEEPS; n++) sweep(t, TTL + 2);
    CHECK(lapse_len(t, TTL + 2) == kept);
}

static void lose_by_deletion(lapse_table *t, uint32_t kept) {
    lapse_item removed;
    fill(t, 0, MANY, LAPSE_NEVER);
    for (uint32_t id = kept; id < MANY; id++) {
        CHECK(lapse_delete(t, &objects[id], id, 1, &removed) == LAPSE_OK);
        lapse_release(&removed, 1);
    }
    for (int n = 0; n < SWEEPS; n++) sweep(t, 1);
}

static void lose_by_clear(lapse_table *t, uint32_t kept) {
    fill(t, 0, MANY, LAPSE_NEVER);
    CHECK(lapse_detach(t) == LAPSE_OK);
    fill(t, 0, kept, LAPSE_NEVER);
    empty(t);
}

/* --- What stays --- */

static size_t need_of(lapse_config config, uint32_t entries) {
    lapse_table *t = new_table(config);
    fill(t, 0, entries, LAPSE_NEVER);
    size_t bytes = resident();
    free_table(t);
    return bytes;
}

typedef void (*loss)(lapse_table *, uint32_t kept);

static void check_loss(lapse_config config, loss lose, uint32_t kept) {
    size_t need = need_of(config, kept), most = need * MOST_PERCENT / 100 + CONSTANT;
    lapse_table *t = new_table(config);
    lose(t, kept);
    size_t bytes = resident();
    if (bytes > most) fprintf(stderr, "%u entries: %zu bytes, a new table has %zu\n", kept, bytes, need);
    CHECK(bytes <= most);
    for (uint32_t id = 0; id < kept; id += 7) CHECK(lapse_has(t, &objects[id], id, TTL + 2) == LAPSE_OK);
    fill(t, kept, MANY, LAPSE_NEVER); /* and it can grow again */
    free_table(t);
}

static const uint32_t shares[] = {0, 1, 10, 450, 800}; /* of a thousand entries, that are kept */

static void check_losses(lapse_config config) {
    static const loss ways[] = {lose_by_expiry, lose_by_deletion, lose_by_clear};
    for (uint32_t way = 0; way < sizeof ways / sizeof *ways; way++)
        for (uint32_t i = 0; i < sizeof shares / sizeof *shares; i++)
            check_loss(config, ways[way], MANY / 1000 * shares[i]);
}

static int weigh(void *context, lapse_object *key, lapse_object *value, uint32_t *weight) {
    (void)context, (void)value;
    *weight = key->id % 2;
    return 0;
}

static void test_fixed(void) { check_losses((lapse_config){.mode = LAPSE_FIXED}); }
static void test_sliding(void) {
    check_losses((lapse_config){.mode = LAPSE_SLIDING, .max_lifetime = INT64_MAX});
}
static void test_probabilistic(void) { check_losses((lapse_config){.mode = LAPSE_PROBABILISTIC}); }
static void test_lru(void) { check_losses((lapse_config){.lru = true}); }
static void test_default_policy(void) { check_losses((lapse_config){.duel = true}); }
static void test_weights(void) { check_losses((lapse_config){.duel = true, .weigher = weigh}); }

/* Segments fill and divide together, so that what a new table needs for an entry goes up and down. */
static void test_every_filling(void) {
    for (uint32_t kept = MANY * 9 / 10; kept > MANY / 4; kept -= MANY / 40)
        check_loss((lapse_config){.mode = LAPSE_FIXED}, lose_by_deletion, kept);
}

/* A bounded table that was full, and is not even half full any more. */
static void lose_after_evictions(lapse_table *t, uint32_t kept) {
    fill(t, 0, MANY, TTL);
    lapse_resize(t, MANY * 9 / 10);
    while (lapse_fit(t, 1) == LAPSE_MORE) continue;
    lapse_resize(t, MANY);
    sweep(t, TTL + 2);
    fill(t, 0, kept, LAPSE_NEVER);
}

static void test_what_the_policies_knew(void) {
    check_loss((lapse_config){.duel = true}, lose_after_evictions, MANY / 10);
    check_loss((lapse_config){.lru = true}, lose_after_evictions, MANY / 10);
}

/* --- When it is done --- */

static bool packed(lapse_table *t, bool at_once) {
    size_t before = lapse_bytes(t);
    pack(t, at_once);
    return lapse_bytes(t) < before;
}

/* One that has just grown waits, unless it is told not to. */
static void test_a_table_that_grows_is_left_alone(void) {
    lapse_table *t = new_table((lapse_config){.mode = LAPSE_FIXED});
    fill(t, 0, MANY / 2, LAPSE_NEVER); /* its segments have just divided */
    CHECK(!packed(t, false) && packed(t, false) && !packed(t, false));
    fill(t, MANY / 2, MANY, LAPSE_NEVER);
    CHECK(packed(t, true) && !packed(t, true));
    free_table(t);
}

/* While others may be at work nobody waits for a trifle; nor where nobody could be waited for. */
static void test_waiting_for_others(void) {
    lapse_table *t = new_table((lapse_config){.mode = LAPSE_FIXED});
    fill(t, 0, 200, LAPSE_NEVER);
    quiet = 0;
    pack(t, true);
    CHECK(quiet == 0);
    fill(t, 200, MANY, LAPSE_NEVER);
    t->config.quiesce = LAPSE_THREADS ? NULL : quiesce;
    lose_all(t);
    CHECK(quiet == 0 && (t->pool.slabs > 0) == LAPSE_THREADS);
    t->config.quiesce = refuse_to_wait;
    pack(t, false);
    CHECK(quiet == LAPSE_THREADS && (t->pool.slabs > 0) == LAPSE_THREADS);
    t->config.quiesce = quiesce;
    pack(t, false);
    CHECK(quiet == 2 * LAPSE_THREADS && t->pool.slabs == 0);
    free_table(t);
}

/* Who has pinned the table may have a segment in his hands. */
static void test_a_pinned_table_keeps_its_segments(void) {
    lapse_table *t = new_table((lapse_config){.mode = LAPSE_FIXED});
    fill(t, 0, MANY, LAPSE_NEVER);
    table_pin(t);
    lose_all(t);
    CHECK((t->pool.slabs > 0) == LAPSE_THREADS);
    table_unpin(t);
    pack(t, false);
    CHECK(t->pool.slabs == 0);
    free_table(t);
}

/* Those of a thread that a fork has left behind count no more, this thread's own do. */
#if LAPSE_THREADS
static void *pin(void *t) {
    table_pin(t);
    return NULL;
}

static void test_pins_after_a_fork(void) {
    pthread_t other;
    lapse_table *t = new_table((lapse_config){.mode = LAPSE_FIXED});
    fill(t, 0, MANY, LAPSE_NEVER);
    table_pin(t);
    CHECK(pthread_create(&other, NULL, pin, t) == 0 && pthread_join(other, NULL) == 0);
    CHECK(!lapse_after_fork(t));
    quiet = 0;
    lose_all(t);
    CHECK(t->pool.slabs > 0 && quiet == 0); /* nobody is waited for in vain */
    table_unpin(t);
    CHECK(!lapse_after_fork(t));
    pack(t, false);
    CHECK(t->pool.slabs == 0 && quiet == 1);
    free_table(t);
}

static void fill_again(lapse_table *t) { fill(t, 0, MANY, LAPSE_NEVER); }

static bool is_retired(const lapse_table *t, const segment *s) {
    const segment *each = t->retired;
    while (each && each != s) each = each->next;
    return each != NULL;
}

static segment *used_again[PIECES]; /* of those that were retired */
static uint32_t used_n;

static void fill_and_lose(lapse_table *t) {
    lapse_item removed[LAPSE_STEP];
    size_t n;
    used_n = 0;
    for (segment *s = t->retired; s; s = s->next) used_again[used_n++] = s;
    fill_again(t);
    for (uint32_t i = used_n; i-- > 0;)
        if (is_retired(t, used_again[i])) used_again[i] = used_again[--used_n];
    CHECK(lapse_detach(t) == LAPSE_OK);
    for (lapse_status status = LAPSE_MORE; status == LAPSE_MORE;) {
        status = lapse_drain(t, removed, &n);
        lapse_release(removed, n);
    }
}

static uint32_t count_arrays(const lapse_table *t) {
    uint32_t n = 0;
    for (uint32_t d = 0; d <= MAX_DEPTH; d++) n += t->arrays[d] != NULL;
    return n;
}

/* What was idle, and is used again before all others have been waited for, may be in their hands, and stays. */
static void test_used_while_others_are_waited_for(void) {
    lapse_table *t = new_table((lapse_config){.mode = LAPSE_FIXED});
    fill_again(t);
    uint32_t arrays = count_arrays(t);
    meanwhile = fill_again;
    lose_all(t);
    for (uint32_t id = 0; id < MANY; id++) CHECK(lapse_has(t, &objects[id], id, 1) == LAPSE_OK);
    meanwhile = fill_and_lose;
    lose_all(t);
    CHECK(meanwhile == NULL && t->pool.slabs > 0 && count_arrays(t) == arrays && used_n > 0);
    for (uint32_t i = 0; i < used_n; i++) CHECK(is_retired(t, used_again[i]));
    pack(t, false);
    CHECK(t->pool.slabs == 0 && t->retired == NULL && count_arrays(t) < arrays);
    free_table(t);
}
#endif

#if LAPSE_THREADS
static lapse_status read_and_lose(lapse_table *t, lapse_object *key, uint32_t id) {
    lapse_object *value = NULL;
    meanwhile = lose_all;
    lapse_status status = table_read(t, key, mix_hash(id), 1, READ_PLAIN, &value);
    CHECK(meanwhile == NULL && lapse_len(t, 1) == 0);
    if (status == LAPSE_OK) CHECK(value == &objects[id]);
    if (status == LAPSE_OK) object_unref(value);
    return status;
}

/* Who gives up a key may be stopped for it, while all that he has looked at is given back. */
static void test_gone_while_a_key_is_given_up(void) {
    const uint32_t id = MANY / 2;
    lapse_object equal = {.references = 1, .id = id}, other = {.references = 1, .id = MANY};
    lapse_table *t = new_table((lapse_config){.mode = LAPSE_SLIDING, .max_lifetime = INT64_MAX});
    fill(t, 0, MANY, TTL);
    CHECK(read_and_lose(t, &equal, id) == LAPSE_OK && t->pool.slabs == 0);
    fill(t, 0, MANY, TTL);
    CHECK(read_and_lose(t, &other, id) == LAPSE_ABSENT); /* its hash is the same */
    CHECK(t->pool.slabs > 0); /* he had pinned it */
    free_table(t);
}

static void put_aside(lapse_table *t) { CHECK(lapse_detach(t) == LAPSE_OK); }

/* Who has given up a key that is another one does not look at the next if the segment has changed: he holds no pin. */
static void test_changed_while_a_key_is_given_up(void) {
    static lapse_object same_hash[] = {{.references = 1, .id = 1}, {.references = 1, .id = 2}};
    lapse_object key = {.references = 1, .id = 3}, *value;
    lapse_table *t = new_table((lapse_config){.mode = LAPSE_FIXED});
    for (uint32_t i = 0; i < 2; i++)
        CHECK(lapse_put(t, &same_hash[i], 7, &objects[i], LAPSE_NEVER, 1, &value) == LAPSE_OK);
    meanwhile = put_aside;
    unrefs = 0;
    CHECK(table_read(t, &key, mix_hash(7), 1, READ_PLAIN, &value) == LAPSE_ABSENT);
    CHECK(meanwhile == NULL && unrefs == 1);
    empty(t);
    free_table(t);
}
#endif

/* --- When it does not come off --- */

static void thin_out(lapse_table *t, uint32_t first) {
    lapse_item removed;
    for (uint32_t id = first; id < MANY; id += 5)
        if (lapse_delete(t, &objects[id], id, 1, &removed) == LAPSE_OK) lapse_release(&removed, 1);
}

static void thin_out_more(lapse_table *t) { thin_out(t, 3); }

/* A segment that others change while memory is asked for is put to its place all the same. */
static void test_changed_meanwhile(void) {
    lapse_table *t = new_table((lapse_config){.mode = LAPSE_FIXED});
    fill(t, 0, MANY, LAPSE_NEVER);
    for (uint32_t first = 0; first < 3; first++) thin_out(t, first);
    meanwhile = thin_out_more;
    asked_for = SLAB_BYTES;
    pack(t, true);
    CHECK(meanwhile == NULL && t->pool.slabs == 1);
    for (uint64_t cursor = 0, more = 1; more;) {
        const segment *s = locate(t, cursor);
        CHECK(s->slab && segment_slots(s) == table_fewest_slots(t, s));
        more = segment_pass(&cursor, s);
    }
    free_table(t);
}

/* Without memory for new places a table stays as it is, and whole; with it, the next time, it does not. */
static void test_without_memory(void) {
    lapse_config config = {.lru = true};
    size_t most = need_of(config, MANY / 5) * MOST_PERCENT / 100 + CONSTANT;
    lapse_table *t = new_table(config);
    fill(t, 0, MANY, LAPSE_NEVER);
    for (uint32_t refusals = 0; refusals < 4; refusals++) {
        thin_out(t, refusals);
        given.refuse_after = refusals;
        given.refusing = true;
        pack(t, true);
        given.refusing = false;
        CHECK(lapse_check(t));
        for (const slab *sl = t->pool.first; sl; sl = sl->next) CHECK(!sl->old); /* they serve again */
    }
    pack(t, true);
    CHECK(resident() <= most);
    for (uint32_t id = 4; id < MANY; id += 5) CHECK(lapse_has(t, &objects[id], id, 1) == LAPSE_OK);
    free_table(t);
}

int main(void) {
    for (uint32_t id = 0; id < MANY; id++) objects[id] = (lapse_object){.references = 1, .id = id};
    RUN(test_fixed);
    RUN(test_sliding);
    RUN(test_probabilistic);
    RUN(test_lru);
    RUN(test_default_policy);
    RUN(test_weights);
    RUN(test_every_filling);
    RUN(test_what_the_policies_knew);
    RUN(test_a_table_that_grows_is_left_alone);
    RUN(test_waiting_for_others);
    RUN(test_a_pinned_table_keeps_its_segments);
#if LAPSE_THREADS
    RUN(test_pins_after_a_fork);
    RUN(test_used_while_others_are_waited_for);
    RUN(test_gone_while_a_key_is_given_up);
    RUN(test_changed_while_a_key_is_given_up);
#endif
    RUN(test_changed_meanwhile);
    RUN(test_without_memory);
    for (uint32_t id = 0; id < MANY; id++) CHECK(objects[id].references == 1);
    return tests_done();
}
