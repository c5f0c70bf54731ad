/* The native monotonic clock: a coarse reading that costs a few nanoseconds, a precise one for doubt.
 *
 * The coarse clock never runs ahead of the precise one, so
 *     deadline <= coarse            proves expiry,
 *     deadline >  coarse + slack    proves life  (slack covers a tick that comes late),
 * and only between the two is the precise clock read. All times are int64 nanoseconds.
 */
#ifndef LAPSE_CLOCK_H
#define LAPSE_CLOCK_H

#include <stdint.h>

#define LAPSE_SECOND_NS INT64_C(1000000000)
#define LAPSE_MIN_SLACK_NS INT64_C(20000000) /* 20 ms: a few late ticks of a 250 Hz kernel */
#define LAPSE_SLACK_TICKS 4

#if defined(_WIN32)
#  ifndef WIN32_LEAN_AND_MEAN
#    define WIN32_LEAN_AND_MEAN
#  endif
#  include <windows.h>
/* Interrupt time, in units of 100 ns: both readings share one origin. Link with mincore.lib. */
#  define INTERRUPT_UNIT_NS 100
#  define INTERRUPT_TICK_NS INT64_C(16000000) /* 15.625 ms, the longest tick of Windows */
static inline int64_t clock_coarse(void) {
    ULONGLONG units;
    QueryInterruptTime(&units);
    return (int64_t)units * INTERRUPT_UNIT_NS;
}
static inline int64_t clock_precise(void) {
    ULONGLONG units;
    QueryInterruptTimePrecise(&units);
    return (int64_t)units * INTERRUPT_UNIT_NS;
}
static inline int64_t clock_tick(void) { return INTERRUPT_TICK_NS; }
static inline void clock_pause(void) { Sleep(0); }
#elif defined(__APPLE__)
#  include <time.h>
static inline int64_t clock_coarse(void) {
    return (int64_t)clock_gettime_nsec_np(CLOCK_MONOTONIC_RAW_APPROX);
}
static inline int64_t clock_precise(void) { return (int64_t)clock_gettime_nsec_np(CLOCK_MONOTONIC_RAW); }
static inline int64_t clock_tick(void) { return 10000000; }
#else
#  include <time.h>
#  ifndef CLOCK_MONOTONIC_COARSE
#    define CLOCK_MONOTONIC_COARSE CLOCK_MONOTONIC
#  endif
static inline int64_t clock_read(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * LAPSE_SECOND_NS + t.tv_nsec;
}
static inline int64_t clock_coarse(void) { return clock_read(CLOCK_MONOTONIC_COARSE); }
static inline int64_t clock_precise(void) { return clock_read(CLOCK_MONOTONIC); }
static inline int64_t clock_tick(void) {
    struct timespec t;
    clock_getres(CLOCK_MONOTONIC_COARSE, &t);
    return (int64_t)t.tv_sec * LAPSE_SECOND_NS + t.tv_nsec;
}
#endif

#if !defined(_WIN32)
/* Sleep for a moment, so that a thread that waits for what was just given up can take it. */
static inline void clock_pause(void) {
    const struct timespec moment = {.tv_nsec = 20000};
    nanosleep(&moment, NULL);
}
#endif

static inline int64_t clock_slack(void) {
    int64_t slack = LAPSE_SLACK_TICKS * clock_tick();
    return slack > LAPSE_MIN_SLACK_NS ? slack : LAPSE_MIN_SLACK_NS;
}

#endif
