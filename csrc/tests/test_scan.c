/* The scan of packed deadlines: every body that can run here, against a naive loop. */
#include "scan.h"

#include "test.h"

#define MOST 1024u
#define WORDS (MOST / 64u)

static int64_t deadlines[MOST];

typedef struct {
    uint64_t bits[WORDS], next;
    size_t found;
} outcome;

static outcome naive(size_t n, int64_t now) {
    outcome o = {.next = RANK_NEVER};
    for (size_t i = 0; i < n; i++) {
        int64_t d = deadlines[i];
        if (d == 0) continue;
        if (d <= now) {
            o.bits[i / 64] |= UINT64_C(1) << (i % 64);
            o.found++;
        } else if ((uint64_t)d - 1 < o.next) {
            o.next = (uint64_t)d - 1;
        }
    }
    return o;
}

static void check_body(scan_body body, size_t n, int64_t now) {
    outcome expected = naive(n, now), o;
    memset(&o, 0xAA, sizeof o); /* what the body does not write must not be right by chance */
    o.found = body(deadlines, n, now, o.bits, &o.next);
    CHECK(o.found == expected.found && o.next == expected.next);
    CHECK(memcmp(o.bits, expected.bits, (n + 63) / 64 * 8) == 0);
    for (size_t w = (n + 63) / 64; w < WORDS; w++) CHECK(o.bits[w] == UINT64_C(0xAAAAAAAAAAAAAAAA));
}

static void check_all(size_t n, int64_t now) {
    static const char *const names[] = {"avx2", "sse2", "neon", "portable"};
    check_body(scan_deadlines, n, now);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        scan_body body = scan_body_named(names[i]);
        if (body) check_body(body, n, now);
    }
}

static int64_t edge(uint64_t *random, int64_t now) {
    const int64_t edges[] = {0,
                             1,
                             now > 1 ? now - 1 : 1,
                             now,
                             now + (now < INT64_MAX),
                             INT64_MAX,
                             INT64_MAX - 1,
                             (int64_t)(random_word(random) >> 1)};
    return edges[random_below(random, sizeof edges / sizeof *edges)];
}

static void test_edges_at_every_length(void) {
    const int64_t nows[] = {0, 1, 2, 1000, INT64_C(1) << 40, INT64_MAX - 1, INT64_MAX};
    uint64_t random = 3;
    for (size_t n = 0; n <= MOST; n += 16)
        for (size_t i = 0; i < sizeof nows / sizeof *nows; i++) {
            for (size_t j = 0; j < MOST; j++) deadlines[j] = edge(&random, nows[i]);
            check_all(n, nows[i]);
        }
}

static void test_random_deadlines(void) {
    uint64_t random = 4;
    for (uint32_t round = 0; round < 1000 * test_scale(); round++) {
        unsigned shift = random_below(&random, 62) + 1;
        for (size_t j = 0; j < MOST; j++) deadlines[j] = (int64_t)(random_word(&random) >> shift);
        check_all(16 * (random_below(&random, 64) + 1), (int64_t)(random_word(&random) >> shift));
    }
}

/* One deadline alone, in every place: what is passed and what comes next must both be seen there. */
static void test_single_deadlines(void) {
    for (size_t place = 0; place < MOST; place++) {
        memset(deadlines, 0, sizeof deadlines);
        deadlines[place] = 500;
        check_all(MOST, 499);
        check_all(MOST, 500);
    }
}

static void test_the_chosen_body_has_a_name(void) {
    CHECK(scan_body_named(scan_name()) != NULL);
    CHECK(scan_body_named("portable") != NULL);
    CHECK(scan_body_named("none") == NULL);
#ifdef LAPSE_PORTABLE
    CHECK(strcmp(scan_name(), "portable") == 0);
#endif
}

int main(void) {
    RUN(test_edges_at_every_length);
    RUN(test_random_deadlines);
    RUN(test_single_deadlines);
    RUN(test_the_chosen_body_has_a_name);
    printf("%s: ", scan_name());
    return tests_done();
}
