/* Glob patterns: tables of cases, a naive matcher on random input, roots against the prefixes of keys. */
#include "pattern.h"

#include "test.h"

#define MOST 16384u /* units of a text here */

static unsigned grabbed;
static bool refuse;

static void *counting_grab(size_t bytes) {
    if (refuse) return NULL;
    grabbed++;
    return lapse_system_memory.grab(bytes);
}
static void counting_drop(void *p) {
    grabbed--;
    lapse_system_memory.drop(p);
}
static const lapse_memory counting = {counting_grab, NULL, counting_drop, NULL, NULL};

/* --- Texts --- */

/* A text in a block of exactly its size, so that the sanitizer sees a read past its end. */
static lapse_text text_of(const uint32_t *units, size_t n, uint32_t width, bool bytes) {
    uint8_t *block = malloc(n * width + (n == 0));
    CHECK(block != NULL);
    for (size_t i = 0; i < n; i++) {
        uint16_t half = (uint16_t)units[i];
        if (width == 1) block[i] = (uint8_t)units[i];
        else if (width == 2) memcpy(block + 2 * i, &half, 2);
        else memcpy(block + 4 * i, &units[i], 4);
    }
    return (lapse_text){block, n, width, bytes};
}

static lapse_text text_from(const char *ascii, uint32_t width, bool bytes) {
    static uint32_t units[MOST];
    size_t n = strlen(ascii);
    CHECK(n <= MOST);
    for (size_t i = 0; i < n; i++) units[i] = (uint8_t)ascii[i];
    return text_of(units, n, width, bytes);
}

static void text_drop(lapse_text t) { free((void *)t.units); }

static lapse_pattern *compile(lapse_text source) {
    lapse_pattern *p = NULL;
    CHECK(lapse_pattern_new(&counting, &source, &p) == LAPSE_OK && p != NULL && grabbed == 1);
    text_drop(source);
    return p;
}

static void discard(lapse_pattern *p) {
    lapse_pattern_free(&counting, p);
    CHECK(grabbed == 0);
}

static bool match(const lapse_pattern *p, lapse_text key) {
    bool answer = pattern_matches(p, &key);
    text_drop(key);
    return answer;
}

/* --- Cases --- */

typedef struct {
    const char *pattern;
    const char *matching[6], *other[6]; /* up to the first NULL */
} glob_case;

