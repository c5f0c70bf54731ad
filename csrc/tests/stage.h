/* A table on a stage: keys with texts, names of tags, and an observer that writes down why each entry went.
 *
 * Key number id has the text "t{id % 100}:{id % 7}:{id}", and is its own hash; every eleventh has none. Its
 * twin is another object, equal to it.
 */
#ifndef LAPSE_TEST_STAGE_H
#define LAPSE_TEST_STAGE_H

#include "packing.h"
#include "pattern.h"
#include "table.h"
#include "test.h"

#define KEYS 24000u /* more than a table without an index of prefixes holds */
#define TABLES 100u
#define NAMES 2048u
#define CAUSES (LAPSE_EVICTED + 1)

static lapse_object keys[KEYS], twins[KEYS], names[NAMES], value, other_value;
static char texts[KEYS][24];

static struct {
    lapse_table *t;
    int64_t now;
    size_t gone[CAUSES];
    uint8_t times[KEYS]; /* that the observer was told of this key, */
    lapse_cause why[KEYS]; /* and the last cause */
    void (*listener)(uint32_t id); /* is called with each key that went, if it is set */
} stage;

static inline bool has_text(uint32_t id) { return id % 11 != 5; }

static inline void observe(void *context, lapse_item *items, size_t n, lapse_cause cause) {
    CHECK(context == &stage && n > 0);
    for (size_t i = 0; i < n; i++) {
        stage.times[items[i].key->id]++;
        stage.why[items[i].key->id] = cause;
    }
    stage.gone[cause] += n;
    for (size_t i = 0; i < n && stage.listener; i++) stage.listener((uint32_t)items[i].key->id);
    lapse_release(items, n);
}

static inline void make_objects(void) {
    value = other_value = (lapse_object){.references = 1};
    for (uint32_t id = 0; id < KEYS; id++) {
        snprintf(texts[id], sizeof texts[id], "t%u:%u:%u", id % TABLES, id % 7, id);
        keys[id] = twins[id] =
            (lapse_object){.references = 1, .id = id, .text = has_text(id) ? texts[id] : NULL};
    }
    for (uint32_t i = 0; i < NAMES; i++) names[i] = (lapse_object){.references = 1, .id = i};
}

static inline void open_table(lapse_config config) {
    memset(&stage, 0, sizeof stage);
    make_objects();
    config.own_clock = true;
    config.observer = observe;
    config.context = &stage;
    stage.now = 1000;
    stage.t = lapse_table_new(&config);
    CHECK(stage.t != NULL);
}

/* Every reference has been given back. */
static inline void close_table(void) {
    CHECK(lapse_check(stage.t));
    lapse_table_free(stage.t);
    for (uint32_t id = 0; id < KEYS; id++) CHECK(keys[id].references == 1 && twins[id].references == 1);
    for (uint32_t i = 0; i < NAMES; i++) CHECK(names[i].references == 1);
    CHECK(value.references == 1 && other_value.references == 1);
}

static inline void forget_what_went(void) {
    memset(stage.gone, 0, sizeof stage.gone);
    memset(stage.times, 0, sizeof stage.times);
}

/* --- Tags --- */

static inline uint64_t name_hash(uint32_t i) { return i * UINT64_C(0x9E3779B97F4A7C15); }

/* The n names from `first` on. */
static inline const lapse_tags *tags_from(uint32_t first, uint32_t n) {
    static lapse_object *list[NAMES];
    static uint64_t hashes[NAMES];
    static lapse_tags tags;
    for (uint32_t i = 0; i < n; i++) {
        list[i] = &names[first + i];
        hashes[i] = name_hash(first + i);
    }
    tags = (lapse_tags){n, list, hashes};
    return &tags;
}

/* --- One key --- */

