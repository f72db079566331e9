/* SPDX-License-Identifier: Apache-2.0
 *
 * A desktop-like session: actions with think time between them, over scattered working sets and
 * files. Prepares, says so, waits for a datagram "GO <seed> <think ms>" on port 5601, and then
 * lives that session: the seed is the user, so that two seeds are two inputs.
 *
 * There are --activities things one can do. Each has a working set of its own, pages from all over
 * a heap of --heap MiB, and a few ranges of --files files of 1 MiB. The popular ones are done more
 * often (weight 1 / rank). An action touches most of its activity's pages and some of the file
 * ranges, a few pages from anywhere, and computes. Contents are checked against what was written:
 * a page or a file with other bytes counts as a mismatch.
 *
 * Reports: operations = actions done, detail = microseconds spent in them (think time is not),
 * mismatches, token = hash of the heap's first words, drawn at start and kept in RAM only.
 */
#include "probe.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#define LISTEN_PORT 5601
#define FILE_PAGES (MIB / PAGE)
#define RANGE_PAGES 16
#define DIRECTORY "/var/lib/session"

struct options {
    const char *name, *collector;
    int port;
    size_t heap, files, activities, pages;
    unsigned compute_us;
};

struct session {
    const struct options *o;
    struct probe *p;
    uint8_t *heap;
    size_t heap_pages;
    uint64_t salt, random, operations, busy_us, mismatches, sink;
};

static uint64_t draw(struct session *s)
{
    return mix(s->random++);
}

/* Half of the words are random and half repeat: it compresses about as text does. */
static void write_page(uint64_t *page, uint64_t number, uint64_t salt)
{
    for (size_t w = 0; w < PAGE / 8; w++)
        page[w] = w & 1 ? number : mix(number * 512 + w + salt);
}

/* Whether a page holds what `write_page` put there, looked at in eight places. */
static int right(const volatile uint64_t *page, uint64_t number, uint64_t salt)
{
    for (size_t w = 0; w < PAGE / 8; w += PAGE / 64)
        if (page[w] != mix(number * 512 + w + salt) || page[w + 1] != number)
            return 0;
    return 1;
}

static void file_name(char *path, size_t size, size_t number)
{
    snprintf(path, size, DIRECTORY "/%03zu", number);
}

static void write_files(const struct options *o, struct probe *p)
{
    static uint64_t page[PAGE / 8];
    char path[64];
    mkdir(DIRECTORY, 0755);
    for (size_t f = 0; f < o->files; f++) {
        file_name(path, sizeof path, f);
        int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
        if (fd < 0)
            die(path);
        for (size_t n = 0; n < FILE_PAGES; n++) {
            write_page(page, f * FILE_PAGES + n, 0);
            if (write(fd, page, PAGE) != (ssize_t)PAGE)
                die(path);
        }
        close(fd);
        probe_send(p, 0, 0, 0, 0, 0);
    }
    sync();
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (fd < 0 || write(fd, "3", 1) != 1) /* so that the session reads the disk */
        die("drop_caches");
    close(fd);
}

static void prepare(struct session *s)
{
    s->heap_pages = s->o->heap * MIB / PAGE;
    if (getrandom(&s->salt, sizeof s->salt, 0) != sizeof s->salt)
        die("getrandom");
    write_files(s->o, s->p);
    s->heap = mmap(NULL, s->heap_pages * PAGE, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->heap == MAP_FAILED)
        die("mmap");
    madvise(s->heap, s->heap_pages * PAGE, MADV_NOHUGEPAGE);
    for (size_t n = 0; n < s->heap_pages; n++) {
        write_page((uint64_t *)(s->heap + n * PAGE), n, s->salt);
        if (n % 64 == 0)
            probe_send(s->p, 0, 0, 0, 0, 0);
    }
}

static void report(struct session *s, uint32_t state)
{
    probe_send(s->p, state, s->operations, s->mismatches, mix(s->salt), s->busy_us);
}

static void touch(struct session *s, size_t number)
{
    if (!right((const volatile uint64_t *)(s->heap + number * PAGE), number, s->salt))
        s->mismatches++;
}

