/* Included before everything else in the builds for threads: who gives a lock back pauses now and then, so that
 * the others run where two locks are taken one after the other: races that are narrow elsewhere are wide here.
 * Programs of one thread do not pause, where the C library can tell.
 */
#ifndef LAPSE_TEST_PAUSES_H
#define LAPSE_TEST_PAUSES_H

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <time.h>
#if defined(__has_include) && __has_include(<sys/single_threaded.h>)
#  include <sys/single_threaded.h>
#else
static const char __libc_single_threaded = 0;
#endif

#define PAUSE_EVERY 300u /* unlocks, on average */
#define PAUSE_NANOSECONDS 20000
#define OUTSIDE_AT_UNREF 64u /* references given up, one of which is outside */

static inline int unlock_and_pause(pthread_mutex_t *lock) {
    static _Thread_local uint32_t dice = 1;
    int failed = pthread_mutex_unlock(lock);
    if (__libc_single_threaded) return failed;
    dice = dice * UINT32_C(1664525) + UINT32_C(1013904223) + (uint32_t)((uintptr_t)&dice >> 12);
    if ((dice >> 8) % PAUSE_EVERY == 0) nanosleep(&(struct timespec){.tv_nsec = PAUSE_NANOSECONDS}, NULL);
    return failed;
}

/* A program may count who is inside the table (inside.h): who waits for a lock is not. */
extern void inside_leave(void) __attribute__((weak));
extern void inside_enter(void) __attribute__((weak));

static inline int lock_outside(pthread_mutex_t *lock) {
    if (inside_leave == NULL) return pthread_mutex_lock(lock);
    if (pthread_mutex_trylock(lock) == 0) return 0;
    inside_leave();
    int failed = pthread_mutex_lock(lock);
    inside_enter();
    return failed;
}

/* Nor is who gives up a reference: the interpreter may take its time, or a lock, for an object of another thread. */
static inline void unref_outside(void) {
    static _Thread_local uint32_t turn;
    if (inside_leave == NULL || ++turn % OUTSIDE_AT_UNREF) return;
    inside_leave();
    sched_yield();
    inside_enter();
}

#define AT_UNREF() unref_outside()
#define pthread_mutex_unlock(lock) unlock_and_pause(lock)
#define pthread_mutex_lock(lock) lock_outside(lock)

#endif
