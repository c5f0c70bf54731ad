/* Pages from the system: reserve, give back while keeping the addresses, release. */
#ifndef LAPSE_MEMORY_H
#define LAPSE_MEMORY_H

#include <stddef.h>

/* Let the pages that lie wholly inside [start, start + bytes) go; they read as zero afterwards, even
 * to a thread that reads them meanwhile. Does nothing where the system has no such call. */
void memory_discard(void *start, size_t bytes);

#endif
