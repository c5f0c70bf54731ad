/* A whole packing at once, as expire() and clear() have it done. */
#ifndef LAPSE_TEST_PACKING_H
#define LAPSE_TEST_PACKING_H

#include "lapse.h"

static inline void pack(lapse_table *t, bool at_once) {
    lapse_packing p = {.at_once = at_once};
    while (lapse_pack(t, &p) == LAPSE_MORE) continue;
}

#endif
