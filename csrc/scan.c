/* The sweep's inner loop; see scan.h. On a free-threaded build the deadlines are read while other
 * threads may store them: each is one aligned word, and the sweep reads it again under the lock. */
#include "scan.h"

#include "atomics.h"
#include "probe.h"

#define WORD_BITS 64u

static unsigned count_bits(uint64_t w) {
#if defined(__GNUC__) || defined(__clang__)
    return (unsigned)__builtin_popcountll(w);
#else
    unsigned n = 0;
    for (; w; w &= w - 1) n++;
    return n;
#endif
}

size_t scan_deadlines_portable(const int64_t *deadlines, size_t n, int64_t now, uint64_t *bits,
                               uint64_t *next) {
    size_t found = 0;
    uint64_t least = RANK_NEVER;
    for (size_t base = 0; base < n; base += WORD_BITS) {
        size_t run = n - base < WORD_BITS ? n - base : WORD_BITS;
        uint64_t word = 0;
        for (size_t i = 0; i < run; i++) {
            uint64_t rank = DEADLINE_RANK(RELAXED(&deadlines[base + i]));
            uint64_t passed = rank < (uint64_t)now;
            uint64_t kept = passed ? RANK_NEVER : rank;
            word |= passed << i;
            least = kept < least ? kept : least;
        }
        bits[base / WORD_BITS] = word;
        found += count_bits(word);
    }
    *next = least;
    return found;
}

#if !defined(LAPSE_PORTABLE) && defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && \
    !defined(__SANITIZE_THREAD__)
#  define HAVE_AVX2_BODY 1
#  include <immintrin.h>

/* AVX2 compares signed words only: flipping the top bit turns unsigned order into signed order. */
__attribute__((target("avx2"))) static size_t scan_avx2(const int64_t *deadlines, size_t n, int64_t now,
                                                        uint64_t *bits, uint64_t *next) {
    const __m256i flip = _mm256_set1_epi64x(INT64_MIN), one = _mm256_set1_epi64x(1);
    const __m256i limit = _mm256_xor_si256(_mm256_set1_epi64x(now), flip);
    const __m256i never = _mm256_set1_epi64x(INT64_MAX);
    __m256i least = never;
    size_t found = 0;
    for (size_t base = 0; base < n; base += WORD_BITS) {
        size_t run = n - base < WORD_BITS ? n - base : WORD_BITS;
        uint64_t word = 0;
        for (size_t i = 0; i < run; i += 4) {
            __m256i d = _mm256_loadu_si256((const __m256i *)(deadlines + base + i));
            __m256i rank = _mm256_xor_si256(_mm256_sub_epi64(d, one), flip);
            __m256i passed = _mm256_cmpgt_epi64(limit, rank);
            __m256i kept = _mm256_blendv_epi8(rank, never, passed);
            least = _mm256_blendv_epi8(least, kept, _mm256_cmpgt_epi64(least, kept));
            word |= (uint64_t)(unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(passed)) << i;
        }
        bits[base / WORD_BITS] = word;
        found += count_bits(word);
    }
    uint64_t lanes[4], first = RANK_NEVER;
    _mm256_storeu_si256((__m256i *)lanes, _mm256_xor_si256(least, flip));
    for (int i = 0; i < 4; i++) first = lanes[i] < first ? lanes[i] : first;
    *next = first;
    return found;
}
#endif

size_t scan_deadlines(const int64_t *deadlines, size_t n, int64_t now, uint64_t *bits, uint64_t *next) {
#ifdef HAVE_AVX2_BODY
    if (__builtin_cpu_supports("avx2")) return scan_avx2(deadlines, n, now, bits, next);
#endif
    return scan_deadlines_portable(deadlines, n, now, bits, next);
}

const char *scan_name(void) {
#ifdef HAVE_AVX2_BODY
    if (__builtin_cpu_supports("avx2")) return "avx2";
#endif
#ifdef LAPSE_PORTABLE
    return "portable";
#else
    return "compiled";
#endif
}
