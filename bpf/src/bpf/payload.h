/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The little payload that is read: copies of the beginnings of messages, bounded for each CPU and second. */
#ifndef SOCKEYE_PAYLOAD_H
#define SOCKEYE_PAYLOAD_H

/* Messages that one CPU copies in a second. */
#define SE_PAYLOAD_BUDGET 4096
#define SE_PAYLOAD_MAX 2048

struct se_payload_second {
	__u64 second;
	__u64 used;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct se_payload_second);
} se_payload_seconds SEC(".maps");

struct tcp_header {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack;
	__u8 offset; /* of the data, in 4 bytes, in the upper half */
	__u8 flags;
	__be16 window;
	__be16 check;
	__be16 urgent;
};

/* A message on its way. */
struct se_message {
	__u8 remote_addr[16];
	__u32 at;    /* of it in the packet */
	__u32 bytes; /* of it */
	__u16 local_port;
	__u16 most; /* bytes that are copied */
	__u8 kind;
	__u8 sent;
	__u8 is_tcp;
};

/* Whoever asks without end does not fill the rings, and not user space's time. */
static __always_inline bool is_within_budget(void *ring)
{
	__u64 second = bpf_ktime_get_coarse_ns() >> 30;
	struct se_payload_second *b;
	__u32 zero = 0;

	b = bpf_map_lookup_elem(&se_payload_seconds, &zero);
	if (!b)
		return false;
	if (b->second != second) {
		b->second = second;
		b->used = 0;
	}
	if (b->used >= SE_PAYLOAD_BUDGET)
		return false;
	b->used++;
	return bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) * 2 < bpf_ringbuf_query(ring, BPF_RB_RING_SIZE);
}

static __always_inline void fill_payload(struct se_payload *d, const struct se_message *m, const struct se_sock *s)
{
	d->kind = m->kind;
	d->sent = m->sent;
	d->flags = s->flags;
	d->is_tcp = m->is_tcp;
	d->pid = s->pid;
	d->at_ns = bpf_ktime_get_boot_ns();
	d->cookie = s->cookie;
	d->start_ticks = s->start_ticks;
	d->netns = s->netns;
	copy16(d->remote_addr, m->remote_addr);
	d->local_port = m->local_port;
	d->copied = 0;
	d->bytes = m->bytes;
}

/* A record with room for `size` bytes, a power of two. 6.1 wants the length bounded from below. */
#define SE_COPY_MESSAGE(size)                                                                                          \
	({                                                                                                             \
		struct se_payload *d = offer_in(ring, st, m->kind == SE_DNS, sizeof(struct se_payload) + (size));      \
		if (d) {                                                                                               \
			fill_payload(d, m, s);                                                                         \
			n = ((n - 1) & ((size)-1)) + 1;                                                                \
			if (!bpf_skb_load_bytes(skb, m->at, (void *)(d + 1), n))                                       \
				d->copied = n;                                                                         \
			submit(d);                                                                                     \
		}                                                                                                      \
	})

static __always_inline void *offer_in(void *ring, struct se_stats *st, bool is_dns, const __u64 bytes)
{
	void *record = bpf_ringbuf_reserve(ring, bytes, 0);

	/* Apart, for 6.1: an index that is not constant must be proved. */
	if (is_dns) {
		count(&st->offered[SE_DNS]);
		if (!record)
			count(&st->lost[SE_DNS]);
	} else {
		count(&st->offered[SE_HELLO]);
		if (!record)
			count(&st->lost[SE_HELLO]);
	}
	return record;
}

static __noinline int copy_message(struct __sk_buff *skb, const struct se_message *m, const struct se_sock *s)
{
	__u32 cpu = bpf_get_smp_processor_id(), n;
	struct se_stats *st = stats();
	void *ring;

	if (!st || !m || !s)
		return 0;
	ring = bpf_map_lookup_elem(&se_rings, &cpu);
	if (!ring)
		return 0;
	if (!is_within_budget(ring)) {
		count(m->kind == SE_DNS ? &st->dns_left_out : &st->hellos_left_out);
		return 0;
	}
	n = m->bytes < m->most ? m->bytes : m->most;
	if (n <= 128) {
		SE_COPY_MESSAGE(128);
	} else if (n <= 512) {
		SE_COPY_MESSAGE(512);
	} else if (n <= 1024) {
		SE_COPY_MESSAGE(1024);
	} else {
		SE_COPY_MESSAGE(SE_PAYLOAD_MAX);
	}
	return 0;
}

/* Where the data of a segment begins, or 0. Fills addresses. */
static __always_inline __u32 find_data(struct __sk_buff *skb, struct se_message *m)
{
	struct tcp_header tcp;
	__u32 at;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct ip4_header ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return 0;
		at = (ip.version_ihl & 0x0f) * 4;
		map_v4(m->remote_addr, m->sent ? ip.daddr : ip.saddr);
	} else {
		struct ip6_header ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.next != IPPROTO_TCP)
			return 0;
		at = sizeof(ip);
		copy16(m->remote_addr, m->sent ? ip.daddr : ip.saddr);
	}
	if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)))
		return 0;
	m->local_port = bpf_ntohs(m->sent ? tcp.source : tcp.dest);
	return at + (tcp.offset >> 4) * 4;
}

#endif
