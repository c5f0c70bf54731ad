/* An operation stream out of bytes, against the naive map (stream.h).
 *
 * Under libFuzzer, with the C files of the table: clang -fsanitize=fuzzer,address -DLAPSE_LIBFUZZER
 * Without it a driver makes the bytes up, or replays the files that it is given:
 *
 *     fuzz              random inputs of growing length
 *     fuzz FILE ...     each file as one input
 */
#include "stream.h"

#define MOST_BYTES 60000u

/* Letters stand more than once so that streams grow, and so that clearing is rare. */
static const char letters[] = "pppppppppnnniiTTTTTTTTxttddgggghkbbyyssSroowwwllllffffPPPPMDEEq+++LLKc";

static lapse_config choose_config(source *from) {
    lapse_config config = {.mode = (lapse_mode)choose(from, 3), .own_clock = true};
    config.default_ttl = choose(from, 4) ? 1 + (int64_t)choose(from, 5000) : LAPSE_NEVER;
    config.max_lifetime = config.mode == LAPSE_SLIDING && choose(from, 2) ? 5000 : LAPSE_NEVER;
    config.early_factor = config.mode == LAPSE_PROBABILISTIC ? choose(from, 11) / 10.0 : 0;
    config.locked_reads = choose(from, 4) == 0;
    config.seed = choose(from, 256);
    return config;
}

static void play(source *from) {
    lapse_config config = choose_config(from);
    flavour f = (flavour)choose(from, 4);
    world *w = world_new(&config, f, choose(from, 2));
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
static uint8_t input[MOST_BYTES];

static void replay(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(2);
    }
    size_t size = fread(input, 1, sizeof input, file);
    fclose(file);
    LLVMFuzzerTestOneInput(input, size);
}

/* Bytes of all lengths; some inputs stay among few keys by repeating few bytes. */
static void make_up(uint64_t *random, uint32_t round) {
    uint32_t size = random_below(random, round % 8 ? 4000 : MOST_BYTES) + 1;
    uint64_t mask = round % 3 ? UINT64_MAX : random_word(random) | random_word(random);
    for (uint32_t i = 0; i < size; i++) input[i] = (uint8_t)(random_word(random) & mask);
    LLVMFuzzerTestOneInput(input, size);
}

static void test_made_up_streams(void) {
    uint64_t random = 15;
    for (uint32_t round = 0; round < 60 * test_scale(); round++) make_up(&random, round);
}

int main(int argc, char **argv) {
    test_name = "fuzz";
    if (argc == 1) RUN(test_made_up_streams);
    for (int i = 1; i < argc; i++) replay(argv[i]);
    return tests_done();
}
#endif
