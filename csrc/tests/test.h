/* The harness: a test is a void function; CHECK ends the process at the first condition that fails.
 *
 *     static void test_something(void) { CHECK(1 + 1 == 2); }
 *     int main(void) { RUN(test_something); return tests_done(); }
 */
#ifndef LAPSE_TEST_H
#define LAPSE_TEST_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *test_name = "no test";
static unsigned tests_run;

#define CHECK(condition)                                                                             \
    do {                                                                                             \
        if (!(condition)) {                                                                          \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, test_name, #condition); \
            abort();                                                                                 \
        }                                                                                            \
    } while (0)

#define RUN(test)          \
    do {                   \
        test_name = #test; \
        test();            \
        tests_run++;       \
    } while (0)

static inline int tests_done(void) {
    printf("%u tests", tests_run);
    return 0;
}

/* How much longer than usual to run: `run --long` sets it. */
static inline unsigned test_scale(void) {
    const char *scale = getenv("LAPSE_TEST_SCALE");
    return scale ? (unsigned)strtoul(scale, NULL, 10) : 1;
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static inline uint64_t random_word(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static inline uint32_t random_below(uint64_t *state, uint32_t n) {
    return (uint32_t)(random_word(state) % n);
}

#endif
