/* The tag index by itself, against a naive one, with walks between its changes; its growth and its end; then what
 * a table makes of it. */
#include "ledger.h"
#include "stage.h"

/* --- A naive index --- */

#define ENTRIES 300u
#define LABELS 40u /* every fourth is a prefix; */
#define COLLIDING 6u /* the first few have one hash */
#define STROLLS 4u
#define MANY 100000u

/* A walk at a label, how many it may meet, and whom it must have met before its end. */
typedef struct {
    bool open;
    uint32_t label, most, met;
    bool due[ENTRIES];
} stroll;

static struct {
    tag_index ix;
    lapse_object keys[ENTRIES], names[LABELS];
    uint64_t hashes[ENTRIES], bears[ENTRIES]; /* bears: a bit for each label */
    bool there[ENTRIES];
    stroll strolls[STROLLS];
    label_walk walks[STROLLS];
} naive;

static bool is_prefix(uint32_t label) { return label % 4 == 3; }
static uint64_t label_hash(uint32_t label) { return label < COLLIDING ? 5 : mix_hash(label); }
static lapse_object *label_name(uint32_t label) { return is_prefix(label) ? NULL : &naive.names[label]; }

static void index_init(tag_index *ix) {
    memset(ix, 0, sizeof *ix);
    ix->epoch = 1;
    lock_init(&ix->lock);
}

static void open_index(uint64_t *random) {
    memset(&naive, 0, sizeof naive);
    index_init(&naive.ix);
    expect_no_failures();
    for (uint32_t e = 0; e < ENTRIES; e++) {
        naive.keys[e].references = 1;
        naive.hashes[e] = random_below(random, 3) ? random_word(random) : 1;
    }
    for (uint32_t label = 0; label < LABELS; label++)
        naive.names[label] = (lapse_object){.references = 1, .id = label};
}

static void settle(tag_index *ix) {
    while (index_settle(ix, &failing)) continue;
}

static size_t count_postings(void) {
    size_t n = 0;
    for (uint32_t e = 0; e < ENTRIES; e++) n += (size_t)__builtin_popcountll(naive.bears[e]);
    return n;
}

static void check_index(void) {
    size_t postings;
    CHECK(index_check(&naive.ix, &postings) && postings == count_postings());
    for (uint32_t e = 0; e < ENTRIES; e++)
        CHECK(index_count(&naive.ix, naive.hashes[e], &naive.keys[e]) ==
              (size_t)__builtin_popcountll(naive.bears[e]));
}

/* The index owns the names of the labels that entries bear, and of those that a walk stands at. */
static void check_names(void) {
    uint64_t borne = 0;
    settle(&naive.ix);
    for (uint32_t e = 0; e < ENTRIES; e++) borne |= naive.bears[e];
    for (uint32_t i = 0; i < STROLLS; i++)
        if (naive.strolls[i].open && naive.walks[i].epoch == naive.ix.epoch)
            borne |= UINT64_C(1) << naive.strolls[i].label;
    for (uint32_t label = 0; label < LABELS; label++)
        CHECK(naive.names[label].references == 1 + (label_name(label) && (borne >> label & 1)));
}

/* --- Its operations --- */

/* Labels of both kinds, as the index takes them. */
typedef struct {
    lapse_object *names[LABELS];
    uint64_t hashes[LABELS];
    lapse_tags tags;
    label_set set;
    uint64_t bits;
} choice;

static void choose_labels(choice *out, uint64_t *random, bool with_prefixes) {
    uint32_t n = random_below(random, 8) ? random_below(random, 5) : LABELS;
    *out = (choice){.tags = {0, out->names, out->hashes}};
    while (n-- > 0) {
        uint32_t label = random_below(random, LABELS);
        if (out->bits >> label & 1) continue;
        if (is_prefix(label) && (!with_prefixes || out->set.prefix_count == PREFIX_DEPTHS)) continue;
        out->bits |= UINT64_C(1) << label;
        if (is_prefix(label)) {
            out->set.prefixes[out->set.prefix_count++] = label_hash(label);
            continue;
        }
        out->names[out->tags.n] = label_name(label);
        out->hashes[out->tags.n++] = label_hash(label);
    }
    out->set.tags = out->tags.n ? &out->tags : NULL;
}

