/* The queue of pending invalidations: a bounded ring that any number of producers push into without a
 * lock, and one consumer at a time takes from (Vyukov's bounded queue, with one consumer).
 *
 *                taken                     pushed             both count from 0 on and never fall;
 *                  │                         │                a position's cell is at its low bits
 *   | free | free | FULL | FULL | claimed | free | free |
 *
 *   turn of a cell     lap                free: whoever claims this position fills it
 *                      lap + 1            full: the consumer may take it
 *                      lap + capacity     free for the next lap     (lap: position less its low bits)
 *
 * So zero pages are an empty ring. A producer claims a position, fills the cell, publishes its turn.
 *
 * Waking. The consumer sleeps after it has armed an alarm, the count of `pushed` at which it wants to wake.
 * Of the producers who reach that count one is told so, and wakes it; the alarm is then off.
 *
 * Closing. A push that overlaps with queue_close() is either refused, or seen by a consumer who takes after
 * that call, or its producer is told that it came late, and has to see to it that the item is taken.
 *
 * Invariants
 *   1. taken <= pushed <= taken + capacity; capacity is a power of two, and at least 2.
 *   2. Items are taken in the order of their positions; those of one producer keep its order.
 *   3. Each item's reference is owned by the ring from push to take.
 *
 * Threads: every function may be called by any thread at any time, except queue_new(), queue_free() and
 * queue_after_fork(). `lock` lets consumers take turns; nothing is called while it is held. On a GIL build
 * the GIL is the lock, and no function here gives it up.
 */
#ifndef LAPSE_QUEUE_H
#define LAPSE_QUEUE_H

#include "lapse.h"

typedef struct lapse_queue lapse_queue;

/* What an item names: from the narrowest to the widest. */
typedef enum { QUEUE_KEY, QUEUE_PATTERN, QUEUE_TABLE, QUEUE_TAG, QUEUE_ALL } queue_kind;

typedef struct {
    lapse_object *target;
    int64_t enqueued_ns;
    queue_kind kind;
} queue_item;

typedef enum {
    QUEUE_PUSHED,
    QUEUE_WAKE,   /* pushed; the consumer sleeps, and this producer is the one to wake it */
    QUEUE_LATE,   /* pushed; but the queue has been closed meanwhile */
    QUEUE_FULL,   /* not pushed */
    QUEUE_CLOSED  /* not pushed */
} queue_status;

lapse_queue *queue_new(const lapse_memory *memory, size_t capacity);
void queue_free(lapse_queue *q);

queue_status queue_push(lapse_queue *q, queue_kind kind, lapse_object *target, int64_t enqueued_ns);
size_t queue_take(lapse_queue *q, queue_item *out, size_t limit);
bool queue_oldest(lapse_queue *q, int64_t *enqueued_ns);
bool queue_arm(lapse_queue *q, uint64_t depth);
void queue_close(lapse_queue *q);
bool queue_is_closed(const lapse_queue *q);

uint64_t queue_pushed(const lapse_queue *q);
uint64_t queue_taken(const lapse_queue *q);
size_t queue_capacity(const lapse_queue *q);
size_t queue_bytes(const lapse_queue *q);
void queue_after_fork(lapse_queue *q);

#endif
