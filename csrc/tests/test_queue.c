/* The queue and its histogram: order, laps, the alarm, closing; then producers and a consumer at once. */
#include "histogram.h"
#include "queue.h"

#include "test.h"

#define ROOM 8u

static lapse_object object = {.references = 1};

static size_t grabs_left = SIZE_MAX, mapped;

static void *limited_grab(size_t bytes) { return grabs_left-- > 0 ? lapse_system_memory.grab(bytes) : NULL; }
static void *limited_map(size_t bytes) {
    if (grabs_left-- == 0) return NULL;
    mapped += bytes;
    return lapse_system_memory.map(bytes);
}
static void counting_unmap(void *p, size_t bytes) {
    mapped -= bytes;
    lapse_system_memory.unmap(p, bytes);
}

static lapse_memory limited_memory(void) {
    lapse_memory memory = lapse_system_memory;
    memory.grab = limited_grab;
    memory.map = limited_map;
    memory.unmap = counting_unmap;
    return memory;
}

static queue_status push(lapse_queue *q, int64_t number) { return queue_push(q, QUEUE_KEY, &object, number); }

static lapse_queue *filled(size_t capacity, int64_t n) {
    lapse_queue *q = queue_new(&lapse_system_memory, capacity);
    CHECK(q != NULL);
    for (int64_t i = 0; i < n; i++) CHECK(push(q, i) == QUEUE_PUSHED);
    return q;
}

static void take_expected(lapse_queue *q, int64_t from, size_t n) {
    queue_item item;
    for (size_t i = 0; i < n; i++) {
        CHECK(queue_take(q, &item, 1) == 1);
        CHECK(item.enqueued_ns == from + (int64_t)i && item.target == &object && item.kind == QUEUE_KEY);
    }
}

static void discard(lapse_queue *q) {
    queue_item items[ROOM];
    while (queue_take(q, items, ROOM) > 0) continue;
    queue_free(q);
}

/* --- One thread --- */

static void test_capacity_is_rounded_up(void) {
    static const size_t asked[] = {0, 1, 2, 3, 8, 9, 1000}, given[] = {2, 2, 2, 4, 8, 16, 1024};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        lapse_queue *q = filled(asked[i], (int64_t)given[i]);
        CHECK(queue_capacity(q) == given[i] && queue_bytes(q) > given[i] * sizeof(queue_item));
        CHECK(push(q, 0) == QUEUE_FULL && queue_pushed(q) == given[i]);
        discard(q);
    }
}

static void test_order_over_many_laps(void) {
    lapse_queue *q = filled(ROOM, 5);
    for (int64_t i = 0; i < 1000; i++) {
        take_expected(q, 3 * i, 3);
        for (int64_t j = 0; j < 3; j++) CHECK(push(q, 3 * i + j + 5) == QUEUE_PUSHED);
    }
    CHECK(queue_pushed(q) == 3005 && queue_taken(q) == 3000);
    discard(q);
}

static void test_a_take_is_bounded(void) {
    queue_item items[ROOM];
    lapse_queue *q = filled(ROOM, 5);
    CHECK(queue_take(q, items, 0) == 0);
    CHECK(queue_take(q, items, 3) == 3 && items[2].enqueued_ns == 2);
    CHECK(queue_take(q, items, ROOM) == 2 && items[1].enqueued_ns == 4);
    CHECK(queue_take(q, items, ROOM) == 0);
    queue_free(q);
}

static void test_a_full_ring_takes_again(void) {
    lapse_queue *q = filled(ROOM, ROOM);
    CHECK(push(q, 99) == QUEUE_FULL);
    take_expected(q, 0, 1);
    CHECK(push(q, ROOM) == QUEUE_PUSHED && push(q, 99) == QUEUE_FULL);
    take_expected(q, 1, ROOM);
    queue_free(q);
}

static void test_the_oldest(void) {
    int64_t at = -1;
    lapse_queue *q = filled(ROOM, 0);
    CHECK(!queue_oldest(q, &at) && at == -1);
    CHECK(push(q, 7) == QUEUE_PUSHED && push(q, 8) == QUEUE_PUSHED);
    CHECK(queue_oldest(q, &at) && at == 7);
    take_expected(q, 7, 1);
    CHECK(queue_oldest(q, &at) && at == 8);
    discard(q);
}

static void test_the_alarm_wakes_once(void) {
    lapse_queue *q = filled(ROOM, 0);
    CHECK(queue_arm(q, 1)); /* asleep until anything comes */
    CHECK(push(q, 0) == QUEUE_WAKE && push(q, 1) == QUEUE_PUSHED);
    CHECK(!queue_arm(q, 1) && !queue_arm(q, 2)); /* no sleep while there is work */
    CHECK(push(q, 2) == QUEUE_PUSHED);
    CHECK(queue_arm(q, 5)); /* asleep until five wait */
    CHECK(push(q, 3) == QUEUE_PUSHED && push(q, 4) == QUEUE_WAKE && push(q, 5) == QUEUE_PUSHED);
    CHECK(queue_arm(q, ROOM)); /* until the ring is full */
    take_expected(q, 0, 2);
    CHECK(push(q, 6) == QUEUE_PUSHED && push(q, 7) == QUEUE_WAKE); /* early: it takes the count of `pushed` */
    discard(q);
}

