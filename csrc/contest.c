/* The default policy at work on a table: the window's oldest entry meets the first one at the hand, and one of them
 * goes. What the policy keeps, and its invariants, stand in duel.h.
 *
 *     duel_evict() ──► the window's oldest ──► hopeless: it goes
 *                                        └──► contest with the victim at the hand ──► the loser goes; the winner
 *                                             is the main part's, and is watched where the rules disagreed
 *
 * One thread at a time (`evicting`), which locks segments one after the other; whatever changes in between only makes
 * it look again. */
#include "table.h"

#define USES_AT_FIRST 1u /* of an entry that wins its contest: the hand passes it once */
#define USES_IN_WINDOW 2u /* as good as having been in the history */
#define COUNT_EVERY 64u /* evictions between looks at the number of requests */
#define FETCH_STEP 2u /* evictions from one step of fetching ahead to the next */
#define PATIENT_SLOTS 16384u /* entries that the hand passes before it takes one with a use more */

/* --- Entries by their hashes --- */

static bool is_entry(const segment *s, uint32_t slot, uint64_t h, bool young) {
    return (s->ctrl[slot] & CTRL_FULL) && *hash_at(s, slot) == h && bit_test(s->young, slot) == young;
}

static bool find_entry(const segment *s, uint64_t h, bool young, uint32_t *slot) {
    uint32_t g = hash_group(h, s->groups);
    for (uint32_t n = s->groups; n > 0; n--, g = next_group(s, g)) {
        group ctrl = group_load(s->ctrl + g * GROUP_SLOTS);
        for (group_mask m = group_match(ctrl, hash_tag(h)); m; m &= m - 1)
            if (is_entry(s, *slot = g * GROUP_SLOTS + mask_slot(m), h, young)) return true;
        if (group_empty(ctrl)) break;
    }
    return false;
}

/* Lock the segment of h and find its entry, in the window or in the main part; `*slot` is where it was a moment ago,
 * or NOWHERE. NULL: it is not there. */
static segment *lock_entry(lapse_table *t, uint64_t h, bool young, uint32_t *slot) {
    segment *s = lock_segment(t, h);
    table_age(t, s);
    if (*slot < segment_slots(s) && is_entry(s, *slot, h, young)) return s;
    if (find_entry(s, h, young, slot)) return s;
    lock_drop(&s->lock);
    return NULL;
}

/* The entry of the locked segment goes, and the lock. */
static void let_go(lapse_table *t, segment *s, uint32_t slot, uint64_t h, lapse_item *gone) {
    uint32_t asks = mark_asks(RELAXED(&s->marks[slot]));
    table_take(t, s, slot, h, gone);
    lock_drop(&s->lock);
    duel_remember(&t->duel, h, asks);
}

/* An entry of the window joins the main part, if it is still there. */
static void promote(lapse_table *t, uint64_t h, uint32_t slot, bool watched) {
    segment *s = lock_entry(t, h, true, &slot);
    if (s == NULL) return;
    bit_put(s->young, slot, false);
    bit_put(s->watched, slot, watched);
    STORE(&s->marks[slot], (uint8_t)((RELAXED(&s->marks[slot]) & MARK_ASKS) | USES_AT_FIRST));
    lock_drop(&s->lock);
}

/* --- The hand --- */

/* The hand comes to an entry that was used since: it takes one use. */
static void pass_entry(lapse_duel *d, segment *s, uint32_t slot) {
    uint8_t mark = RELAXED(&s->marks[slot]);
    if (d->waiting && d->head == *hash_at(s, slot)) {
        for (; d->standing > 0; d->standing--) duel_vote(d, BY_FREQUENCY);
        d->waiting = false;
    }
    if (bit_test(s->watched, slot)) {
        if (mark_uses(mark) > USES_AT_FIRST) duel_vote(d, BY_RECENCY);
        bit_put(s->watched, slot, false);
    }
    STORE(&s->marks[slot], (uint8_t)(mark - 1));
}

/* The hand enters a segment, or finds another one where it was. */
static void arrive(lapse_duel *d, segment *s) {
    if (d->arrived && d->hand_first == s->first_hash) return;
    d->arrived = true;
    d->last_visit = s->visited;
    s->visited = d->now;
    d->hand_first = s->first_hash;
    d->hand_slot = 0;
}

/* Only an entry that has become heavier can be here already. */
static bool is_spared(const lapse_duel *d, const segment *s, uint32_t slot) {
    return UNLIKELY(s->weights != NULL) && *hash_at(s, slot) == d->spared;
}

/* The first entry of the segment, from the hand on, that has no more than `uses`; NOWHERE: none. */
static uint32_t search_segment(lapse_duel *d, segment *s, uint32_t uses, uint64_t *passed_over) {
    for (uint32_t g = d->hand_slot / GROUP_SLOTS; g < s->groups; g++) {
        group_mask full = group_full(group_load(s->ctrl + g * GROUP_SLOTS));
        for (group_mask m = full; m; m &= m - 1) {
            uint32_t slot = g * GROUP_SLOTS + mask_slot(m);
            if (slot < d->hand_slot || bit_test(s->young, slot) || is_spared(d, s, slot)) continue;
            d->hand_slot = slot;
            if (mark_uses(RELAXED(&s->marks[slot])) <= uses) return slot;
            pass_entry(d, s, slot);
            d->hand_slot = slot + 1;
            ++*passed_over;
        }
    }
    return NOWHERE;
}

