/* lapse: the native table of expiring entries. This header is all that a binding needs.
 *
 * Terms
 *   table      a directory of segments; one cache
 *   segment    a small open-addressing table with its own lock, sequence number and deadlines
 *   entry      key, value, mixed hash, and a deadline
 *   deadline   int64 nanoseconds of the table's clock; live means now < deadline; 0 = never
 *   lifetime   nanoseconds from a write to the deadline; LAPSE_NEVER or a positive number
 *   sweep      the bounded removal of expired entries
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

/* --- Types --- */

typedef enum {
    LAPSE_OK = 0,  /* done; for a read: found and live */
    LAPSE_ABSENT,  /* no such live entry */
    LAPSE_EXPIRED, /* there was one, and its deadline had passed */
    LAPSE_EARLY,   /* there was one, and the draw ended it before its deadline */
    LAPSE_MORE,    /* a bounded step ended before the work did: call again */
    LAPSE_NO_ROOM, /* the caller's array is too small */
    LAPSE_NO_MEMORY,
    LAPSE_RAISED, /* a comparison raised */
    LAPSE_BUSY    /* the key's own comparison changed the table at every attempt */
} lapse_status;

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

typedef struct {
    lapse_mode mode;
    int64_t default_ttl;  /* nanoseconds, or LAPSE_NEVER */
    int64_t max_lifetime; /* sliding: hard end after the write, or LAPSE_NEVER */
    double early_factor;  /* probabilistic: share of the lifetime in which the draw is made */
    double jitter;        /* a stored lifetime is multiplied by a draw from (1 - jitter, 1] */
    uint64_t seed;        /* of the table's generator */
    bool own_clock;       /* the caller passes every `now`; false: the native clock may be read */
    bool locked_reads;    /* free-threaded builds: reads take the segment's lock */
    const lapse_memory *memory; /* NULL: lapse_system_memory */
} lapse_config;

typedef struct {
    lapse_object *key, *value;
    int64_t deadline, ttl, limit; /* ttl, limit (the hard deadline): where the table keeps them, else 0 */
    bool own_ttl;                 /* its lifetime was not the table's default */
} lapse_item;

typedef struct {
    uint64_t hits, misses, sets, deletes, expirations, early, splits, merges, sweeps;
} lapse_counters;

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

#define LAPSE_NEVER INT64_C(0)     /* as a deadline or a lifetime */
#define LAPSE_DEFAULT INT64_C(-1)  /* as a lifetime: the table's default */
#define LAPSE_NATIVE INT64_C(-1)   /* as `now`: read the native clock when, and as precisely as, needed */
#define LAPSE_STEP 128             /* entries that one bounded step removes at most */

extern const lapse_memory lapse_system_memory;

/* --- Tables --- */

lapse_table *lapse_table_new(const lapse_config *config);
void lapse_table_free(lapse_table *t);
size_t lapse_len(lapse_table *t, int64_t now);
size_t lapse_bytes(lapse_table *t);
size_t lapse_segments(const lapse_table *t);
void lapse_counters_read(const lapse_table *t, lapse_counters *out);
void lapse_after_fork(lapse_table *t);
int lapse_traverse(lapse_table *t, lapse_visit visit, void *arg);
bool lapse_is_quick(const lapse_table *t);
int64_t lapse_now(const lapse_table *t, int64_t now);
const char *lapse_probe_name(void);

/* --- Reading --- */

lapse_status lapse_get(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now, lapse_object **value);
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
lapse_status lapse_put_item(lapse_table *t, const lapse_item *item, uint64_t hash, int64_t now,
                            lapse_object **replaced);
lapse_status lapse_exchange(lapse_table *t, lapse_object *key, uint64_t hash, lapse_object *expected,
                            lapse_object *value, int64_t now, lapse_object **replaced);
lapse_status lapse_touch(lapse_table *t, lapse_object *key, uint64_t hash, int64_t ttl, int64_t now);
lapse_status lapse_delete(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now, lapse_item *removed);

/* --- Bounded steps over the whole table --- */

lapse_status lapse_sweep(lapse_table *t, uint64_t *cursor, int64_t now, size_t limit, lapse_item *removed,
                         size_t *n);
lapse_status lapse_detach(lapse_table *t);
lapse_status lapse_drain(lapse_table *t, lapse_item *removed, size_t *n);
lapse_status lapse_collect(lapse_table *t, uint64_t *cursor, int64_t now, lapse_item *out, size_t room,
                           size_t *n);
lapse_status lapse_pop_any(lapse_table *t, uint64_t *cursor, int64_t now, lapse_item *removed);

/* --- Giving up what was removed --- */

void lapse_release(lapse_item *items, size_t n);

/* --- Checks (builds without NDEBUG) --- */

bool lapse_check(lapse_table *t);

#endif
