/* The tag index: see tags.h for what it holds, its invariants and who may call it. */
#include "tags_body.h"

#include <string.h>

#define WALK_ROUNDS 64u /* postings that each walk passes in one step */
#define KEY_LINE 64u /* a key's text may begin in the line behind its head */
#define SETTLE_STEP 32u /* names given up in one step */
#define SETTLE_BUCKETS 1024u /* label buckets looked into in one step */
#define COMPARED_TAGS 8u /* up to so many, an entry's tags are compared with the new ones before a change */

/* --- Labels --- */

static void settle_later(tag_index *ix) { STORE(&ix->unsettled, (ix->body && ix->body->morgue) || ix->dead); }

static bool is_label(const node *n, uint64_t hash, lapse_object *name) {
    if (n->hash != hash || (n->object == NULL) != (name == NULL)) return false;
    return name == NULL || n->object == name || object_same(n->object, name) == SAME;
}

static uint32_t *label_link(const index_body *b, uint64_t hash, lapse_object *name) {
    uint32_t *link = chain_of(b, LABELS, hash);
    while (*link && !is_label(node_at(b, *link), hash, name)) link = &node_at(b, *link)->chain;
    return link;
}

static uint32_t label_for(index_body *b, uint64_t hash, lapse_object *name) {
    uint32_t id = *label_link(b, hash, name);
    if (id) return id;
    id = take_node(b);
    *node_at(b, id) = (node){.hash = hash, .object = name, .newer = id, .older = id};
    if (name) object_ref(name);
    chain_in(b, LABELS, id);
    return id;
}

/* A label whose list is empty goes; its name waits in the morgue until no lock is held. */
static void bury_empty(tag_index *ix, uint32_t id) {
    index_body *b = ix->body;
    node *l = node_at(b, id);
    if (l->older != id) return;
    if (id == b->moved.to) label_moved(b);
    chain_out(b, LABELS, label_link(b, l->hash, l->object));
    if (l->object == NULL) {
        give_node(b, id);
        return;
    }
    l->chain = b->morgue;
    b->morgue = id;
    settle_later(ix);
}

/* --- Postings --- */

static void attach(index_body *b, uint32_t label, uint64_t hash, lapse_object *key) {
    uint32_t id = take_node(b);
    *node_at(b, id) = (node){.hash = hash, .object = key, .label = label};
    ring_in(b, id, node_at(b, label)->older);
    node_at(b, label)->count++;
    chain_in(b, MEMBERS, id);
}

static void detach(tag_index *ix, uint32_t *link) {
    uint32_t id = *link, label = label_of(ix->body, node_at(ix->body, id));
    chain_out(ix->body, MEMBERS, link);
    ring_out(ix->body, id);
    give_node(ix->body, id);
    node_at(ix->body, label)->count--;
    bury_empty(ix, label);
}

static bool posts(const node *n, uint64_t hash, const lapse_object *key) {
    return n->hash == hash && n->object == key;
}

static bool is_tag(const index_body *b, const node *posting) {
    return node_at(b, label_of(b, posting))->object != NULL;
}

static void put_aside(tag_index *ix) {
    if (ix->body) {
        ix->body->next = ix->dead;
        ix->dead = ix->body;
        ix->body = NULL;
    }
    ix->epoch++;
    settle_later(ix);
}

/* An index that holds nothing any more costs nothing any more; its first level stays for the next time. One body
 * at a time waits for index_settle(), which comes back to this: else they would come faster than they go. */
static void rest_if_empty(tag_index *ix) {
    if (ix->depths || (ix->body && ix->body->count[MEMBERS] > 0)) return;
    STORE(&ix->active, false);
    if (ix->body && ix->body->level_count > 1 && ix->dead == NULL) put_aside(ix);
}

/* --- Making room; with no lock held --- */

static index_body *new_body(const lapse_memory *memory) {
    index_body *b = memory->grab(sizeof *b);
    if (b) b->buckets[LABELS] = b->buckets[MEMBERS] = 1;
    return b;
}

