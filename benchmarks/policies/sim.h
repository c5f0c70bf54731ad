/* What a simulated policy is, and what several of them are made of.
 *
 * Keys are the numbers 0 .. keys - 1, so a policy keeps what it knows about them in plain arrays, whether
 * they are in the cache or not: the simulators say what a policy decides, not what it costs.
 */
#ifndef POLICIES_SIM_H
#define POLICIES_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    void *(*make)(uint32_t capacity, uint32_t keys);
    bool (*ask)(void *cache, uint32_t key); /* Is it a hit? Afterwards the key is in the cache. */
    void (*drop)(void *cache);
} policy;

static inline uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t most(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* A share of the capacity, at least one entry. */
static inline uint32_t share(uint32_t capacity, double part) {
    return most(1, (uint32_t)(capacity * part + 0.5));
}

/* --- Queues: several lists over the same keys, a key in one of them at most --- */

typedef struct {
    uint32_t *older, *newer; /* node `keys + q` is the sentinel of queue q */
    uint32_t *sizes;
    uint8_t *queue_of; /* 0: in none. Queues count from 1. */
    uint32_t keys;
} queues;

static inline queues queues_new(uint32_t keys, uint32_t count) {
    size_t nodes = (size_t)keys + count + 1;
    queues q = {malloc(nodes * sizeof(uint32_t)), malloc(nodes * sizeof(uint32_t)),
                calloc(count + 1, sizeof(uint32_t)), calloc(keys, 1), keys};
    for (uint32_t i = 0; i <= count; i++) q.older[keys + i] = q.newer[keys + i] = keys + i;
    return q;
}
static inline void queues_free(queues *q) {
    free(q->older);
    free(q->newer);
    free(q->sizes);
    free(q->queue_of);
}
static inline void leave(queues *q, uint32_t key) {
    q->newer[q->older[key]] = q->newer[key];
    q->older[q->newer[key]] = q->older[key];
    q->sizes[q->queue_of[key]]--;
    q->queue_of[key] = 0;
}
/* Become the newest of a queue; the key is in none. */
static inline void join(queues *q, uint32_t key, uint8_t queue) {
    uint32_t end = q->keys + queue, last = q->older[end];
    q->newer[last] = key;
    q->older[key] = last;
    q->newer[key] = end;
    q->older[end] = key;
    q->sizes[queue]++;
    q->queue_of[key] = queue;
}
static inline void move(queues *q, uint32_t key, uint8_t queue) {
    leave(q, key);
    join(q, key, queue);
}
static inline uint32_t oldest(const queues *q, uint8_t queue) { return q->newer[q->keys + queue]; }
static inline uint32_t size_of(const queues *q, uint8_t queue) { return q->sizes[queue]; }

/* Keep the newest `limit` of a queue. */
static inline void cut(queues *q, uint8_t queue, uint32_t limit) {
    while (size_of(q, queue) > limit) leave(q, oldest(q, queue));
}

static inline uint64_t mixed(uint32_t key) {
    uint64_t x = (key + UINT64_C(1)) * UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ (x >> 29)) * UINT64_C(0xBF58476D1CE4E5B9);
    return x ^ (x >> 32);
}

#endif
