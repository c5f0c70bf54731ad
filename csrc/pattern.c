/* Compiled glob patterns; the dialect stands in pattern.h.
 *
 * Stars cut a pattern into pieces. The first piece stands at the start of the key, the last one at its
 * end; those between are looked for from left to right, each where it first fits behind the one before.
 * The leftmost fit is always good enough, because it leaves the most of the key to the pieces behind. So
 * nothing is ever taken back, and a match takes O(pattern x key) steps at worst.
 *
 *     user:?*:pri[a-c]*x*me
 *
 *     tokens   u s e r : ? | : p r i [] | x | m e       one for each unit that a match must have
 *              `-head--'                    `tail'      literals at either end
 *     packed   u s e r : 0 | : p r i 0  | x | m e       literal tokens as bytes
 *     pieces   0             6            11  12    14  the token that each begins with; the end
 *     ranges   END  a-c END
 *
 * A token is a literal unit, or a class, which points to its ranges. `?` is the negated class of no range.
 *
 * 1. Each token takes exactly one unit of the key: `length`, the number of tokens, is the least length of
 *    a match, and without a star the only one.
 * 2. pieces[0 .. stars] begin in ascending order; pieces[stars + 1] is empty and begins at `length`.
 * 3. A piece begins with `literals` literal tokens, and ends there or goes on with a class.
 * 4. head is pieces[0].literals; tail counts the literals that end the last piece, those of head excepted.
 * 5. `width` is that of the widest literal. A narrower key cannot match, so a key of width 1 that may match
 *    at all can be compared with packed bytes.
 *
 * A pattern never changes: any number of threads may match with it, under a lock or not. No call here runs
 * Python code, and only lapse_pattern_new() allocates.
 */
#include "pattern.h"

#include <assert.h>
#include <string.h>

#define TOKEN_CLASS (UINT32_C(1) << 31)
#define TOKEN_NEGATED (UINT32_C(1) << 30)
#define TOKEN_RANGES (TOKEN_NEGATED - 1) /* bits of the number of its first range */

#define UNITS_MAX LAPSE_PATTERN_MAX
#define PIECES_MAX (UNITS_MAX / 2 + 2) /* stars with one unit between any two; the end */
#define RANGES_MAX (UNITS_MAX + 1) /* a bracket's END for `[`, a range for each unit in it; one END more */

static_assert(RANGES_MAX <= TOKEN_RANGES, "every range can be pointed to");
static_assert(0x10FFFF < TOKEN_NEGATED, "code points are literal tokens");

typedef struct {
    uint32_t low, high;
} range;

#define END ((range){1, 0}) /* low > high: closes a class */

typedef struct {
    uint32_t begin, literals;
} piece;

struct lapse_pattern {
    size_t most; /* the greatest length of a match */
    uint32_t length, head, tail, stars, width;
    bool bytes;
    const uint8_t *packed;
    const uint32_t *tokens;
    const piece *pieces;
    const range *ranges;
    pattern_root root;
};

/* --- Parsing --- */

typedef struct {
    uint32_t length, stars, range_count;
    uint32_t tokens[UNITS_MAX];
    piece pieces[PIECES_MAX];
    range ranges[RANGES_MAX];
} draft;

static void add_token(draft *d, uint32_t token) { d->tokens[d->length++] = token; }

static void add_range(draft *d, uint32_t a, uint32_t b) {
    d->ranges[d->range_count++] = a <= b ? (range){a, b} : (range){b, a};
}

static void add_star(draft *d) {
    if (d->stars > 0 && d->pieces[d->stars].begin == d->length) return; /* a run of stars is one */
    d->pieces[++d->stars].begin = d->length;
}

/* The class whose `[` stands before unit i; the unit that follows it. */
static size_t add_class(draft *d, const lapse_text *source, size_t i) {
    const size_t n = source->length;
    bool negated = i < n && text_unit(source, i) == '^';
    add_token(d, TOKEN_CLASS | (negated ? TOKEN_NEGATED : 0) | d->range_count);
    for (i += negated; i < n && text_unit(source, i) != ']'; i++) {
        uint32_t unit = text_unit(source, i), last = unit;
        if (unit == '\\' && n - i >= 2) unit = last = text_unit(source, ++i);
        else if (n - i >= 3 && text_unit(source, i + 1) == '-') last = text_unit(source, i += 2);
        add_range(d, unit, last);
    }
    d->ranges[d->range_count++] = END;
    return i + 1; /* behind the `]`, if there is one */
}