/* Memory that index_make_room() has got and not yet handed over: a level, and for level 0 a body. */
typedef struct {
    index_body *body;
    uint8_t *level;
    uint32_t k;
} stock;

/* Hand over what is still wanted. True: there is room now; else *next is the level to get. */
static bool stock_index(tag_index *ix, stock *got, size_t nodes, uint32_t *next) {
    lock_take(&ix->lock);
    if (ix->body == NULL && got->body && got->level && got->k == 0) {
        ix->body = got->body;
        got->body = NULL;
    }
    if (ix->body && got->level && ix->body->level_count == got->k) {
        ix->body->levels[ix->body->level_count++] = got->level;
        got->level = NULL;
    }
    bool enough = has_room(ix->body, nodes);
    *next = ix->body ? ix->body->level_count : 0;
    lock_drop(&ix->lock);
    return enough;
}

static void drop_stock(const lapse_memory *memory, stock *got) {
    if (got->level) level_drop(memory, got->k, ELEMENT_BYTES, got->level);
    if (got->body) memory->drop(got->body);
    *got = (stock){0};
}

static bool get_stock(const lapse_memory *memory, stock *got, uint32_t next) {
    got->k = next;
    got->level = level_new(memory, next, ELEMENT_BYTES);
    if (next == 0) got->body = new_body(memory);
    return got->level && (next > 0 || got->body);
}

/* See to it that `nodes` more may be taken; another thread may take them first. OK or NO_MEMORY. */
lapse_status index_make_room(tag_index *ix, const lapse_memory *memory, size_t nodes) {
    stock got = {0};
    uint32_t next;
    bool enough, supplied = true;
    while (!(enough = stock_index(ix, &got, nodes, &next)) && supplied) {
        drop_stock(memory, &got); /* somebody was quicker */
        supplied = get_stock(memory, &got, next);
    }
    drop_stock(memory, &got);
    return enough ? LAPSE_OK : LAPSE_NO_MEMORY;
}

/* --- What writers say; under the entry's segment's lock --- */

/* Nodes that adding these labels may take. */
size_t index_need(const label_set *labels) {
    return 2 * ((labels->tags ? labels->tags->n : 0) + labels->prefix_count);
}

static void add_tags(index_body *b, uint64_t hash, lapse_object *key, const lapse_tags *tags) {
    for (size_t i = 0; i < tags->n; i++) attach(b, label_for(b, tags->hashes[i], tags->names[i]), hash, key);
}

/* A new entry. False: there was no room, and nothing was done. */
bool index_add(tag_index *ix, uint64_t hash, lapse_object *key, const label_set *labels) {
    lock_take(&ix->lock);
    index_body *b = ix->body;
    bool room = has_room(b, index_need(labels));
    if (room) {
        if (labels->tags) add_tags(b, hash, key, labels->tags);
        for (uint32_t i = 0; i < labels->prefix_count; i++)
            attach(b, label_for(b, labels->prefixes[i], NULL), hash, key);
        if (b->count[MEMBERS] > 0) STORE(&ix->active, true);
    }
    lock_drop(&ix->lock);
    return room;
}

static bool has_prefix(const index_body *b, uint64_t hash, const lapse_object *key, uint64_t prefix) {
    const node *n;
    for (uint32_t id = *chain_of(b, MEMBERS, hash); id; id = n->chain) {
        n = node_at(b, id);
        if (posts(n, hash, key) && !is_tag(b, n) && node_at(b, label_of(b, n))->hash == prefix) return true;
    }
    return false;
}

/* One more prefix of an entry that may have it already: while they are built. False: no room. */
bool index_add_prefix(tag_index *ix, uint64_t epoch, uint64_t hash, lapse_object *key, uint64_t prefix) {
    lock_take(&ix->lock);
    index_body *b = ix->body;
    bool room = has_room(b, 2);
    if (room && ix->epoch == epoch && !has_prefix(b, hash, key, prefix))
        attach(b, label_for(b, prefix, NULL), hash, key);
    bool done = room || ix->epoch != epoch;
    lock_drop(&ix->lock);
    return done;
}

