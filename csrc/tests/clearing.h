/* Clearing a table as the binding does: its entries are put aside at once, and given up step by step. */
#ifndef LAPSE_TEST_CLEARING_H
#define LAPSE_TEST_CLEARING_H

#include "lapse.h"
#include "test.h"

static inline void drain_table(lapse_table *t) {
    lapse_item removed[LAPSE_STEP];
    size_t n;
    for (lapse_status status = LAPSE_MORE; status == LAPSE_MORE;) {
        status = lapse_drain(t, removed, &n);
        lapse_release(removed, n);
    }
}

static inline void clear_table(lapse_table *t) {
    CHECK(lapse_detach(t) == LAPSE_OK);
    drain_table(t);
}

#endif
