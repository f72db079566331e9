/* SPDX-License-Identifier: Apache-2.0
 *
 * A link that takes time: two TUN devices, one in each of two network namespaces, and every
 * packet that one of them sends comes out of the other after a delay. netem does the same where
 * a kernel has it; this works on every kernel.
 *
 *   delay PID DEVICE PID DEVICE MICROSECONDS
 *
 * The namespaces are those of two processes. Prints a line when both devices are there. Packets
 * keep their order. Bandwidth is not its business: tbf on the devices holds it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define PACKETS 16384 /* on the way at once, each direction: 24 MB; what is beyond is lost */
#define LONGEST 2048

struct packet {
    uint64_t due_ns;
    uint32_t size;
    uint8_t bytes[LONGEST];
};

struct direction {
    int from, to;
    uint64_t first, last; /* packets [first, last) are on the way */
    struct packet *ring;
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static int device(const char *pid, const char *name)
{
    char path[64];
    struct ifreq wanted = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    snprintf(path, sizeof path, "/proc/%s/ns/net", pid);
    int space = open(path, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET) < 0)
        die(path);
    close(space);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    snprintf(wanted.ifr_name, sizeof wanted.ifr_name, "%s", name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &wanted) < 0)
        die(name);
    return fd;
}

static void take(struct direction *d, uint64_t delay_ns)
{
    static uint8_t lost[LONGEST];
    for (;;) {
        int full = d->last - d->first == PACKETS;
        struct packet *p = &d->ring[d->last % PACKETS];
        ssize_t size = read(d->from, full ? lost : p->bytes, LONGEST);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return; /* nothing more now, or a device that is not up yet */
        if (full)
            continue;
        p->size = (uint32_t)size;
        p->due_ns = now_ns() + delay_ns;
        d->last++;
    }
}

/* Hands over what is due; returns when the next one is, 0 for none. */
static uint64_t hand_over(struct direction *d)
{
    while (d->first < d->last) {
        struct packet *p = &d->ring[d->first % PACKETS];
        if (p->due_ns > now_ns())
            return p->due_ns;
        if (write(d->to, p->bytes, p->size) < 0 && errno == EINTR)
            continue;
        d->first++; /* a device that is down loses packets, as a cable does */
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    int one = device(argv[1], argv[2]), two = device(argv[3], argv[4]);
    uint64_t delay_ns = strtoull(argv[5], NULL, 10) * 1000;
    struct direction ways[2] = {{one, two, 0, 0, NULL}, {two, one, 0, 0, NULL}};
    if (home < 0 || setns(home, CLONE_NEWNET) < 0)
        die("setns");
    for (int n = 0; n < 2; n++)
        if (!(ways[n].ring = malloc(PACKETS * sizeof(struct packet))))
            die("malloc");
    puts("ready");
    fflush(stdout);
    struct pollfd readable[2] = {{one, POLLIN, 0}, {two, POLLIN, 0}};
    for (;;) {
        uint64_t next = 0;
        for (int n = 0; n < 2; n++) {
            take(&ways[n], delay_ns);
            uint64_t due = hand_over(&ways[n]);
            if (due && (!next || due < next))
                next = due;
        }
        uint64_t now = now_ns(), left = next > now ? next - now : 0;
        struct timespec wait = {(time_t)(left / 1000000000ULL), (long)(left % 1000000000ULL)};
        if (ppoll(readable, 2, next ? &wait : NULL, NULL) < 0 && errno != EINTR)
            die("poll");
    }
}
