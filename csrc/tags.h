/* The tag index: which entries bear a label, and which labels an entry bears.
 *
 *   labels    hash by label   ──► label {hash, name, newest .. oldest}
 *                                           │ doubly linked
 *                                           ▼
 *   members   hash by entry   ──► posting {entry's hash, key, label, newer, older}
 *
 * A label is a tag, with its name, or a prefix of keys, known by the hash of its text alone: an implicit
 * tag. There is one posting for each label of each entry that the table holds, and none else: whoever takes
 * an entry out of its segment forgets it here under the same lock.
 *
 * Labels and postings are nodes of 32 bytes. They come, with the buckets of both hashes, in levels of
 * 64, 128, 256, .. nodes, and both hashes grow by one bucket at a time (linear hashing; Litwin, VLDB 1980): no step
 * of an index of any size takes longer than another. Nodes move only when a table is packed (tags_pack.c).
 *
 * Invariants (index_check() walks them)
 *   1. A label has at least one posting, or a walk stands in its list.
 *   2. `key` of a posting is the very object that the table's entry holds; it is compared, and looked into
 *      only after the entry has been found under its segment's lock.
 *   3. A label that has moved is known to the postings from `moved.at` on by its old number, which stays taken.
 *   4. active is false exactly if there are no postings and no prefixes are kept.
 *
 * Threads: `lock` guards everything; it is taken under a segment's lock and nothing is taken under it.
 * Writers read `active` under their segment's lock alone: whatever made the index know of an entry of that
 * segment, or begin to, did so under the same lock or will visit the segment later.
 */
#ifndef LAPSE_TAGS_H
#define LAPSE_TAGS_H

#include "lapse.h"
#include "text.h"

#include <assert.h>

typedef struct index_body index_body;

typedef struct {
    bool active;     /* entries are indexed, or will be */
    bool unsettled;  /* names or bodies wait for index_settle() */
    uint32_t depths; /* prefixes of these depths are kept (bit d - 1 for depth d), */
    uint32_t built;  /* and of these every entry's is there */
    uint64_t epoch;  /* rises whenever the body is put aside */
    index_body *body;
    index_body *dead; /* put aside, names still inside */
    lapse_lock lock;
} tag_index;

/* The labels that an entry is to bear. */
typedef struct {
    const lapse_tags *tags; /* NULL: none */
    uint32_t prefix_count;
    uint64_t prefixes[PREFIX_DEPTHS];
} label_set;

/* An entry that bears a label. */
typedef struct {
    uint64_t hash;
    lapse_object *key; /* borrowed: see invariant 2 */
} member;

/* A walk over the entries that bear a label, oldest first: a posting of its own in the label's list. */
typedef struct {
    uint32_t label, cursor;
    uint32_t number; /* the caller's */
    size_t left; /* members that were there when it began, and more that came since, at most */
    uint64_t epoch;
} label_walk;

/* What a walk has come to, and the walk's number. */
typedef struct {
    member who;
    uint32_t number;
} candidate;

/* Is it wanted? The key may be looked into: its entry is still there. C only: the index is locked. */
typedef bool (*candidate_filter)(const void *context, const candidate *c);

#define WALKS 16u /* at a time: enough for their waits for memory to overlap */

size_t index_need(const label_set *labels);
lapse_status index_make_room(tag_index *ix, const lapse_memory *memory, size_t nodes);
bool index_add(tag_index *ix, uint64_t hash, lapse_object *key, const label_set *labels);
bool index_add_prefix(tag_index *ix, uint64_t epoch, uint64_t hash, lapse_object *key, uint64_t prefix);
bool index_retag(tag_index *ix, uint64_t hash, lapse_object *key, const lapse_tags *tags);
void index_forget(tag_index *ix, uint64_t hash, const lapse_object *key);
bool index_bears(tag_index *ix, const label_walk *w, uint64_t hash, const lapse_object *key);
size_t index_tags(tag_index *ix, uint64_t hash, const lapse_object *key, lapse_object **names, size_t room);

lapse_status index_walk_begin(tag_index *ix, uint64_t hash, lapse_object *name, size_t most, label_walk *w);
size_t index_walk_next(tag_index *ix, label_walk *walks, size_t n, candidate_filter wanted,
                       const void *context, candidate *out, size_t room);
void index_prefetch(tag_index *ix, size_t n, const candidate *c);
void index_walk_end(tag_index *ix, label_walk *w);

uint64_t index_keep_prefixes(tag_index *ix, uint32_t depth);
void index_prefixes_built(tag_index *ix, uint64_t epoch, uint32_t depth);
void index_prefixes_failed(tag_index *ix, uint64_t epoch, uint32_t depth);

void index_put_aside(tag_index *ix);
bool index_settle(tag_index *ix, const lapse_memory *memory);
bool index_is_loose(tag_index *ix);
bool index_pack(tag_index *ix, const lapse_memory *memory);
size_t index_bytes(tag_index *ix);
size_t index_count(tag_index *ix, uint64_t hash, const lapse_object *key);
bool index_check(tag_index *ix, size_t *postings);

#endif