static const glob_case cases[] = {
    /* without brackets */
    {"", {""}, {"a"}},
    {"abc", {"abc"}, {"", "ab", "abcd", "xbc", "abx"}},
    {"*", {"", "a", "a:b", "*"}, {NULL}},
    {"***", {"", "a", "ab"}, {NULL}},
    {"?", {"a", "?", "*"}, {"", "ab"}},
    {"a?c", {"abc", "a?c"}, {"ac", "abbc", "abx"}},
    {"?*", {"a", "ab"}, {""}},
    {"*?", {"a", "ab"}, {""}},
    {"*??*", {"ab", "abc"}, {"", "a"}},
    {"t7:*", {"t7:", "t7:1", "t7:1:2"}, {"t7", "t77:1", "xt7:1"}},
    {"*:price", {":price", "a:price", ":price:price"}, {"price", "a:prices", "a:pricf", "b:price "}},
    {"ab*ba", {"abba", "abxba", "abbaba"}, {"aba", "ab", "abbab"}},
    {"a*b*c", {"abc", "axbxc", "abcbc", "abbcc"}, {"ac", "acb", "abcx", "xabc"}},
    {"*ab*ab*", {"abab", "xabxabx", "aababb"}, {"ab", "aab", "abaxb", "xxab", "xaba"}},
    {"*aab*", {"aab", "aaab", "aaaabb"}, {"aba", "aaa", "abab"}},
    {"*a?b*", {"axb", "aaxb", "aabb"}, {"ab", "abx", "xab"}},
    {"a*a", {"aa", "aba", "aaa"}, {"a", "ab"}},
    /* escapes */
    {"\\*", {"*"}, {"a", "\\*", ""}},
    {"a\\?b", {"a?b"}, {"axb", "a\\?b"}},
    {"\\[a\\]", {"[a]"}, {"a"}},
    {"\\\\", {"\\"}, {"\\\\"}},
    {"\\a", {"a"}, {"\\a"}},
    {"a\\", {"a\\"}, {"a"}},
    {"*\\", {"\\", "a\\"}, {"a", ""}},
    {"\\**", {"*", "*a"}, {"a", "\\*"}},
    /* brackets */
    {"[abc]", {"a", "b", "c"}, {"d", "", "ab"}},
    {"[a-c]", {"a", "b", "c"}, {"d", "-", "`"}},
    {"[c-a]", {"a", "b", "c"}, {"d", "-"}},
    {"[^a-c]", {"d", "-", "^"}, {"a", "c", ""}},
    {"[a^]", {"a", "^"}, {"b"}},
    {"[\\^a]", {"^", "a"}, {"b", "\\"}},
    {"[a-]", {"a", "]", "^"}, {"-", "a]", "b"}}, /* a range up to ']', and no end */
    {"[a-]]", {"^", "a", "]"}, {"-"}},
    {"[-a]", {"-", "a"}, {"b"}},
    {"[a-c-e]", {"a", "b", "-", "e"}, {"d"}},
    {"[--/]", {"-", ".", "/"}, {"0", ","}},
    {"[\\]]", {"]"}, {"\\", "a"}},
    {"[\\a-z]", {"a", "-", "z"}, {"b", "\\"}},
    {"[a-\\]]", {"\\]", "a]", "]]"}, {"a", "]", "b]x"}}, /* a range up to the backslash */
    {"[*?]", {"*", "?"}, {"a"}},
    {"[[]", {"["}, {"]"}},
    {"x[0-9]*", {"x0", "x9:a"}, {"x", "xa", "x:0"}},
    {"*[0-9]x", {"0x", "a9x"}, {"x", "ax", "0xx0"}},
    {"*[ab][cd]*", {"ac", "xbdx", "aad"}, {"ab", "ca", "a"}},
    /* odd ones */
    {"[]", {NULL}, {"", "a", "]"}},
    {"[]a]", {NULL}, {"]", "a", "]a]", "a]"}},
    {"*[]*", {NULL}, {"", "a", "]"}},
    {"[^]", {"a", "]", "^"}, {"", "ab"}},
    {"[", {NULL}, {"", "[", "a"}},
    {"[^", {"a", "["}, {"", "ab"}},
    {"[ab", {"a", "b"}, {"ab", "["}},
    {"[a-", {"a", "-"}, {"b"}},
    {"[\\", {"\\"}, {"[", ""}},
    {"[a\\", {"a", "\\"}, {"b"}},
    {"a]", {"a]"}, {"a"}},
    {"a^-b", {"a^-b"}, {"ab"}},
};

static void test_cases(void) {
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (uint32_t variant = 0; variant < 4; variant++) {
            uint32_t width = variant == 3 ? 1 : 1u << variant;
            bool bytes = variant == 3;
            lapse_pattern *p = compile(text_from(cases[c].pattern, width, bytes));
            for (size_t i = 0; i < 6 && cases[c].matching[i]; i++)
                CHECK(match(p, text_from(cases[c].matching[i], width, bytes)));
            for (size_t i = 0; i < 6 && cases[c].other[i]; i++)
                CHECK(!match(p, text_from(cases[c].other[i], width, bytes)));
            CHECK(!match(p, text_from(cases[c].pattern, 1, !bytes))); /* the other type never matches */
            discard(p);
        }
}

/* A pattern of any width meets keys of every width. */
static void test_widths_mix(void) {
    for (uint32_t width = 1; width <= 4; width *= 2) {
        lapse_pattern *p = compile(text_from("ab*[x-z]*?c", width, false));
        for (uint32_t other = 1; other <= 4; other *= 2) {
            CHECK(match(p, text_from("ab..y..c", other, false)));
            CHECK(!match(p, text_from("ab..y.cx", other, false)));
        }
        discard(p);
    }
}