static void nobody_is_due(uint32_t e, uint64_t labels) {
    for (uint32_t i = 0; i < STROLLS; i++)
        if (labels >> naive.strolls[i].label & 1) naive.strolls[i].due[e] = false;
}

static uint64_t prefix_bits(void) {
    uint64_t bits = 0;
    for (uint32_t label = 0; label < LABELS; label++) bits |= (uint64_t)is_prefix(label) << label;
    return bits;
}

static void do_add(uint32_t e, uint64_t *random) {
    choice c;
    choose_labels(&c, random, true);
    while (!index_add(&naive.ix, naive.hashes[e], &naive.keys[e], &c.set)) {
        check_index();
        CHECK(index_make_room(&naive.ix, &failing, index_need(&c.set)) == LAPSE_OK);
    }
    naive.there[e] = true;
    naive.bears[e] = c.bits;
}

static void do_retag(uint32_t e, uint64_t *random) {
    choice c;
    choose_labels(&c, random, false);
    uint64_t prefixes = naive.bears[e] & prefix_bits(), tags = naive.bears[e] & ~prefix_bits();
    if (random_below(random, 4) == 0) { /* the same again */
        c.bits = tags;
        c.tags.n = 0;
        for (uint32_t label = 0; label < LABELS; label++)
            if (tags >> label & 1) {
                c.names[c.tags.n] = label_name(label);
                c.hashes[c.tags.n++] = label_hash(label);
            }
    }
    const lapse_tags *given = c.tags.n ? &c.tags : NULL;
    while (!index_retag(&naive.ix, naive.hashes[e], &naive.keys[e], given)) {
        check_index();
        CHECK(index_make_room(&naive.ix, &failing, 2 * c.tags.n) == LAPSE_OK);
    }
    if (c.bits != tags || c.tags.n > 8) nobody_is_due(e, tags); /* its postings are new ones */
    naive.bears[e] = c.bits | prefixes;
}

static void do_forget(uint32_t e) {
    index_forget(&naive.ix, naive.hashes[e], &naive.keys[e]);
    nobody_is_due(e, naive.bears[e]);
    naive.there[e] = false;
    naive.bears[e] = 0;
}

/* Does another walk stand at this label? Then the label is there, even without entries. */
static bool is_walked(uint32_t label, uint32_t but) {
    for (uint32_t i = 0; i < STROLLS; i++)
        if (i != but && naive.strolls[i].open && naive.strolls[i].label == label &&
            naive.walks[i].epoch == naive.ix.epoch)
            return true;
    return false;
}

static void begin_stroll(uint32_t i, uint64_t *random) {
    stroll *s = &naive.strolls[i];
    s->label = random_below(random, LABELS);
    s->most = s->met = 0;
    for (uint32_t e = 0; e < ENTRIES; e++) s->most += s->due[e] = naive.bears[e] >> s->label & 1;
    naive.walks[i].number = i;
    lapse_status status;
    do
        status =
            index_walk_begin(&naive.ix, label_hash(s->label), label_name(s->label), s->most, &naive.walks[i]);
    while (status == LAPSE_NO_ROOM && index_make_room(&naive.ix, &failing, 1) == LAPSE_OK);
    CHECK(status == (s->most > 0 || is_walked(s->label, i) ? LAPSE_OK : LAPSE_ABSENT));
    s->open = status == LAPSE_OK;
}

static void end_stroll(uint32_t i) {
    index_walk_end(&naive.ix, &naive.walks[i]);
    naive.strolls[i].open = false;
}

static void meet(const candidate *c) {
    stroll *s = &naive.strolls[c->number];
    uint32_t e = (uint32_t)(c->who.key - naive.keys);
    CHECK(s->open && e < ENTRIES && c->who.hash == naive.hashes[e] && (naive.bears[e] >> s->label & 1));
    CHECK(++s->met <= s->most); /* it ends, whoever comes */
    s->due[e] = false;
}

/* A filter turns half of them away; that too is to have met them. */
static bool is_even(const void *context, const candidate *c) {
    CHECK(context == &naive);
    bool even = (c->who.key - naive.keys) % 2 == 0;
    if (!even) meet(c);
    return even;
}