static void parse(draft *d, const lapse_text *source) {
    d->length = d->stars = d->range_count = 0;
    d->pieces[0].begin = 0;
    d->ranges[d->range_count++] = END; /* of `?` */
    for (size_t i = 0; i < source->length;) {
        uint32_t unit = text_unit(source, i++);
        if (unit == '\\' && i < source->length) add_token(d, text_unit(source, i++));
        else if (unit == '*') add_star(d);
        else if (unit == '?') add_token(d, TOKEN_CLASS | TOKEN_NEGATED);
        else if (unit == '[') i = add_class(d, source, i);
        else add_token(d, unit);
    }
    d->pieces[d->stars + 1] = (piece){d->length, 0};
}

/* --- Compiling --- */

static bool is_class(uint32_t token) { return (token & TOKEN_CLASS) != 0; }

static uint32_t width_of(uint32_t unit) { return unit <= UINT8_MAX ? 1 : unit <= UINT16_MAX ? 2 : 4; }

static void count_literals(draft *d) {
    for (piece *x = d->pieces; x <= d->pieces + d->stars; x++) {
        uint32_t i = x->begin;
        while (i < x[1].begin && !is_class(d->tokens[i])) i++;
        x->literals = i - x->begin;
    }
}

static void measure(lapse_pattern *p) {
    p->head = p->pieces[0].literals;
    const uint32_t first = p->stars == 0 ? p->head : p->pieces[p->stars].begin;
    while (p->length - p->tail > first && !is_class(p->tokens[p->length - p->tail - 1])) p->tail++;
    p->most = p->stars == 0 ? p->length : SIZE_MAX;
    p->width = 1;
    for (uint32_t i = 0; i < p->length; i++)
        if (!is_class(p->tokens[i]) && width_of(p->tokens[i]) > p->width) p->width = width_of(p->tokens[i]);
}

/* The deepest prefix within the head. A literal pattern names one key, which needs no index. */
static pattern_root find_root(const lapse_pattern *p) {
    pattern_root root = {.depth = 0};
    uint32_t end = 0;
    for (uint32_t i = 0; i < p->head && root.depth < PREFIX_DEPTHS; i++) {
        if (p->tokens[i] != PREFIX_DELIMITER) continue;
        root.depth++;
        end = i + 1;
    }
    if (root.depth == 0 || lapse_pattern_is_literal(p)) return (pattern_root){.depth = 0};
    lapse_text head = {p->tokens, p->head, sizeof *p->tokens, p->bytes};
    uint64_t hashes[PREFIX_DEPTHS];
    text_prefixes(&head, UINT32_C(1) << (root.depth - 1), hashes);
    root.hash = hashes[0];
    root.whole = end == p->length; /* no other token, and yet not literal: so there is a star */
    return root;
}

static void *append(uint8_t **end, const void *from, size_t bytes) {
    void *to = *end;
    memcpy(to, from, bytes);
    *end += bytes;
    return to;
}

/* The pattern and its arrays, those of the strictest alignment first, in one allocation; or NULL. */
static lapse_pattern *settle(const lapse_memory *memory, const draft *d) {
    const size_t pieces = (d->stars + 2) * sizeof(piece), ranges = d->range_count * sizeof(range);
    const size_t tokens = d->length * sizeof(uint32_t);
    lapse_pattern *p = memory->grab(sizeof *p + pieces + ranges + tokens + d->length);
    if (p == NULL) return NULL;
    uint8_t *end = (uint8_t *)(p + 1);
    p->length = d->length;
    p->stars = d->stars;
    p->pieces = append(&end, d->pieces, pieces);
    p->ranges = append(&end, d->ranges, ranges);
    p->tokens = append(&end, d->tokens, tokens);
    for (uint32_t i = 0; i < d->length; i++) end[i] = (uint8_t)d->tokens[i];
    p->packed = end;
    return p;
}

/* Compile a pattern: OK, NO_ROOM if it is longer than LAPSE_PATTERN_MAX units, or NO_MEMORY. The source is
 * not kept. */
lapse_status lapse_pattern_new(const lapse_memory *memory, const lapse_text *source, lapse_pattern **out) {
    draft d;
    if (source->length > LAPSE_PATTERN_MAX) return LAPSE_NO_ROOM;
    parse(&d, source);
    count_literals(&d);
    lapse_pattern *p = settle(memory, &d);
    if (p == NULL) return LAPSE_NO_MEMORY;
    p->bytes = source->bytes;
    measure(p);
    p->root = find_root(p);
    *out = p;
    return LAPSE_OK;
}

void lapse_pattern_free(const lapse_memory *memory, lapse_pattern *p) { memory->drop(p); }

/* --- What it is --- */

/* Does it match one key only, for having no wildcard? */
bool lapse_pattern_is_literal(const lapse_pattern *p) { return p->stars == 0 && p->head == p->length; }

