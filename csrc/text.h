/* Text of a key, as the matcher and the prefix index see it: `length` units of `width` bytes each. A str
 * has code points of 1, 2 or 4 bytes, as CPython stores it; bytes have units of 1.
 *
 * A prefix ends with a ':' and has a depth, the number of its colons: "a:b:c" has the prefixes "a:"
 * (depth 1) and "a:b:" (depth 2). Equal prefixes have equal hashes whatever the width of their units; those
 * of str and of bytes differ.
 */
#ifndef LAPSE_TEXT_H
#define LAPSE_TEXT_H

#include "object.h"

#include <stddef.h>

#define PREFIX_DEPTHS 8u /* prefixes deeper than this are not indexed */
#define PREFIX_DELIMITER ':'

typedef struct {
    const void *units;
    size_t length;
    uint32_t width; /* 1, 2 or 4 */
    bool bytes;
} lapse_text;

INLINE uint32_t text_unit(const lapse_text *t, size_t i) {
    if (LIKELY(t->width == 1)) return ((const uint8_t *)t->units)[i];
    return t->width == 2 ? ((const uint16_t *)t->units)[i] : ((const uint32_t *)t->units)[i];
}

/* Hashing a prefix unit by unit (FNV-1a's step on words, finished by a multiplication). */
INLINE uint64_t prefix_seed(bool bytes) { return UINT64_C(0xCBF29CE484222325) + bytes; }
INLINE uint64_t prefix_step(uint64_t h, uint32_t unit) { return (h ^ unit) * UINT64_C(0x100000001B3); }
INLINE uint64_t prefix_finish(uint64_t h) {
    h *= UINT64_C(0x9E3779B97F4A7C15);
    return h ^ (h >> 32);
}

/* The hashes of the prefixes of these `depths` (bit d - 1 for depth d), shallow ones first; how many. */
INLINE uint32_t text_prefixes(const lapse_text *t, uint32_t depths, uint64_t hashes[PREFIX_DEPTHS]) {
    uint64_t h = prefix_seed(t->bytes);
    uint32_t n = 0;
    for (size_t i = 0; i < t->length && depths != 0; i++) {
        uint32_t unit = text_unit(t, i);
        h = prefix_step(h, unit);
        if (unit != PREFIX_DELIMITER) continue;
        if (depths & 1) hashes[n++] = prefix_finish(h);
        depths >>= 1;
    }
    return n;
}

/* The text of a str or bytes object; false for any other. The object must outlive its use. */
#ifndef LAPSE_PLAIN
INLINE bool object_text(lapse_object *o, lapse_text *out) {
    if (LIKELY(PyUnicode_Check(o)))
        *out = (lapse_text){PyUnicode_DATA(o), (size_t)PyUnicode_GET_LENGTH(o), (uint32_t)PyUnicode_KIND(o),
                            false};
    else if (PyBytes_Check(o))
        *out = (lapse_text){PyBytes_AS_STRING(o), (size_t)PyBytes_GET_SIZE(o), 1, true};
    else return false;
    return true;
}
#else
INLINE bool object_text(lapse_object *o, lapse_text *out) {
    if (o->text == NULL) return false;
    *out = (lapse_text){o->text, strlen(o->text), 1, false};
    return true;
}
#endif

#endif
