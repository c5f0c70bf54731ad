/* lapse: the native table of expiring entries. This header is all that a binding needs.
 *
 * Terms
 *   table      a directory of segments; one cache
 *   segment    a small open-addressing table with its own lock, sequence number and deadlines
 *   entry      key, value, mixed hash, and a deadline
 *   deadline   int64 nanoseconds of the table's clock; live means now < deadline; 0 = never
 *   lifetime   nanoseconds from a write to the deadline; LAPSE_NEVER or a positive number
 *   sweep      the bounded removal of expired entries
 *   tag        a name that entries bear, to be removed by; tags are compared whole
 *   lease      the right to store what a load that began with it brings, unless it is outdated meanwhile
 *   cost       how long the load of a value took; probabilistic tables keep it
 *   grace      time past its deadline in which an entry is absent, and yet there for whoever reloads it
 *   fence      what outdates leases: every change that covers their key or tags
 *   pass       the bounded removal, or listing, of what patterns or a tag cover
 *   storm      the same of what very many prefixes cover, which nobody sees any more once it has begun
 *   removed    an entry taken out: the caller owns its two references, and gives them up (which may
 *              run any code) only when the call has returned
 *
 * Threads: on a GIL build the caller holds the GIL. On a free-threaded build every function may be
 * called by any number of attached threads at once, except lapse_table_new(), lapse_table_free(),
 * lapse_check() and lapse_traverse(). `hash` is always the key's own hash; the table mixes it.
 *
 * Prototypes are grouped by heading; each is documented at its definition.
 */
#ifndef LAPSE_H
#define LAPSE_H

#include "object.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- Opaque types --- */

typedef struct lapse_table lapse_table;
typedef struct lapse_lease lapse_lease;
typedef struct lapse_pass lapse_pass;
typedef struct lapse_prefixes lapse_prefixes;
typedef struct lapse_storm lapse_storm;
struct lapse_pattern;

/* --- Types --- */

typedef enum {
    LAPSE_OK = 0,  /* done; for a read: found and live */
    LAPSE_ABSENT,  /* no such live entry */
    LAPSE_EXPIRED, /* there was one, and its deadline had passed */
    LAPSE_EARLY,   /* there was one, and the draw ended it before its deadline */
    LAPSE_MORE,    /* a bounded step ended before the work did: call again */
    LAPSE_NO_ROOM, /* the caller's array is too small */
    LAPSE_NO_MEMORY,
    LAPSE_RAISED, /* a comparison, or the weigher, raised */
    LAPSE_BUSY,    /* the key's own comparison changed the table at every attempt */
    LAPSE_OUTDATED, /* the lease is not good any more: nothing was stored */
    LAPSE_REFUSED   /* within write.c: too heavy, nothing was stored */
} lapse_status;

/* Why an entry, or a value, left the table. */
typedef enum {
    LAPSE_REPLACED,
    LAPSE_DELETED,
    LAPSE_BY_PATTERN,
    LAPSE_BY_TAG,
    LAPSE_CLEARED,
    LAPSE_BY_DEADLINE,
    LAPSE_BY_DRAW,
    LAPSE_EVICTED
} lapse_cause;

typedef enum { LAPSE_FIXED, LAPSE_SLIDING, LAPSE_PROBABILISTIC } lapse_mode;

/* Where the table gets its memory: `grab` answers zeroed memory aligned to 64 bytes, `grab_raw` memory
 * of any content, `map` zeroed pages aligned to a page; each may answer NULL. `drop` takes back both
 * kinds of grabbed memory. */
typedef struct {
    void *(*grab)(size_t bytes);
    void *(*grab_raw)(size_t bytes);
    void (*drop)(void *memory);
    void *(*map)(size_t bytes);
    void (*unmap)(void *memory, size_t bytes);
} lapse_memory;

typedef struct lapse_item lapse_item;

/* Is told what has left the table, with no lock held; takes over the references of the items. */
typedef void (*lapse_observer)(void *context, lapse_item *items, size_t n, lapse_cause cause);

/* What an entry weighs. Any code may run, no lock is held. 0: done; -1: it has raised. */
typedef int (*lapse_weigher)(void *context, lapse_object *key, lapse_object *value, uint32_t *weight);