/* Lock the segment of the next victim. NULL: the main part has none. */
static segment *lock_victim(lapse_table *t, uint32_t *slot) {
    lapse_duel *d = &t->duel;
    uint64_t passed_over = 0;
    for (size_t laps = 0, most = (DUEL_USES_MOST + 2) * (RELAXED(&t->segments) + 1); laps < most; laps++) {
        segment *s = lock_segment(t, d->hand);
        table_age(t, s);
        arrive(d, s);
        *slot = search_segment(d, s, (uint32_t)(passed_over / PATIENT_SLOTS), &passed_over);
        if (*slot != NOWHERE) return s;
        d->hand = segment_last_hash(s) + 1;
        d->hand_slot = 0;
        d->arrived = false;
        lock_drop(&s->lock);
        if (passed_over == 0 && laps > RELAXED(&t->segments)) break; /* none in a whole lap */
    }
    return NULL;
}

/* This entry waits at the hand from now on. */
static void meet_head(lapse_duel *d, uint64_t h) {
    if (d->waiting && d->head == h) return;
    d->waiting = true;
    d->head = h;
    d->standing = 0;
    d->reign++;
}

/* --- Votes --- */

/* The rules disagreed: watch who comes back first. Answers whether the winner is to be watched. */
static bool watch(lapse_duel *d, uint64_t loser, uint64_t winner) {
    duel_contest *c = duel_contest_of(d, loser);
    if (c == NULL) return false;
    *c = (duel_contest){loser, winner, d->reign, d->rule, true};
    if (d->rule == BY_FREQUENCY) d->standing++;
    return d->rule == BY_RECENCY;
}

/* A key comes back: has it lost against one that was not used since? */
static void loser_is_back(lapse_table *t, uint64_t h) {
    lapse_duel *d = &t->duel;
    duel_contest *c = duel_contest_of(d, h);
    uint32_t slot = NOWHERE;
    if (c == NULL || !c->open || c->loser != h || !duel_knows(d, h)) return;
    c->open = false;
    if (c->by == BY_FREQUENCY && !(c->reign == d->reign && d->waiting && d->standing > 0)) return;
    segment *s = lock_entry(t, c->winner, false, &slot);
    if (s == NULL) return;
    uint32_t uses = mark_uses(RELAXED(&s->marks[slot]));
    if (c->by == BY_FREQUENCY && uses == 0) {
        d->standing--;
        duel_vote(d, BY_RECENCY);
    } else if (c->by == BY_RECENCY && bit_test(s->watched, slot) && uses <= USES_AT_FIRST) {
        bit_put(s->watched, slot, false);
        duel_vote(d, BY_FREQUENCY);
    }
    lock_drop(&s->lock);
}

/* --- Contests --- */

/* The window's oldest entry. */
typedef struct {
    duel_item item;
    uint32_t slot;
    uint8_t mark;
} elder;

/* --- Ahead of time: in a large table, what the next ones out of the window need is fetched in four steps --- */

static void fetch_header(const lapse_table *t, uint64_t h) {
    const uint8_t *header = (const uint8_t *)locate(t, h);
    for (size_t line = 0; line < sizeof(segment); line += CACHE_LINE) PREFETCH(header + line);
}

static void fetch_group(const lapse_table *t, uint64_t h) {
    const segment *s = locate(t, h);
    PREFETCH(s->ctrl + hash_group(h, RELAXED(&s->groups)) * GROUP_SLOTS);
}

/* Where an entry is, if it is in its home group and alone with its tag there. */
static uint32_t likely_slot(const segment *s, uint64_t h) {
    uint32_t slot = hash_group(h, RELAXED(&s->groups)) * GROUP_SLOTS;
    group_mask m = group_match(group_load(s->ctrl + slot), hash_tag(h));
    return m ? slot + mask_slot(m) : slot;
}

static void fetch_entry(const lapse_table *t, uint64_t h) {
    const segment *s = locate(t, h);
    uint32_t slot = likely_slot(s, h);
    PREFETCH(s->young + slot / 64);
    PREFETCH(s->marks + slot);
    PREFETCH(hash_at(s, slot));
    PREFETCH(entry_at(s, slot));
    PREFETCH(deadline_at(s, slot));
}

static void fetch_key(lapse_table *t, uint64_t h) {
    const segment *s = locate(t, h);
    PREFETCH(RELAXED(&entry_at(s, likely_slot(s, h))->key));
    duel_fetch(&t->duel, h);
}

