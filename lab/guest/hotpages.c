/* SPDX-License-Identifier: Apache-2.0
 *
 * A program with a known hot set. It holds --memory MiB, writes --hot MiB of them over and
 * over at a natural pace (every hot page once in about --sweep ms on a core of its own) and
 * reports the pages written as its operations. Before that it touches and frees --freed MiB.
 *
 * Layouts:
 *   scattered   4 KiB pages filled in random order; the hot pages are chosen at random, so
 *               they are scattered in virtual and in physical memory
 *   heap        the same, but the hot pages are one virtual range: only physically scattered
 *   contiguous  the hot range is 2 MiB aligned, huge pages where the kernel gives them,
 *               touched first
 * --order random (default) or turn (ascending addresses) is the order of the writes.
 * detail in the datagram: how many physically consecutive runs the hot pages form.
 */
#include "probe.h"
#include <fcntl.h>
#include <sys/mman.h>

struct options {
    const char *name, *layout, *collector;
    int port;
    size_t memory, hot, freed;
    int in_turn;
    unsigned sweep_ms;
    uint64_t seed;
};

static volatile uint64_t sink;

static inline void compute(unsigned rounds)
{
    uint64_t x = sink | 1;
    for (unsigned i = 0; i < rounds; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    sink = x;
}

/* Rounds of compute() that take `ns` here when nothing else runs: the best of many short
 * tries, so that a neighbour on the same core at start does not slow the program for good. */
static unsigned calibrate(uint64_t ns)
{
    const unsigned trial = 20000;
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 200; i++) {
        uint64_t t = now_ns();
        compute(trial);
        t = now_ns() - t;
        if (t && t < best)
            best = t;
    }
    uint64_t rounds = ns * trial / best;
    return rounds < 1 ? 1 : (unsigned)rounds;
}

