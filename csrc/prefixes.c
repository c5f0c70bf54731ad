/* Sets of prefixes: see prefixes.h. Open addressing with linear probing; at most half of the buckets are full. */
#include "prefixes.h"

#include <assert.h>
#include <string.h>

#define BUCKETS_LEAST 16u

typedef struct {
    uint64_t hash;
    const void *units;
    uint32_t number, length; /* in units of the pattern, the colon at the end included */
    uint8_t width;
    bool bytes, escaped; /* escaped: backslashes stand before some units */
} rule;

static_assert(sizeof(void *) != 8 || sizeof(rule) == 32, "two rules a cache line");

struct lapse_prefixes {
    size_t n, mask;
    uint32_t depths; /* of the rules: bit d - 1 for depth d */
    uint32_t *buckets; /* 1 + the place of a rule; 0: none */
    rule rules[];
};

/* --- Making and filling --- */

/* An empty set with room for `most` patterns, fewer than 2^31. OK or NO_MEMORY. */
lapse_status lapse_prefixes_new(const lapse_memory *memory, size_t most, lapse_prefixes **out) {
    size_t buckets = BUCKETS_LEAST, head = sizeof(lapse_prefixes) + most * sizeof(rule);
    while (buckets < 2 * most) buckets *= 2;
    lapse_prefixes *x = memory->grab(head + buckets * sizeof(uint32_t));
    if (x == NULL) return LAPSE_NO_MEMORY;
    x->mask = buckets - 1;
    x->buckets = (uint32_t *)(void *)((uint8_t *)x + head);
    *out = x;
    return LAPSE_OK;
}

void lapse_prefixes_free(const lapse_memory *memory, lapse_prefixes *x) { memory->drop(x); }

static bool is_wild(uint32_t unit) { return unit == '*' || unit == '?' || unit == '['; }

/* What "prefix:*" says: its depth, 0 if the pattern is anything else or too deep; the rule's hash and `escaped`. */
static uint32_t read_pattern(const lapse_text *pattern, rule *out) {
    uint64_t h = prefix_seed(pattern->bytes);
    uint32_t depth = 0, unit = 0;
    size_t end = pattern->length;
    if (end < 2 || text_unit(pattern, end - 1) != '*') return 0;
    for (size_t i = 0; i < end - 1; i++) {
        unit = text_unit(pattern, i);
        if (is_wild(unit)) return 0;
        if (unit == '\\') {
            if (++i == end - 1) return 0; /* the last star is a literal one */
            unit = text_unit(pattern, i);
            out->escaped = true;
        }
        h = prefix_step(h, unit);
        depth += unit == PREFIX_DELIMITER;
    }
    out->hash = prefix_finish(h);
    return unit == PREFIX_DELIMITER && depth <= PREFIX_DEPTHS ? depth : 0;
}

/* The next unit of a rule's prefix, from place `*i` of its pattern on. */
static uint32_t next_unit(const rule *r, size_t *i) {
    lapse_text pattern = {r->units, r->length, r->width, r->bytes};
    uint32_t unit = text_unit(&pattern, (*i)++);
    return unit == '\\' ? text_unit(&pattern, (*i)++) : unit;
}

static bool begins(const rule *r, const lapse_text *key) {
    size_t i = 0, at = 0;
    if (r->bytes != key->bytes) return false;
    if (!r->escaped && r->width == key->width)
        return r->length <= key->length && memcmp(r->units, key->units, (size_t)r->length * r->width) == 0;
    while (i < r->length && at < key->length)
        if (next_unit(r, &i) != text_unit(key, at++)) return false;
    return i == r->length;
}

static bool is_same(const rule *a, const rule *b) {
    size_t i = 0, k = 0;
    if (a->hash != b->hash || a->bytes != b->bytes) return false;
    while (i < a->length && k < b->length)
        if (next_unit(a, &i) != next_unit(b, &k)) return false;
    return i == a->length && k == b->length;
}

/* The rule whose prefix of this hash begins the key, or NULL. */
INLINE const rule *look_up(const lapse_prefixes *x, const lapse_text *key, uint64_t hash) {
    for (size_t b = hash & x->mask; x->buckets[b] > 0; b = (b + 1) & x->mask) {
        const rule *r = &x->rules[x->buckets[b] - 1];
        if (r->hash == hash && begins(r, key)) return r;
    }
    return NULL;
}

/* Add a pattern under the caller's number for it; of equal ones the first counts. False: it is no "prefix:*" of
 * literal text, with at most PREFIX_DEPTHS colons; nothing was done. */
bool lapse_prefixes_add(lapse_prefixes *x, const lapse_text *pattern, uint32_t number) {
    rule r = {.units = pattern->units,
              .number = number,
              .length = (uint32_t)pattern->length - 1,
              .width = (uint8_t)pattern->width,
              .bytes = pattern->bytes};
    uint32_t depth = read_pattern(pattern, &r);
    if (depth == 0) return false;
    x->depths |= UINT32_C(1) << (depth - 1);
    size_t b = r.hash & x->mask;
    for (; x->buckets[b] > 0; b = (b + 1) & x->mask)
        if (is_same(&x->rules[x->buckets[b] - 1], &r)) return true;
    x->rules[x->n++] = r;
    x->buckets[b] = (uint32_t)x->n;
    return true;
}

/* The depths that its prefixes have: bit d - 1 for depth d. */
uint32_t lapse_prefixes_depths(const lapse_prefixes *x) { return x->depths; }

/* --- Looking up --- */

/* The number of a pattern that matches the key, that of the shallowest prefix, or NO_PREFIX. */
uint32_t prefixes_find(const lapse_prefixes *x, const lapse_text *key) {
    uint64_t hashes[PREFIX_DEPTHS];
    uint32_t n = text_prefixes(key, x->depths, hashes);
    for (uint32_t i = 0; i < n; i++) {
        const rule *r = look_up(x, key, hashes[i]);
        if (r) return r->number;
    }
    return NO_PREFIX;
}

/* The same for n keys, at most LAPSE_BLOCK: each of the waits for memory is one for all of them. */
void prefixes_find_block(const lapse_prefixes *x, const lapse_text *keys, uint32_t n, uint32_t *numbers) {
    uint64_t hashes[LAPSE_BLOCK][PREFIX_DEPTHS];
    uint32_t counts[LAPSE_BLOCK], first[LAPSE_BLOCK];
    for (uint32_t i = 0; i < n; i++) {
        counts[i] = text_prefixes(&keys[i], x->depths, hashes[i]);
        if (counts[i] > 0) PREFETCH(&x->buckets[hashes[i][0] & x->mask]);
    }
    for (uint32_t i = 0; i < n; i++) {
        first[i] = counts[i] > 0 ? x->buckets[hashes[i][0] & x->mask] : 0;
        if (first[i] > 0) PREFETCH(&x->rules[first[i] - 1]);
    }
    for (uint32_t i = 0; i < n; i++)
        if (first[i] > 0) PREFETCH(x->rules[first[i] - 1].units);
    for (uint32_t i = 0; i < n; i++) {
        const rule *r = NULL;
        for (uint32_t k = 0; k < counts[i] && r == NULL; k++) r = look_up(x, &keys[i], hashes[i][k]);
        numbers[i] = r ? r->number : NO_PREFIX;
    }
}
