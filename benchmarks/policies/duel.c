/* Duel: a short window, a main part under one hand, and two rules that are judged by what comes back first.
 *
 *     new ──► window (a queue) ──► contest ──► main: a clock whose hand walks in the order of hashes
 *                                     │
 *                                     └──► the loser: history of fingerprints, each with its asks
 *
 * In a contest the window's oldest entry, the candidate, meets the first entry at the hand that was not
 * used since the hand's last visits. The rule in force says who stays:
 *
 *   FREQUENCY  the candidate if it was asked for more often; twice more often unless the victim has not been
 *              used for longer than the candidate was away. The margin is what keeps a loop in place: each
 *              candidate has just been asked for once more than those that come later in the loop.
 *   RECENCY    the candidate if it was in the history, or was used twice in the window. The window is larger.
 *
 * Where the two rules disagree, what happens next says which was right: if the loser is asked for before the
 * winner is, the rule in force was wrong. These votes move a score, and the score chooses the rule.
 *
 * What is bounded here is bounded as the table would bound it: the history has two bytes an entry, and only
 * a sample of contests is watched.
 */
#include "sim.h"

#define ASKS_MOST 15u
#define USES_MOST 3u
#define USES_AT_FIRST 1u   /* of an entry that wins its contest: the hand passes it once */
#define USES_IN_WINDOW 2u  /* as good as having been in the history */
#define AGE_AFTER 30u      /* times the capacity: when asks are halved */
#define AGE_AFTER_LEAST 1280u
#define WINDOW 0.05        /* under FREQUENCY */
#define WINDOW_RECENCY 0.15
#define HISTORY 1
#define HISTORY_LEAST 1024u
#define BUCKET 16u
#define WATCHED_LEAST 1024u
#define WATCHED_MOST 8192u /* contests watched at a time, about */
#define RECENCY_ABOVE 0.2  /* the score that puts it in force */
#define FREQUENCY_BELOW 0.0
#define PATIENCE 40u       /* votes that the score remembers, and more in larger caches */
#define GROUP 16u          /* entries that share a time of the hand's last visit */

enum { OUT, IN_WINDOW, IN_MAIN };
enum { FREQUENCY, RECENCY };

typedef struct {
    uint32_t key, time; /* when it was evicted the last time, if `known` */
    bool known;
} newcomer;

typedef struct {
    uint32_t loser, winner, reign;
    uint8_t by;
    bool on;
} contest;

typedef struct {
    uint32_t capacity, keys;
    uint8_t *place, *uses, *asks, *watched;
    newcomer *window; /* a ring */
    uint32_t window_start, window_size, window_goal, window_room;
    double window_share;
    uint32_t *position, *key_at; /* in the order of hashes */
    uint64_t *bits;              /* of positions: who is in the main part */
    uint32_t words, hand, main_size;
    uint32_t *visits, visit_groups, group; /* when the hand was last there */
    uint32_t *history, buckets, *starts, time_unit;
    uint32_t now; /* evictions so far */
    uint64_t requests, age_after;
    contest *contests;
    uint32_t contest_mask, sample_mask;
    uint32_t head, reign, standing; /* who waits at the hand, and its contests not yet decided */
    bool full, judges;
    uint8_t rule;
    double score, step;
} duel;

/* --- History: buckets of {fingerprint 16, asks 4, time 12}, each bucket a ring --- */

#define TIME_BITS 12u
#define TIME_MASK ((1u << TIME_BITS) - 1)

static uint32_t *memory_of(duel *d, uint32_t key) {
    uint32_t b = (uint32_t)((mixed(key) & UINT32_MAX) * d->buckets >> 32);
    return d->history + b * BUCKET;
}
static uint32_t fingerprint(uint32_t key) { return (uint32_t)((mixed(key) >> 48) | 1) << 16; }

