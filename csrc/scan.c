/* The sweep's inner loop, four times; see scan.h. Each body fills one 64-bit word of the answer at a
 * time from up to 64 deadlines, and keeps the least rank of those that stay. */
#include "scan.h"

#include "atomics.h"

#include <string.h>

#define WORD_BITS 64u

/* ThreadSanitizer understands single atomic loads only. */
#if defined(LAPSE_PORTABLE) || defined(__SANITIZE_THREAD__)
#  define SCALAR_ONLY 1
#endif

static unsigned count_bits(uint64_t w) {
#if defined(__GNUC__) || defined(__clang__)
    return (unsigned)__builtin_popcountll(w);
#else
    unsigned n = 0;
    for (; w; w &= w - 1) n++;
    return n;
#endif
}

static size_t run_length(size_t n, size_t base) { return n - base < WORD_BITS ? n - base : WORD_BITS; }

/* --- Portable --- */

static size_t scan_portable(const int64_t *deadlines, size_t n, int64_t now, uint64_t *bits, uint64_t *next) {
    size_t found = 0;
    uint64_t least = RANK_NEVER;
    for (size_t base = 0; base < n; base += WORD_BITS) {
        uint64_t word = 0;
        for (size_t i = 0; i < run_length(n, base); i++) {
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

/* --- x86 --- */

#if !defined(SCALAR_ONLY) && defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#  define HAVE_X86 1
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
        uint64_t word = 0;
        for (size_t i = 0; i < run_length(n, base); i += 4) {
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

/* All ones in each 64-bit lane whose sign bit is set; SSE2 has no 64-bit comparison. */
static __m128i lane_sign(__m128i v) {
    return _mm_shuffle_epi32(_mm_srai_epi32(v, 31), _MM_SHUFFLE(3, 3, 1, 1));
}

/* With 0 <= deadline and 0 <= now, no difference below overflows, and its sign is the comparison. */
static size_t scan_sse2(const int64_t *deadlines, size_t n, int64_t now, uint64_t *bits, uint64_t *next) {
    const __m128i one = _mm_set1_epi64x(1), limit = _mm_set1_epi64x(now), never = _mm_set1_epi64x(INT64_MAX);
    __m128i least = never;
    size_t found = 0;
    for (size_t base = 0; base < n; base += WORD_BITS) {
        uint64_t word = 0;
        for (size_t i = 0; i < run_length(n, base); i += 2) {
            __m128i rank = _mm_sub_epi64(_mm_loadu_si128((const __m128i *)(deadlines + base + i)), one);
            __m128i blank = lane_sign(rank);
            __m128i passed = _mm_andnot_si128(blank, lane_sign(_mm_sub_epi64(rank, limit)));
            __m128i gone = _mm_or_si128(blank, passed);
            __m128i kept = _mm_or_si128(_mm_and_si128(gone, never), _mm_andnot_si128(gone, rank));
            __m128i less = lane_sign(_mm_sub_epi64(kept, least));
            least = _mm_or_si128(_mm_and_si128(less, kept), _mm_andnot_si128(less, least));
            word |= (uint64_t)(unsigned)_mm_movemask_pd(_mm_castsi128_pd(passed)) << i;
        }
        bits[base / WORD_BITS] = word;
        found += count_bits(word);
    }
    uint64_t lanes[2];
    _mm_storeu_si128((__m128i *)lanes, least);
    uint64_t first = lanes[0] < lanes[1] ? lanes[0] : lanes[1];
    *next = first == INT64_MAX ? RANK_NEVER : first;
    return found;
}
#endif

/* --- NEON --- */

#if !defined(SCALAR_ONLY) && (defined(__aarch64__) || defined(_M_ARM64))
#  define HAVE_NEON 1
#  include <arm_neon.h>

static size_t scan_neon(const int64_t *deadlines, size_t n, int64_t now, uint64_t *bits, uint64_t *next) {
    const uint64x2_t one = vdupq_n_u64(1), limit = vdupq_n_u64((uint64_t)now),
                     never = vdupq_n_u64(RANK_NEVER);
    uint64x2_t least = never;
    size_t found = 0;
    for (size_t base = 0; base < n; base += WORD_BITS) {
        uint64_t word = 0;
        for (size_t i = 0; i < run_length(n, base); i += 2) {
            uint64x2_t rank = vsubq_u64(vreinterpretq_u64_s64(vld1q_s64(deadlines + base + i)), one);
            uint64x2_t passed = vcltq_u64(rank, limit);
            uint64x2_t kept = vbslq_u64(passed, never, rank);
            least = vbslq_u64(vcltq_u64(kept, least), kept, least);
            word |= ((vgetq_lane_u64(passed, 0) & 1) | (vgetq_lane_u64(passed, 1) & 2)) << i;
        }
        bits[base / WORD_BITS] = word;
        found += count_bits(word);
    }
    uint64_t a = vgetq_lane_u64(least, 0), b = vgetq_lane_u64(least, 1);
    *next = a < b ? a : b;
    return found;
}
#endif

/* --- Choosing --- */

const char *scan_name(void) {
#if defined(HAVE_X86)
    return __builtin_cpu_supports("avx2") ? "avx2" : "sse2";
#elif defined(HAVE_NEON)
    return "neon";
#else
    return "portable";
#endif
}

scan_body scan_body_named(const char *name) {
#if defined(HAVE_X86)
    if (strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2")) return scan_avx2;
    if (strcmp(name, "sse2") == 0) return scan_sse2;
#elif defined(HAVE_NEON)
    if (strcmp(name, "neon") == 0) return scan_neon;
#endif
    return strcmp(name, "portable") == 0 ? scan_portable : NULL;
}

size_t scan_deadlines(const int64_t *deadlines, size_t n, int64_t now, uint64_t *bits, uint64_t *next) {
#if defined(HAVE_X86)
    if (__builtin_cpu_supports("avx2")) return scan_avx2(deadlines, n, now, bits, next);
    return scan_sse2(deadlines, n, now, bits, next);
#elif defined(HAVE_NEON)
    return scan_neon(deadlines, n, now, bits, next);
#else
    return scan_portable(deadlines, n, now, bits, next);
#endif
}
