/* SPDX-License-Identifier: Apache-2.0
 *
 * What every guest program sends, and how: one UDP datagram about every 20 ms with a
 * cumulative count, so that a lost datagram costs resolution and never work.
 * Layout (big endian, 72 bytes; lab/probe.py reads it):
 *   0  char[4]  magic "NEP1"
 *   4  char[16] series name, zero padded
 *  20  u32      state: 0 preparing, 1 running
 *  24  u64      sequence number of this datagram
 *  32  u64      operations done since the program began
 *  40  u64      guest CLOCK_MONOTONIC, ns
 *  48  u64      mismatches found (0 where the program checks nothing)
 *  56  u64      hash of a token that lives in RAM only (0 where there is none)
 *  64  u64      detail: see each program
 */
#ifndef NEL_PROBE_H
#define NEL_PROBE_H

#include <arpa/inet.h>
#include <endian.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PROBE_PERIOD_NS 20000000ULL
#define PAGE 4096UL
#define MIB (1024UL * 1024UL)

struct __attribute__((packed)) probe_datagram {
    char magic[4];
    char name[16];
    uint32_t state;
    uint64_t sequence, operations, guest_ns, mismatches, token_hash, detail;
};

struct probe {
    int fd;
    uint64_t next_ns;
    struct probe_datagram out;
    uint64_t sequence;
};

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static inline void die(const char *what)
{
    perror(what);
    exit(1);
}

static void probe_open(struct probe *p, const char *name, const char *address, int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    memset(p, 0, sizeof *p);
    memcpy(p->out.magic, "NEP1", 4);
    strncpy(p->out.name, name, sizeof p->out.name);
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) {
        fprintf(stderr, "bad collector address %s\n", address);
        exit(2);
    }
    p->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (p->fd < 0 || connect(p->fd, (struct sockaddr *)&to, sizeof to) < 0)
        die("collector");
}

/* Sends if the period is over. The network may be down for a moment: errors are not ours. */
static inline void probe_send(struct probe *p, uint32_t state, uint64_t operations,
                              uint64_t mismatches, uint64_t token_hash, uint64_t detail)
{
    uint64_t now = now_ns();
    if (now < p->next_ns)
        return;
    p->next_ns = now + PROBE_PERIOD_NS;
    p->out.state = htobe32(state);
    p->out.sequence = htobe64(p->sequence++);
    p->out.operations = htobe64(operations);
    p->out.guest_ns = htobe64(now);
    p->out.mismatches = htobe64(mismatches);
    p->out.token_hash = htobe64(token_hash);
    p->out.detail = htobe64(detail);
    if (send(p->fd, &p->out, sizeof p->out, 0) < 0) { /* not ours */ }
}

static inline uint64_t mix(uint64_t x) /* splitmix64's finaliser */
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

static inline void shuffle(uint32_t *a, size_t n, uint64_t seed)
{
    for (size_t i = n; i > 1; i--) {
        size_t j = mix(seed + i) % i;
        uint32_t t = a[i - 1];
        a[i - 1] = a[j];
        a[j] = t;
    }
}

#endif
