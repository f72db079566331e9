/* SPDX-License-Identifier: Apache-2.0
 *
 * An idle guest's sign of life: one operation a period, and nothing else.
 */
#include "probe.h"

int main(int argc, char **argv)
{
    const char *name = "idle", *collector = "127.0.0.1";
    int port = 5600;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--name")) name = argv[i + 1];
        else if (!strcmp(argv[i], "--collector")) collector = argv[i + 1];
        else if (!strcmp(argv[i], "--port")) port = atoi(argv[i + 1]);
        else { fprintf(stderr, "unknown option %s\n", argv[i]); return 2; }
    }
    struct probe p;
    struct timespec period = {0, PROBE_PERIOD_NS};
    probe_open(&p, name, collector, port);
    for (uint64_t operations = 0;; operations++) {
        probe_send(&p, 1, operations, 0, 0, 0);
        nanosleep(&period, NULL);
    }
}
