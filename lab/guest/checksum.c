/* SPDX-License-Identifier: Apache-2.0
 *
 * Keeps a pattern in memory and checks it throughout. Every word of a page is a function of
 * (token, page, generation, word), where the token is drawn at random at start and lives in
 * this process's RAM only. Each step checks one page whole, then writes it again with its
 * next generation, pages taken in an order that jumps about. A wrong, lost, stale or
 * repeated page is a mismatch. operations = pages checked; token_hash = hash of the token,
 * the same for as long as this is the same VM; detail = generations completed.
 */
#include "probe.h"
#include <sys/mman.h>
#include <sys/random.h>

static uint64_t token;

static inline uint64_t seed_of(uint64_t page, uint64_t generation)
{
    return mix(token ^ mix(page * 0x100000001b3ULL + generation));
}

static void write_page(uint64_t *at, uint64_t page, uint64_t generation)
{
    uint64_t x = seed_of(page, generation);
    for (size_t w = 0; w < PAGE / 8; w++)
        at[w] = x = x * 6364136223846793005ULL + w;
}

static int page_differs(const uint64_t *at, uint64_t page, uint64_t generation)
{
    uint64_t x = seed_of(page, generation), wrong = 0;
    for (size_t w = 0; w < PAGE / 8; w++) {
        x = x * 6364136223846793005ULL + w;
        wrong |= at[w] ^ x;
    }
    return wrong != 0;
}

static uint64_t token_hash(void)
{
    return mix(mix(token) ^ 0x746f6b656eULL);
}

static void keep(struct probe *p, uint64_t *base, size_t pages, uint32_t *order)
{
    uint64_t operations = 0, mismatches = 0, wrote = 0;
    uint64_t first_bad = 0;
    for (size_t i = 0; i < pages; i++) {
        write_page(base + i * (PAGE / 8), i, 0);
        if (i % 16 == 0)
            probe_send(p, 0, 0, 0, token_hash(), 0);
    }
    printf("checksum: %zu pages, token hash %016llx\n", pages, (unsigned long long)token_hash());
    fflush(stdout);
    for (uint64_t generation = 0;; generation++)
        for (size_t i = 0; i < pages; i++) {
            uint64_t page = order[i], *at = base + page * (PAGE / 8);
            if (page_differs(at, page, generation)) {
                if (!mismatches++)
                    first_bad = page;
                printf("checksum: page %llu differs in generation %llu (first %llu)\n",
                       (unsigned long long)page, (unsigned long long)generation,
                       (unsigned long long)first_bad);
                fflush(stdout);
            }
            write_page(at, page, generation + 1);
            wrote++;
            operations++;
            if (operations % 8 == 0)
                probe_send(p, 1, operations, mismatches, token_hash(), wrote / pages);
        }
}

int main(int argc, char **argv)
{
    const char *name = "checksum", *collector = "127.0.0.1";
    int port = 5600;
    size_t memory = 200;
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *k = argv[i], *v = argv[i + 1];
        if (!strcmp(k, "--name")) name = v;
        else if (!strcmp(k, "--collector")) collector = v;
        else if (!strcmp(k, "--port")) port = atoi(v);
        else if (!strcmp(k, "--memory")) memory = strtoul(v, NULL, 10);
        else { fprintf(stderr, "unknown option %s\n", k); return 2; }
    }
    size_t pages = memory * MIB / PAGE;
    uint64_t *base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *order = malloc(pages * sizeof *order);
    if (base == MAP_FAILED || !order || getrandom(&token, sizeof token, 0) != sizeof token)
        die("start");
    for (size_t i = 0; i < pages; i++)
        order[i] = (uint32_t)i;
    shuffle(order, pages, 1);
    struct probe p;
    probe_open(&p, name, collector, port);
    keep(&p, base, pages, order);
    return 0;
}