/* The units of the one key that a literal pattern matches, and how many; room for LAPSE_PATTERN_MAX. */
size_t lapse_pattern_literal(const lapse_pattern *p, uint32_t *units) {
    memcpy(units, p->tokens, p->length * sizeof *units);
    return p->length;
}

/* What the literals at either end say of a match's gist. */
pattern_gist pattern_gist_of(const lapse_pattern *p) {
    pattern_gist g = {0, 0};
    for (uint32_t i = 0; i < GIST_HEAD && i < p->head; i++) {
        g.mask |= gist_head(0xFF, i);
        g.value |= gist_head(p->tokens[i], i);
    }
    for (uint32_t i = 0; i < GIST_TAIL && i < p->tail; i++) {
        g.mask |= gist_tail(0xFF, i);
        g.value |= gist_tail(p->tokens[p->length - 1 - i], i);
    }
    return g;
}

pattern_root pattern_root_of(const lapse_pattern *p) { return p->root; }

/* --- Matching --- */

static bool class_has(const lapse_pattern *p, uint32_t token, uint32_t unit) {
    const range *r = p->ranges + (token & TOKEN_RANGES);
    while (r->low <= r->high && (unit < r->low || unit > r->high)) r++;
    return (r->low <= r->high) != ((token & TOKEN_NEGATED) != 0);
}

/* Do tokens [from, to) match the units of the key from `at` on? The key has as many. */
static bool tokens_match(const lapse_pattern *p, uint32_t from, uint32_t to, const lapse_text *key,
                         size_t at) {
    for (uint32_t i = from; i < to; i++) {
        uint32_t token = p->tokens[i], unit = text_unit(key, at + (i - from));
        if (is_class(token) ? !class_has(p, token, unit) : token != unit) return false;
    }
    return true;
}

/* The same for n literal tokens. */
static bool literals_match(const lapse_pattern *p, uint32_t from, uint32_t n, const lapse_text *key,
                           size_t at) {
    if (UNLIKELY(key->width > 1)) return tokens_match(p, from, from + n, key, at);
    const uint8_t *units = (const uint8_t *)key->units + at, *wanted = p->packed + from;
    /* memcmp() would read behind the key too, and wait for a line of memory that nobody has fetched. */
    while (n > 0 && units[n - 1] == wanted[n - 1]) n--;
    return n == 0;
}

/* The first place in [at, last] where this literal may stand, or one behind `last`. */
static size_t next_candidate(const lapse_pattern *p, uint32_t literal, const lapse_text *key, size_t at,
                             size_t last) {
    if (key->width > 1) return at;
    const uint8_t *units = key->units, *hit = memchr(units + at, p->packed[literal], last + 1 - at);
    return hit ? (size_t)(hit - units) : last + 1;
}

/* Where a piece first fits within units [*at, end) of the key; *at goes behind it. */
static bool find_piece(const lapse_pattern *p, const piece *x, const lapse_text *key, size_t *at,
                       size_t end) {
    const uint32_t behind = x->begin + x->literals, length = x[1].begin - x->begin;
    const size_t last = end - length;
    for (size_t i = *at; i <= last; i++) {
        if (x->literals > 0) i = next_candidate(p, x->begin, key, i, last);
        if (i > last) return false;
        if (!literals_match(p, x->begin, x->literals, key, i)) continue;
        if (!tokens_match(p, behind, x[1].begin, key, i + x->literals)) continue;
        *at = i + length;
        return true;
    }
    return false;
}

/* All between head and tail. */
static bool middle_matches(const lapse_pattern *p, const lapse_text *key) {
    const piece *last = p->pieces + p->stars;
    const uint32_t tail = p->length - p->tail;
    if (p->stars == 0) return tokens_match(p, p->head, tail, key, p->head);
    size_t at = p->pieces[1].begin, end = key->length - (p->length - last->begin);
    if (!tokens_match(p, p->head, p->pieces[1].begin, key, p->head)) return false;
    if (!tokens_match(p, last->begin, tail, key, end)) return false;
    for (const piece *x = p->pieces + 1; x < last; x++)
        if (!find_piece(p, x, key, &at, end)) return false;
    return true;
}

/* Does the pattern match the whole of this key? What settles it for most keys comes first. */
bool pattern_matches(const lapse_pattern *p, const lapse_text *key) {
    if (key->bytes != p->bytes || key->width < p->width) return false;
    if (key->length < p->length || key->length > p->most) return false;
    if (!literals_match(p, p->length - p->tail, p->tail, key, key->length - p->tail)) return false;
    if (!literals_match(p, 0, p->head, key, 0)) return false;
    return p->head + p->tail == p->length || middle_matches(p, key);
}
