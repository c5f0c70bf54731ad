/* W-TinyLFU (Einziger, Friedman, Manes 2017): an LRU window, a segmented LRU main part, and an admission by
 * counts. Static, or with Caffeine's hill climber, which moves the window's size and looks what it does to the
 * hit ratio. Counts are exact here, where the real thing estimates them with a sketch. */
#include "sim.h"

#define WINDOW_SHARE 0.01
#define PROTECTED_SHARE 0.8
#define COUNT_MOST 15u
#define SAMPLE 10u
#define STEP_SHARE 0.0625
#define STEP_DECAY 0.98
#define RESTART 0.05

enum { WINDOW = 1, PROBATION, PROTECTED };

typedef struct {
    queues q;
    uint32_t capacity, keys;
    double window, step, last_ratio;
    uint8_t *counts;
    uint64_t counted, asked, hits;
    bool climbs;
} tinylfu_state;

static void *make(uint32_t capacity, uint32_t keys) {
    tinylfu_state *c = calloc(1, sizeof *c);
    c->q = queues_new(keys, PROTECTED);
    c->capacity = capacity;
    c->keys = keys;
    c->window = share(capacity, WINDOW_SHARE);
    c->step = -STEP_SHARE * capacity;
    c->counts = calloc(keys, 1);
    return c;
}

static void *make_climbing(uint32_t capacity, uint32_t keys) {
    tinylfu_state *c = make(capacity, keys);
    c->climbs = true;
    return c;
}

static void drop(void *cache) {
    tinylfu_state *c = cache;
    queues_free(&c->q);
    free(c->counts);
    free(c);
}

static void count(tinylfu_state *c, uint32_t key) {
    if (c->counts[key] < COUNT_MOST) c->counts[key]++;
    if (++c->counted < (uint64_t)SAMPLE * c->capacity) return;
    for (uint32_t i = 0; i < c->keys; i++) c->counts[i] >>= 1;
    c->counted /= 2;
}

static void climb(tinylfu_state *c) {
    if (c->asked < (uint64_t)SAMPLE * c->capacity) return;
    double ratio = (double)c->hits / c->asked, change = ratio - c->last_ratio;
    if (change < 0) c->step = -c->step;
    if (change >= RESTART || change <= -RESTART) c->step = (c->step < 0 ? -1 : 1) * STEP_SHARE * c->capacity;
    else c->step *= STEP_DECAY;
    c->window += c->step;
    if (c->window < 1) c->window = 1;
    if (c->window > 0.8 * c->capacity) c->window = 0.8 * c->capacity;
    c->last_ratio = ratio;
    c->asked = c->hits = 0;
}

static void demote(tinylfu_state *c) {
    double main_size = c->capacity - c->window;
    while (size_of(&c->q, PROTECTED) > PROTECTED_SHARE * main_size)
        move(&c->q, oldest(&c->q, PROTECTED), PROBATION);
}

static void evict(tinylfu_state *c) {
    while (size_of(&c->q, WINDOW) > c->window) {
        uint32_t candidate = oldest(&c->q, WINDOW);
        bool full =
            size_of(&c->q, WINDOW) + size_of(&c->q, PROBATION) + size_of(&c->q, PROTECTED) > c->capacity;
        move(&c->q, candidate, PROBATION);
        if (!full) continue;
        uint32_t victim = oldest(&c->q, PROBATION);
        leave(&c->q, c->counts[candidate] > c->counts[victim] ? victim : candidate);
    }
    while (size_of(&c->q, WINDOW) + size_of(&c->q, PROBATION) + size_of(&c->q, PROTECTED) > c->capacity)
        leave(&c->q, oldest(&c->q, size_of(&c->q, PROBATION)   ? PROBATION
                                   : size_of(&c->q, PROTECTED) ? PROTECTED
                                                               : WINDOW));
}

static bool ask(void *cache, uint32_t key) {
    tinylfu_state *c = cache;
    uint8_t in = c->q.queue_of[key];
    count(c, key);
    c->asked++;
    c->hits += in != 0;
    if (in == 0) join(&c->q, key, WINDOW);
    else move(&c->q, key, in == WINDOW ? WINDOW : PROTECTED);
    if (c->climbs) climb(c);
    demote(c);
    evict(c);
    return in != 0;
}

const policy wtinylfu_policy = {make, ask, drop};
const policy wtinylfu_climbing_policy = {make_climbing, ask, drop};
