/* The queue of pending invalidations; see queue.h. */
#include "queue.h"

#include <assert.h>

#define LINE 64u           /* bytes of a cache line: what different threads store to is this far apart */
#define LEAST_CAPACITY 2u  /* with one cell, "full" and "free for the next lap" would be the same turn */
#define NO_ALARM UINT64_MAX

typedef struct {
    uint64_t turn;
    queue_item item;
} cell;
static_assert(sizeof(void *) != 8 || sizeof(cell) == LINE / 2, "two cells fill a line");

struct lapse_queue {
    /* Never change. */
    const lapse_memory *memory;
    cell *cells;
    uint64_t mask; /* capacity - 1 */
    uint8_t pad_constants[LINE - 3 * sizeof(uint64_t)];
    /* Of the producers. */
    uint64_t pushed;
    uint8_t pad_producers[LINE - sizeof(uint64_t)];
    /* Of the consumer. */
    uint64_t taken;
    lapse_lock lock;
    uint8_t pad_consumer[LINE];
    /* Read at every push, stored seldom. */
    uint64_t alarm; /* the count of `pushed` that wakes the consumer */
    bool closed;
};

/* --- Making and freeing --- */

static size_t cells_bytes(uint64_t mask) { return (size_t)(mask + 1) * sizeof(cell); }

/* A queue for `capacity` items, rounded up to a power of two; NULL without memory. */
lapse_queue *queue_new(const lapse_memory *memory, size_t capacity) {
    lapse_queue *q = memory->grab(sizeof *q);
    if (q == NULL) return NULL;
    uint64_t rounded = LEAST_CAPACITY;
    while (rounded < capacity) rounded *= 2;
    q->memory = memory;
    q->mask = rounded - 1;
    q->alarm = NO_ALARM;
    lock_init(&q->lock);
    q->cells = memory->map(cells_bytes(q->mask));
    if (q->cells != NULL) return q;
    memory->drop(q);
    return NULL;
}

/* What is still queued is the caller's to take out first. */
void queue_free(lapse_queue *q) {
    assert(queue_pushed(q) == queue_taken(q));
    q->memory->unmap(q->cells, cells_bytes(q->mask));
    q->memory->drop(q);
}

/* --- Producers --- */

static cell *cell_of(const lapse_queue *q, uint64_t position) { return &q->cells[position & q->mask]; }
static uint64_t lap_of(const lapse_queue *q, uint64_t position) { return position & ~q->mask; }

/* Claim the next position; false: the ring is full. */
INLINE bool claim(lapse_queue *q, uint64_t *position) {
    uint64_t at = RELAXED(&q->pushed);
    for (;;) {
        /* acquire: pairs with the release of queue_take(), which is done with the cell */
        int64_t ahead = (int64_t)(ACQUIRE(&cell_of(q, at)->turn) - lap_of(q, at));
        if (ahead < 0) return false;
        if (ahead == 0 && COMPARE_SWAP64(&q->pushed, at, at + 1)) break;
        at = RELAXED(&q->pushed);
    }
    *position = at;
    return true;
}

/* Has this push reached the alarm, and is this thread the one that turns it off? */
INLINE bool reaches_alarm(lapse_queue *q, uint64_t position) {
    uint64_t alarm = RELAXED(&q->alarm);
    return UNLIKELY(position >= alarm - 1) && COMPARE_SWAP64(&q->alarm, alarm, NO_ALARM);
}

/* Queue an item. The caller owns a reference to its target, which the ring takes over if it was pushed. */
queue_status queue_push(lapse_queue *q, queue_kind kind, lapse_object *target, int64_t enqueued_ns) {
    uint64_t position;
    if (UNLIKELY(queue_is_closed(q))) return QUEUE_CLOSED;
    if (UNLIKELY(!claim(q, &position))) return QUEUE_FULL;
    cell *c = cell_of(q, position);
    c->item = (queue_item){.target = target, .enqueued_ns = enqueued_ns, .kind = kind};
    PUBLISH(&c->turn, lap_of(q, position) + 1); /* release: pairs with the acquire of full_at() */
    FULL_FENCE(); /* pairs with those of queue_arm() and queue_close(): one of the two sees the other */
    if (UNLIKELY(queue_is_closed(q))) return QUEUE_LATE;
    return reaches_alarm(q, position) ? QUEUE_WAKE : QUEUE_PUSHED;
}

/* --- The consumer --- */

/* The full cell at this position, or NULL: free, or claimed and not filled yet. Under the lock. */
static cell *full_at(const lapse_queue *q, uint64_t position) {
    cell *c = cell_of(q, position);
    return ACQUIRE(&c->turn) == lap_of(q, position) + 1 ? c : NULL; /* pairs with queue_push() */
}

/* Take up to `limit` items, oldest first; how many. The caller owns their references. Fewer come than are
 * pushed while a producer is between claiming and filling. */
size_t queue_take(lapse_queue *q, queue_item *out, size_t limit) {
    size_t n = 0;
    lock_take(&q->lock);
    uint64_t position = RELAXED(&q->taken);
    for (cell *c; n < limit && (c = full_at(q, position)) != NULL; n++, position++) {
        out[n] = c->item;
        PUBLISH(&c->turn, lap_of(q, position) + q->mask + 1); /* release: pairs with claim() */
    }
    PUBLISH(&q->taken, position); /* release: pairs with queue_taken() */
    lock_drop(&q->lock);
    return n;
}

/* When was the oldest item queued? False: there is none. */
bool queue_oldest(lapse_queue *q, int64_t *enqueued_ns) {
    lock_take(&q->lock);
    const cell *c = full_at(q, RELAXED(&q->taken));
    if (c != NULL) *enqueued_ns = c->item.enqueued_ns;
    lock_drop(&q->lock);
    return c != NULL;
}

/* Set the alarm to the push that makes `depth` items (at least 1) wait. False: as many wait already, and
 * there is no alarm. A consumer that takes meanwhile only makes it come early. */
bool queue_arm(lapse_queue *q, uint64_t depth) {
    uint64_t alarm = queue_taken(q) + depth;
    STORE(&q->alarm, alarm);
    FULL_FENCE(); /* pairs with that of queue_push(): it sees the alarm, or we see its count */
    if (queue_pushed(q) < alarm) return true;
    STORE(&q->alarm, NO_ALARM);
    return false;
}

/* Refuse every later push. */
void queue_close(lapse_queue *q) {
    STORE(&q->closed, true);
    FULL_FENCE(); /* pairs with that of queue_push(): it sees the end, or a later take sees its item */
}

/* --- Looking --- */

bool queue_is_closed(const lapse_queue *q) { return RELAXED(&q->closed); }

/* How many items have been queued so far; those being filled count. */
uint64_t queue_pushed(const lapse_queue *q) { return RELAXED(&q->pushed); }

/* How many items have been taken so far. acquire: pairs with queue_take(), whose caller's earlier stores
 * are seen with the count. */
uint64_t queue_taken(const lapse_queue *q) { return ACQUIRE(&q->taken); }

size_t queue_capacity(const lapse_queue *q) { return (size_t)q->mask + 1; }
size_t queue_bytes(const lapse_queue *q) { return sizeof *q + cells_bytes(q->mask); }

/* In a forked child, where no other thread is: waiting for the lock is all that one can have been doing
 * while it was stopped. */
void queue_after_fork(lapse_queue *q) { lock_init(&q->lock); }