/* Go on with these walks together. Who was there from a walk's beginning to its end has been met. */
static void go_on(const uint32_t *which, uint32_t n, uint64_t *random) {
    label_walk together[STROLLS];
    candidate found[32];
    bool filtered = random_below(random, 2);
    size_t room = 2 * n + random_below(random, 8);
    for (uint32_t k = 0; k < n; k++) together[k] = naive.walks[which[k]];
    size_t count = index_walk_next(&naive.ix, together, n, filtered ? is_even : NULL, &naive, found, room);
    CHECK(count <= room);
    for (size_t i = 0; i < count; i++) {
        CHECK(!filtered || is_even(&naive, &found[i]));
        meet(&found[i]);
        uint32_t k = found[i].number;
        CHECK(index_bears(&naive.ix, &naive.walks[k], found[i].who.hash, found[i].who.key));
    }
    for (uint32_t k = 0; k < n; k++) {
        naive.walks[which[k]] = together[k];
        if (together[k].left > 0) continue;
        for (uint32_t e = 0; e < ENTRIES; e++) CHECK(!naive.strolls[which[k]].due[e]);
        end_stroll(which[k]);
    }
}

static void do_walk(uint64_t *random) {
    uint32_t i = random_below(random, STROLLS), which[STROLLS], n = 0;
    if (!naive.strolls[i].open) {
        begin_stroll(i, random);
        return;
    }
    if (random_below(random, 30) == 0) {
        end_stroll(i);
        return;
    }
    bool all = random_below(random, 2);
    for (uint32_t k = 0; k < STROLLS; k++)
        if (naive.strolls[k].open && (all || k == i)) which[n++] = k;
    go_on(which, n, random);
}

static void do_put_aside(void) {
    index_put_aside(&naive.ix);
    for (uint32_t e = 0; e < ENTRIES; e++) nobody_is_due(e, naive.bears[e]);
    memset(naive.bears, 0, sizeof naive.bears);
    memset(naive.there, 0, sizeof naive.there);
}

static void play_round(uint64_t *random) {
    uint32_t e = random_below(random, ENTRIES);
    switch (random_below(random, 4)) {
    case 0: do_walk(random); break;
    case 1:
        if (naive.there[e]) do_retag(e, random);
        break;
    default:
        if (naive.there[e]) do_forget(e);
        else do_add(e, random);
    }
    if (random_below(random, 4) == 0) index_pack(&naive.ix, &failing);
    if (random_below(random, 1500) == 0) do_put_aside();
}

static void close_index(void) {
    for (uint32_t i = 0; i < STROLLS; i++)
        if (naive.strolls[i].open) end_stroll(i);
    do_put_aside();
    settle(&naive.ix);
    CHECK(ledger.held == 0);
    check_names();
}

static void test_random_changes(void) {
    for (uint64_t seed = 0; seed < 8 * test_scale(); seed++) {
        uint64_t random = seed;
        open_index(&random);
        for (uint32_t n = 0; n < 6000; n++) {
            play_round(&random);
            if (n < 100 || n % 50 == 0) check_index();
            if (n % 50 == 0) check_names();
        }
        close_index();
    }
}

/* Few entries come and go, so that the index is emptied again and again, with walks standing in it. */
static void test_often_empty(void) {
    uint64_t random = 4;
    open_index(&random);
    for (uint32_t n = 0; n < 20000; n++) {
        uint32_t e = random_below(&random, 3);
        if (random_below(&random, 3) == 0) do_walk(&random);
        else if (naive.there[e]) do_forget(e);
        else do_add(e, &random);
        index_pack(&naive.ix, &failing);
        check_index();
        if (n % 20 == 0) check_names();
    }
    close_index();
}

/* --- Walks --- */

static label_set one_tag(lapse_tags *tags, lapse_object **name, uint64_t *hash) {
    *tags = (lapse_tags){1, name, hash};
    return (label_set){.tags = tags};
}

static void add_one(tag_index *ix, uint64_t hash, lapse_object *key, lapse_object *name, uint64_t name_hash) {
    lapse_tags tags;
    label_set set = one_tag(&tags, &name, &name_hash);
    while (!index_add(ix, hash, key, &set)) CHECK(index_make_room(ix, &failing, 2) == LAPSE_OK);
}

/* The next `most` of a walk's members, an even number, or as many as there are. */
static size_t walk(tag_index *ix, label_walk *w, member *out, size_t most) {
    candidate found[2];
    size_t n = 0;
    while (n < most && w->left > 0) {
        size_t got = index_walk_next(ix, w, 1, NULL, NULL, found, 2);
        CHECK(got <= 2);
        for (size_t i = 0; i < got; i++) out[n++] = found[i].who;
    }
    return n;
}

