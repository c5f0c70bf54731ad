/* A memory that fails at the n-th request, or from the n-th on, and knows every block that is held.
 *
 *     static lapse_config config = {.memory = &failing, ...};
 *     expect_failures(3, false);    the third request from here on fails
 *     CHECK(ledger.held == 0);      everything has been given back
 */
#ifndef LAPSE_TEST_LEDGER_H
#define LAPSE_TEST_LEDGER_H

#include "lapse.h"
#include "test.h"

#define BLOCKS 4096u

typedef struct {
    void *at;
    size_t bytes;
    bool pages;
} block;

/* What the table has asked for and not given back, and when the next request fails. */
static struct {
    block blocks[BLOCKS];
    uint32_t held, requests, fail_at; /* fail_at: the number of the request that fails; 0: none */
    bool fail_after;                  /* and so do all that follow */
} ledger;

static bool refused(void) {
    uint32_t n = ++ledger.requests;
    if (ledger.fail_at == 0) return false;
    return ledger.fail_after ? n >= ledger.fail_at : n == ledger.fail_at;
}

static void *enter(void *at, size_t bytes, bool pages) {
    CHECK(at != NULL && ledger.held < BLOCKS);
    ledger.blocks[ledger.held++] = (block){at, bytes, pages};
    return at;
}

static block leave(void *at) {
    for (uint32_t i = 0; i < ledger.held; i++)
        if (ledger.blocks[i].at == at) {
            block found = ledger.blocks[i];
            ledger.blocks[i] = ledger.blocks[--ledger.held];
            return found;
        }
    CHECK(!"given back what was not held");
    return ledger.blocks[0];
}

static void *failing_grab(size_t bytes) {
    return refused() ? NULL : enter(lapse_system_memory.grab(bytes), bytes, false);
}
static void failing_drop(void *at) {
    CHECK(!leave(at).pages);
    lapse_system_memory.drop(at);
}
static void *failing_map(size_t bytes) {
    return refused() ? NULL : enter(lapse_system_memory.map(bytes), bytes, true);
}
static void failing_unmap(void *at, size_t bytes) {
    block b = leave(at);
    CHECK(b.pages && b.bytes == bytes);
    lapse_system_memory.unmap(at, bytes);
}
static const lapse_memory failing = {failing_grab, failing_grab, failing_drop, failing_map, failing_unmap};

static void expect_failures(uint32_t fail_at, bool fail_after) {
    ledger.requests = 0;
    ledger.fail_at = fail_at;
    ledger.fail_after = fail_after;
}

static void expect_no_failures(void) { expect_failures(0, false); }

#endif
