/* Streams of everything against the naive map (world.h): tags, patterns, passes and storms in steps, batches,
 * leases, values past their deadline, bounds. */
#include "stream.h"

/* --- Streams --- */

static const char *const phases[] = {
    "TTTTTTTTpnixlfyg+", /* grow, tagged */
    "TTpnixtdjgsrowwllffyyEPPPZqmaeWv+", /* churn */
    "TTTTTTTTTTDDPPPMZqEllffjm+", /* select */
    "TTTTTTTTTTTTTTpgPL", /* grow by what expires at once */
    "TTpnitdgbsSroowwPPPMZDEqllffyyjmaeeWWXAFv+++LKc", /* all, clear among them */
};
#define PHASES (sizeof phases / sizeof *phases)

static void run_stream(const lapse_config *config, flavour f, uint32_t variant, uint64_t seed,
                       uint32_t steps) {
    world *w = world_new(config, f, variant & 1);
    source from = {.random = seed};
    if (variant & 2) world_step(w, &from, "K");
    for (size_t phase = 0; phase < 2 * PHASES; phase++) {
        for (uint32_t n = 0; n < steps; n++) {
            world_step(w, &from, phases[phase % PHASES]);
            if (n < 64 || n % 101 == 0) world_check(w);
        }
        give_up_pass(w);
        world_settle(w);
    }
    world_free(w);
}

/* Keys that must be asked or not; prefixes indexed from the beginning until the first clear, or not. */
static void run_streams(lapse_config config) {
    config.own_clock = true;
    for (uint32_t seed = 0; seed < test_scale(); seed++)
        for (flavour f = SPREAD; f <= CROWDED; f++)
            for (uint32_t variant = 0; variant < 4; variant++)
                run_stream(&config, f, variant, seed * 100 + f, f == EQUAL ? 800 : 2500);
}

static void test_stream_fixed(void) { run_streams((lapse_config){.default_ttl = 3000}); }

static void test_stream_sliding(void) {
    run_streams((lapse_config){.mode = LAPSE_SLIDING, .default_ttl = 2000, .max_lifetime = 5000});
}

static void test_stream_probabilistic(void) {
    run_streams((lapse_config){.mode = LAPSE_PROBABILISTIC, .default_ttl = 3000, .early_factor = 0.3});
}

static void test_stream_graceful(void) {
    run_streams((lapse_config){.default_ttl = 2000, .grace = 1500, .jitter = 0.2});
    run_streams((lapse_config){.mode = LAPSE_PROBABILISTIC, .default_ttl = 3000, .grace = 200, .beta = 1.0});
}

static void test_stream_bounded(void) {
    run_streams((lapse_config){.default_ttl = 3000, .grace = 500, .lru = true, .max_entries = 300});
    run_streams((lapse_config){.mode = LAPSE_SLIDING, .default_ttl = 3000, .lru = true, .max_entries = 40});
    run_streams((lapse_config){.default_ttl = 3000, .grace = 500, .duel = true, .max_entries = 300});
    run_streams((lapse_config){.mode = LAPSE_SLIDING, .default_ttl = 3000, .duel = true, .max_entries = 40});
}

int main(void) {
    RUN(test_stream_fixed);
    RUN(test_stream_sliding);
    RUN(test_stream_probabilistic);
    RUN(test_stream_graceful);
    RUN(test_stream_bounded);
    return tests_done();
}