/* Oldest first; each walk at its own pace, whatever is taken out from under it. */
static void test_walks_go_by_age(void) {
    tag_index ix;
    static lapse_object objects[100];
    lapse_object name = {.references = 1};
    label_walk a, b;
    member found[100];
    index_init(&ix);
    expect_no_failures();
    for (uint32_t i = 0; i < 100; i++) add_one(&ix, i, &objects[i], &name, 7);
    CHECK(index_walk_begin(&ix, 7, &name, 99, &a) == LAPSE_MORE); /* more than the caller would walk */
    CHECK(index_walk_begin(&ix, 7, &name, 100, &a) == LAPSE_OK);
    CHECK(index_walk_begin(&ix, 7, &name, 100, &b) == LAPSE_OK);
    CHECK(walk(&ix, &a, found, 10) == 10);
    for (uint32_t i = 0; i < 10; i++) CHECK(found[i].key == &objects[i] && found[i].hash == i);
    for (uint32_t i = 5; i < 15; i++) index_forget(&ix, i, &objects[i]); /* behind a, at it, before it */
    CHECK(walk(&ix, &a, found, 2) == 2 && found[0].key == &objects[15]);
    CHECK(walk(&ix, &b, found, 100) == 90);
    for (uint32_t i = 0; i < 90; i++) CHECK(found[i].key == &objects[i < 5 ? i : i + 10]);
    CHECK(walk(&ix, &a, found, 100) == 83 && a.left == 0 && b.left == 0);
    for (uint32_t i = 0; i < 100; i++)
        if (i < 5 || i >= 15) index_forget(&ix, i, &objects[i]);
    index_walk_end(&ix, &a);
    index_walk_end(&ix, &b);
    settle(&ix);
    CHECK(name.references == 1 && !ix.active);
    index_put_aside(&ix);
    settle(&ix);
    CHECK(ledger.held == 0);
}

/* Two walks of one label, moved on together and overtaking each other: each meets everybody. */
static void test_walks_together(void) {
    tag_index ix;
    enum { MEMBERS = 9000 };
    static lapse_object objects[MEMBERS];
    static uint8_t met[2][MEMBERS];
    lapse_object name = {.references = 1};
    label_walk walks[2];
    candidate found[40];
    index_init(&ix);
    expect_no_failures();
    memset(met, 0, sizeof met);
    for (uint32_t i = 0; i < MEMBERS; i++) add_one(&ix, mix_hash(i), &objects[i], &name, 7);
    for (uint32_t k = 0; k < 2; k++) {
        walks[k].number = k;
        CHECK(index_walk_begin(&ix, 7, &name, MEMBERS, &walks[k]) == LAPSE_OK);
    }
    for (size_t room = 4; walks[0].left + walks[1].left > 0; room = room % 37 + 4) {
        size_t n = index_walk_next(&ix, walks, 2, NULL, NULL, found, room);
        for (size_t i = 0; i < n; i++) met[found[i].number][found[i].who.key - objects]++;
    }
    for (uint32_t i = 0; i < MEMBERS; i++) CHECK(met[0][i] == 1 && met[1][i] == 1);
    for (uint32_t k = 0; k < 2; k++) index_walk_end(&ix, &walks[k]);
    index_put_aside(&ix);
    settle(&ix);
    CHECK(name.references == 1 && ledger.held == 0);
}

/* A walk whose index is put aside finds nothing more, and takes nothing of the next one with it. */
static void test_put_aside_under_a_walk(void) {
    tag_index ix;
    static lapse_object objects[40];
    lapse_object name = {.references = 1};
    label_walk old, new;
    member found[40];
    index_init(&ix);
    expect_no_failures();
    for (uint32_t i = 0; i < 20; i++) add_one(&ix, i, &objects[i], &name, 7);
    CHECK(index_walk_begin(&ix, 7, &name, 20, &old) == LAPSE_OK);
    CHECK(walk(&ix, &old, found, 6) == 6);
    index_put_aside(&ix);
    CHECK(!ix.active && walk(&ix, &old, found, 40) == 0 && old.left == 0);
    for (uint32_t i = 20; i < 40; i++) add_one(&ix, i, &objects[i], &name, 7);
    CHECK(!index_bears(&ix, &old, 20, &objects[20]));
    CHECK(index_walk_begin(&ix, 7, &name, 20, &new) == LAPSE_OK);
    index_walk_end(&ix, &old);
    CHECK(walk(&ix, &new, found, 40) == 20 && found[0].key == &objects[20]);
    settle(&ix); /* the old body, while the new one is walked */
    CHECK(name.references == 2);
    index_walk_end(&ix, &new);
    index_put_aside(&ix);
    settle(&ix);
    CHECK(name.references == 1 && ledger.held == 0);
}

