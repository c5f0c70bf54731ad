/* Control words: one byte a slot, examined sixteen at a time.
 *
 *   byte   0x00 EMPTY (so a zero page is an empty segment)   0x01 DELETED   0x80|tag FULL
 *
 * A group is sixteen aligned control bytes. `group_match` and the others answer with a mask that
 * has one bit set for each slot that fits; `mask_slot` turns its lowest bit into a slot number:
 *
 *     for (group_mask m = group_match(g, tag); m; m &= m - 1) use(mask_slot(m));
 *
 * Three bodies, chosen when compiled: SSE2, NEON, and a portable one (LAPSE_PORTABLE forces it).
 * On a free-threaded build a group is read as two atomic 64-bit words: a plain 16-byte vector load
 * of bytes that another thread stores would be a data race.
 */
#ifndef LAPSE_PROBE_H
#define LAPSE_PROBE_H

#include "atomics.h"

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define GROUP_SLOTS 16u

#define CTRL_EMPTY 0x00u
#define CTRL_DELETED 0x01u
#define CTRL_FULL 0x80u
#define TAG_BITS 7u
#define TAG_MASK ((1u << TAG_BITS) - 1u)
static_assert((CTRL_FULL & TAG_MASK) == 0, "the FULL bit stands beside the tag");

typedef uint64_t group_mask;

static inline unsigned lowest_bit(uint64_t m) {
#if defined(__GNUC__) || defined(__clang__)
    return (unsigned)__builtin_ctzll(m);
#elif defined(_MSC_VER) && defined(_WIN64)
    unsigned long i;
    _BitScanForward64(&i, m);
    return (unsigned)i;
#else
    unsigned i = 0;
    while (!(m & 1)) {
        m >>= 1;
        i++;
    }
    return i;
#endif
}

/* The index of the highest bit set; m is not 0. */
static inline unsigned highest_bit(uint32_t m) {
#if defined(__GNUC__) || defined(__clang__)
    return 31u - (unsigned)__builtin_clz(m);
#elif defined(_MSC_VER)
    unsigned long i;
    _BitScanReverse(&i, m);
    return (unsigned)i;
#else
    unsigned i = 0;
    while (m >>= 1) i++;
    return i;
#endif
}

#if !defined(LAPSE_PORTABLE) && (defined(__SSE2__) || defined(_M_X64))
#  define LAPSE_PROBE_NAME "sse2"
#  include <emmintrin.h>
typedef __m128i group;

INLINE group group_load(const uint8_t *ctrl) {
#  if LAPSE_THREADS
    const uint64_t *w = (const uint64_t *)ctrl; /* acquire: pairs with ctrl_store() */
    uint64_t low = ACQUIRE(w), high = ACQUIRE(w + 1);
    return _mm_set_epi64x((long long)high, (long long)low);
#  else
    return _mm_load_si128((const __m128i *)ctrl);
#  endif
}
INLINE group_mask group_match(group g, uint8_t byte) {
    return (group_mask)(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(g, _mm_set1_epi8((char)byte)));
}
INLINE group_mask group_full(group g) { return (group_mask)(unsigned)_mm_movemask_epi8(g); }
INLINE group_mask group_free(group g) { return group_full(g) ^ 0xFFFFu; }
INLINE unsigned mask_slot(group_mask m) { return lowest_bit(m); }

#elif !defined(LAPSE_PORTABLE) && (defined(__aarch64__) || defined(_M_ARM64))
#  define LAPSE_PROBE_NAME "neon"
#  include <arm_neon.h>
typedef uint8x16_t group;
#  define NIBBLE_TOPS UINT64_C(0x8888888888888888) /* four mask bits a slot; keep one of them */

INLINE group group_load(const uint8_t *ctrl) {
#  if LAPSE_THREADS
    const uint64_t *w = (const uint64_t *)ctrl; /* acquire: pairs with ctrl_store() */
    uint64_t low = ACQUIRE(w), high = ACQUIRE(w + 1);
    return vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(low), vcreate_u64(high)));
#  else
    return vld1q_u8(ctrl);
#  endif
}
INLINE group_mask group_nibbles(uint8x16_t bytes) {
    uint8x8_t narrow = vshrn_n_u16(vreinterpretq_u16_u8(bytes), 4);
    return vget_lane_u64(vreinterpret_u64_u8(narrow), 0) & NIBBLE_TOPS;
}
INLINE group_mask group_match(group g, uint8_t byte) { return group_nibbles(vceqq_u8(g, vdupq_n_u8(byte))); }
INLINE group_mask group_full(group g) { return group_nibbles(vtstq_u8(g, vdupq_n_u8(CTRL_FULL))); }
INLINE group_mask group_free(group g) { return group_full(g) ^ NIBBLE_TOPS; }
INLINE unsigned mask_slot(group_mask m) { return lowest_bit(m) >> 2; }

#else
#  define LAPSE_PROBE_NAME "portable"
typedef struct {
    uint64_t low, high;
} group;
#  define BYTE_LOWS UINT64_C(0x7F7F7F7F7F7F7F7F)
#  define BYTE_ONES UINT64_C(0x0101010101010101)
#  define BIT_GATHER UINT64_C(0x0102040810204080) /* brings bit 0 of byte i to bit 56 + i */

INLINE uint64_t byte_order(uint64_t w) {
#  if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return __builtin_bswap64(w);
#  else
    return w;
#  endif
}
INLINE group group_load(const uint8_t *ctrl) {
    const uint64_t *w = (const uint64_t *)(const void *)ctrl; /* acquire: pairs with ctrl_store() */
    group g = {byte_order(ACQUIRE(w)), byte_order(ACQUIRE(w + 1))};
    return g;
}
/* The top bit of every byte of `w`, as eight bits. */
INLINE uint64_t top_bits(uint64_t w) { return (((w >> 7) & BYTE_ONES) * BIT_GATHER) >> 56; }
/* The top bit of each byte that is zero, exactly: no carry crosses a byte. */
INLINE uint64_t zero_bytes(uint64_t w) { return ~(((w & BYTE_LOWS) + BYTE_LOWS) | w | BYTE_LOWS); }
INLINE group_mask group_match(group g, uint8_t byte) {
    uint64_t each = BYTE_ONES * byte;
    return top_bits(zero_bytes(g.low ^ each)) | top_bits(zero_bytes(g.high ^ each)) << 8;
}
INLINE group_mask group_full(group g) { return top_bits(g.low) | top_bits(g.high) << 8; }
INLINE group_mask group_free(group g) { return group_full(g) ^ 0xFFFFu; }
INLINE unsigned mask_slot(group_mask m) { return lowest_bit(m); }
#endif

INLINE group_mask group_empty(group g) { return group_match(g, CTRL_EMPTY); }

/* Store one control byte. Only the holder of the segment's lock stores, so on a free-threaded build
 * a read-modify-write of the aligned word loses nothing.  release: pairs with group_load(). */
INLINE void ctrl_store(uint8_t *ctrl, uint32_t slot, uint8_t byte) {
#if LAPSE_THREADS
    uint64_t *w = (uint64_t *)(void *)(ctrl + (slot & ~7u)), v = RELAXED(w);
    memcpy((uint8_t *)&v + (slot & 7u), &byte, 1);
    PUBLISH(w, v);
#else
    ctrl[slot] = byte;
#endif
}

#endif
