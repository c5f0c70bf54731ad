/* Glob patterns in the dialect of Redis, compiled once and matched without recursion.
 *
 *   *        any run of units, the empty one too       [abc] [a-z]   one unit of these
 *   ?        any one unit                              [^abc]        one unit that is none of these
 *   \x       x itself, inside brackets too             all else      itself
 *
 * A pattern matches a whole key of its own type, str or bytes. What Redis does with odd input holds here
 * too: an unclosed bracket ends with the pattern, a backslash at the very end is itself, the ends of a range
 * may stand in any order, "[]" matches nothing and "[^]" any unit. Two things differ: every star matches the
 * empty key, which in Redis only the pattern "*" does, and units above 127 have no sign in a range.
 */
#ifndef LAPSE_PATTERN_H
#define LAPSE_PATTERN_H

#include "lapse.h"
#include "text.h"

#define LAPSE_PATTERN_MAX 1024u /* units of a pattern */

typedef struct lapse_pattern lapse_pattern;

/* Where a pattern's matches may be looked up: the keys that begin with its deepest indexable literal
 * prefix. */
typedef struct {
    uint32_t depth; /* 0: it has none */
    uint64_t hash;
    bool whole;     /* it is that prefix and one star: every key that begins so matches */
} pattern_root;

lapse_status lapse_pattern_new(const lapse_memory *memory, const lapse_text *source, lapse_pattern **out);
void lapse_pattern_free(const lapse_memory *memory, lapse_pattern *p);
bool lapse_pattern_is_literal(const lapse_pattern *p);
size_t lapse_pattern_literal(const lapse_pattern *p, uint32_t *units);
/* The gists (text.h) that a match can have: those that have `value` where `mask` has ones. */
typedef struct {
    uint64_t mask, value;
} pattern_gist;

pattern_gist pattern_gist_of(const lapse_pattern *p);
pattern_root pattern_root_of(const lapse_pattern *p);
bool pattern_matches(const lapse_pattern *p, const lapse_text *key);

#endif
