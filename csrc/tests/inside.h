/* Who is inside the table: what the interpreter knows of a free-threaded build's threads. One that waits for a lock
 * (pauses.h) or runs other code is outside, and quiesce() returns when each of the others has been there. */
#ifndef LAPSE_TEST_INSIDE_H
#define LAPSE_TEST_INSIDE_H

#include <pthread.h>
#include <stdbool.h>
#include <unistd.h>

#define OUTSIDE_EVERY 16u /* operations, a thread goes out for a moment */

static pthread_rwlock_t doors =
    PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP; /* who waits keeps others out */
static _Thread_local bool inside, visitor; /* visitor: it has been inside, and comes back */

void inside_leave(void);
void inside_enter(void);

void inside_leave(void) {
    if (!inside) return;
    inside = false;
    pthread_rwlock_unlock(&doors);
}

void inside_enter(void) {
    if (!visitor) return;
    pthread_rwlock_rdlock(&doors);
    inside = true;
}

static bool quiesce(void) {
    inside_leave();
    pthread_rwlock_wrlock(&doors);
    pthread_rwlock_unlock(&doors);
    inside_enter();
    return true;
}

/* This thread's first call into the table is about to come. */
static void begin_visit(void) {
    visitor = true;
    inside_enter();
}

static void end_visit(void) {
    inside_leave();
    visitor = false;
}

static void nap(useconds_t microseconds) {
    inside_leave();
    usleep(microseconds);
    inside_enter();
}

#endif
