/* The driver of fuzz.c where there is no libFuzzer: inputs from a generator, and changed copies of kept inputs.
 *
 * It knows nothing of coverage, so what it finds it finds by number. Each input lies in `input` while it is played;
 * when the program is about to end by a signal it is written to a file first. */
#ifndef LAPSE_TEST_MADE_UP_H
#define LAPSE_TEST_MADE_UP_H

#include "test.h"

#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define MOST_BYTES 60000u
#define MOST_KEPT 1000u /* inputs to change */
#define MOST_CHANGES 4u /* of one input */
#define LONGEST_RUN 64u /* bytes that one change makes up, or repeats */
#define SLOW_SECONDS 120 /* after which an input counts as one that never ends */

static uint8_t input[MOST_BYTES];
static size_t input_size;

/* --- Kept inputs --- */

typedef struct {
    uint8_t *bytes;
    size_t size;
} kept;

static struct {
    kept inputs[MOST_KEPT];
    uint32_t n;
} corpus;

static size_t read_input(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(2);
    }
    size_t size = fread(input, 1, sizeof input, file);
    fclose(file);
    return size;
}

static void run_input(size_t size) {
    input_size = size;
    LLVMFuzzerTestOneInput(input, size);
}

static void replay(const char *path) { run_input(read_input(path)); }

static void learn(const char *path) {
    size_t size = read_input(path);
    if (size == 0 || corpus.n == MOST_KEPT) return;
    kept *one = &corpus.inputs[corpus.n++];
    *one = (kept){malloc(size), size};
    CHECK(one->bytes != NULL);
    memcpy(one->bytes, input, size);
}

static void forget_corpus(void) {
    while (corpus.n > 0) free(corpus.inputs[--corpus.n].bytes);
}

/* --- Making bytes up --- */

static void make_up_at(uint64_t *random, size_t at, size_t n) {
    for (size_t i = at; i < at + n; i++) input[i] = (uint8_t)random_word(random);
}

/* Bytes of all lengths; some inputs stay among few keys by repeating few bytes. */
static size_t make_up(uint64_t *random, uint32_t round) {
    uint32_t size = random_below(random, round % 8 ? 4000 : MOST_BYTES) + 1;
    uint64_t mask = round % 3 ? UINT64_MAX : random_word(random) | random_word(random);
    for (uint32_t i = 0; i < size; i++) input[i] = (uint8_t)(random_word(random) & mask);
    return size;
}

static const kept *any_kept(uint64_t *random) { return &corpus.inputs[random_below(random, corpus.n)]; }

/* Open a gap of n bytes, as far as there is room: how many there are. */
static size_t open_gap(size_t size, size_t at, size_t n) {
    if (n > MOST_BYTES - size) n = MOST_BYTES - size;
    memmove(input + at + n, input + at, size - at);
    return n;
}

/* Change the input at one place: its new size. */
static size_t change(uint64_t *random, size_t size) {
    size_t at = random_below(random, (uint32_t)size), n = 1 + random_below(random, LONGEST_RUN);
    size_t rest = size - at, cut = n < rest ? n : rest - 1;
    const kept *other = any_kept(random);
    switch (random_below(random, 5)) {
    case 0: make_up_at(random, at, cut); return size;
    case 1: /* remove */ memmove(input + at, input + at + cut, rest - cut); return size - cut;
    case 2: /* insert */
        n = open_gap(size, at, n);
        make_up_at(random, at, n);
        return size + n;
    case 3: /* repeat */ n = open_gap(size, at, cut); return size + n;
    default: /* go on as another one does */
        n = other->size < MOST_BYTES - at ? other->size : MOST_BYTES - at;
        n -= random_below(random, (uint32_t)n);
        memcpy(input + at, other->bytes + other->size - n, n);
        return at + n;
    }
}

static size_t change_kept(uint64_t *random) {
    const kept *one = any_kept(random);
    size_t size = one->size;
    memcpy(input, one->bytes, size);
    for (uint32_t n = 1 + random_below(random, MOST_CHANGES); n > 0; n--) size = change(random, size);
    return size;
}

/* --- Playing --- */

static void test_made_up_streams(void) {
    uint64_t random = 15;
    for (uint32_t round = 0; round < 60 * test_scale(); round++) run_input(make_up(&random, round));
}

static const char *kept_path;

/* Only what a handler of signals may call. */
static void keep_input(int number) {
    static const char text[] = "the input that did it has been kept\n";
    int file = open(kept_path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    bool is_kept = file >= 0 && write(file, input, input_size) == (ssize_t)input_size;
    if (is_kept && write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(2);
    signal(number, SIG_DFL);
    raise(number);
}

static void run_in_time(size_t size) {
    alarm(SLOW_SECONDS);
    run_input(size);
    alarm(0);
}

/* Arguments: seconds, seed, where to keep the input that fails, and the kept inputs. */
static int play_for(int n, char **arguments) {
    time_t end = time(NULL) + (time_t)strtol(arguments[0], NULL, 10);
    uint64_t random = strtoull(arguments[1], NULL, 10);
    kept_path = arguments[2];
    signal(SIGABRT, keep_input);
    signal(SIGALRM, keep_input);
    for (int i = 3; i < n; i++) learn(arguments[i]);
    for (uint32_t i = 0; i < corpus.n; i++) {
        memcpy(input, corpus.inputs[i].bytes, corpus.inputs[i].size);
        run_in_time(corpus.inputs[i].size);
    }
    uint32_t round = 0;
    for (; time(NULL) < end; round++) {
        bool copy = corpus.n > 0 && round % 4 > 0;
        run_in_time(copy ? change_kept(&random) : make_up(&random, round));
    }
    printf("%u executions\n", corpus.n + round);
    forget_corpus();
    return 0;
}

#endif
