/* The keys of a locked segment as text, and fetching them ahead: a walk over a table mostly waits for its keys. */
#ifndef LAPSE_KEYS_H
#define LAPSE_KEYS_H

#include "segment.h"
#include "text.h"

#define TEXT_AT 16u /* where the parts of a str that are looked into begin */
#define GROUPS_AHEAD 3u /* keys are fetched so many groups before they are looked into */

/* Is the key of this full slot an exact str? Without looking at it. */
INLINE bool is_native(const segment *s, uint32_t slot) {
    return s->foreign_count == 0 || !bit_test(s->foreign, slot);
}

INLINE bool text_at(const segment *s, uint32_t slot, lapse_text *text) {
    lapse_object *key = entry_at(s, slot)->key;
    if (UNLIKELY(!is_native(s, slot))) return object_text(key, text);
    *text = str_text(key);
    return true;
}

/* The line of a str that has its length and, if it is short, its text. */
INLINE void fetch_keys(const segment *s, uint32_t g) {
    if (g >= s->groups) return;
    for (group_mask m = group_full(group_load(s->ctrl + g * GROUP_SLOTS)); m; m &= m - 1)
        PREFETCH((const char *)entry_at(s, g * GROUP_SLOTS + mask_slot(m))->key + TEXT_AT);
}

#endif
