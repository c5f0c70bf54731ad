/* Arrays that grow and never move: level k holds 64 << k elements, and an index names one element for ever.
 *
 *     0 .. 63 | 64 .. 191 | 192 .. 447 | ...
 */
#ifndef LAPSE_LEVELS_H
#define LAPSE_LEVELS_H

#include "lapse.h"
#include "probe.h"

#include <assert.h>

#define LEVEL_FIRST_BITS 6u
#define LEVELS 26u                              /* 4 billion elements */
#define LEVEL_MAPPED_FROM ((size_t)256 << 10)   /* levels of so many bytes are pages of their own */

static_assert(LEVEL_FIRST_BITS + LEVELS <= 32, "an index has 32 bits");

INLINE uint32_t level_of(uint32_t i) { return highest_bit(i + (1u << LEVEL_FIRST_BITS)) - LEVEL_FIRST_BITS; }
INLINE size_t level_elements(uint32_t k) { return (size_t)1 << (LEVEL_FIRST_BITS + k); }
INLINE size_t place_in_level(uint32_t i, uint32_t k) { return i + level_elements(0) - level_elements(k); }
/* Elements of the first `count` levels. */
INLINE size_t levels_capacity(uint32_t count) { return level_elements(count) - level_elements(0); }

/* A zeroed level of elements of `size` bytes, or NULL. */
INLINE void *level_new(const lapse_memory *memory, uint32_t k, size_t size) {
    size_t bytes = level_elements(k) * size;
    if (k >= LEVELS) return NULL;
    return bytes < LEVEL_MAPPED_FROM ? memory->grab(bytes) : memory->map(bytes);
}
INLINE void level_drop(const lapse_memory *memory, uint32_t k, size_t size, void *level) {
    size_t bytes = level_elements(k) * size;
    if (bytes < LEVEL_MAPPED_FROM) memory->drop(level);
    else memory->unmap(level, bytes);
}

#endif
