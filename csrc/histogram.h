/* A histogram of durations, of fixed size, in the manner of HdrHistogram: each power of two is cut into 16
 * buckets of equal width, so that a duration is known to 1/16 of itself, from nanoseconds to centuries.
 *
 *   value      0 .. 15    16 .. 31     32 .. 63     64 .. 127   ..   2^62 .. 2^63 - 1
 *   width      1          1            2            4                2^58
 *   buckets    0 .. 15    16 .. 31     32 .. 47     48 .. 63         944 .. 959
 *
 * Writers take turns (the caller's lock); anyone may read meanwhile, and sees figures of nearly one instant.
 */
#ifndef LAPSE_HISTOGRAM_H
#define LAPSE_HISTOGRAM_H

#include "probe.h"

#include "atomics.h"

#include <assert.h>

#define HISTOGRAM_BITS 4u
#define HISTOGRAM_STEPS (1u << HISTOGRAM_BITS) /* buckets of one power of two */
#define HISTOGRAM_BUCKETS ((63u - HISTOGRAM_BITS + 1u) * HISTOGRAM_STEPS)
static_assert(HISTOGRAM_BUCKETS == 960, "as drawn above");

typedef struct {
    uint64_t buckets[HISTOGRAM_BUCKETS];
    uint64_t count;
    int64_t largest;
} lapse_histogram;

INLINE unsigned highest_bit_of(uint64_t v) {
    uint32_t high = (uint32_t)(v >> 32);
    return high ? 32 + highest_bit(high) : highest_bit((uint32_t)v);
}

/* The bucket of a value that is not negative. */
INLINE unsigned histogram_bucket(int64_t value) {
    uint64_t v = (uint64_t)value;
    if (v < HISTOGRAM_STEPS) return (unsigned)v;
    unsigned shift = highest_bit_of(v) - HISTOGRAM_BITS;
    return (shift << HISTOGRAM_BITS) + (unsigned)(v >> shift);
}

/* The largest value of a bucket. */
INLINE int64_t histogram_edge(unsigned bucket) {
    if (bucket < HISTOGRAM_STEPS) return bucket;
    unsigned shift = (bucket >> HISTOGRAM_BITS) - 1;
    uint64_t step = HISTOGRAM_STEPS + bucket % HISTOGRAM_STEPS;
    return (int64_t)(((step + 1) << shift) - 1);
}

/* Count `times` occurrences of a value; a negative one counts as 0. */
INLINE void histogram_record(lapse_histogram *h, int64_t value, uint64_t times) {
    if (value < 0) value = 0;
    uint64_t *bucket = &h->buckets[histogram_bucket(value)];
    STORE(bucket, RELAXED(bucket) + times); /* partner of all stores here: the loads of a reader */
    STORE(&h->count, RELAXED(&h->count) + times);
    if (value > RELAXED(&h->largest)) STORE(&h->largest, value);
}

/* A value that `share` (0 .. 1) of all values do not exceed, at most 1/16 too large; 0 if there are none. */
static inline int64_t histogram_percentile(const lapse_histogram *h, double share) {
    uint64_t count = RELAXED(&h->count), seen = 0;
    int64_t largest = RELAXED(&h->largest);
    double wanted = share * (double)count;
    for (unsigned bucket = 0; bucket < HISTOGRAM_BUCKETS && count > 0; bucket++) {
        seen += RELAXED(&h->buckets[bucket]);
        if (seen == 0 || (double)seen < wanted) continue;
        int64_t edge = histogram_edge(bucket);
        return edge < largest ? edge : largest;
    }
    return largest;
}

#endif
