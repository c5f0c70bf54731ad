/* An operation stream out of bytes, against the naive map (stream.h).
 *
 * Under libFuzzer, with the C files of the table: clang -fsanitize=fuzzer,address -DLAPSE_LIBFUZZER
 * Without it a driver (made_up.h) makes the bytes up, or replays the files that it is given:
 *
 *     fuzz                                    a few random inputs, always the same
 *     fuzz FILE ...                           each file as one input
 *     fuzz --for SECONDS SEED KEPT FILE ...   the files, then changed copies of them and random inputs; the one
 *                                             that fails is kept as KEPT
 */
#define IDS 8192u /* more than the segments of a table hold that come from the heap */
#include "stream.h"

/* Letters stand more than once so that streams grow, and so that clearing is rare. */
static const char letters[] =
    "ppppppnnniiTTTTTTxttddgggghkbbyyssSroowwwllllffffPPPPMDEEZqjmm+++LLKcBBBBBBXXFvaaAeeeWWWWR";

static lapse_config choose_config(source *from) {
    lapse_config config = {.mode = (lapse_mode)choose(from, 3), .own_clock = true};
    config.default_ttl = choose(from, 4) ? ROUND_TIME * (1 + (int64_t)choose(from, 50)) : LAPSE_NEVER;
    config.max_lifetime = config.mode == LAPSE_SLIDING && choose(from, 2) ? 5000 : LAPSE_NEVER;
    config.early_factor = config.mode == LAPSE_PROBABILISTIC ? choose(from, 11) / 10.0 : 0;
    config.locked_reads = choose(from, 4) == 0;
    config.seed = choose(from, 256);
    config.beta = choose(from, 3);
    config.grace = ROUND_TIME * (int64_t)choose(from, 12);
    config.jitter = choose(from, 4) ? 0 : 0.3;
    uint32_t policy = choose(from, 4);
    config.lru = policy == 0;
    config.duel = policy == 1;
    config.max_entries = policy < 2 ? 1 + choose(from, choose(from, 2) ? 8 : 2000) : 0;
    return config;
}

static void play(source *from) {
    lapse_config config = choose_config(from);
    flavour f = (flavour)choose(from, 4);
    world *w = world_new(&config, f, choose(from, 2));
    w->among_few = choose(from, 4) > 0;
    if (choose(from, 2)) world_step(w, from, "K");
    for (uint32_t n = 0; from->at < from->size; n++) {
        world_step(w, from, letters);
        if (n < 50 || n % 200 == 0) world_check(w);
    }
    world_free(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    source from = {.data = data, .size = size};
    play(&from);
    return 0;
}

#ifndef LAPSE_LIBFUZZER
#  include "made_up.h"

int main(int argc, char **argv) {
    test_name = "fuzz";
    if (argc >= 5 && strcmp(argv[1], "--for") == 0) return play_for(argc - 2, argv + 2);
    if (argc == 1) RUN(test_made_up_streams);
    for (int i = 1; i < argc; i++) replay(argv[i]);
    return tests_done();
}
#endif