static void test_closing(void) {
    lapse_queue *q = filled(ROOM, 2);
    CHECK(!queue_is_closed(q));
    queue_close(q);
    CHECK(queue_is_closed(q) && push(q, 2) == QUEUE_CLOSED);
    queue_after_fork(q);
    take_expected(q, 0, 2);
    queue_free(q);
}

static void test_no_memory(void) {
    lapse_memory memory = limited_memory();
    for (grabs_left = 0; grabs_left < 2;) {
        size_t before = grabs_left;
        CHECK(queue_new(&memory, ROOM) == NULL);
        CHECK(mapped == 0);
        grabs_left = before + 1;
    }
    grabs_left = 2;
    lapse_queue *q = queue_new(&memory, ROOM);
    CHECK(q != NULL && mapped > 0);
    queue_free(q);
    CHECK(mapped == 0);
}

/* --- The histogram --- */

static void test_buckets_hold_what_they_say(void) {
    unsigned last = 0;
    for (unsigned shift = 0; shift < 63; shift++) {
        for (int64_t near = -20; near <= 20; near++) {
            int64_t v = (INT64_C(1) << shift) + near;
            if (v < 0) continue;
            unsigned bucket = histogram_bucket(v);
            CHECK(bucket < HISTOGRAM_BUCKETS && v <= histogram_edge(bucket));
            CHECK(bucket == 0 || v > histogram_edge(bucket - 1));
            CHECK(histogram_edge(bucket) - v <= v / 16);
            last = bucket > last ? bucket : last;
        }
    }
    CHECK(histogram_bucket(INT64_MAX) == HISTOGRAM_BUCKETS - 1 && last < HISTOGRAM_BUCKETS);
    CHECK(histogram_edge(HISTOGRAM_BUCKETS - 1) == INT64_MAX);
}

static void test_percentiles(void) {
    static lapse_histogram h;
    CHECK(histogram_percentile(&h, 0.5) == 0 && h.largest == 0);
    for (int64_t v = 1; v <= 1000; v++) histogram_record(&h, v * 1000, 1);
    for (int percent = 1; percent <= 100; percent++) {
        int64_t exact = percent * 10000, answer = histogram_percentile(&h, percent / 100.0);
        CHECK(answer >= exact && answer - exact <= exact / 16);
    }
    CHECK(histogram_percentile(&h, 1.0) == 1000000 && h.count == 1000);
    histogram_record(&h, -5, 9000); /* a clock that went backwards */
    CHECK(histogram_percentile(&h, 0.9) == 0 && histogram_percentile(&h, 0.91) > 0);
}

/* --- Producers and a consumer at once --- */

#if LAPSE_THREADS
#  include <errno.h>
#  include <pthread.h>
#  include <sched.h>
#  include <semaphore.h>
#  include <time.h>

#  define PRODUCERS 4u
#  define PATIENCE 60 /* seconds, after which a wake counts as lost */

static struct {
    lapse_queue *q;
    sem_t wake;
    int64_t items; /* of each producer; after closing, as many as it got in */
    uint64_t taken[PRODUCERS]; /* how many of each producer the consumers have seen */
    uint64_t accepted[PRODUCERS]; /* how many of them were pushed */
    pthread_mutex_t counting; /* the flush lock of those who take */
} race;

static void sleep_until_woken(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE;
    int failed;
    while ((failed = sem_timedwait(&race.wake, &until)) != 0 && errno == EINTR) continue;
    CHECK(!failed);
}

/* Take what there is; each producer's items come in its order, each once. */
static size_t take_and_check(void) {
    queue_item items[ROOM];
    pthread_mutex_lock(&race.counting);
    size_t n = queue_take(race.q, items, ROOM);
    for (size_t i = 0; i < n; i++) {
        uint64_t *next = &race.taken[items[i].kind];
        CHECK(items[i].enqueued_ns == (int64_t)*next && items[i].target == &object);
        (*next)++;
    }
    pthread_mutex_unlock(&race.counting);
    return n;
}

static void take_all(void) {
    uint64_t end = queue_pushed(race.q);
    while (queue_taken(race.q) < end)
        if (take_and_check() == 0) sched_yield();
}