static void remember(duel *d, uint32_t key) {
    uint32_t *m = memory_of(d, key), b = (uint32_t)(m - d->history) / BUCKET;
    uint32_t time = d->now++ / d->time_unit & TIME_MASK;
    m[d->starts[b]++ % BUCKET] = fingerprint(key) | (uint32_t)d->asks[key] << TIME_BITS | time;
}

/* Forget it, and say how often it was asked for, and how many evictions ago it was evicted. */
static bool recall(duel *d, uint32_t key, uint8_t *asks, uint32_t *away) {
    uint32_t *m = memory_of(d, key);
    for (uint32_t i = 0; i < BUCKET; i++) {
        if ((m[i] ^ fingerprint(key)) >> 16 || m[i] == 0) continue;
        *asks = m[i] >> TIME_BITS & ASKS_MOST;
        *away = ((d->now / d->time_unit - m[i]) & TIME_MASK) * d->time_unit;
        m[i] = 0;
        return true;
    }
    return false;
}

static void age(duel *d) {
    for (uint32_t i = 0; i < d->keys; i++) d->asks[i] >>= 1;
    for (uint32_t i = 0; i < d->buckets * BUCKET; i++)
        d->history[i] =
            (d->history[i] & ~(ASKS_MOST << TIME_BITS)) | (d->history[i] >> 1 & ASKS_MOST / 2 << TIME_BITS);
    d->requests = d->age_after / 2;
}

/* --- Main part --- */

static void main_add(duel *d, uint32_t key, uint8_t uses) {
    d->bits[d->position[key] / 64] |= UINT64_C(1) << d->position[key] % 64;
    d->main_size++;
    d->place[key] = IN_MAIN;
    d->uses[key] = uses;
}
static void main_remove(duel *d, uint32_t key) {
    d->bits[d->position[key] / 64] &= ~(UINT64_C(1) << d->position[key] % 64);
    d->main_size--;
    d->place[key] = OUT;
    d->watched[key] = false;
}
static uint32_t at_hand(duel *d) {
    uint32_t w = d->hand / 64;
    uint64_t word = d->bits[w] & ~UINT64_C(0) << d->hand % 64;
    while (word == 0) word = d->bits[w = (w + 1) % d->words];
    return d->key_at[d->hand = w * 64 + (uint32_t)__builtin_ctzll(word)];
}
/* The hand is at this entry: when was it in this group the last time? */
static uint32_t last_visit(duel *d, uint32_t key) {
    uint32_t g = (uint32_t)((uint64_t)d->position[key] * d->visit_groups / d->keys);
    if (g != d->group) {
        d->visits[d->group] = d->now;
        d->group = g;
    }
    return d->visits[g];
}

/* --- Votes --- */

static void vote(duel *d, uint8_t rule) {
    if (!d->judges) return;
    d->score += d->step * (rule == RECENCY ? 1 - d->score : -1 - d->score);
    if (d->score > RECENCY_ABOVE) d->rule = RECENCY;
    if (d->score < FREQUENCY_BELOW) d->rule = FREQUENCY;
}

static contest *contest_of(duel *d, uint32_t loser) {
    uint64_t h = mixed(loser) >> 20;
    return (h & d->sample_mask) ? NULL : &d->contests[(h >> 16) & d->contest_mask];
}

/* They disagreed: watch who comes back first. */
static void watch(duel *d, uint32_t loser, uint32_t winner) {
    contest *c = contest_of(d, loser);
    if (c == NULL) return;
    *c = (contest){loser, winner, d->reign, d->rule, true};
    if (d->rule == RECENCY) d->watched[winner] = true;
    else d->standing++;
}

