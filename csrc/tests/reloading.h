/* Operations of a stream (stream.h) on values past their deadline, and on those that are to be reloaded before it. */
#ifndef LAPSE_TEST_RELOADING_H
#define LAPSE_TEST_RELOADING_H

#include "world.h"

#include <math.h>

/* --- Past the deadline --- */

/* A read has found no live entry. One that has expired is gone, unless it is within its grace. */
static void check_gone(const world *w, const naive *n, lapse_status status, bool was_struck) {
    bool kept = status == LAPSE_EXPIRED && !was_struck && !over(n, kept_since(w));
    CHECK((n->key != NULL) == kept);
}

static bool has_stale_value(const world *w, const naive *n) {
    if (n->key == NULL || !over(n, w->now) || struck(w, id_of(w, n))) return false;
    if (n->deadline == w->soft_at && w->now < w->soft_until) return true;
    return w->now - n->deadline < w->config.grace;
}

static void op_stale(world *w, source *from) {
    operands o = choose_operands(w, from);
    bool stale = has_stale_value(w, o.n);
    lapse_object *value = NULL;
    CHECK(lapse_stale(w->t, o.key, o.hash, w->now, &value) == (stale ? LAPSE_OK : LAPSE_ABSENT));
    CHECK(value == (stale ? o.n->value : NULL));
    if (value) object_unref(value);
    w->counters.stale += stale;
}

/* All lives end now, and for some time the values are there for who reloads them. */
static void op_soften(world *w, source *from) {
    uint64_t cursor = 0;
    size_t n = 0, live = count_live(w, true);
    w->soft_at = w->now;
    w->soft_until = w->now + choose(from, 1000);
    while (lapse_soften(w->t, &cursor, w->soft_at, w->soft_until, &n) == LAPSE_MORE) continue;
    CHECK(n == live);
    for (uint32_t id = 0; id < IDS; id++)
        if (w->map[id].key && !over(&w->map[id], w->now)) w->map[id].deadline = w->now;
    outdate_all(w);
}

/* --- Before the deadline --- */

/* May the draw give out a ticket to reload this live entry? By its cost, if that is known. */
static bool may_be_reloaded(const world *w, const naive *n) {
    if (w->config.mode != LAPSE_PROBABILISTIC || n->deadline == LAPSE_NEVER) return false;
    if (n->cost == 0) return may_end_early(w, n);
    return (double)(n->deadline - w->now) <= n->cost * 1000.0 * w->config.beta * 36.8;
}

static void op_ticket(world *w, source *from) {
    operands o = choose_operands(w, from);
    naive was = *o.n;
    bool live = lives(w, o.n), was_struck = struck(w, o.id);
    lapse_object *value = NULL;
    lapse_status status = lapse_get_or_ticket(w->t, o.key, o.hash, w->now, &value);
    if (status == LAPSE_OK || status == LAPSE_EARLY) {
        CHECK(live && value == o.n->value && (status == LAPSE_OK || may_be_reloaded(w, o.n)));
        object_unref(value);
        if (status == LAPSE_OK) slide(w, o.n);
        use(w, o.n);
        w->counters.hits++;
        w->counters.tickets += status == LAPSE_EARLY;
        return;
    }
    w->counters.misses++;
    CHECK(!live && status == (was.key && !was_struck ? LAPSE_EXPIRED : LAPSE_ABSENT));
    check_gone(w, o.n, status, was_struck);
}

#endif
