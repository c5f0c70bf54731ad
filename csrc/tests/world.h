/* A world: a table and, beside it, a naive map of the same entries, leases and passes.
 *
 * The map says what the table must hold and answer. Its clock is the world's own and only runs forward. Where
 * the table may choose (an expired entry may be gone already, a draw may end one early) the map follows what
 * the table says, if it may say that: the table's observer takes out of the map what the table removes of
 * itself, and checks the cause.
 *
 * Most keys have a text such as "t3:17:583"; the C library's fnmatch() says which patterns match it.
 */
#ifndef LAPSE_TEST_WORLD_H
#define LAPSE_TEST_WORLD_H

#include "pattern.h"
#include "table.h"
#include "test.h"

#include <fnmatch.h>

#ifndef IDS
#  define IDS 4096u
#endif
#define FEW 16u  /* ids that short streams come back to */
#define TWINS 2u /* equal objects of one key, or of one tag */
#define VALUES 256u
#define CROWD 1400u /* keys of one hash, or of one prefix: more than a whole segment */
#define TAGS 16u
#define LEASES 48u /* out at a time */
#define ROUND_TIME 100
#define TOGETHER 3u /* patterns of one pass, at most */

/* --- Choices --- */

typedef struct {
    const uint8_t *data; /* NULL: the generator */
    size_t size, at;
    uint64_t random;
} source;

static uint32_t choose(source *from, uint32_t n) {
    if (from->data == NULL) return random_below(&from->random, n);
    uint32_t word = 0;
    for (uint32_t most = n - 1; most > 0; most >>= 8)
        word = word << 8 | (from->at < from->size ? from->data[from->at++] : 0);
    return word % n;
}

/* --- Keys' texts, and patterns --- */

/* Prefixes that many share and few share, at either depth; none; and a key itself. */
static const char *const globs[] = {"t3:*",        "t1:7:*",       "t4:39:*",   "t?:*",   "*:9",
                                    "t[0-2]:1?:*", "t4:1*:*3",     "*1*2*",     "t0:0:0", "none:*",
                                    "[^t]*",       "t2:1[^0-5]:*", "\\t1:3:*8", "*"};
#define GLOBS (sizeof globs / sizeof *globs)

static char texts[IDS][24];
static const uint32_t prefix_globs[] = {0, 1, 2, 9}; /* those that are "prefix:*" */
static bool matches[GLOBS][IDS];

static void write_texts(void) {
    if (texts[0][0]) return;
    for (uint32_t id = 0; id < IDS; id++) {
        snprintf(texts[id], sizeof texts[id], "t%u:%u:%u", id % 5, id / 5 % 40, id);
        for (uint32_t g = 0; g < GLOBS; g++)
            matches[g][id] = id % 13 != 1 && fnmatch(globs[g], texts[id], 0) == 0;
    }
}

/* --- The world --- */

typedef enum { SPREAD, SHIFTED, EQUAL, CROWDED } flavour; /* of the keys' hashes */

/* What the table should hold under an id; `key` is NULL where there is nothing. */
typedef struct {
    lapse_object *key, *value;
    int64_t deadline, ttl, limit;
    uint32_t cost;
    bool own;
    bool walked, due; /* yielded by the walk under way; must be */
    bool doomed;      /* was there when the pass under way began, which covers it */
    bool in_storm;    /* the same of the storm under way */
    uint32_t tags;    /* a bit for each */
} naive;

/* An entry that a clear put aside: it comes back by a drain, or if it had expired it may have gone before. */
typedef struct {
    lapse_object *key, *value;
    bool expired;
} put_aside;

/* A lease that is out; `l` is NULL where there is none. */
typedef struct {
    lapse_lease *l;
    uint32_t id;
    lapse_object *key;
    uint64_t born;
    int64_t timed; /* when its load began; 0: nobody has said */
    bool outdated; /* whatever tags it is filled with */
} loan;

/* A pass or a storm, and what it covers: a tag, or patterns. */
typedef struct {
    lapse_pass *p; /* NULL: none is under way */
    lapse_storm *storm;
    lapse_prefixes *prefixes; /* of a storm */
    struct lapse_pattern *patterns[TOGETHER];
    uint32_t globs[TOGETHER], n, tag;
    int64_t at;
} sieve;

