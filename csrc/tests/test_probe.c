/* Control words: the body that this build chose, against a byte-by-byte model. */
#include "probe.h"
#include "test.h"

static _Alignas(GROUP_SLOTS) uint8_t ctrl[2 * GROUP_SLOTS];

/* The set of slots in a mask, as sixteen bits, by the loop that the table uses. */
static uint32_t slots_of(group_mask m) {
    uint32_t slots = 0, last = 0;
    for (; m; m &= m - 1) {
        uint32_t slot = mask_slot(m);
        CHECK(slot < GROUP_SLOTS && (slots == 0 || slot > last));
        slots |= 1u << (last = slot);
    }
    return slots;
}

static uint32_t model_match(uint8_t byte) {
    uint32_t slots = 0;
    for (uint32_t i = 0; i < GROUP_SLOTS; i++) slots |= (uint32_t)(ctrl[i] == byte) << i;
    return slots;
}

static uint32_t model_full(void) {
    uint32_t slots = 0;
    for (uint32_t i = 0; i < GROUP_SLOTS; i++) slots |= (uint32_t)(ctrl[i] >= CTRL_FULL) << i;
    return slots;
}

static void check_group(uint8_t byte) {
    group g = group_load(ctrl);
    CHECK(slots_of(group_match(g, byte)) == model_match(byte));
    CHECK(slots_of(group_empty(g)) == model_match(CTRL_EMPTY));
    CHECK(slots_of(group_full(g)) == model_full());
    CHECK(slots_of(group_free(g)) == (model_full() ^ 0xFFFFu));
}

/* Every byte value that a control word takes, in every slot, matched against every tag. */
static void test_single_bytes(void) {
    for (uint32_t slot = 0; slot < GROUP_SLOTS; slot++)
        for (uint32_t byte = 0; byte < 256; byte++) {
            if (byte > CTRL_DELETED && byte < CTRL_FULL) continue;
            memset(ctrl, CTRL_EMPTY, sizeof ctrl);
            ctrl[slot] = (uint8_t)byte;
            for (uint32_t tag = CTRL_FULL; tag < 256; tag++) check_group((uint8_t)tag);
            check_group(CTRL_DELETED);
        }
}

static uint8_t random_byte(uint64_t *random) {
    uint32_t kind = random_below(random, 4);
    if (kind < 2) return (uint8_t)kind; /* EMPTY, DELETED */
    return (uint8_t)(CTRL_FULL | random_below(random, kind == 2 ? 4 : 128));
}

/* Neighbours that differ in one bit are where a carry would cross a byte. */
static void test_random_groups(void) {
    uint64_t random = 1;
    for (uint32_t n = 0; n < 100000 * test_scale(); n++) {
        for (uint32_t i = 0; i < GROUP_SLOTS; i++) ctrl[i] = random_byte(&random);
        check_group((uint8_t)(CTRL_FULL | random_below(&random, 4)));
        check_group(ctrl[random_below(&random, GROUP_SLOTS)]);
    }
}

static void test_store(void) {
    uint64_t random = 2;
    uint8_t model[sizeof ctrl];
    memset(ctrl, 0, sizeof ctrl);
    memset(model, 0, sizeof model);
    for (uint32_t n = 0; n < 10000; n++) {
        uint32_t slot = random_below(&random, sizeof ctrl);
        uint8_t byte = random_byte(&random);
        ctrl_store(ctrl, slot, byte);
        model[slot] = byte;
        CHECK(memcmp(ctrl, model, sizeof ctrl) == 0);
    }
}

static void test_lowest_bit(void) {
    for (unsigned i = 0; i < 64; i++) {
        CHECK(lowest_bit(UINT64_C(1) << i) == i);
        CHECK(lowest_bit(UINT64_MAX << i) == i);
    }
}

int main(void) {
    RUN(test_single_bytes);
    RUN(test_random_groups);
    RUN(test_store);
    RUN(test_lowest_bit);
    printf("%s: ", LAPSE_PROBE_NAME);
    return tests_done();
}