/* A unit that does not fit into a byte is not taken for its low byte. */
static void test_wide_units(void) {
    const uint32_t smile[] = {'a', 0x1F600, '*'}, greek[] = {'a', 0x100 + 'b', 'c'};
    lapse_pattern *p = compile(text_of(smile, 3, 4, false));
    CHECK(match(p, text_of(smile, 2, 4, false)));
    CHECK(!match(p, text_of((const uint32_t[]){'a', 0xF600}, 2, 2, false)));
    CHECK(!match(p, text_of((const uint32_t[]){'a', 0}, 2, 1, false)));
    discard(p);
    p = compile(text_of(greek, 3, 2, false));
    CHECK(match(p, text_of(greek, 3, 2, false)) && match(p, text_of(greek, 3, 4, false)));
    CHECK(!match(p, text_from("abc", 1, false)));
    discard(p);
    const uint32_t range[] = {'[', 0xE0, '-', 0x1F600, ']', '*'};
    p = compile(text_of(range, 6, 4, false));
    CHECK(match(p, text_of((const uint32_t[]){0xE9}, 1, 1, false)));
    CHECK(match(p, text_of((const uint32_t[]){0x3B1, 'a'}, 2, 2, false)));
    CHECK(!match(p, text_from("a", 1, false)));
    CHECK(!match(p, text_of((const uint32_t[]){0x1F601}, 1, 4, false)));
    discard(p);
}

/* --- Random input --- */

/* What follows the class that begins at p[0] == '['; *has tells whether the class has the unit. */
static const uint32_t *naive_class(const uint32_t *p, const uint32_t *end, uint32_t unit, bool *has) {
    bool negated = ++p < end && *p == '^', in = false;
    for (p += negated; p < end && *p != ']'; p++) {
        uint32_t low = *p, high = *p;
        if (*p == '\\' && end - p >= 2) low = high = *++p;
        else if (end - p >= 3 && p[1] == '-') high = *(p += 2);
        in |= (low <= unit && unit <= high) || (high <= unit && unit <= low);
    }
    *has = in != negated;
    return p < end ? p + 1 : p;
}

static bool naive(const uint32_t *p, const uint32_t *p_end, const uint32_t *k, const uint32_t *k_end) {
    if (p == p_end) return k == k_end;
    if (*p == '*') return naive(p + 1, p_end, k, k_end) || (k < k_end && naive(p, p_end, k + 1, k_end));
    if (k == k_end) return false;
    bool has = true;
    if (*p == '[') p = naive_class(p, p_end, *k, &has);
    else if (*p == '?') p++;
    else {
        p += *p == '\\' && p_end - p >= 2;
        has = *p++ == *k;
    }
    return has && naive(p, p_end, k + 1, k_end);
}

/* Units that fit the width; the characters that mean something come often. */
static void random_units(uint64_t *random, uint32_t *units, size_t n, uint32_t width, const char *alphabet) {
    const uint32_t wide[] = {0xFF, 0, width == 1 ? 'b' : 0x100 + 'a', width < 4 ? 'a' : 0x10000 + 'a'};
    size_t letters = strlen(alphabet);
    for (size_t i = 0; i < n; i++) {
        uint32_t r = random_below(random, (uint32_t)letters + 1);
        units[i] = r < letters ? (uint8_t)alphabet[r] : wide[random_below(random, 4)];
    }
}

static unsigned compare_with_naive(uint64_t *random, uint32_t width, bool bytes, const char *alphabet) {
    uint32_t source[12], key[12];
    size_t n = random_below(random, 12), m;
    unsigned matched = 0;
    random_units(random, source, n, width, alphabet);
    lapse_pattern *p = compile(text_of(source, n, width, bytes));
    for (int i = 0; i < 24; i++) {
        uint32_t key_width = bytes ? 1 : 1u << random_below(random, 3);
        m = random_below(random, 12);
        random_units(random, key, m, key_width, alphabet);
        bool expected = naive(source, source + n, key, key + m);
        CHECK(match(p, text_of(key, m, key_width, bytes)) == expected);
        matched += expected;
    }
    discard(p);
    return matched;
}