static uint8_t *map(size_t bytes, int advice)
{
    const size_t huge = 2 * MIB;
    uint8_t *raw = mmap(NULL, bytes + huge, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED)
        die("mmap");
    uint8_t *aligned = (uint8_t *)(((uintptr_t)raw + huge - 1) & ~(huge - 1));
    madvise(aligned, bytes, advice);
    return aligned;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Physically consecutive runs among the hot pages; 0 if pagemap cannot be read. */
static uint64_t physical_runs(uint8_t **hot, size_t n)
{
    int fd = open("/proc/self/pagemap", O_RDONLY);
    uint64_t *frames = calloc(n, sizeof *frames), runs = 0;
    if (fd < 0 || !frames)
        return 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t entry = 0;
        if (pread(fd, &entry, 8, (off_t)((uintptr_t)hot[i] / PAGE * 8)) != 8)
            entry = 0;
        frames[i] = entry & ((1ULL << 55) - 1);
    }
    qsort(frames, n, sizeof *frames, by_value);
    for (size_t i = 0; i < n; i++)
        runs += i == 0 || frames[i] != frames[i - 1] + 1;
    free(frames);
    close(fd);
    return runs;
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void fill(uint8_t *base, size_t pages, const uint32_t *order, struct probe *p)
{
    for (size_t i = 0; i < pages; i++) {
        uint8_t *page = base + (size_t)(order ? order[i] : i) * PAGE;
        uint64_t x = mix(i);
        for (size_t w = 0; w < PAGE; w += 8)
            *(uint64_t *)(page + w) = x += w; /* no zero page: it must cross the link */
        if (i % 64 == 0)
            probe_send(p, 0, 0, 0, 0, 0);
    }
}

static uint32_t *numbers(size_t n, uint64_t seed)
{
    uint32_t *a = malloc(n * sizeof *a);
    if (!a)
        die("malloc");
    for (size_t i = 0; i < n; i++)
        a[i] = (uint32_t)i;
    if (seed)
        shuffle(a, n, seed);
    return a;
}

/* Fills memory as the layout says; returns the hot pages in the order they will be written. */
static uint8_t **prepare(const struct options *o, struct probe *p)
{
    size_t total = o->memory * MIB / PAGE, hot_pages = o->hot * MIB / PAGE;
    uint8_t **hot = malloc(hot_pages * sizeof *hot);
    uint32_t *turn = numbers(hot_pages, o->in_turn ? 0 : o->seed + 1), *pick = NULL;
    uint8_t *base;
    if (!hot)
        die("malloc");
    if (strcmp(o->layout, "contiguous") == 0) {
        base = map(hot_pages * PAGE, MADV_HUGEPAGE);
        fill(base, hot_pages, NULL, p);
        if (total > hot_pages)
            fill(map((total - hot_pages) * PAGE, MADV_NOHUGEPAGE), total - hot_pages, NULL, p);
    } else {
        uint32_t *order = numbers(total, o->seed + 2);
        base = map(total * PAGE, MADV_NOHUGEPAGE);
        fill(base, total, order, p);
        free(order);
        if (strcmp(o->layout, "scattered") == 0) {
            pick = numbers(total, o->seed + 3);
            qsort(pick, hot_pages, sizeof *pick, by_number);
        }
    }
    for (size_t i = 0; i < hot_pages; i++)
        hot[i] = base + (size_t)(pick ? pick[turn[i]] : turn[i]) * PAGE;
    free(turn);
    free(pick);
    return hot;
}

static void touch_and_free(size_t bytes, struct probe *p)
{
    if (!bytes)
        return;
    uint8_t *base = map(bytes, MADV_NOHUGEPAGE);
    fill(base, bytes / PAGE, NULL, p);
    munmap(base, bytes);
}

static void run(const struct options *o, struct probe *p, uint8_t **hot)
{
    size_t n = o->hot * MIB / PAGE;
    uint64_t operations = 0, runs = physical_runs(hot, n);
    unsigned rounds = calibrate((uint64_t)o->sweep_ms * 1000000ULL / n);
    printf("hotpages %s: %zu hot pages in %llu physical runs, %u rounds each\n", o->layout, n,
           (unsigned long long)runs, rounds);
    fflush(stdout);
    for (;;)
        for (size_t i = 0; i < n; i++) {
            *(volatile uint64_t *)(hot[i] + 8 * (operations % (PAGE / 8))) = operations;
            compute(rounds);
            operations++;
            if (operations % 32 == 0)
                probe_send(p, 1, operations, 0, 0, runs);
        }
}

int main(int argc, char **argv)
{
    struct options o = {"hotpages", "scattered", "127.0.0.1", 5600, 300, 64, 200, 0, 400, 1};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *k = argv[i], *v = argv[i + 1];
        if (!strcmp(k, "--name")) o.name = v;
        else if (!strcmp(k, "--layout")) o.layout = v;
        else if (!strcmp(k, "--collector")) o.collector = v;
        else if (!strcmp(k, "--port")) o.port = atoi(v);
        else if (!strcmp(k, "--memory")) o.memory = strtoul(v, NULL, 10);
        else if (!strcmp(k, "--hot")) o.hot = strtoul(v, NULL, 10);
        else if (!strcmp(k, "--freed")) o.freed = strtoul(v, NULL, 10);
        else if (!strcmp(k, "--order")) o.in_turn = !strcmp(v, "turn");
        else if (!strcmp(k, "--sweep")) o.sweep_ms = (unsigned)atoi(v);
        else if (!strcmp(k, "--seed")) o.seed = strtoull(v, NULL, 10);
        else { fprintf(stderr, "unknown option %s\n", k); return 2; }
    }
    if (o.hot == 0 || o.hot > o.memory) {
        fprintf(stderr, "--hot must be between 1 and --memory\n");
        return 2;
    }
    struct probe p;
    probe_open(&p, o.name, o.collector, o.port);
    uint8_t **hot = prepare(&o, &p);
    touch_and_free(o.freed * MIB, &p);
    run(&o, &p, hot);
    return 0;
}