typedef struct {
    lapse_mode mode;
    int64_t default_ttl;  /* nanoseconds, or LAPSE_NEVER */
    int64_t max_lifetime; /* sliding: hard end after the write, or LAPSE_NEVER */
    double early_factor;  /* probabilistic: share of the lifetime in which the draw is made */
    double beta; /* probabilistic: how eagerly values are reloaded ahead of time (judge_refresh()) */
    int64_t grace; /* nanoseconds that an entry stays past its deadline, for lapse_stale() alone */
    double jitter; /* a stored lifetime is multiplied by a draw from (1 - jitter, 1] */
    uint64_t seed; /* of the table's generator */
    bool own_clock; /* the caller passes every `now`; false: the native clock may be read */
    bool lru; /* bounded: the entry that was not used for longest goes first */
    bool duel; /* bounded by the default policy */
    uint64_t max_entries; /* of a bounded table; with a weigher: what they weigh together */
    lapse_weigher weigher; /* NULL: each weighs 1 */
    bool locked_reads; /* free-threaded builds: reads take the segment's lock */
    bool (*quiesce)(
        void); /* free-threaded builds: wait until every other thread has been outside of the table, or waits,
                            * or runs other code; see release.c. false: not now. NULL: it cannot be known */
    const lapse_memory *memory; /* NULL: lapse_system_memory */
    lapse_observer observer; /* NULL: none */
    void *context; /* of the observer and the weigher */
} lapse_config;

struct lapse_item {
    lapse_object *key, *value;
    int64_t deadline, ttl, limit; /* ttl, limit (the hard deadline): where the table keeps them, else 0 */
    uint32_t cost; /* of its load, in microseconds; 0: not known, or not kept */
    bool own_ttl; /* its lifetime was not the table's default */
};

/* Tags of one entry: exact str objects, all different, and their hashes. */
typedef struct {
    size_t n;
    lapse_object *const *names;
    const uint64_t *hashes;
} lapse_tags;

typedef struct {
    uint64_t hits, misses, sets, deletes, expirations, early, splits, merges, sweeps;
    uint64_t replaced, by_pattern, by_tag, cleared, fenced, evictions, refused, tickets, stale;
} lapse_counters;

/* Where lapse_pack() stands. All zero: at its beginning. */
typedef struct {
    bool at_once; /* set by the caller: even a table that has just grown */
    bool loose, loose_index, forgets; /* what it has decided to do */
    uint32_t stage;
    uint64_t cursor, entered;
    uint64_t segments, mergeable, entries, slots, fewest, nodes; /* what it has counted */
} lapse_packing;

#define LAPSE_BLOCK 32 /* keys that one batched read takes at most */

/* The keys of a batched read: objects, or integers that are nowhere objects (`ints`). An object that is
 * NULL is left for lapse_get(). */
typedef struct {
    size_t n;
    lapse_object *keys[LAPSE_BLOCK];
    uint64_t hashes[LAPSE_BLOCK];
    int64_t ints[LAPSE_BLOCK];
    bool integers;
} lapse_block;

typedef int (*lapse_visit)(lapse_object *, void *);

/* --- Constants --- */

#define LAPSE_NEVER INT64_C(0) /* as a deadline or a lifetime */
#define LAPSE_DEFAULT INT64_C(-1) /* as a lifetime: the table's default */
#define LAPSE_NATIVE INT64_C(-1) /* as `now`: read the native clock when, and as precisely as, needed */
#define LAPSE_STEP 128 /* entries that one bounded step removes at most */

extern const lapse_memory lapse_system_memory;

/* --- Tables --- */

lapse_table *lapse_table_new(const lapse_config *config);
void lapse_table_free(lapse_table *t);
size_t lapse_len(lapse_table *t, int64_t now);
size_t lapse_bytes(lapse_table *t);
size_t lapse_tracking_bytes(lapse_table *t);
uint64_t lapse_weight(const lapse_table *t);
size_t lapse_segments(const lapse_table *t);
void lapse_counters_read(const lapse_table *t, lapse_counters *out);
bool lapse_after_fork(lapse_table *t);
int lapse_traverse(lapse_table *t, lapse_visit visit, void *arg);
bool lapse_is_quick(const lapse_table *t);
bool lapse_is_indexed(const lapse_table *t);
int64_t lapse_now(const lapse_table *t, int64_t now);
const char *lapse_probe_name(void);

/* --- Reading --- */

lapse_status lapse_get(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now, lapse_object **value);
lapse_status lapse_get_or_ticket(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now,
                                 lapse_object **value);
int64_t lapse_kept_since(const lapse_table *t, int64_t now);
lapse_status lapse_stale(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now, lapse_object **value);
lapse_status lapse_peek(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now, lapse_item *out);
lapse_status lapse_has(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now);
void lapse_get_block(lapse_table *t, const lapse_block *keys, int64_t now, lapse_object **values,
                     lapse_status *found);
void lapse_prefetch(lapse_table *t, size_t n, const uint64_t *hashes);