static void test_against_a_naive_matcher(void) {
    static const char *const alphabets[] = {"ab[]^-\\*?:", "ab*?", "aab*", "ab[]-^*", ":ab*"};
    uint64_t random = 7;
    for (size_t a = 0; a < sizeof alphabets / sizeof *alphabets; a++)
        for (uint32_t variant = 0; variant < 4; variant++) {
            unsigned matched = 0;
            for (unsigned i = 0; i < 1500 * test_scale(); i++)
                matched +=
                    compare_with_naive(&random, variant == 3 ? 1 : 1u << variant, variant == 3, alphabets[a]);
            CHECK(matched > 100); /* or this would say little */
        }
}

/* --- What a pattern is --- */

static void check_literal(const char *pattern, const char *key) {
    static uint32_t units[LAPSE_PATTERN_MAX];
    lapse_pattern *p = compile(text_from(pattern, 2, false));
    CHECK(lapse_pattern_is_literal(p) == (key != NULL));
    if (key != NULL) {
        size_t n = lapse_pattern_literal(p, units);
        lapse_text expected = text_from(key, 4, false);
        CHECK(n == expected.length && memcmp(units, expected.units, 4 * n) == 0);
        text_drop(expected);
        CHECK(pattern_root_of(p).depth == 0);
    }
    discard(p);
}

static void test_literal_patterns(void) {
    check_literal("", "");
    check_literal("user:1", "user:1");
    check_literal("\\*\\?\\[\\]\\\\", "*?[]\\");
    check_literal("a\\", "a\\");
    check_literal("a]", "a]");
    check_literal("*", NULL);
    check_literal("user:*", NULL);
    check_literal("user:?", NULL);
    check_literal("user:[1]", NULL);
    check_literal("[", NULL);
}

static void check_root(const char *pattern, const char *prefix, uint32_t depth, bool whole) {
    for (uint32_t variant = 0; variant < 4; variant++) {
        bool bytes = variant == 3;
        uint64_t hashes[PREFIX_DEPTHS];
        lapse_pattern *p = compile(text_from(pattern, bytes ? 1 : 1u << variant, bytes));
        lapse_text key = text_from(prefix, 1, bytes);
        pattern_root root = pattern_root_of(p);
        CHECK(root.depth == depth && root.whole == whole);
        if (depth > 0) CHECK(text_prefixes(&key, 1u << (depth - 1), hashes) == 1 && hashes[0] == root.hash);
        text_drop(key);
        discard(p);
    }
}

static void test_roots(void) {
    check_root("*", "", 0, false);
    check_root("t7*", "", 0, false);
    check_root("t7:", "", 0, false); /* literal */
    check_root("*:a", "", 0, false);
    check_root("[t]:*", "", 0, false);
    check_root("t7:*", "t7:", 1, true);
    check_root("t7:**", "t7:", 1, true);
    check_root(":*", ":", 1, true);
    check_root("t\\*:*", "t*:", 1, true);
    check_root("t7\\:*", "t7:", 1, true);
    check_root("a:b:*", "a:b:", 2, true);
    check_root("a::*", "a::", 2, true);
    check_root("a:b*", "a:", 1, false);
    check_root("a:*b", "a:", 1, false);
    check_root("a:*:*", "a:", 1, false);
    check_root("a:?", "a:", 1, false);
    check_root("a:?*", "a:", 1, false);
    check_root("a:[b]:*", "a:", 1, false);
    check_root("1:2:3:4:5:6:7:8:*", "1:2:3:4:5:6:7:8:", 8, true);
    check_root("1:2:3:4:5:6:7:8:9*", "1:2:3:4:5:6:7:8:", 8, false);
    check_root("1:2:3:4:5:6:7:8:9:*", "1:2:3:4:5:6:7:8:", 8, false);
}

