/* A set of prefixes: patterns "prefix:*", of which there may be a hundred thousand, looked up all at once.
 *
 *   buckets    hash by prefix ──► rule {hash, text, number}     "timeline:7:*" is number 7 of its caller
 *                                    │
 *                                    └─► the units of the caller's pattern
 *
 * A key is compared with one prefix of each depth that the set has, whatever the size of the set. A hash only leads
 * to a rule: the texts are compared.
 *
 * A set never changes once it is filled: any number of threads may look things up, under a lock or not. No call
 * here runs Python code, and only lapse_prefixes_new() allocates. The patterns' objects must outlive the set.
 */
#ifndef LAPSE_PREFIXES_H
#define LAPSE_PREFIXES_H

#include "lapse.h"
#include "text.h"

#define NO_PREFIX UINT32_MAX /* the number of no pattern */

lapse_status lapse_prefixes_new(const lapse_memory *memory, size_t most, lapse_prefixes **out);
void lapse_prefixes_free(const lapse_memory *memory, lapse_prefixes *x);
bool lapse_prefixes_add(lapse_prefixes *x, const lapse_text *pattern, uint32_t number);
uint32_t lapse_prefixes_depths(const lapse_prefixes *x);
uint32_t prefixes_find(const lapse_prefixes *x, const lapse_text *key);
void prefixes_find_block(const lapse_prefixes *x, const lapse_text *keys, uint32_t n, uint32_t *numbers);

#endif
