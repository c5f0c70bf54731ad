/* The sweep's inner loop: which of a run of packed deadlines have passed, and which is the next.
 *
 * A deadline is an int64 in nanoseconds; 0 means never or empty. One unsigned comparison,
 * (uint64_t)(deadline - 1) < now, is true exactly for 1 <= deadline <= now, so zero pages and full
 * ones are scanned alike. Four bodies give the same answer: AVX2 (chosen at run time), SSE2, NEON and a
 * portable one (LAPSE_PORTABLE forces it).
 *
 * Threads: the holder of the segment's lock scans, so no deadline changes meanwhile.
 */
#ifndef LAPSE_SCAN_H
#define LAPSE_SCAN_H

#include <stddef.h>
#include <stdint.h>

/* A deadline as the scan orders it: never (0) comes last. */
#define DEADLINE_RANK(d) ((uint64_t)(d) - 1u)
#define RANK_NEVER UINT64_MAX

typedef size_t (*scan_body)(const int64_t *deadlines, size_t n, int64_t now, uint64_t *bits, uint64_t *next);

/* Set a bit in `bits` for each of the `n` deadlines (a multiple of 16, at most 64 x words) that is
 * not after `now` (>= 0); store the least rank of the others. Returns how many bits it set. */
size_t scan_deadlines(const int64_t *deadlines, size_t n, int64_t now, uint64_t *bits, uint64_t *next);

/* For tests: the body of that name ("avx2", "sse2", "neon", "portable"), or NULL where it cannot run;
 * and the name of the one that scan_deadlines() uses here. */
scan_body scan_body_named(const char *name);
const char *scan_name(void);

#endif
