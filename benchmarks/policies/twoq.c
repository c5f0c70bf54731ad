/* 2Q (Johnson and Shasha, VLDB 1994): a queue for what is new, ghosts of it, and an LRU list of what came back. */
#include "sim.h"

#define NEW_SHARE 0.25
#define GHOST_SHARE 0.5

enum { NEW = 1, BACK, GHOST };

typedef struct {
    queues q;
    uint32_t capacity, new_size, ghost;
} twoq_state;

static void *make(uint32_t capacity, uint32_t keys) {
    twoq_state *c = calloc(1, sizeof *c);
    c->q = queues_new(keys, GHOST);
    c->capacity = capacity;
    c->new_size = share(capacity, NEW_SHARE);
    c->ghost = share(capacity, GHOST_SHARE);
    return c;
}

static void drop(void *cache) {
    twoq_state *c = cache;
    queues_free(&c->q);
    free(c);
}

static bool ask(void *cache, uint32_t key) {
    twoq_state *c = cache;
    uint8_t in = c->q.queue_of[key];
    if (in == BACK) move(&c->q, key, BACK);
    if (in == NEW || in == BACK) return true;
    if (in == GHOST) leave(&c->q, key);
    if (size_of(&c->q, NEW) + size_of(&c->q, BACK) == c->capacity) {
        if (size_of(&c->q, NEW) >= c->new_size || size_of(&c->q, BACK) == 0)
            move(&c->q, oldest(&c->q, NEW), GHOST);
        else leave(&c->q, oldest(&c->q, BACK));
        cut(&c->q, GHOST, c->ghost);
    }
    join(&c->q, key, in == GHOST ? BACK : NEW);
    return false;
}

const policy twoq_policy = {make, ask, drop};
