/* A machine of weak order, on one real thread: coroutines, which may change at every shared access, and accesses
 * that take effect as early or as late as the macros of atomics.h let them.
 *
 *   A load is of now, or of the moment of the thread's last acquire, full fence or store: a log says what the word
 *   held then. Behind READ_FENCE() no load is of before the newest load in front of it.
 *
 *   A store is seen by all at once, or held back: while other threads run, the word holds what it held before.
 *   Later stores overtake it, but not one that releases, not one of the same word, and none behind WRITE_FENCE().
 *
 * So a fence, an acquire or a release that is missing shows, as it does not on x86-64. What is added, or compared
 * and swapped, takes effect at once, and no store comes before an earlier load. A word has at most 8 bytes, the
 * lowest first, and is always accessed whole.
 */
#ifndef LAPSE_TEST_MACHINE_H
#define LAPSE_TEST_MACHINE_H

#include "atomics.h"
#include "test.h"

#include <ucontext.h>

#define THREADS_MOST 4u
#define STACK_BYTES 65536u
#define WAITS_MOST 1000u /* of a thread that is alone */
#define ACCESSES_MOST 10000000u /* of a run: none goes on for ever */
#define HELD_MOST 4u /* stores of a thread */
#define LOGGED 64u /* a load may be behind by so many stores */

typedef struct {
    void *word;
    size_t bytes;
    uint64_t value; /* before the store; after it, while it is held back and other threads run */
} change;

typedef struct {
    ucontext_t context;
    char stack[STACK_BYTES];
    bool over;
    change held[HELD_MOST]; /* in the order in which they were stored */
    uint32_t holds;
    uint64_t acquired; /* the moment before which no load is */
    uint64_t loaded; /* that of the newest load */
} coroutine;

static struct {
    ucontext_t home;
    coroutine threads[THREADS_MOST];
    void (*body)(uint32_t thread);
    uint32_t running, alive, accesses, eagerness; /* a switch at one access in so many */
    bool active, strong; /* strong: every access takes effect in its turn */
    uint64_t random;
    void (*look)(void); /* is called at each access, if it is set */
    change log[LOGGED];
    uint64_t moment; /* how many stores all have seen */
} machine;

static inline coroutine *myself(void) { return &machine.threads[machine.running]; }
static inline bool toss(void) { return random_below(&machine.random, 2) == 0; }

/* --- Words --- */

static inline uint64_t word_value(const void *word, size_t bytes) {
    uint64_t value = 0;
    memcpy(&value, word, bytes);
    return value;
}

static inline void swap(change *c) {
    uint64_t value = word_value(c->word, c->bytes);
    memcpy(c->word, &c->value, c->bytes);
    c->value = value;
}

static inline void hide_held(coroutine *t) {
    for (uint32_t i = t->holds; i > 0; i--) swap(&t->held[i - 1]);
}
static inline void show_held(coroutine *t) {
    for (uint32_t i = 0; i < t->holds; i++) swap(&t->held[i]);
}

/* --- Threads --- */

static inline void switch_to(uint32_t next) {
    coroutine *me = myself();
    if (next == machine.running) return;
    hide_held(me);
    machine.running = next;
    swapcontext(&me->context, &machine.threads[next].context);
    show_held(me);
}

static inline uint32_t somebody(void) {
    uint32_t n = random_below(&machine.random, machine.alive);
    for (uint32_t t = 0;; t++)
        if (!machine.threads[t].over && n-- == 0) return t;
}

static inline void look_around(void) {
    if (machine.look == NULL) return;
    machine.active = false;
    machine.look();
    machine.active = true;
}

void lapse_yield(void) {
    if (!machine.active) return;
    look_around();
    CHECK(machine.accesses++ < ACCESSES_MOST);
    if (random_below(&machine.random, machine.eagerness) == 0) switch_to(somebody());
}

/* A thread that cannot go on lets others. Nobody waits for ever. */
void lapse_wait(void) {
    static uint32_t waits;
    uint32_t next = machine.running;
    CHECK(waits < WAITS_MOST);
    waits = machine.active && machine.alive > 1 ? 0 : waits + 1;
    while (waits == 0 && next == machine.running) next = somebody();
    switch_to(next);
}

/* --- Loads and stores --- */

/* Of now, or as early as may be: the extremes find out most. */
static inline uint64_t choose_moment(const coroutine *me) {
    uint64_t logged = machine.moment < LOGGED ? 0 : machine.moment - LOGGED;
    if (!machine.active || machine.strong || toss()) return machine.moment;
    return me->acquired > logged ? me->acquired : logged;
}

uint64_t lapse_load(const void *word, size_t bytes, int acquires) {
    lapse_yield();
    coroutine *me = myself();
    uint64_t value = word_value(word, bytes), moment = choose_moment(me);
    for (uint64_t m = machine.moment; m > moment; m--)
        if (machine.log[m % LOGGED].word == word) value = machine.log[m % LOGGED].value;
    if (moment > me->loaded) me->loaded = moment;
    if (acquires) me->acquired = moment;
    return value;
}

static inline void reveal(change c) { machine.log[++machine.moment % LOGGED] = c; }

static inline void reveal_held(coroutine *me) {
    for (uint32_t i = 0; i < me->holds; i++) reveal(me->held[i]);
    if (me->holds > 0) me->acquired = machine.moment; /* it has seen them already */
    me->holds = 0;
}

static inline bool is_held(const coroutine *me, const void *word) {
    for (uint32_t i = 0; i < me->holds; i++)
        if (me->held[i].word == word) return true;
    return false;
}

/* What comes before a store. */
void lapse_store(void *word, size_t bytes, int releases) {
    lapse_yield();
    coroutine *me = myself();
    change c = {word, bytes, word_value(word, bytes)};
    if (machine.active && !machine.strong && me->holds < HELD_MOST && toss()) {
        me->held[me->holds++] = c;
    } else {
        if (releases || is_held(me, word)) reveal_held(me);
        reveal(c);
    }
    me->acquired = machine.moment; /* a thread sees what it has stored itself */
}

/* --- Fences --- */

void lapse_read_fence(void) {
    coroutine *me = myself();
    if (me->loaded > me->acquired) me->acquired = me->loaded;
}

void lapse_write_fence(void) { reveal_held(myself()); }

void lapse_full_fence(void) {
    reveal_held(myself());
    myself()->acquired = machine.moment;
}

/* --- A run --- */

static inline void machine_begin(void) {
    machine.body(machine.running);
    myself()->over = true;
    if (--machine.alive > 0) switch_to(somebody());
    else setcontext(&machine.home);
}

/* Run body() in `threads` threads, until it has returned in all of them. */
static inline void machine_run(uint32_t threads, void (*body)(uint32_t thread)) {
    machine.body = body;
    machine.alive = threads;
    machine.accesses = 0;
    for (uint32_t i = 0; i < threads; i++) {
        coroutine *t = &machine.threads[i];
        t->over = false;
        getcontext(&t->context);
        t->context.uc_stack.ss_sp = t->stack;
        t->context.uc_stack.ss_size = STACK_BYTES;
        t->context.uc_link = NULL;
        makecontext(&t->context, machine_begin, 0);
    }
    machine.active = true;
    machine.running = somebody();
    swapcontext(&machine.home, &machine.threads[machine.running].context);
    machine.active = false;
}

#endif
