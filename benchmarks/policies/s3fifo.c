/* S3-FIFO (Yang et al., SOSP 2023): a small queue that most keys leave soon, a main queue, and a ghost queue
 * of the keys that left the small one. As in libcachesim, what comes first fills the main queue. */
#include "sim.h"

#define SMALL_SHARE 0.1
#define GHOST_SHARE 0.9
#define USES_MOST 3u
#define USES_TO_MOVE 2u

enum { SMALL = 1, MAIN, GHOST };

typedef struct {
    queues q;
    uint32_t capacity, small, ghost;
    uint8_t *uses;
    bool full;
} s3fifo_state;

static void *make(uint32_t capacity, uint32_t keys) {
    s3fifo_state *c = calloc(1, sizeof *c);
    c->q = queues_new(keys, GHOST);
    c->capacity = capacity;
    c->small = share(capacity, SMALL_SHARE);
    c->ghost = share(capacity, GHOST_SHARE);
    c->uses = calloc(keys, 1);
    return c;
}

static void drop(void *cache) {
    s3fifo_state *c = cache;
    queues_free(&c->q);
    free(c->uses);
    free(c);
}

static void evict_small(s3fifo_state *c) {
    uint32_t key = oldest(&c->q, SMALL);
    move(&c->q, key, c->uses[key] >= USES_TO_MOVE ? MAIN : GHOST);
    c->uses[key] = 0;
    cut(&c->q, GHOST, c->ghost);
}

static void evict_main(s3fifo_state *c) {
    uint32_t key = oldest(&c->q, MAIN);
    if (c->uses[key] > 0) {
        c->uses[key]--;
        move(&c->q, key, MAIN);
    } else leave(&c->q, key);
}

static bool ask(void *cache, uint32_t key) {
    s3fifo_state *c = cache;
    uint8_t in = c->q.queue_of[key];
    if (in == SMALL || in == MAIN) {
        if (c->uses[key] < USES_MOST) c->uses[key]++;
        return true;
    }
    if (in == GHOST) leave(&c->q, key);
    bool to_main = in == GHOST || (!c->full && size_of(&c->q, SMALL) >= c->small);
    c->uses[key] = 0;
    join(&c->q, key, to_main ? MAIN : SMALL);
    while (size_of(&c->q, SMALL) + size_of(&c->q, MAIN) > c->capacity) {
        c->full = true;
        if (size_of(&c->q, SMALL) > c->small || size_of(&c->q, MAIN) == 0) evict_small(c);
        else evict_main(c);
    }
    return false;
}

const policy s3fifo_policy = {make, ask, drop};