/* --- Growth --- */

static lapse_object many_names[MANY];

static void shrinks_to_nothing(tag_index *ix, size_t least) {
    size_t postings;
    CHECK(index_bytes(ix) > least && index_check(ix, &postings) && postings == MANY);
    for (uint32_t i = 0; i < MANY; i++) index_forget(ix, mix_hash(i), &many_names[i]);
    CHECK(!ix->active && index_check(ix, &postings) && postings == 0);
    settle(ix);
    CHECK(index_bytes(ix) == 0 && ledger.held == 0);
}

static void test_many_labels(void) {
    tag_index ix;
    index_init(&ix);
    expect_no_failures();
    for (uint32_t i = 0; i < MANY; i++) many_names[i] = (lapse_object){.references = 1, .id = i};
    for (uint32_t i = 0; i < MANY; i++)
        add_one(&ix, mix_hash(i), &many_names[i], &many_names[i], mix_hash(~(uint64_t)i));
    for (uint32_t i = 0; i < MANY; i++) CHECK(many_names[i].references == 2);
    label_walk w;
    member found[2];
    for (uint32_t i = 0; i < MANY; i += 999) {
        CHECK(index_walk_begin(&ix, mix_hash(~(uint64_t)i), &many_names[i], 1, &w) == LAPSE_OK);
        CHECK(walk(&ix, &w, found, 2) == 1 && found[0].key == &many_names[i]);
        index_walk_end(&ix, &w);
    }
    shrinks_to_nothing(&ix, (size_t)MANY * 64);
    for (uint32_t i = 0; i < MANY; i++) CHECK(many_names[i].references == 1);
}

static void test_many_entries_of_one_label(void) {
    tag_index ix;
    lapse_object name = {.references = 1};
    label_walk w;
    member found[100];
    index_init(&ix);
    expect_no_failures();
    for (uint32_t i = 0; i < MANY; i++) add_one(&ix, mix_hash(i), &many_names[i], &name, 7);
    CHECK(name.references == 2 && index_walk_begin(&ix, 7, &name, MANY, &w) == LAPSE_OK);
    for (uint32_t i = 0; i < MANY; i += 100) {
        CHECK(walk(&ix, &w, found, 100) == 100);
        for (uint32_t k = 0; k < 100; k++) CHECK(found[k].key == &many_names[i + k]);
    }
    CHECK(w.left == 0);
    index_walk_end(&ix, &w);
    shrinks_to_nothing(&ix, (size_t)MANY * 32);
    CHECK(name.references == 1);
}

/* --- Packing --- */

static void pack_index(tag_index *ix) {
    while (index_pack(ix, &failing)) continue;
}

/* A twentieth is left, of many labels or of one: it takes a twentieth of the memory, and is found. */
static void check_packing(bool one_label) {
    tag_index ix;
    size_t postings;
    index_init(&ix);
    expect_no_failures();
    for (uint32_t i = 0; i < MANY; i++) many_names[i] = (lapse_object){.references = 1, .id = i};
    for (uint32_t i = 0; i < MANY; i++) {
        uint32_t label = one_label ? 0 : i / 2;
        add_one(&ix, mix_hash(i), &many_names[i], &many_names[label], mix_hash(~(uint64_t)label));
    }
    size_t full = index_bytes(&ix);
    for (uint32_t i = 0; i < MANY; i++)
        if (i % 40 > 1) index_forget(&ix, mix_hash(i), &many_names[i]);
    settle(&ix);
    CHECK(index_is_loose(&ix));
    pack_index(&ix);
    CHECK(!index_is_loose(&ix) && index_bytes(&ix) < full / 8);
    CHECK(index_check(&ix, &postings) && postings == MANY / 20);
    for (uint32_t i = 0; i < MANY; i++) CHECK(index_count(&ix, mix_hash(i), &many_names[i]) == (i % 40 < 2));
    label_walk w;
    static member found[MANY];
    CHECK(index_walk_begin(&ix, mix_hash(~UINT64_C(0)), &many_names[0], MANY, &w) == LAPSE_OK);
    CHECK(walk(&ix, &w, found, MANY) == (one_label ? MANY / 20 : 2));
    index_walk_end(&ix, &w);
    for (uint32_t i = 0; i < MANY; i++) index_forget(&ix, mix_hash(i), &many_names[i]);
    settle(&ix);
    CHECK(index_bytes(&ix) == 0 && ledger.held == 0);
    for (uint32_t i = 0; i < MANY; i++) CHECK(many_names[i].references == 1);
}

