/* Objects for threads: keys and values that die and are born again as others in the same memory, as the
 * interpreter's do. The memory is type-stable, as theirs is.
 */
#ifndef LAPSE_TEST_THINGS_H
#define LAPSE_TEST_THINGS_H

#include "inside.h"
#include "lapse.h"
#include "test.h"

#include <sched.h>

#define THINGS 200000u

typedef enum { DEAD, ALIVE } state;

/* A key or a value. Where a field stands for a value's dates, a key leaves it alone. */
typedef struct {
    lapse_object o; /* first: a lapse_object's address is its thing's */
    state alive;
    uint64_t version;
    int64_t deadline; /* 0: not known */
} thing;

static thing things[THINGS];

static void bury(lapse_object *o) {
    PUBLISH(&((thing *)(void *)o)->alive, DEAD); /* pairs with the acquire in born() */
}

/* A comparison now and then lets the others run first. */
static int ask_slowly(lapse_object *stored, lapse_object *key) {
    static _Thread_local uint32_t calls;
    if (++calls % 64 == 0) {
        inside_leave();
        sched_yield();
        inside_enter();
    }
    return stored->id == key->id;
}

/* A thing of that id with one reference, which the caller owns. */
static thing *born(uint64_t id, uint64_t *random) {
    for (;;) {
        thing *x = &things[random_below(random, THINGS)];
        state dead = DEAD;
        if (!__atomic_compare_exchange_n(&x->alive, &dead, ALIVE, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            continue;
        x->o.id = id;
        x->o.needs_asking = id % 11 == 0;
        x->o.gc = id % 3 == 0;
        x->o.text = NULL;
        PUBLISH(&x->o.references, 1);
        return x;
    }
}

static const thing *thing_of(const lapse_object *o) { return (const thing *)(const void *)o; }

/* A key to look up with: nobody else's, on the caller's stack. */
static lapse_object key_for(uint32_t id) {
    return (lapse_object){.references = 1,
                          .id = id,
                          .needs_asking = id % 11 == 0,
                          .on_equal = id % 11 == 0 ? ask_slowly : NULL};
}

static void let_things_die(void) {
    for (uint32_t i = 0; i < THINGS; i++) things[i].o.on_death = bury;
}

static void check_everything_died(void) {
    for (uint32_t i = 0; i < THINGS; i++) CHECK(things[i].alive == DEAD && things[i].o.references == 0);
}

#endif