/* A key that is not in the cache is asked for: has it lost against one that was not asked for since? */
static void loser_is_back(duel *d, uint32_t key) {
    contest *c = contest_of(d, key);
    if (c == NULL || !c->on || c->loser != key) return;
    c->on = false;
    uint32_t winner = c->winner;
    if (d->place[winner] != IN_MAIN) return;
    if (c->by == FREQUENCY && c->reign == d->reign && d->uses[winner] == 0 && d->standing > 0) {
        d->standing--;
        vote(d, RECENCY);
    } else if (c->by == RECENCY && d->watched[winner] && d->uses[winner] <= USES_AT_FIRST) {
        d->watched[winner] = false;
        vote(d, FREQUENCY);
    }
}

/* The entry that waited at the hand was used: its contests were decided as they should. */
static void head_was_used(duel *d) {
    for (; d->standing > 0; d->standing--) vote(d, FREQUENCY);
    d->head = UINT32_MAX;
}

/* The first entry at the hand that has no uses left. */
static uint32_t find_victim(duel *d) {
    for (;;) {
        uint32_t v = at_hand(d);
        last_visit(d, v);
        if (d->uses[v] == 0) {
            if (d->head != v) d->standing = 0, d->reign++;
            return d->head = v;
        }
        if (d->head == v) head_was_used(d);
        if (d->watched[v] && d->uses[v] > USES_AT_FIRST) vote(d, RECENCY);
        d->watched[v] = false;
        d->uses[v]--;
        d->hand = (d->hand + 1) % (d->words * 64);
    }
}

/* --- Eviction --- */

static void evict_main(duel *d) {
    uint32_t v = find_victim(d);
    main_remove(d, v);
    remember(d, v);
}

static newcomer leave_window(duel *d) {
    newcomer n = d->window[d->window_start];
    d->window_start = (d->window_start + 1) % d->window_room;
    d->window_size--;
    d->place[n.key] = OUT;
    return n;
}

/* The window's oldest against the victim at the hand: one of them goes, unless the window is too large. */
static void hold_contest(duel *d) {
    newcomer n = leave_window(d);
    uint32_t c = n.key, v = find_victim(d);
    bool staler = n.known && d->now - n.time + d->window_goal < d->now - last_visit(d, v);
    bool frequent = d->asks[c] > d->asks[v] + !staler;
    bool recent = n.known || d->uses[c] >= USES_IN_WINDOW;
    bool admitted = d->rule == RECENCY ? recent : frequent;
    if (admitted) {
        main_add(d, c, USES_AT_FIRST);
        if (d->window_size >= d->window_goal) return; /* what the window gives up is the main part's */
        main_remove(d, v);
        d->standing = 0;
    }
    if (frequent != recent) watch(d, admitted ? v : c, admitted ? c : v);
    remember(d, admitted ? v : c);
}

static void make_room(duel *d) {
    d->full = true;
    while (d->window_size + d->main_size >= d->capacity) {
        if (d->main_size == 0) remember(d, leave_window(d).key);
        else if (d->window_size >= d->window_goal) hold_contest(d);
        else evict_main(d);
    }
}

static void set_window(duel *d) {
    double goal = d->rule == RECENCY ? WINDOW_RECENCY : WINDOW, one = 1.0 / d->capacity;
    double by = goal - d->window_share;
    d->window_share += by > one ? one : by < -one ? -one : by;
    d->window_goal = least(share(d->capacity, d->window_share), most(1, d->capacity - 1));
}

/* While the cache fills, what comes when the window is full belongs to the main part. */
static void enter(duel *d, uint32_t key, bool known, uint32_t time) {
    d->uses[key] = 0;
    if (!d->full && d->window_size >= d->window_goal) {
        main_add(d, key, 0);
        return;
    }
    d->place[key] = IN_WINDOW;
    d->window[(d->window_start + d->window_size++) % d->window_room] = (newcomer){key, time, known};
}