/* A key that matches begins as the root says; a key that begins as a whole root says matches. */
static void test_roots_hold_for_random_keys(void) {
    uint64_t random = 11, hashes[PREFIX_DEPTHS];
    unsigned rooted = 0, whole = 0;
    for (unsigned i = 0; i < 20000 * test_scale(); i++) {
        uint32_t source[8], units[10];
        size_t n = random_below(&random, 8), m = random_below(&random, 10);
        random_units(&random, source, n, 1, ":::a*\\");
        random_units(&random, units, m, 1, "::a");
        lapse_pattern *p = compile(text_of(source, n, 1, false));
        lapse_text key = text_of(units, m, 1, false);
        pattern_root root = pattern_root_of(p);
        if (root.depth > 0) {
            bool inside = text_prefixes(&key, 1u << (root.depth - 1), hashes) == 1 && hashes[0] == root.hash;
            bool matched = pattern_matches(p, &key);
            CHECK(inside || !matched);
            CHECK(matched || !inside || !root.whole);
            rooted += matched;
            whole += matched && root.whole;
        }
        text_drop(key);
        discard(p);
    }
    CHECK(rooted > 100 && whole > 20);
}

/* --- Bounds --- */

static lapse_text repeated(const char *unit, size_t n, const char *end) {
    static char text[MOST];
    size_t length = strlen(unit);
    CHECK(n * length + strlen(end) < sizeof text);
    for (size_t i = 0; i < n; i++) memcpy(text + i * length, unit, length);
    strcpy(text + n * length, end);
    return text_from(text, 1, false);
}

static void check_longest(const char *unit, size_t n, const char *end, const char *key, size_t key_n) {
    lapse_pattern *p = compile(repeated(unit, n, end));
    CHECK(match(p, repeated(key, key_n, "")));
    CHECK(!match(p, repeated(key, key_n - 1, "")));
    discard(p);
}

/* Each of the arrays as full as it can be; one unit more is refused. */
static void test_the_longest_patterns(void) {
    check_longest("a", LAPSE_PATTERN_MAX, "", "a", LAPSE_PATTERN_MAX);
    check_longest("?", LAPSE_PATTERN_MAX, "", "a", LAPSE_PATTERN_MAX);
    check_longest("*a", LAPSE_PATTERN_MAX / 2, "", "a", LAPSE_PATTERN_MAX / 2);
    check_longest("a*", LAPSE_PATTERN_MAX / 2, "", "a", LAPSE_PATTERN_MAX / 2);
    check_longest("\\?", LAPSE_PATTERN_MAX / 2, "", "?", LAPSE_PATTERN_MAX / 2);
    check_longest("[^]", LAPSE_PATTERN_MAX / 3, "a", "a", LAPSE_PATTERN_MAX / 3 + 1);
    check_longest("*?", LAPSE_PATTERN_MAX / 2 - 1, "[a", "a", LAPSE_PATTERN_MAX / 2);
    check_longest("[", LAPSE_PATTERN_MAX, "", "[", 1);
    check_longest("*", LAPSE_PATTERN_MAX - 1, "a", "a", 1);
    lapse_text source = repeated("a", LAPSE_PATTERN_MAX + 1, "");
    lapse_pattern *p = NULL;
    CHECK(lapse_pattern_new(&counting, &source, &p) == LAPSE_NO_ROOM && p == NULL && grabbed == 0);
    text_drop(source);
}

/* These take an exponential number of steps if a star is ever taken back. */
static void test_many_stars_end_soon(void) {
    static const char *const units[] = {"a*", "*a", "a*?", "*[ab]", "*a?"};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        for (int tail = 0; tail < 2; tail++) {
            lapse_pattern *p = compile(repeated(units[i], 50, tail ? "b" : "*b*"));
            CHECK(!match(p, repeated("a", 10000, "")));
            CHECK(match(p, repeated("a", 10000, "b")));
            discard(p);
        }
}

static void test_memory_failure(void) {
    lapse_text source = text_from("a:[b-c]*d", 1, false);
    lapse_pattern *p = NULL;
    refuse = true;
    CHECK(lapse_pattern_new(&counting, &source, &p) == LAPSE_NO_MEMORY && p == NULL && grabbed == 0);
    refuse = false;
    text_drop(source);
}

int main(void) {
    RUN(test_cases);
    RUN(test_widths_mix);
    RUN(test_wide_units);
    RUN(test_against_a_naive_matcher);
    RUN(test_literal_patterns);
    RUN(test_roots);
    RUN(test_roots_hold_for_random_keys);
    RUN(test_the_longest_patterns);
    RUN(test_many_stars_end_soon);
    RUN(test_memory_failure);
    return tests_done();
}