static void test_packing_many_labels(void) { check_packing(false); }
static void test_packing_one_label(void) { check_packing(true); }

/* The last level stays, and its pages go that hold nothing any more: they are blank when they are used again. */
static void test_packing_a_level(void) {
    enum { FEW = 70000 };
    tag_index ix;
    lapse_object name = {.references = 1};
    size_t postings;
    index_init(&ix);
    expect_no_failures();
    for (uint32_t i = 0; i < MANY; i++) add_one(&ix, mix_hash(i), &many_names[i], &name, 7);
    size_t full = index_bytes(&ix);
    for (uint32_t i = FEW; i < MANY; i++) index_forget(&ix, mix_hash(i), &many_names[i]);
    uint32_t held = ledger.held;
    pack_index(&ix);
    CHECK(ledger.held == held && index_bytes(&ix) < full * 3 / 4);
    CHECK(index_check(&ix, &postings) && postings == FEW);
    for (uint32_t i = FEW; i < MANY; i++) add_one(&ix, mix_hash(i), &many_names[i], &name, 7);
    CHECK(index_check(&ix, &postings) && postings == MANY && index_bytes(&ix) == full);
    index_put_aside(&ix);
    settle(&ix);
    CHECK(name.references == 1 && ledger.held == 0);
}

/* A walk keeps everything where it is. */
static void test_no_packing_under_a_walk(void) {
    tag_index ix;
    static lapse_object objects[300];
    lapse_object name = {.references = 1};
    label_walk w;
    index_init(&ix);
    expect_no_failures();
    for (uint32_t i = 0; i < 300; i++) add_one(&ix, i, &objects[i], &name, 7);
    CHECK(index_walk_begin(&ix, 7, &name, 300, &w) == LAPSE_OK);
    for (uint32_t i = 0; i < 290; i++) index_forget(&ix, i, &objects[i]);
    size_t bytes = index_bytes(&ix);
    pack_index(&ix);
    CHECK(index_bytes(&ix) == bytes);
    index_walk_end(&ix, &w);
    pack_index(&ix);
    CHECK(index_bytes(&ix) < bytes);
    index_put_aside(&ix);
    settle(&ix);
    CHECK(name.references == 1 && ledger.held == 0);
}

/* --- Memory that fails --- */

/* What a refusal leaves: everything as it was. */
static void make_room_or_not(tag_index *ix, uint32_t postings, uint32_t *failures) {
    size_t before = index_bytes(ix), found;
    lapse_status status = index_make_room(ix, &failing, 2);
    if (status == LAPSE_OK) return;
    CHECK(status == LAPSE_NO_MEMORY && index_bytes(ix) == before);
    CHECK(index_check(ix, &found) && found == postings);
    ++*failures;
}

static void test_making_room_without_memory(void) {
    tag_index ix;
    for (uint32_t n = 1; n <= 9; n++) { /* a body and eight levels */
        uint32_t failures = 0;
        index_init(&ix);
        expect_failures(n, false);
        for (uint32_t i = 0; i < 9000; i++) {
            lapse_object *name = &many_names[i % 90];
            uint64_t hash = i % 90;
            lapse_tags tags;
            label_set set = one_tag(&tags, &name, &hash);
            while (!index_add(&ix, mix_hash(i), &many_names[i], &set)) make_room_or_not(&ix, i, &failures);
        }
        CHECK(failures == 1);
        index_put_aside(&ix);
        settle(&ix);
        CHECK(ledger.held == 0);
    }
}