typedef struct {
    lapse_table *t;
    lapse_config config;
    bool among_few; /* most operations are on few keys */
    int64_t now, walk_at;
    int64_t soft_at, soft_until; /* of the last softening */
    uint64_t sweep_cursor, walk_cursor, pop_cursor;
    lapse_packing packing;
    uint64_t lapsed; /* expired entries that the table must count */
    lapse_counters counters;
    lapse_object keys[IDS][TWINS], values[VALUES], tags[TAGS][TWINS];
    uint64_t hashes[IDS];
    naive map[IDS];
    uint64_t used[IDS], uses; /* by which use each entry was last used; 0: there is none */
    put_aside buried[IDS];
    loan loans[LEASES];
    uint64_t sequence, tag_deleted[TAGS]; /* counts tags deleted; when each was last */
    struct lapse_pattern *patterns[GLOBS];
    sieve under_way, storm;
    const sieve *at_work;   /* the pass that is taking a step */
    const naive *replacing; /* an operation puts this key, */
    bool erasing;           /* or removes keys whether they have expired or not */
} world;

/* The n-th number whose mixed hash begins with ten zero bits. */
static uint64_t crowded_hash(uint64_t *last) {
    do ++*last;
    while (mix_hash(*last) >> 54 != 0);
    return *last;
}

static void set_hashes(world *w, flavour f) {
    uint64_t last = 0;
    for (uint32_t id = 0; id < IDS; id++) {
        w->hashes[id] = f == SHIFTED ? (uint64_t)id << 48 : id;
        if (id >= CROWD) continue;
        if (f == EQUAL) w->hashes[id] = 99;
        if (f == CROWDED) w->hashes[id] = crowded_hash(&last);
    }
}

static void make_objects(world *w, bool asking) {
    for (uint32_t id = 0; id < IDS; id++)
        for (uint32_t twin = 0; twin < TWINS; twin++)
            w->keys[id][twin] = (lapse_object){.references = 1,
                                               .id = id,
                                               .gc = id % 5 == 0,
                                               .text = id % 13 == 1 ? NULL : texts[id],
                                               .needs_asking = asking && id % 3 == 0};
    for (uint32_t i = 0; i < VALUES; i++)
        w->values[i] = (lapse_object){.references = 1, .id = i, .gc = i % 7 == 0};
    for (uint32_t i = 0; i < TAGS; i++)
        for (uint32_t twin = 0; twin < TWINS; twin++)
            w->tags[i][twin] = (lapse_object){.references = 1, .id = i};
}

static void make_patterns(world *w) {
    for (uint32_t g = 0; g < GLOBS; g++) {
        lapse_text source = {globs[g], strlen(globs[g]), 1, false};
        CHECK(lapse_pattern_new(&lapse_system_memory, &source, &w->patterns[g]) == LAPSE_OK);
    }
}

static void observe(void *context, lapse_item *items, size_t n, lapse_cause cause);

/* One at a time; its pages are used again, which is what makes short streams quick. */
static world *world_new(const lapse_config *config, flavour f, bool asking) {
    static world the_world;
    world *w = &the_world;
    CHECK(w->t == NULL);
    memset(w, 0, sizeof *w);
    write_texts();
    w->config = *config;
    w->config.observer = observe;
    w->config.context = w;
    w->t = lapse_table_new(&w->config);
    CHECK(w->t != NULL);
    w->now = 1000;
    set_hashes(w, f);
    make_objects(w, asking);
    make_patterns(w);
    return w;
}

/* --- The naive map --- */

static bool over(const naive *n, int64_t at) { return n->deadline != LAPSE_NEVER && n->deadline <= at; }
static uint32_t id_of(const world *w, const naive *n) { return (uint32_t)(n - w->map); }

static bool covers_text(const sieve *s, uint32_t id) {
    bool covered = false;
    for (uint32_t i = 0; i < s->n; i++) covered |= matches[s->globs[i]][id];
    return covered;
}

/* Does the storm under way cover this id, and has not come to it? Then nobody may meet what is there. */
static bool struck(const world *w, uint32_t id) {
    if (w->storm.storm == NULL || !covers_text(&w->storm, id)) return false;
    for (const fence_pass *p = w->t->fence.passes; p; p = p->next)
        if (p->prefixes == w->storm.prefixes) return !p->over && mix_hash(w->hashes[id]) >= p->reached;
    return false;
}

static bool lives(const world *w, const naive *n) {
    return n->key != NULL && !over(n, w->now) && !struck(w, id_of(w, n));
}

/* Entries before their deadline: those that a storm has struck, and not removed, count or not. */
static size_t count_live(const world *w, bool all) {
    size_t live = 0;
    for (uint32_t id = 0; id < IDS; id++) {
        const naive *n = &w->map[id];
        live += all ? n->key != NULL && !over(n, w->now) : lives(w, n);
    }
    return live;
}

