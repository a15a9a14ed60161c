// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * tundelay NETNS_A NETNS_B ONE_WAY_US: a TUN device `dly0` in each of two named network namespaces, joined by a queue
 * with a delay. In place of netem where the kernel has none. Prints "up" once both devices exist.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 8192
#define PACKET_MAX 2048

struct packet {
	long due_us;
	int len;
	char data[PACKET_MAX];
};

static struct packet *queue[2];
static unsigned head[2], tail[2];

static long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static int open_tun(const char *netns)
{
	struct ifreq request = {0};
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "/run/netns/%s", netns);
	fd = open(path, O_RDONLY);
	if (fd < 0 || setns(fd, CLONE_NEWNET)) {
		perror(path);
		exit(1);
	}
	close(fd);
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	request.ifr_flags = IFF_TUN | IFF_NO_PI;
	strcpy(request.ifr_name, "dly0");
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request)) {
		perror("/dev/net/tun");
		exit(1);
	}
	return fd;
}

static long deliver_due(int fd[2])
{
	long now = now_us(), wait = 1000000;

	for (int i = 0; i < 2; i++) {
		for (; head[i] != tail[i] && queue[i][head[i] % SLOTS].due_us <= now; head[i]++) {
			struct packet *p = &queue[i][head[i] % SLOTS];

			if (write(fd[!i], p->data, p->len) < 0)
				continue; /* as a full link would */
		}
		if (head[i] != tail[i] && queue[i][head[i] % SLOTS].due_us - now < wait)
			wait = queue[i][head[i] % SLOTS].due_us - now;
	}
	return wait;
}

static void take_new(int fd[2], long delay_us)
{
	for (int i = 0; i < 2; i++)
		while (tail[i] - head[i] < SLOTS) {
			struct packet *p = &queue[i][tail[i] % SLOTS];

			p->len = read(fd[i], p->data, PACKET_MAX);
			if (p->len <= 0)
				break;
			p->due_us = now_us() + delay_us;
			tail[i]++;
		}
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: tundelay NETNS_A NETNS_B ONE_WAY_US\n");
		return 2;
	}
	int fd[2] = {open_tun(argv[1]), open_tun(argv[2])};

	prctl(PR_SET_TIMERSLACK, 1);
	prctl(PR_SET_PDEATHSIG, 9);
	queue[0] = calloc(SLOTS, sizeof(**queue));
	queue[1] = calloc(SLOTS, sizeof(**queue));
	puts("up");
	fflush(stdout);
	for (;;) {
		long wait = deliver_due(fd);
		struct pollfd polls[2] = {{fd[0], POLLIN}, {fd[1], POLLIN}};
		struct timespec timeout = {wait / 1000000, wait % 1000000 * 1000};

		ppoll(polls, 2, &timeout, NULL);
		take_new(fd, atol(argv[3]));
	}
}
