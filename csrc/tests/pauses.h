/* Included before everything else in the builds for threads: who gives a lock back pauses now and then, so that
 * the others run where two locks are taken one after the other: races that are narrow elsewhere are wide here.
 * Programs of one thread do not pause, where the C library can tell.
 */
#ifndef LAPSE_TEST_PAUSES_H
#define LAPSE_TEST_PAUSES_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>
#if defined(__has_include) && __has_include(<sys/single_threaded.h>)
#  include <sys/single_threaded.h>
#else
static const char __libc_single_threaded = 0;
#endif

#define PAUSE_EVERY 300u /* unlocks, on average */
#define PAUSE_NANOSECONDS 20000

static inline int unlock_and_pause(pthread_mutex_t *lock) {
    static _Thread_local uint32_t dice = 1;
    int failed = pthread_mutex_unlock(lock);
    if (__libc_single_threaded) return failed;
    dice = dice * UINT32_C(1664525) + UINT32_C(1013904223) + (uint32_t)((uintptr_t)&dice >> 12);
    if ((dice >> 8) % PAUSE_EVERY == 0) nanosleep(&(struct timespec){.tv_nsec = PAUSE_NANOSECONDS}, NULL);
    return failed;
}

#define pthread_mutex_unlock(lock) unlock_and_pause(lock)

#endif