/* How many tags the entry has; *same: they are exactly these. */
static size_t compare_tags(const index_body *b, uint64_t hash, const lapse_object *key,
                           const lapse_tags *tags, bool *same) {
    size_t has = 0, known = 0, n = tags ? tags->n : 0;
    const node *p;
    for (uint32_t id = *chain_of(b, MEMBERS, hash); id; id = p->chain) {
        p = node_at(b, id);
        if (!posts(p, hash, key) || !is_tag(b, p)) continue;
        has++;
        for (size_t i = 0; i < n && n <= COMPARED_TAGS; i++)
            known += is_label(node_at(b, label_of(b, p)), tags->hashes[i], tags->names[i]);
    }
    *same = has == n && known == n;
    return has;
}

static void drop_postings(tag_index *ix, uint64_t hash, const lapse_object *key, bool tags_only) {
    const index_body *b = ix->body;
    uint32_t *link = chain_of(b, MEMBERS, hash);
    while (*link) {
        node *n = node_at(b, *link);
        if (posts(n, hash, key) && (!tags_only || is_tag(b, n))) detach(ix, link);
        else link = &n->chain;
    }
}

/* An entry that was written again: these are its tags now (NULL: none); its prefixes stay. False: no room,
 * nothing was done. */
bool index_retag(tag_index *ix, uint64_t hash, lapse_object *key, const lapse_tags *tags) {
    bool same = tags == NULL, room = true;
    lock_take(&ix->lock);
    if (ix->body && compare_tags(ix->body, hash, key, tags, &same) > 0 && !same) {
        room = has_room(ix->body, tags ? 2 * tags->n : 0);
        if (room) drop_postings(ix, hash, key, true);
    }
    if (!same && tags) room = room && has_room(ix->body, 2 * tags->n);
    if (!same && tags && room) {
        add_tags(ix->body, hash, key, tags);
        STORE(&ix->active, true);
    }
    if (ix->body) rest_if_empty(ix);
    lock_drop(&ix->lock);
    return room;
}

/* The entry leaves the table. */
void index_forget(tag_index *ix, uint64_t hash, const lapse_object *key) {
    lock_take(&ix->lock);
    if (ix->body) {
        drop_postings(ix, hash, key, false);
        rest_if_empty(ix);
    }
    lock_drop(&ix->lock);
}

/* Does the entry bear the label of this walk? */
bool index_bears(tag_index *ix, const label_walk *w, uint64_t hash, const lapse_object *key) {
    bool bears = false;
    lock_take(&ix->lock);
    if (ix->epoch == w->epoch && ix->body) {
        const node *n;
        for (uint32_t id = *chain_of(ix->body, MEMBERS, hash); id && !bears; id = n->chain) {
            n = node_at(ix->body, id);
            bears = posts(n, hash, key) && label_of(ix->body, n) == w->label;
        }
    }
    lock_drop(&ix->lock);
    return bears;
}

/* How many tags the entry has. If that is no more than `room`, new references to their names. */
size_t index_tags(tag_index *ix, uint64_t hash, const lapse_object *key, lapse_object **names, size_t room) {
    size_t n = 0, filled = 0;
    bool same;
    lock_take(&ix->lock);
    if (ix->body) n = compare_tags(ix->body, hash, key, NULL, &same);
    if (n > 0 && n <= room) {
        const node *p;
        for (uint32_t id = *chain_of(ix->body, MEMBERS, hash); id; id = p->chain) {
            p = node_at(ix->body, id);
            if (posts(p, hash, key) && is_tag(ix->body, p))
                object_ref(names[filled++] = node_at(ix->body, label_of(ix->body, p))->object);
        }
    }
    lock_drop(&ix->lock);
    return n;
}

/* Fetch ahead what forgetting these will need. */
void index_prefetch(tag_index *ix, size_t n, const candidate *c) {
    lock_take(&ix->lock);
    const index_body *b = ix->body;
    for (size_t i = 0; b && i < n; i++) PREFETCH(chain_of(b, MEMBERS, c[i].who.hash));
    for (size_t i = 0; b && i < n; i++) {
        uint32_t id = *chain_of(b, MEMBERS, c[i].who.hash);
        if (id) PREFETCH(node_at(b, id));
    }
    lock_drop(&ix->lock);
}

