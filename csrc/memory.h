/* Memory from the system, beside what lapse_system_memory gives: pages back while keeping the addresses; refusals. */
#ifndef LAPSE_MEMORY_H
#define LAPSE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* Let the pages that lie wholly inside [start, start + bytes) go; they read as zero afterwards, even
 * to a thread that reads them meanwhile. Does nothing where the system has no such call. */
void memory_discard(void *start, size_t bytes);

uint64_t memory_refuse(uint64_t from, uint64_t to);

#endif