/* --- Writing --- */

lapse_status lapse_put(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *value, int64_t ttl,
                       int64_t now, lapse_object **replaced);
lapse_status lapse_put_new(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *value, int64_t ttl,
                           int64_t now, lapse_object **present);
lapse_status lapse_put_tagged(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *value,
                              int64_t ttl, const lapse_tags *tags, int64_t now, lapse_object **replaced);
lapse_status lapse_put_item(lapse_table *t, const lapse_item *item, uint64_t hash, const lapse_tags *tags,
                            int64_t now, lapse_object **replaced);
lapse_status lapse_exchange(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *expected,
                            lapse_object *value, int64_t now, lapse_object **replaced);
lapse_status lapse_touch(lapse_table *t, lapse_object *key, uint64_t hash, int64_t ttl, int64_t now);
lapse_status lapse_delete(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now, lapse_item *removed);
lapse_status lapse_drop(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *expected, int64_t now,
                        lapse_item *removed);

lapse_status lapse_tags_of(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now,
                           lapse_object **names, size_t room, size_t *n);

/* --- Loading --- */

lapse_status lapse_lease_take(lapse_table *t, lapse_object *key, uint64_t hash, lapse_lease **out);
void lapse_lease_time(const lapse_table *t, lapse_lease *l, int64_t now);
bool lapse_lease_holds(lapse_table *t, const lapse_lease *l, const lapse_tags *tags);
lapse_status lapse_fill(lapse_table *t, lapse_lease *l, lapse_object *value, int64_t ttl,
                        const lapse_tags *tags, bool change, int64_t now, lapse_object **replaced);
void lapse_lease_end(lapse_table *t, lapse_lease *l);
void lapse_outdate_key(lapse_table *t, lapse_object *key, uint64_t hash);
void lapse_outdate_all(lapse_table *t);

/* --- Many at once, by key, pattern or tag --- */

lapse_status lapse_erase_keys(lapse_table *t, size_t n, lapse_object *const *keys, const uint64_t *hashes,
                              size_t *done, int64_t now, const uint32_t *order, uint8_t *erased);
void lapse_sort_hashes(size_t n, const uint64_t *hashes, uint32_t *order, uint32_t *scratch);
lapse_status lapse_pass_new(lapse_table *t, struct lapse_pattern *const *patterns, size_t n,
                            lapse_object *tag, uint64_t tag_hash, int64_t now, bool listing,
                            lapse_pass **out);
bool lapse_pass_outdate(lapse_pass *p);
lapse_status lapse_pass_step(lapse_pass *p, lapse_item *out, size_t *n);
const uint64_t *lapse_pass_counts(const lapse_pass *p);
void lapse_pass_end(lapse_pass *p);
bool lapse_is_storm(const lapse_table *t, const lapse_prefixes *x, size_t n);
lapse_status lapse_storm_new(lapse_table *t, const lapse_prefixes *x, size_t n, int64_t now,
                             lapse_storm **out);
lapse_status lapse_storm_step(lapse_storm *s);
const uint64_t *lapse_storm_counts(const lapse_storm *s);
void lapse_storm_end(lapse_storm *s);

/* --- The bound --- */

lapse_status lapse_resize(lapse_table *t, uint64_t max_entries);
lapse_status lapse_fit(lapse_table *t, int64_t now);

/* --- Bounded steps over the whole table --- */

lapse_status lapse_sweep(lapse_table *t, uint64_t *cursor, int64_t now, size_t limit, lapse_item *removed,
                         size_t *n);
lapse_status lapse_soften(lapse_table *t, uint64_t *cursor, int64_t at, int64_t until, size_t *n);
lapse_status lapse_detach(lapse_table *t);
lapse_status lapse_drain(lapse_table *t, lapse_item *removed, size_t *n);
lapse_status lapse_collect(lapse_table *t, uint64_t *cursor, int64_t now, lapse_item *out, size_t room,
                           size_t *n);
lapse_status lapse_pack(lapse_table *t, lapse_packing *p);
lapse_status lapse_pop_any(lapse_table *t, uint64_t *cursor, int64_t now, lapse_item *removed);

/* --- Giving up what was removed --- */

void lapse_release(lapse_item *items, size_t n);
void lapse_farewell(lapse_table *t, lapse_item *items, size_t n, lapse_cause cause);
void lapse_farewell_value(lapse_table *t, lapse_object *key, lapse_object *value);
size_t lapse_dismiss(lapse_table *t, lapse_item *items, size_t n, int64_t at, lapse_cause cause);

/* --- Checks (builds without NDEBUG) --- */

bool lapse_check(lapse_table *t);

#endif