static bool ask(void *cache, uint32_t key) {
    duel *d = cache;
    if (++d->requests >= d->age_after) age(d);
    if (d->place[key] != OUT) {
        if (d->asks[key] < ASKS_MOST) d->asks[key]++;
        if (d->uses[key] < USES_MOST) d->uses[key]++;
        return true;
    }
    uint8_t asks = 0;
    uint32_t away = 0;
    bool known = recall(d, key, &asks, &away) && away < d->capacity;
    uint32_t time = d->now - away;
    d->asks[key] = (uint8_t)least(asks + 1u, ASKS_MOST);
    if (known) loser_is_back(d, key);
    set_window(d);
    if (d->window_size + d->main_size >= d->capacity) make_room(d);
    enter(d, key, known, time);
    return false;
}

/* --- Making --- */

static int by_hash(const void *a, const void *b) {
    uint64_t x = mixed(*(const uint32_t *)a), y = mixed(*(const uint32_t *)b);
    return (x > y) - (x < y);
}

static uint32_t power_of_two(uint32_t least_of) {
    uint32_t p = 1;
    while (p < least_of) p *= 2;
    return p;
}

static void *make(uint32_t capacity, uint32_t keys) {
    duel *d = calloc(1, sizeof *d);
    d->capacity = capacity;
    d->keys = keys;
    d->place = calloc(keys, 4);
    d->uses = d->place + keys;
    d->asks = d->uses + keys;
    d->watched = d->asks + keys;
    d->window_room = share(capacity, WINDOW_RECENCY) + 2;
    d->window = calloc(d->window_room, sizeof *d->window);
    d->window_share = WINDOW;
    d->position = calloc(keys, sizeof *d->position);
    d->key_at = calloc(keys, sizeof *d->key_at);
    for (uint32_t i = 0; i < keys; i++) d->key_at[i] = i;
    qsort(d->key_at, keys, sizeof *d->key_at, by_hash);
    for (uint32_t i = 0; i < keys; i++) d->position[d->key_at[i]] = i;
    d->words = keys / 64 + 1;
    d->bits = calloc(d->words, sizeof *d->bits);
    d->visit_groups = capacity / GROUP + 1;
    d->visits = calloc(d->visit_groups, sizeof *d->visits);
    d->buckets = (most(HISTORY * capacity, HISTORY_LEAST) + BUCKET - 1) / BUCKET;
    d->history = calloc((size_t)d->buckets * BUCKET, sizeof *d->history);
    d->time_unit = capacity / 2048 + 1;
    d->starts = calloc(d->buckets, sizeof *d->starts);
    d->age_after = most(AGE_AFTER * capacity, AGE_AFTER_LEAST);
    uint32_t contests = power_of_two(most(WATCHED_LEAST, least(capacity / 4, WATCHED_MOST)));
    d->contests = calloc(contests, sizeof *d->contests);
    d->contest_mask = contests - 1;
    d->sample_mask = power_of_two(most(1, capacity / 4 / contests)) - 1;
    d->step = 1.0 / (PATIENCE + least(capacity, contests) / 50.0);
    d->head = UINT32_MAX;
    d->judges = true;
    return d;
}

/* One rule for ever: what the duel gains is seen beside these. */
static void *make_with(uint32_t capacity, uint32_t keys, uint8_t rule) {
    duel *d = make(capacity, keys);
    d->judges = false;
    d->rule = rule;
    d->window_share = rule == RECENCY ? WINDOW_RECENCY : WINDOW;
    return d;
}
static void *make_frequency(uint32_t capacity, uint32_t keys) { return make_with(capacity, keys, FREQUENCY); }
static void *make_recency(uint32_t capacity, uint32_t keys) { return make_with(capacity, keys, RECENCY); }

static void drop(void *cache) {
    duel *d = cache;
    free(d->place);
    free(d->window);
    free(d->position);
    free(d->key_at);
    free(d->bits);
    free(d->visits);
    free(d->history);
    free(d->starts);
    free(d->contests);
    free(d);
}

const policy duel_policy = {make, ask, drop};
const policy duel_frequency_policy = {make_frequency, ask, drop};
const policy duel_recency_policy = {make_recency, ask, drop};