static void fetch_followers(lapse_table *t) {
    uint64_t next[4];
    duel_ahead(&t->duel, FETCH_STEP, 4, next);
    fetch_header(t, next[3]);
    fetch_group(t, next[2]);
    fetch_entry(t, next[1]);
    fetch_key(t, next[0]);
}

/* Neither rule would take the candidate, whoever is at the hand. */
static bool is_hopeless(const elder *c) {
    return c->item.time == 0 && mark_asks(c->mark) <= 1 && mark_uses(c->mark) < USES_IN_WINDOW;
}

/* One that is hopeless goes at once: `gone` owns it. */
static bool find_candidate(lapse_table *t, elder *c, lapse_item *gone) {
    gone->key = NULL;
    while (duel_leave(&t->duel, &c->item)) {
        uint64_t h = duel_hash(&c->item);
        if (fetches_ahead(t)) fetch_followers(t);
        c->slot = NOWHERE;
        segment *s = lock_entry(t, h, true, &c->slot);
        if (s == NULL) continue;
        c->mark = RELAXED(&s->marks[c->slot]);
        if (is_spared(&t->duel, s, c->slot)) {
            lock_drop(&s->lock);
            promote(t, h, c->slot, false);
            continue;
        }
        if (is_hopeless(c)) let_go(t, s, c->slot, h, gone);
        else lock_drop(&s->lock);
        return true;
    }
    return false;
}

static bool evict_candidate(lapse_table *t, uint64_t h, uint32_t slot, lapse_item *gone) {
    segment *s = lock_entry(t, h, true, &slot);
    if (s) let_go(t, s, slot, h, gone);
    return s != NULL;
}

/* The candidate against the victim at the hand. True: one of them is gone. */
static bool hold_contest(lapse_table *t, const elder *c, lapse_item *gone) {
    lapse_duel *d = &t->duel;
    uint64_t h = duel_hash(&c->item);
    uint32_t slot;
    segment *s = lock_victim(t, &slot);
    if (s == NULL) return evict_candidate(t, h, c->slot, gone);
    uint64_t v = *hash_at(s, slot);
    meet_head(d, v);
    uint32_t absent = (d->now * 2 - (c->item.time & ~1u)) / 2 + (uint32_t)d->window_goal;
    bool known = c->item.time != 0, staler = known && absent < d->now - d->last_visit;
    bool frequent = mark_asks(c->mark) > mark_asks(RELAXED(&s->marks[slot])) + !staler;
    bool recent = known || mark_uses(c->mark) >= USES_IN_WINDOW;
    bool admitted = d->rule == BY_RECENCY ? recent : frequent;
    if (admitted &&
        RELAXED(&d->ring_size) >= d->window_goal) { /* what the window gives up is the main part's */
        lock_drop(&s->lock);
        promote(t, h, c->slot, false);
        return false;
    }
    bool watched = frequent != recent && watch(d, admitted ? v : h, admitted ? h : v);
    if (!admitted) {
        lock_drop(&s->lock);
        return evict_candidate(t, h, c->slot, gone);
    }
    let_go(t, s, slot, v, gone);
    d->waiting = false;
    promote(t, h, c->slot, watched);
    return true;
}

static bool evict_one(lapse_table *t, lapse_item *gone) {
    lapse_duel *d = &t->duel;
    elder c;
    uint32_t slot;
    if (RELAXED(&d->ring_size) >= d->window_goal && find_candidate(t, &c, gone))
        return gone->key || hold_contest(t, &c, gone);
    segment *s = lock_victim(t, &slot);
    if (s) let_go(t, s, slot, *hash_at(s, slot), gone);
    else if (find_candidate(t, &c, gone))
        return gone->key || evict_candidate(t, duel_hash(&c.item), c.slot, gone);
    return s != NULL;
}

/* Asks halve when the table has been asked for so many keys. */
static void count_requests(lapse_table *t) {
    uint64_t requests = 0;
    if (t->duel.now % COUNT_EVERY) return;
    for (uint32_t i = 0; i < COUNTER_STRIPES; i++)
        requests += RELAXED(&t->counters[i].c.hits) + RELAXED(&t->counters[i].c.misses);
    if (requests < t->duel.next_age) return;
    lock_take(&t->duel.lock);
    STORE(&t->duel.age, t->duel.age + 1);
    t->duel.next_age = requests + duel_half_life(&t->duel);
    lock_drop(&t->duel.lock);
}

/* Let one entry go: `gone` owns it. False: with other threads about there was none, or no need. */
bool duel_evict(lapse_table *t, const record *newcomer, lapse_item *gone) {
    lapse_duel *d = &t->duel;
    uint64_t weight = newcomer ? newcomer->weight : 0;
    bool done = false;
    lock_take(&d->evicting);
    count_requests(t);
    d->spared = newcomer ? newcomer->hash : 0;
    if (newcomer) loser_is_back(t, newcomer->hash);
    duel_set_window(d);
    while (!done && order_lacks(&t->order, weight) && !(done = evict_one(t, gone)))
        if (RELAXED(&d->ring_size) == 0) break;
    lock_drop(&d->evicting);
    return done;
}
