/* SPDX-License-Identifier: Apache-2.0
 *
 * Makes this guest's free memory as fragmented as a long-lived one's: what is allocated from now
 * on gets single pages from all over RAM, in random order.
 *
 * Takes --memory MiB of single pages, gives three of four back one by one in random order, and
 * keeps the rest: a page given back cannot merge with a neighbour that is held. What was taken
 * holds zeros, so that neither the held nor the free pages make an image larger. Prints a line
 * when done, then sleeps for ever.
 */
#include "probe.h"
#include <sys/mman.h>

int main(int argc, char **argv)
{
    size_t memory = 256;
    uint64_t seed = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--memory")) memory = strtoul(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--seed")) seed = strtoull(argv[i + 1], NULL, 10);
        else { fprintf(stderr, "unknown option %s\n", argv[i]); return 2; }
    }
    size_t pages = memory * MIB / PAGE;
    uint8_t *base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                         -1, 0);
    uint32_t *order = malloc(pages * sizeof *order);
    if (base == MAP_FAILED || !order)
        die("fragment");
    madvise(base, pages * PAGE, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < pages; i++) {
        order[i] = (uint32_t)i;
        *(volatile uint8_t *)(base + i * PAGE) = 0; /* a write: a page of its own, all zeros */
    }
    shuffle(order, pages, seed);
    for (size_t i = 0; i < pages - pages / 4; i++)
        madvise(base + (size_t)order[i] * PAGE, PAGE, MADV_DONTNEED);
    printf("fragment: %zu MiB in single pages\n", memory);
    fflush(stdout);
    for (;;)
        pause();
}
