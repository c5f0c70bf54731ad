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

/* The gist of a text in one word: its first and last units, a byte of each, so that most keys need not be looked
 * into to know that a pattern does not match them. Never 0.
 *
 *     byte 0: 1    bytes 1 .. 3: the first three units    bytes 4 .. 7: the last four; 0 where there is none
 */
#define GIST_HEAD 3u
#define GIST_TAIL 4u
INLINE uint64_t gist_head(uint32_t unit, size_t i) { return (uint64_t)(unit & 0xFF) << (8 * (1 + i)); }
INLINE uint64_t gist_tail(uint32_t unit, size_t from_end) {
    return (uint64_t)(unit & 0xFF) << (8 * (7 - from_end));
}

INLINE uint64_t text_gist(const lapse_text *t) {
    uint64_t gist = 1;
    for (size_t i = 0; i < GIST_HEAD && i < t->length; i++) gist |= gist_head(text_unit(t, i), i);
    for (size_t i = 0; i < GIST_TAIL && i < t->length; i++)
        gist |= gist_tail(text_unit(t, t->length - 1 - i), i);
    return gist;
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

/* str_text(): the text of an exact str; it does not look at the object's type, which may lie in another line of
 * memory. object_text(): of a str or bytes object; false for any other. The object must outlive its use. */
#ifndef LAPSE_PLAIN
INLINE lapse_text str_text(lapse_object *o) {
    return (lapse_text){PyUnicode_DATA(o), (size_t)PyUnicode_GET_LENGTH(o), (uint32_t)PyUnicode_KIND(o),
                        false};
}
INLINE bool object_text(lapse_object *o, lapse_text *out) {
    if (LIKELY(PyUnicode_Check(o))) *out = str_text(o);
    else if (PyBytes_Check(o))
        *out = (lapse_text){PyBytes_AS_STRING(o), (size_t)PyBytes_GET_SIZE(o), 1, true};
    else return false;
    return true;
}
#else
INLINE lapse_text str_text(lapse_object *o) { return (lapse_text){o->text, strlen(o->text), 1, false}; }
INLINE bool object_text(lapse_object *o, lapse_text *out) {
    if (o->text == NULL) return false;
    *out = str_text(o);
    return true;
}
#endif

#endif
