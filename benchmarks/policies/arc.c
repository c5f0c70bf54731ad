/* ARC (Megiddo and Modha, FAST 2003): a list of keys asked for once, one of keys asked for twice, and ghosts of
 * both, whose hits say which of the two should be longer. */
#include "sim.h"

enum { ONCE = 1, TWICE, GHOST_ONCE, GHOST_TWICE };

typedef struct {
    queues q;
    uint32_t capacity;
    double once; /* the goal for the length of ONCE */
} arc_state;

static void *make(uint32_t capacity, uint32_t keys) {
    arc_state *c = calloc(1, sizeof *c);
    c->q = queues_new(keys, GHOST_TWICE);
    c->capacity = capacity;
    return c;
}

static void drop(void *cache) {
    arc_state *c = cache;
    queues_free(&c->q);
    free(c);
}

static void replace(arc_state *c, bool ghost_twice) {
    uint32_t once = size_of(&c->q, ONCE);
    if (once > 0 && (once > c->once || (ghost_twice && once == c->once) || size_of(&c->q, TWICE) == 0))
        move(&c->q, oldest(&c->q, ONCE), GHOST_ONCE);
    else move(&c->q, oldest(&c->q, TWICE), GHOST_TWICE);
}

static void adapt(arc_state *c, bool ghost_twice) {
    double once = size_of(&c->q, GHOST_ONCE), twice = size_of(&c->q, GHOST_TWICE);
    double by = ghost_twice ? -(once > twice ? once / twice : 1) : (twice > once ? twice / once : 1);
    c->once += by;
    if (c->once < 0) c->once = 0;
    if (c->once > c->capacity) c->once = c->capacity;
}

static void make_room(arc_state *c) {
    uint32_t once = size_of(&c->q, ONCE), known = once + size_of(&c->q, GHOST_ONCE);
    uint32_t all = known + size_of(&c->q, TWICE) + size_of(&c->q, GHOST_TWICE);
    if (known == c->capacity) {
        if (once < c->capacity) {
            leave(&c->q, oldest(&c->q, GHOST_ONCE));
            replace(c, false);
        } else leave(&c->q, oldest(&c->q, ONCE));
    } else if (all >= c->capacity) {
        if (all == 2 * c->capacity) leave(&c->q, oldest(&c->q, GHOST_TWICE));
        replace(c, false);
    }
}

static bool ask(void *cache, uint32_t key) {
    arc_state *c = cache;
    uint8_t in = c->q.queue_of[key];
    if (in == 0) {
        make_room(c);
        join(&c->q, key, ONCE);
        return false;
    }
    if (in > TWICE) {
        adapt(c, in == GHOST_TWICE);
        replace(c, in == GHOST_TWICE);
    }
    move(&c->q, key, TWICE);
    return in <= TWICE;
}

const policy arc_policy = {make, ask, drop};