/* Growing a table of tagged entries, each request of which fails once, or from then on. */
static uint32_t play_table(uint32_t fail_at, bool fail_after) {
    expect_no_failures();
    open_table((lapse_config){.default_ttl = LAPSE_NEVER, .memory = &failing});
    expect_failures(fail_at, fail_after);
    for (uint32_t id = 0; id < 3000; id++) {
        const lapse_tags *tags = tags_from(id % 97, id % 4);
        lapse_status status = put(id, LAPSE_NEVER, tags);
        if (id % 5 == 0 && status == LAPSE_OK) status = put(id, LAPSE_NEVER, tags_from(1000 + id % 97, 5));
        if (status == LAPSE_OK) continue;
        CHECK(status == LAPSE_NO_MEMORY && ledger.requests >= fail_at && lapse_check(stage.t));
        expect_no_failures();
        CHECK(put(id, LAPSE_NEVER, tags) == LAPSE_OK);
    }
    uint32_t requests = ledger.requests;
    expect_no_failures();
    CHECK(lapse_len(stage.t, stage.now) == 3000);
    close_table();
    CHECK(ledger.held == 0);
    return requests;
}

static void test_each_request_of_tagged_writes_fails(void) {
    uint32_t requests = play_table(0, false);
    CHECK(requests > 15);
    for (uint32_t n = 1; n <= requests; n++) {
        play_table(n, false);
        play_table(n, true);
    }
}

/* --- In a table --- */

static size_t postings_of_table(void) {
    size_t postings;
    CHECK(index_check(&stage.t->index, &postings));
    return postings;
}

static size_t tag_count(uint32_t id) {
    size_t n = 0;
    lapse_tags_of(stage.t, &keys[id], id, stage.now, NULL, 0, &n);
    return n;
}

static void test_tags_of_an_entry(void) {
    lapse_object *found[4], *old;
    size_t n;
    open_table((lapse_config){.default_ttl = LAPSE_NEVER});
    CHECK(put(1, LAPSE_NEVER, tags_from(0, 3)) == LAPSE_OK && tag_count(1) == 3);
    CHECK(lapse_tags_of(stage.t, &twins[1], 1, stage.now, found, 2, &n) == LAPSE_OK && n == 3); /* no room */
    CHECK(names[0].references == 2);
    CHECK(lapse_tags_of(stage.t, &twins[1], 1, stage.now, found, 4, &n) == LAPSE_OK && n == 3);
    for (size_t i = 0; i < n; i++) object_unref(found[i]);
    CHECK(lapse_touch(stage.t, &keys[1], 1, 50, stage.now) == LAPSE_OK && tag_count(1) == 3);
    CHECK(lapse_exchange(stage.t, &keys[1], 1, &value, &other_value, stage.now, &old) == LAPSE_OK);
    object_unref(old);
    CHECK(tag_count(1) == 3);
    CHECK(put(1, LAPSE_NEVER, tags_from(2, 20)) == LAPSE_OK && tag_count(1) == 20);
    CHECK(delete_tag(0) == 0 && present(1));
    CHECK(put(1, LAPSE_NEVER, tags_from(3, 1)) == LAPSE_OK && tag_count(1) == 1 && postings_of_table() == 1);
    CHECK(put(1, LAPSE_NEVER, NULL) == LAPSE_OK && tag_count(1) == 0);
    CHECK(!stage.t->index.active && postings_of_table() == 0);
    CHECK(delete_tag(3) == 0 && present(1));
    close_table();
}

static void fill_with_mortals(uint32_t n) {
    open_table((lapse_config){.default_ttl = LAPSE_NEVER});
    for (uint32_t id = 0; id < n; id++) CHECK(put(id, 10, tags_from(id % 9, 2)) == LAPSE_OK);
    CHECK(postings_of_table() == 2 * n);
    stage.now += 10;
}