/* --- Walking a label --- */

/* OK: `w` must be ended. ABSENT: no entry bears the label. MORE: more than `most` do. NO_ROOM: call
 * index_make_room() for one node. */
lapse_status index_walk_begin(tag_index *ix, uint64_t hash, lapse_object *name, size_t most, label_walk *w) {
    lapse_status status = LAPSE_ABSENT;
    lock_take(&ix->lock);
    index_body *b = ix->body;
    w->label = b ? *label_link(b, hash, name) : 0;
    if (w->label) {
        w->left = node_at(b, w->label)->count;
        status = w->left > most ? LAPSE_MORE : has_room(b, 1) ? LAPSE_OK : LAPSE_NO_ROOM;
    }
    if (status == LAPSE_OK) {
        w->epoch = ix->epoch;
        w->cursor = take_node(b);
        *node_at(b, w->cursor) = (node){.label = w->label};
        ring_in(b, w->cursor, w->label); /* behind the oldest */
        b->walks++;
    }
    lock_drop(&ix->lock);
    return status;
}

/* One of several walks: where it stands, and what it has come to but not looked into yet. */
typedef struct {
    uint32_t at;
    bool waiting;
    candidate next;
} walker;

/* Step on to the next posting, and begin to fetch its key and the posting behind it. Never to the node of another
 * walk, which moves on before this one may have. */
static void walk_on(const index_body *b, label_walk *w, walker *x, bool look) {
    uint32_t id = node_at(b, x->at)->newer;
    while (id != w->label && node_at(b, id)->object == NULL) id = node_at(b, id)->newer; /* another walk */
    if (id == w->label) {
        w->left = 0;
        return;
    }
    const node *p = node_at(b, x->at = id);
    PREFETCH(node_at(b, p->newer));
    x->next = (candidate){{p->hash, p->object}, w->number};
    x->waiting = true;
    w->left--;
    if (look) PREFETCH(p->object);
    if (look) PREFETCH((const char *)p->object + KEY_LINE);
}

/* Walk on along n (at most WALKS) labels in turn, older members first, and answer those that are wanted (NULL:
 * all), as far as there is `room`, at least 2 n. Whoever was there when a walk began and still is has been among
 * them when its `left` is 0. */
