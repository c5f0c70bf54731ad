/* LRU, FIFO, CLOCK and SIEVE: one queue. They differ in what a hit does and where the search begins. */
#include "sim.h"

typedef struct {
    queues q;
    uint32_t capacity, hand; /* SIEVE's */
    bool *used;
} cache_state;

enum { ALL = 1 };

static void *make(uint32_t capacity, uint32_t keys) {
    cache_state *c = calloc(1, sizeof *c);
    c->q = queues_new(keys, 1);
    c->capacity = capacity;
    c->used = calloc(keys + 2, sizeof *c->used);
    c->hand = keys + ALL;
    return c;
}

static void drop(void *cache) {
    cache_state *c = cache;
    queues_free(&c->q);
    free(c->used);
    free(c);
}

static bool full(const cache_state *c) { return size_of(&c->q, ALL) == c->capacity; }

/* --- LRU and FIFO --- */

static bool ask_fifo(void *cache, uint32_t key) {
    cache_state *c = cache;
    if (c->q.queue_of[key]) return true;
    if (full(c)) leave(&c->q, oldest(&c->q, ALL));
    join(&c->q, key, ALL);
    return false;
}

static bool ask_lru(void *cache, uint32_t key) {
    bool hit = ask_fifo(cache, key);
    if (hit) move(&((cache_state *)cache)->q, key, ALL);
    return hit;
}

/* --- CLOCK: who was used is asked again later, as the newest --- */

static bool ask_clock(void *cache, uint32_t key) {
    cache_state *c = cache;
    if (c->q.queue_of[key]) return c->used[key] = true;
    while (full(c)) {
        uint32_t victim = oldest(&c->q, ALL);
        if (c->used[victim]) move(&c->q, victim, ALL);
        else leave(&c->q, victim);
        c->used[victim] = false;
    }
    join(&c->q, key, ALL);
    return false;
}

/* --- SIEVE (Zhang et al., NSDI 2024): who was used stays where it is --- */

static bool ask_sieve(void *cache, uint32_t key) {
    cache_state *c = cache;
    uint32_t end = c->q.keys + ALL;
    if (c->q.queue_of[key]) return c->used[key] = true;
    if (full(c)) {
        uint32_t victim = c->hand == end ? oldest(&c->q, ALL) : c->hand;
        while (c->used[victim]) {
            c->used[victim] = false;
            victim = c->q.newer[victim];
            if (victim == end) victim = oldest(&c->q, ALL);
        }
        c->hand = c->q.newer[victim];
        leave(&c->q, victim);
    }
    join(&c->q, key, ALL);
    return false;
}

const policy lru_policy = {make, ask_lru, drop};
const policy fifo_policy = {make, ask_fifo, drop};
const policy clock_policy = {make, ask_clock, drop};
const policy sieve_policy = {make, ask_sieve, drop};
