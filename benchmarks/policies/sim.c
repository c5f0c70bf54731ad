/* A replay of a trace by a policy. */
#include "sim.h"

/* The number of hits. */
uint64_t replay(const policy *p, const uint32_t *trace, uint64_t requests, uint32_t capacity, uint32_t keys) {
    void *cache = p->make(capacity, keys);
    uint64_t hits = 0;
    for (uint64_t i = 0; i < requests; i++) hits += p->ask(cache, trace[i]);
    p->drop(cache);
    return hits;
}