/* Whatever takes an expired entry out, nothing of it stays in the index. */
static void test_dead_entries_leave_no_posting(void) {
    lapse_object *found;
    fill_with_mortals(2000);
    sweep();
    CHECK(postings_of_table() == 0 && !stage.t->index.active);
    close_table();
    fill_with_mortals(500);
    for (uint32_t id = 0; id < 500; id++)
        CHECK(lapse_get(stage.t, &twins[id], id, stage.now, &found) == LAPSE_EXPIRED);
    CHECK(postings_of_table() == 0);
    close_table();
    fill_with_mortals(500);
    for (uint32_t id = 0; id < 500; id++) CHECK(!erase(id));
    CHECK(postings_of_table() == 0);
    close_table();
    fill_with_mortals(500);
    put_all(0, 500, LAPSE_NEVER); /* in their place */
    CHECK(postings_of_table() == 0);
    close_table();
    fill_with_mortals(800);
    put_all(800, 3000, LAPSE_NEVER); /* for want of room */
    CHECK(postings_of_table() == 0 && stage.gone[LAPSE_BY_DEADLINE] == 800);
    close_table();
    fill_with_mortals(2000);
    for (uint32_t name = 0; name < 10; name++) CHECK(delete_tag(name) == 0);
    CHECK(postings_of_table() == 0 && stage.gone[LAPSE_BY_DEADLINE] == 2000);
    close_table();
    fill_with_mortals(2000);
    CHECK(delete_matching("*") == 0);
    for (uint32_t id = 0; id < 2000; id++) CHECK(has_text(id) || !erase(id));
    CHECK(postings_of_table() == 0 && stage.gone[LAPSE_BY_DEADLINE] > 1500);
    close_table();
}

static void test_a_clear_forgets_tags(void) {
    open_table((lapse_config){.default_ttl = LAPSE_NEVER});
    for (uint32_t id = 0; id < 5000; id++) CHECK(put(id, LAPSE_NEVER, tags_from(id % 2000, 40)) == LAPSE_OK);
    size_t before = lapse_bytes(stage.t);
    clear();
    CHECK(!stage.t->index.active && !stage.t->index.unsettled && index_bytes(&stage.t->index) == 0);
    CHECK(lapse_bytes(stage.t) < before / 4);
    for (uint32_t i = 0; i < NAMES; i++) CHECK(names[i].references == 1);
    CHECK(delete_tag(1) == 0 && lapse_check(stage.t));
    CHECK(put(1, LAPSE_NEVER, tags_from(1, 1)) == LAPSE_OK && delete_tag(1) == 1);
    close_table();
}

#define LITTLE ((size_t)64 << 10)

/* Labels that die as fast as others are born leave nothing behind, */
static void test_tags_that_always_change(void) {
    open_table((lapse_config){.default_ttl = LAPSE_NEVER});
    CHECK(put(0, LAPSE_NEVER, tags_from(0, 1)) == LAPSE_OK);
    for (uint32_t n = 0; n < 500; n++) {
        CHECK(put(1, LAPSE_NEVER, tags_from(1 + n * 100 % 1900, 100)) == LAPSE_OK);
        if (n % 2) CHECK(erase(1));
    }
    CHECK(postings_of_table() == 1 && index_bytes(&stage.t->index) < LITTLE);
    close_table();
}

/* and nor does an index that is emptied again and again. */
static void test_the_only_tagged_entry(void) {
    open_table((lapse_config){.default_ttl = LAPSE_NEVER});
    for (uint32_t n = 0; n < 500; n++) {
        CHECK(put(1, LAPSE_NEVER, tags_from(1 + n * 100 % 1900, 100)) == LAPSE_OK);
        if (n % 3 == 0) CHECK(erase(1));
        if (n % 3 == 1) CHECK(delete_tag(1 + n * 100 % 1900) == 1);
        if (n % 3 == 2) CHECK(put(1, LAPSE_NEVER, NULL) == LAPSE_OK);
        CHECK(!stage.t->index.active);
    }
    CHECK(index_bytes(&stage.t->index) < LITTLE);
    close_table();
}

int main(void) {
    RUN(test_random_changes);
    RUN(test_often_empty);
    RUN(test_walks_go_by_age);
    RUN(test_walks_together);
    RUN(test_put_aside_under_a_walk);
    RUN(test_many_labels);
    RUN(test_many_entries_of_one_label);
    RUN(test_packing_many_labels);
    RUN(test_packing_one_label);
    RUN(test_packing_a_level);
    RUN(test_no_packing_under_a_walk);
    RUN(test_making_room_without_memory);
    RUN(test_each_request_of_tagged_writes_fails);
    RUN(test_tags_of_an_entry);
    RUN(test_dead_entries_leave_no_posting);
    RUN(test_a_clear_forgets_tags);
    RUN(test_tags_that_always_change);
    RUN(test_the_only_tagged_entry);
    return tests_done();
}