static void take_out(world *w, naive *n) {
    n->key = NULL;
    n->due = n->doomed = n->in_storm = false;
    n->tags = 0;
    w->used[id_of(w, n)] = 0;
}

/* The entry goes, or has gone already if it had expired. */
static void forget(world *w, naive *n) {
    if (n->key == NULL) return;
    w->lapsed += over(n, w->now);
    take_out(w, n);
}

/* The time before which a deadline must lie for its entry to go by itself: see stale.c. */
static int64_t kept_since(const world *w) {
    int64_t grace = w->config.grace;
    if (w->now < w->soft_until && w->soft_until - w->soft_at > grace) grace = w->soft_until - w->soft_at;
    return w->now > grace ? w->now - grace : 0;
}

static void use(world *w, const naive *n) { w->used[id_of(w, n)] = ++w->uses; }

static bool is_bounded(const world *w) { return w->config.lru || w->config.duel; }

/* May this entry make way in a table that is full? In exact LRU only the one that was not used for longest. */
static bool is_next_to_go(const world *w, const naive *n) {
    uint64_t entries = 0, mine = w->used[id_of(w, n)];
    for (uint32_t id = 0; id < IDS; id++) {
        if (w->config.lru && w->used[id] && w->used[id] < mine) return false;
        entries += w->used[id] != 0;
    }
    return entries >= w->config.max_entries;
}

static int64_t saturate(int64_t at, int64_t ttl) {
    return ttl == LAPSE_NEVER || ttl > INT64_MAX - at ? LAPSE_NEVER : at + ttl;
}
static int64_t sooner(int64_t a, int64_t b) {
    if (a == LAPSE_NEVER || b == LAPSE_NEVER) return a == LAPSE_NEVER ? b : a;
    return a < b ? a : b;
}

static bool keeps_ttl(const world *w) { return w->config.mode != LAPSE_FIXED; }
static bool keeps_limit(const world *w) {
    return w->config.mode == LAPSE_SLIDING && w->config.max_lifetime != LAPSE_NEVER;
}

/* What the table has drawn, if it may draw that. */
static void adopt_jitter(world *w, naive *n) {
    lapse_item item;
    if (n->ttl == LAPSE_NEVER) return;
    double least = (double)n->ttl * (1 - w->config.jitter) - 2;
    CHECK(lapse_peek(w->t, n->key, w->hashes[id_of(w, n)], w->now, &item) == LAPSE_OK);
    int64_t drawn = keeps_ttl(w) ? item.ttl : item.deadline - w->now;
    bool is_capped = item.deadline == LAPSE_NEVER; /* past the end of time */
    CHECK(is_capped || (drawn <= n->ttl && (double)drawn >= least));
    lapse_release(&item, 1);
    n->deadline = item.deadline;
    n->ttl = drawn;
}

static void date(world *w, naive *n, int64_t ttl) {
    n->ttl = ttl == LAPSE_DEFAULT ? w->config.default_ttl : ttl;
    n->own = w->config.jitter > 0 || n->ttl != w->config.default_ttl;
    n->deadline = sooner(saturate(w->now, n->ttl), n->limit);
    if (w->config.jitter > 0) adopt_jitter(w, n);
}

static void store(world *w, naive *n, lapse_object *key, lapse_object *value, int64_t ttl) {
    w->counters.replaced += lives(w, n);
    forget(w, n);
    n->key = key;
    n->value = value;
    n->cost = 0;
    n->limit = keeps_limit(w) ? saturate(w->now, w->config.max_lifetime) : LAPSE_NEVER;
    date(w, n, ttl);
    use(w, n);
}

static void slide(const world *w, naive *n) {
    if (w->config.mode != LAPSE_SLIDING || n->deadline == LAPSE_NEVER || n->ttl == LAPSE_NEVER) return;
    int64_t slid = n->ttl > INT64_MAX - w->now ? INT64_MAX : w->now + n->ttl;
    slid = sooner(slid, n->limit);
    if (slid > n->deadline) n->deadline = slid;
}

/* Is the entry in the last part of its life, where the draw may end it? */
static bool may_end_early(const world *w, const naive *n) {
    if (w->config.mode != LAPSE_PROBABILISTIC || n->deadline == LAPSE_NEVER) return false;
    return (double)(n->deadline - w->now) < (double)n->ttl * w->config.early_factor;
}

