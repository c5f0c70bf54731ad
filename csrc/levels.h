/* Arrays that grow level by level, and shrink so: level k holds 64 << k elements, which stay where they are.
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
#define LEVEL_MAPPED_FROM ((size_t)32 << 10)    /* levels of so many bytes are pages of their own */

static_assert(LEVEL_FIRST_BITS + LEVELS <= 32, "an index has 32 bits");

INLINE uint32_t level_of(uint32_t i) { return highest_bit(i + (1u << LEVEL_FIRST_BITS)) - LEVEL_FIRST_BITS; }
INLINE size_t level_elements(uint32_t k) { return (size_t)1 << (LEVEL_FIRST_BITS + k); }
INLINE size_t place_in_level(uint32_t i, uint32_t k) { return i + level_elements(0) - level_elements(k); }
/* Elements of the first `count` levels. */
INLINE size_t levels_capacity(uint32_t count) { return level_elements(count) - level_elements(0); }

/* Is a level of elements of `size` bytes pages of its own? Those that were never written to take no memory. */
INLINE bool level_is_mapped(uint32_t k, size_t size) { return level_elements(k) * size >= LEVEL_MAPPED_FROM; }

/* A zeroed level of elements of `size` bytes, or NULL. */
INLINE void *level_new(const lapse_memory *memory, uint32_t k, size_t size) {
    size_t bytes = level_elements(k) * size;
    if (k >= LEVELS) return NULL;
    return level_is_mapped(k, size) ? memory->map(bytes) : memory->grab(bytes);
}
INLINE void level_drop(const lapse_memory *memory, uint32_t k, size_t size, void *level) {
    if (level_is_mapped(k, size)) memory->unmap(level, level_elements(k) * size);
    else memory->drop(level);
}

/* Bytes that a part of `part` bytes an element takes in `count` levels, where the first `touched` have been written
 * to. */
INLINE size_t levels_bytes(uint32_t count, size_t touched, size_t part, size_t size) {
    size_t bytes = 0;
    for (uint32_t k = 0; k < count; k++) {
        size_t before = levels_capacity(k), in_use = touched > before ? touched - before : 0;
        if (in_use > level_elements(k) || !level_is_mapped(k, size)) in_use = level_elements(k);
        bytes += in_use * part;
    }
    return bytes;
}

#endif