static void read_range(struct session *s, size_t file, size_t first)
{
    static uint64_t got[RANGE_PAGES][PAGE / 8];
    char path[64];
    file_name(path, sizeof path, file);
    int fd = open(path, O_RDONLY);
    if (fd < 0 || pread(fd, got, sizeof got, (off_t)(first * PAGE)) != (ssize_t)sizeof got)
        s->mismatches++;
    else
        for (size_t n = 0; n < RANGE_PAGES; n++)
            s->mismatches += !right(got[n], file * FILE_PAGES + first + n, 0);
    if (fd >= 0)
        close(fd);
}

static void act(struct session *s, size_t activity)
{
    const struct options *o = s->o;
    uint64_t own = mix(activity + 1000003);
    for (size_t i = 0; i < o->pages; i++)
        if (draw(s) % 10) /* most of its working set, not always all */
            touch(s, mix(own + i) % s->heap_pages);
    for (size_t i = 0; i < 4; i++)
        touch(s, draw(s) % s->heap_pages);
    for (size_t i = 0; i < 2; i++) {
        uint64_t range = mix(own + 7777 + draw(s) % 4);
        read_range(s, range % o->files, (range >> 32) % (FILE_PAGES / RANGE_PAGES) * RANGE_PAGES);
    }
    uint64_t until = now_ns() + o->compute_us * 1000ULL;
    while (now_ns() < until)
        for (int i = 0; i < 1000; i++)
            s->sink = mix(s->sink);
}

/* An activity, the one of rank r drawn with weight 1 / r. */
static size_t choose(struct session *s)
{
    double total = 0, at;
    for (size_t r = 1; r <= s->o->activities; r++)
        total += 1.0 / (double)r;
    at = (double)(draw(s) >> 11) / 9007199254740992.0 * total;
    for (size_t r = 1; r < s->o->activities; r++)
        if ((at -= 1.0 / (double)r) < 0)
            return r - 1;
    return s->o->activities - 1;
}

/* Between a half and one and a half times `think_ms`, with a report every period. */
static void think(struct session *s, unsigned think_ms)
{
    uint64_t until = now_ns() + (think_ms / 2 + draw(s) % (think_ms + 1)) * 1000000ULL;
    while (now_ns() < until) {
        report(s, 1);
        struct timespec nap = {0, PROBE_PERIOD_NS};
        nanosleep(&nap, NULL);
    }
}

static int listening(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(LISTEN_PORT)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) < 0)
        die("listen");
    return fd;
}

/* Says that it is ready (state 0, detail 1) until a session is asked for. */
static unsigned wait_for_user(struct session *s, int fd)
{
    for (;;) {
        char text[64] = "";
        unsigned long long seed;
        unsigned think_ms;
        struct pollfd wait = {fd, POLLIN, 0};
        probe_send(s->p, 0, 0, s->mismatches, mix(s->salt), 1);
        if (poll(&wait, 1, 20) <= 0 || recv(fd, text, sizeof text - 1, 0) <= 0)
            continue;
        if (sscanf(text, "GO %llu %u", &seed, &think_ms) == 2) {
            s->random = mix(seed);
            return think_ms;
        }
    }
}

int main(int argc, char **argv)
{
    struct options o = {"session", "127.0.0.1", 5600, 200, 48, 40, 300, 20000};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *k = argv[i], *v = argv[i + 1];
        if (!strcmp(k, "--name")) o.name = v;
        else if (!strcmp(k, "--collector")) o.collector = v;
        else if (!strcmp(k, "--port")) o.port = atoi(v);
        else if (!strcmp(k, "--heap")) o.heap = strtoul(v, NULL, 10);
        else if (!strcmp(k, "--files")) o.files = strtoul(v, NULL, 10);
        else if (!strcmp(k, "--activities")) o.activities = strtoul(v, NULL, 10);
        else if (!strcmp(k, "--pages")) o.pages = strtoul(v, NULL, 10);
        else if (!strcmp(k, "--compute")) o.compute_us = (unsigned)atoi(v);
        else { fprintf(stderr, "unknown option %s\n", k); return 2; }
    }
    struct probe p;
    struct session s = {.o = &o, .p = &p};
    probe_open(&p, o.name, o.collector, o.port);
    int fd = listening();
    prepare(&s);
    printf("session: ready\n");
    fflush(stdout);
    unsigned think_ms = wait_for_user(&s, fd);
    for (;;) {
        uint64_t began = now_ns();
        act(&s, choose(&s));
        s.busy_us += (now_ns() - began) / 1000;
        s.operations++;
        p.next_ns = 0; /* an action's end is told at once */
        report(&s, 1);
        think(&s, think_ms);
    }
}