static bool item_matches(const world *w, const lapse_item *item, const naive *n) {
    return item->key == n->key && item->value == n->value && item->deadline == n->deadline &&
           item->own_ttl == n->own && item->ttl == (keeps_ttl(w) ? n->ttl : 0) &&
           item->limit == (keeps_limit(w) ? n->limit : LAPSE_NEVER) &&
           item->cost == (w->config.mode == LAPSE_PROBABILISTIC ? n->cost : 0);
}

static naive *entry_of(world *w, const lapse_item *item) { return &w->map[item->key->id]; }

static void give_up(const lapse_item *item) {
    object_unref(item->key);
    object_unref(item->value);
}

/* --- What passes cover, and what the table says of it --- */

static bool covers(const world *w, const sieve *s, uint32_t id) {
    return s->n ? covers_text(s, id) : w->map[id].tags >> s->tag & 1;
}

/* May the table part with an entry because its deadline has passed? Within its grace it stays, unless something
 * else would have taken it out. */
static bool may_lapse(const world *w, const naive *n) {
    if (over(n, kept_since(w)) || n == w->replacing || w->erasing) return true;
    if (w->at_work && covers(w, w->at_work, id_of(w, n))) return true;
    return struck(w, id_of(w, n)) || (is_bounded(w) && is_next_to_go(w, n));
}

static void count_cause_of(world *w, lapse_cause cause) {
    switch (cause) {
    case LAPSE_BY_DEADLINE: w->lapsed++; break;
    case LAPSE_DELETED: w->counters.deletes++; break;
    case LAPSE_BY_PATTERN: w->counters.by_pattern++; break;
    case LAPSE_BY_TAG: w->counters.by_tag++; break;
    case LAPSE_EVICTED: w->counters.evictions++; break;
    default: CHECK(cause == LAPSE_BY_DRAW); /* callers alone know of the others, and of draws themselves */
    }
}

static bool fits_cause(const world *w, const naive *n, lapse_cause cause) {
    const sieve *s = w->at_work;
    if (cause == LAPSE_BY_DEADLINE) return may_lapse(w, n);
    if (cause == LAPSE_BY_DRAW) return may_end_early(w, n);
    if (cause == LAPSE_DELETED) return w->erasing;
    if (cause == LAPSE_EVICTED) return is_bounded(w) && is_next_to_go(w, n);
    if (cause == LAPSE_BY_PATTERN && struck(w, id_of(w, n))) return true;
    return s && covers(w, s, id_of(w, n)) && (s->n > 0) == (cause == LAPSE_BY_PATTERN);
}

/* By whose time it is judged whether an entry had expired: that of the pass or storm that removed it. */
static bool had_expired(const world *w, const naive *n) {
    if (w->at_work) return over(n, w->at_work->at);
    return over(n, struck(w, id_of(w, n)) ? w->storm.at : w->now);
}

/* Each entry goes once, and is live exactly if the cause says so. */
static void observe(void *context, lapse_item *items, size_t n, lapse_cause cause) {
    world *w = context;
    CHECK(n > 0 && n <= LAPSE_STEP);
    for (size_t i = 0; i < n; i++) {
        naive *entry = entry_of(w, &items[i]);
        if (cause != LAPSE_REPLACED) {
            CHECK(entry->key && item_matches(w, &items[i], entry) && fits_cause(w, entry, cause));
            CHECK(had_expired(w, entry) == (cause == LAPSE_BY_DEADLINE) || struck(w, id_of(w, entry)));
            count_cause_of(w, cause);
            take_out(w, entry);
        }
        give_up(&items[i]);
    }
}

/* --- What outdates leases --- */

/* A change of this key. Keys whose own comparison would have to be asked count as equal if their hashes are. */
static void outdate_key(world *w, uint32_t id) {
    for (uint32_t i = 0; i < LEASES; i++) {
        loan *one = &w->loans[i];
        if (one->l == NULL) continue;
        bool asks = w->keys[one->id][0].needs_asking || w->keys[id][0].needs_asking;
        if (one->id == id || (asks && w->hashes[one->id] == w->hashes[id])) one->outdated = true;
    }
}

static void outdate_matches(world *w, const sieve *s) {
    for (uint32_t i = 0; i < LEASES; i++)
        if (covers_text(s, w->loans[i].id)) w->loans[i].outdated = true;
}

static void outdate_all(world *w) {
    for (uint32_t i = 0; i < LEASES; i++) w->loans[i].outdated = true;
}

static uint64_t tag_hash(uint32_t tag) { return tag < 2 ? 77 : tag * UINT64_C(0x9E3779B97F4A7C15); }