size_t index_walk_next(tag_index *ix, label_walk *walks, size_t n, candidate_filter wanted,
                       const void *context, candidate *out, size_t room) {
    walker at[WALKS];
    size_t found = 0;
    bool more = n > 0;
    lock_take(&ix->lock);
    index_body *b = ix->body;
    for (size_t i = 0; i < n; i++) {
        at[i] = (walker){.at = walks[i].cursor};
        if (ix->epoch != walks[i].epoch) walks[i].left = 0; /* all of them were cleared */
    }
    for (uint32_t round = 0; more && round < WALK_ROUNDS && found + 2 * n <= room; round++) {
        more = false;
        for (size_t i = 0; i < n; i++) {
            if (at[i].waiting && (!wanted || wanted(context, &at[i].next))) out[found++] = at[i].next;
            at[i].waiting = false;
            if (walks[i].left > 0) walk_on(b, &walks[i], &at[i], wanted != NULL);
            more = more || at[i].waiting || walks[i].left > 0;
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (at[i].waiting && (!wanted || wanted(context, &at[i].next))) out[found++] = at[i].next;
        if (at[i].at == walks[i].cursor) continue;
        ring_out(b, walks[i].cursor);
        ring_in(b, walks[i].cursor, at[i].at);
    }
    lock_drop(&ix->lock);
    return found;
}

void index_walk_end(tag_index *ix, label_walk *w) {
    lock_take(&ix->lock);
    if (ix->epoch == w->epoch) {
        ring_out(ix->body, w->cursor);
        give_node(ix->body, w->cursor);
        ix->body->walks--;
        bury_empty(ix, w->label);
        rest_if_empty(ix);
    }
    lock_drop(&ix->lock);
}

/* --- Prefixes --- */

/* Keep the prefixes of this depth from now on. Answers the epoch in which the caller shall build them, or 0:
 * they are kept already. */
uint64_t index_keep_prefixes(tag_index *ix, uint32_t depth) {
    uint32_t bit = 1u << (depth - 1);
    lock_take(&ix->lock);
    uint64_t epoch = ix->depths & bit ? 0 : ix->epoch;
    STORE(&ix->depths, ix->depths | bit);
    STORE(&ix->active, true);
    lock_drop(&ix->lock);
    return epoch;
}

void index_prefixes_built(tag_index *ix, uint64_t epoch, uint32_t depth) {
    lock_take(&ix->lock);
    if (ix->epoch == epoch) STORE(&ix->built, ix->built | 1u << (depth - 1));
    lock_drop(&ix->lock);
}

/* They are not to be built after all: what has been stays until its entries go, but no pattern relies on it. */
void index_prefixes_failed(tag_index *ix, uint64_t epoch, uint32_t depth) {
    lock_take(&ix->lock);
    if (ix->epoch == epoch) {
        STORE(&ix->depths, ix->depths & ~(1u << (depth - 1)));
        rest_if_empty(ix);
    }
    lock_drop(&ix->lock);
}

/* --- Giving up --- */

/* Forget everything; index_settle() gives up the names. For clear(), while no entry is in reach. */
void index_put_aside(tag_index *ix) {
    lock_take(&ix->lock);
    put_aside(ix);
    STORE(&ix->depths, 0);
    STORE(&ix->built, 0);
    STORE(&ix->active, false);
    lock_drop(&ix->lock);
}

static size_t names_of_morgue(index_body *b, lapse_object **names) {
    size_t n = 0;
    while (b->morgue && n < SETTLE_STEP) {
        uint32_t id = b->morgue;
        names[n++] = node_at(b, id)->object;
        b->morgue = node_at(b, id)->chain;
        give_node(b, id);
    }
    return n;
}

/* Names of a body put aside, from its next buckets. */
static size_t names_of_dead(index_body *b, lapse_object **names) {
    size_t n = names_of_morgue(b, names);
    for (uint32_t steps = 0; steps < SETTLE_BUCKETS && b->drained < b->buckets[LABELS]; steps++) {
        uint32_t *first = bucket_at(b, LABELS, b->drained);
        while (*first && n < SETTLE_STEP) {
            node *l = node_at(b, *first);
            if (l->object) names[n++] = l->object;
            *first = l->chain;
        }
        if (*first) break;
        b->drained++;
    }
    return n;
}

/* Memory to give back: one level, the last first, or the body itself. */
static void *last_piece(tag_index *ix, uint32_t *k) {
    index_body *b = ix->dead;
    if (b->level_count > 0) return b->levels[*k = --b->level_count];
    ix->dead = b->next;
    *k = LEVELS;
    return b;
}

/* Names of labels that have died: all of them, for it took as long to let them die. */
static void settle_morgue(tag_index *ix) {
    lapse_object *names[SETTLE_STEP];
    size_t n = SETTLE_STEP;
    while (n == SETTLE_STEP) {
        lock_take(&ix->lock);
        n = ix->body ? names_of_morgue(ix->body, names) : 0;
        settle_later(ix);
        lock_drop(&ix->lock);
        for (size_t i = 0; i < n; i++) object_unref(names[i]);
    }
}

/* One step of giving up what the index has done with, bounded as far as a clear has put it aside; no lock is
 * held. True: call again. */
bool index_settle(tag_index *ix, const lapse_memory *memory) {
    lapse_object *names[SETTLE_STEP];
    size_t n = 0;
    uint32_t k = 0;
    void *piece = NULL;
    settle_morgue(ix);
    lock_take(&ix->lock);
    if (ix->dead) {
        if (ix->dead->morgue || ix->dead->drained < ix->dead->buckets[LABELS])
            n = names_of_dead(ix->dead, names);
        else piece = last_piece(ix, &k);
    }
    rest_if_empty(ix);
    settle_later(ix);
    bool more = ix->unsettled;
    lock_drop(&ix->lock);
    while (n > 0) object_unref(names[--n]);
    if (piece && k < LEVELS) level_drop(memory, k, ELEMENT_BYTES, piece);
    else if (piece) memory->drop(piece);
    return more;
}

/* --- Facts --- */

static size_t body_bytes(const index_body *b) {
    size_t bytes = sizeof *b + levels_bytes(b->level_count, b->touched + 1, sizeof(node), ELEMENT_BYTES);
    for (int which = LABELS; which < HASHES; which++)
        bytes += levels_bytes(b->level_count, b->most_buckets[which], sizeof(uint32_t), ELEMENT_BYTES);
    return bytes;
}

size_t index_bytes(tag_index *ix) {
    lock_take(&ix->lock);
    size_t bytes = ix->body ? body_bytes(ix->body) : 0;
    for (const index_body *b = ix->dead; b; b = b->next) bytes += body_bytes(b);
    lock_drop(&ix->lock);
    return bytes;
}

/* --- Checks --- */

/* How many labels the entry bears. */
size_t index_count(tag_index *ix, uint64_t hash, const lapse_object *key) {
    const index_body *b = ix->body;
    size_t n = 0;
    for (uint32_t id = b ? *chain_of(b, MEMBERS, hash) : 0; id; id = node_at(b, id)->chain)
        n += posts(node_at(b, id), hash, key);
    return n;
}

static size_t check_ring(const index_body *b, uint32_t label) {
    size_t members = 0, length = 0;
    for (uint32_t id = node_at(b, label)->newer; id != label; id = node_at(b, id)->newer) {
        const node *p = node_at(b, id);
        if (label_of(b, p) != label || node_at(b, p->newer)->older != id || ++length > b->used)
            return SIZE_MAX;
        members += p->object != NULL;
    }
    return length > 0 ? members : SIZE_MAX;
}

/* The sum of all rings' members; SIZE_MAX if something is wrong. */
static size_t check_labels(const index_body *b) {
    size_t postings = 0, labels = 0;
    for (uint32_t i = 0; i < b->buckets[LABELS]; i++)
        for (uint32_t id = *bucket_at(b, LABELS, i); id; id = node_at(b, id)->chain) {
            size_t members = check_ring(b, id);
            bool wrong = bucket_of(b, LABELS, node_at(b, id)->hash) != i || members != node_at(b, id)->count;
            if (wrong || ++labels > b->count[LABELS]) return SIZE_MAX;
            postings += members;
        }
    return labels == b->count[LABELS] ? postings : SIZE_MAX;
}

static size_t check_members(const index_body *b) {
    size_t postings = 0;
    for (uint32_t i = 0; i < b->buckets[MEMBERS]; i++)
        for (uint32_t id = *bucket_at(b, MEMBERS, i); id; id = node_at(b, id)->chain)
            if (bucket_of(b, MEMBERS, node_at(b, id)->hash) != i || ++postings > b->count[MEMBERS])
                return SIZE_MAX;
    return postings;
}

static bool check_free(const index_body *b) {
    uint32_t n = 0;
    for (uint32_t id = b->freed, before = 0; id; before = id, id = node_at(b, id)->chain, n++)
        if (id > b->made || !is_free(b, id) || node_at(b, id)->newer != before || n == b->made) return false;
    return n == b->made - b->used && b->touched >= b->made;
}

/* Walk every invariant; *postings: how many there are. */
bool index_check(tag_index *ix, size_t *postings) {
    const index_body *b = ix->body;
    *postings = b ? b->count[MEMBERS] : 0;
    if (ix->active != (*postings > 0 || ix->depths != 0) || (ix->built & ~ix->depths)) return false;
    if (b == NULL) return *postings == 0;
    return check_labels(b) == *postings && check_members(b) == *postings && check_free(b) &&
           b->used >= b->count[LABELS] + b->count[MEMBERS];
}