static void *produce(void *number) {
    uint64_t *accepted = &race.accepted[(uintptr_t)number];
    int64_t n = 0;
    while (n < race.items) {
        queue_status status = queue_push(race.q, (queue_kind)(uintptr_t)number, &object, n);
        if (status == QUEUE_CLOSED) break;
        if (status == QUEUE_WAKE) sem_post(&race.wake);
        if (status == QUEUE_LATE) take_all();
        if (status == QUEUE_FULL) sched_yield();
        else n++;
    }
    *accepted = (uint64_t)n;
    return NULL;
}

static void begin_race(size_t capacity, int64_t items, pthread_t threads[PRODUCERS]) {
    race.q = filled(capacity, 0);
    race.items = items;
    memset(race.taken, 0, sizeof race.taken);
    CHECK(sem_init(&race.wake, 0, 0) == 0 && pthread_mutex_init(&race.counting, NULL) == 0);
    for (uintptr_t i = 0; i < PRODUCERS; i++)
        CHECK(pthread_create(&threads[i], NULL, produce, (void *)i) == 0);
}

static void end_race(pthread_t threads[PRODUCERS]) {
    for (uint32_t i = 0; i < PRODUCERS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(queue_pushed(race.q) == queue_taken(race.q));
    for (uint32_t i = 0; i < PRODUCERS; i++) CHECK(race.taken[i] == race.accepted[i]);
    queue_free(race.q);
    sem_destroy(&race.wake);
    pthread_mutex_destroy(&race.counting);
}

/* The consumer sleeps whenever it may, at depths from one item to a full ring. A lost wake hangs. */
static void race_once(size_t capacity, int64_t items) {
    pthread_t threads[PRODUCERS];
    begin_race(capacity, items, threads);
    uint64_t all = PRODUCERS * (uint64_t)items, depth = 1;
    while (queue_taken(race.q) < all) {
        uint64_t left = all - queue_taken(race.q);
        if (queue_arm(race.q, depth < left ? depth : left)) sleep_until_woken();
        take_all();
        depth = depth % queue_capacity(race.q) + 1;
    }
    end_race(threads);
}

static void test_every_item_once(void) {
    int64_t items = 20000 * (int64_t)test_scale();
    race_once(2, items);
    race_once(64, items);
    race_once(4096, items);
}

/* One of several who take at once, with nothing but the ring's own lock between them. */
static void *take_beside_others(void *sum) {
    queue_item items[ROOM];
    int64_t last = -1, total = 0;
    while (queue_taken(race.q) < queue_capacity(race.q)) {
        size_t n = queue_take(race.q, items, 1 + (size_t)total % ROOM);
        for (size_t i = 0; i < n; i++) {
            CHECK(items[i].enqueued_ns > last);
            total += last = items[i].enqueued_ns;
        }
    }
    *(int64_t *)sum = total;
    return NULL;
}

static void test_consumers_take_turns(void) {
    const int64_t items = 4096;
    for (unsigned turn = 0; turn < 50 * test_scale(); turn++) {
        pthread_t other;
        int64_t sums[2];
        race.q = filled((size_t)items, items);
        CHECK(pthread_create(&other, NULL, take_beside_others, &sums[0]) == 0);
        take_beside_others(&sums[1]);
        CHECK(pthread_join(other, NULL) == 0);
        CHECK(sums[0] + sums[1] == items * (items - 1) / 2);
        queue_free(race.q);
    }
}

/* Another thread sleeps and takes as a consumer does; here the queue is closed in the midst of it. */
static void *consume_until_closed(void *unused) {
    (void)unused;
    while (!queue_is_closed(race.q)) {
        if (queue_arm(race.q, 1)) sleep_until_woken();
        take_all();
    }
    return NULL;
}

static void test_closing_loses_nothing(void) {
    uint64_t random = 1;
    for (unsigned turn = 0; turn < 300 * test_scale(); turn++) {
        pthread_t threads[PRODUCERS], consumer;
        begin_race(16, INT64_MAX, threads);
        CHECK(pthread_create(&consumer, NULL, consume_until_closed, NULL) == 0);
        uint64_t until = random_below(&random, 500);
        while (queue_pushed(race.q) < until) sched_yield();
        queue_close(race.q);
        sem_post(&race.wake);
        take_all();
        CHECK(pthread_join(consumer, NULL) == 0);
        end_race(threads);
    }
}
#endif

int main(void) {
    RUN(test_capacity_is_rounded_up);
    RUN(test_order_over_many_laps);
    RUN(test_a_take_is_bounded);
    RUN(test_a_full_ring_takes_again);
    RUN(test_the_oldest);
    RUN(test_the_alarm_wakes_once);
    RUN(test_closing);
    RUN(test_no_memory);
    RUN(test_buckets_hold_what_they_say);
    RUN(test_percentiles);
#if LAPSE_THREADS
    RUN(test_every_item_once);
    RUN(test_consumers_take_turns);
    RUN(test_closing_loses_nothing);
#endif
    return tests_done();
}