/* Tags are told apart by their hashes. */
static void outdate_tag(world *w, uint32_t deleted) {
    w->sequence++;
    for (uint32_t tag = 0; tag < TAGS; tag++)
        if (tag_hash(tag) == tag_hash(deleted)) w->tag_deleted[tag] = w->sequence;
}

static bool is_good(const world *w, const loan *one, uint32_t tags) {
    const sieve *s = &w->under_way;
    bool good = !one->outdated;
    for (uint32_t tag = 0; tag < TAGS; tag++) {
        if (!(tags >> tag & 1)) continue;
        good &= w->tag_deleted[tag] <= one->born;
        good &= s->p == NULL || s->n > 0 || tag_hash(s->tag) != tag_hash(tag);
    }
    return good;
}

/* --- Choosing operands --- */

typedef struct {
    uint32_t id;
    lapse_object *key, *value;
    uint64_t hash;
    naive *n;
} operands;

/* Keys far apart, so that each is alone in a row of keys. */
static uint32_t one_of_few(source *from) { return choose(from, FEW) * (IDS / FEW); }

static operands choose_operands(world *w, source *from) {
    uint32_t id = w->among_few && choose(from, 8) ? one_of_few(from) : choose(from, IDS);
    return (operands){.id = id,
                      .key = &w->keys[id][choose(from, TWINS)],
                      .value = &w->values[choose(from, VALUES)],
                      .hash = w->hashes[id],
                      .n = &w->map[id]};
}

static int64_t choose_ttl(source *from) {
    switch (choose(from, 8)) {
    case 0: return LAPSE_NEVER;
    case 1: return 1 + choose(from, 200);
    case 4: return ROUND_TIME * (1 + choose(from, 4));
    case 2: return INT64_MAX - choose(from, 3000);
    case 3: return 1 + choose(from, 60000);
    default: return LAPSE_DEFAULT;
    }
}

/* Tags as the table takes them, and as bits. */
typedef struct {
    lapse_object *names[TAGS];
    uint64_t hashes[TAGS];
    lapse_tags list;
    uint32_t bits;
} labels;

/* None, a few, or many. */
static void choose_tags(world *w, source *from, labels *out) {
    uint32_t n = choose(from, 16) == 0 ? TAGS : choose(from, 4);
    out->bits = 0;
    out->list = (lapse_tags){0, out->names, out->hashes};
    for (uint32_t i = 0; i < n; i++) {
        uint32_t tag = choose(from, TAGS);
        if (out->bits >> tag & 1) continue;
        out->names[out->list.n] = &w->tags[tag][choose(from, TWINS)];
        out->hashes[out->list.n++] = tag_hash(tag);
        out->bits |= 1u << tag;
    }
}

/* --- Checks --- */

static void world_check(world *w) {
    CHECK(lapse_check(w->t));
    size_t live = count_live(w, true);
    CHECK(lapse_len(w->t, w->now) == live && (!is_bounded(w) || live <= w->config.max_entries));
    CHECK(lapse_kept_since(w->t, w->now) == kept_since(w));
    CHECK(lapse_segments(w->t) >= 1 && lapse_bytes(w->t) > sizeof *w->t);
}

static void check_counters(const world *w) {
    lapse_counters c;
    lapse_counters_read(w->t, &c);
    CHECK(c.hits == w->counters.hits && c.misses == w->counters.misses);
    CHECK(c.sets == w->counters.sets && c.deletes == w->counters.deletes);
    CHECK(c.early == w->counters.early && c.expirations == w->lapsed);
    CHECK(c.by_pattern == w->counters.by_pattern && c.by_tag == w->counters.by_tag);
    CHECK(c.replaced == w->counters.replaced && c.fenced == w->counters.fenced);
    CHECK(c.evictions == w->counters.evictions && c.stale == w->counters.stale);
    CHECK(c.tickets == w->counters.tickets);
}

/* The table owns the keys and values of its entries, and the names of the tags that they bear. */
static void check_references(const world *w) {
    uint32_t values[VALUES] = {0}, tags = 0;
    for (uint32_t id = 0; id < IDS; id++) {
        const naive *n = &w->map[id];
        for (uint32_t twin = 0; twin < TWINS; twin++)
            CHECK(w->keys[id][twin].references == 1 + (n->key == &w->keys[id][twin]));
        if (n->key == NULL) continue;
        values[n->value - w->values]++;
        tags |= n->tags;
    }
    for (uint32_t i = 0; i < VALUES; i++) CHECK(w->values[i].references == 1 + values[i]);
    for (uint32_t i = 0; i < TAGS; i++)
        CHECK(w->tags[i][0].references + w->tags[i][1].references == TWINS + (tags >> i & 1));
}

#endif