static inline lapse_status put(uint32_t id, int64_t ttl, const lapse_tags *tags) {
    lapse_object *old = NULL;
    lapse_status status = lapse_put_tagged(stage.t, &keys[id], id, &value, ttl, tags, stage.now, &old);
    if (status == LAPSE_OK && old) object_unref(old);
    return status;
}

static inline void put_all(uint32_t first, uint32_t end, int64_t ttl) {
    for (uint32_t id = first; id < end; id++) CHECK(put(id, ttl, NULL) == LAPSE_OK);
}

static inline bool present(uint32_t id) { return lapse_has(stage.t, &keys[id], id, stage.now) == LAPSE_OK; }

static inline bool erase(uint32_t id) {
    lapse_item removed;
    lapse_status status = lapse_delete(stage.t, &keys[id], id, stage.now, &removed);
    if (status == LAPSE_OK || status == LAPSE_EXPIRED) lapse_release(&removed, 1);
    return status == LAPSE_OK;
}

static inline void clear(void) {
    lapse_item removed[LAPSE_STEP];
    size_t n;
    CHECK(lapse_detach(stage.t) == LAPSE_OK);
    for (lapse_status status = LAPSE_MORE; status == LAPSE_MORE;) {
        status = lapse_drain(stage.t, removed, &n);
        lapse_dismiss(stage.t, removed, n, stage.now, LAPSE_CLEARED);
    }
}

static inline void sweep(void) {
    lapse_item removed[LAPSE_STEP];
    size_t n;
    uint64_t cursor = 0;
    for (lapse_status status = LAPSE_MORE; status == LAPSE_MORE;) {
        status = lapse_sweep(stage.t, &cursor, stage.now, LAPSE_STEP, removed, &n);
        lapse_farewell(stage.t, removed, n, LAPSE_BY_DEADLINE);
    }
    pack(stage.t, false);
}

/* --- Patterns and passes --- */

static inline struct lapse_pattern *compile(const char *glob) {
    struct lapse_pattern *p = NULL;
    lapse_text source = {glob, strlen(glob), 1, false};
    CHECK(lapse_pattern_new(&lapse_system_memory, &source, &p) == LAPSE_OK);
    return p;
}

static inline void discard(struct lapse_pattern *p) { lapse_pattern_free(&lapse_system_memory, p); }

static inline lapse_pass *begin_match(struct lapse_pattern *const *patterns, size_t n) {
    lapse_pass *p;
    CHECK(lapse_pass_new(stage.t, patterns, n, NULL, 0, stage.now, false, &p) == LAPSE_OK);
    return p;
}

static inline lapse_pass *begin_tag(uint32_t name) {
    lapse_pass *p;
    CHECK(lapse_pass_new(stage.t, NULL, 0, &names[name], name_hash(name), stage.now, false, &p) == LAPSE_OK);
    return p;
}

static inline lapse_status step(lapse_pass *p) {
    lapse_item work[LAPSE_STEP];
    size_t n;
    lapse_status status = lapse_pass_step(p, work, &n);
    CHECK(n <= LAPSE_STEP);
    return status;
}

/* Take a pass to its end: how many steps that took. */
static inline uint32_t finish(lapse_pass *p) {
    uint32_t steps = 1;
    for (lapse_status status; (status = step(p)) != LAPSE_OK; steps++) CHECK(status == LAPSE_MORE);
    return steps;
}

/* Delete what a pattern matches, or what bears a tag: how many live entries went. */
static inline uint64_t delete_matching(const char *glob) {
    struct lapse_pattern *pattern = compile(glob);
    lapse_pass *p = begin_match(&pattern, 1);
    finish(p);
    uint64_t live = lapse_pass_counts(p)[0];
    lapse_pass_end(p);
    discard(pattern);
    return live;
}

static inline uint64_t delete_tag(uint32_t name) {
    lapse_pass *p = begin_tag(name);
    finish(p);
    uint64_t live = lapse_pass_counts(p)[0];
    lapse_pass_end(p);
    return live;
}

#endif
