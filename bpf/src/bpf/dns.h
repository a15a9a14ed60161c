/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* DNS: what client sockets ask, and what they are told. The one payload that is read unless the operator wants more, or less. */
#ifndef SOCKEYE_DNS_H
#define SOCKEYE_DNS_H

#define SE_DNS_PORT 53
#define SE_DNS_HEADER 12 /* RFC 1035, section 4.1.1 */
/* Messages that one CPU copies in a second. */
#define SE_DNS_BUDGET 4096
/* Data segments of a TCP connection in each direction that are looked at: the length may come in one of its own. */
#define SE_DNS_SEGMENTS 2

/* Set by the loader. */
const volatile __u8 se_dns_wanted;

struct se_dns_second {
	__u64 second;
	__u64 used;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct se_dns_second);
} se_dns_seconds SEC(".maps");

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
	__u8 sent;
	__u8 is_tcp;
};

/* Whoever asks without end does not fill the rings, and not user space's time. */
static __always_inline bool is_within_budget(void *ring)
{
	__u64 second = bpf_ktime_get_coarse_ns() >> 30;
	struct se_dns_second *b;
	__u32 zero = 0;

	b = bpf_map_lookup_elem(&se_dns_seconds, &zero);
	if (!b)
		return false;
	if (b->second != second) {
		b->second = second;
		b->used = 0;
	}
	if (b->used >= SE_DNS_BUDGET)
		return false;
	b->used++;
	return bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) * 2 < bpf_ringbuf_query(ring, BPF_RB_RING_SIZE);
}

static __always_inline void fill_dns(struct se_dns *d, const struct se_message *m, const struct se_sock *s)
{
	d->kind = SE_DNS;
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
#define SE_COPY_MESSAGE(size)                                                                              \
	({                                                                                                 \
		struct se_dns *d = offer_in(ring, st, SE_DNS, sizeof(struct se_dns) + (size));             \
		if (d) {                                                                                   \
			fill_dns(d, m, s);                                                                 \
			n = ((n - 1) & ((size) - 1)) + 1;                                                  \
			if (!bpf_skb_load_bytes(skb, m->at, (void *)(d + 1), n))                           \
				d->copied = n;                                                             \
			submit(d);                                                                         \
		}                                                                                          \
	})

static __always_inline void *offer_in(void *ring, struct se_stats *st, enum se_kind kind, const __u64 bytes)
{
	void *record;

	count(&st->offered[kind]);
	record = bpf_ringbuf_reserve(ring, bytes, 0);
	if (!record)
		count(&st->lost[kind]);
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
		count(&st->dns_left_out);
		return 0;
	}
	n = m->bytes;
	if (n <= 128) {
		SE_COPY_MESSAGE(128);
	} else if (n <= 512) {
		SE_COPY_MESSAGE(512);
	} else {
		n = n < 1024 ? n : 1024;
		SE_COPY_MESSAGE(1024);
	}
	return 0;
}

/* A datagram of a client's socket: its packet has been counted. */
static __always_inline void on_dns_datagram(struct __sk_buff *skb, const struct se_packet *p, const struct se_sock *s)
{
	struct se_message m = { .at = p->payload_at, .bytes = p->bytes, .sent = p->sent };

	if (p->key.remote_port != SE_DNS_PORT || p->bytes < SE_DNS_HEADER)
		return;
	copy16(m.remote_addr, p->key.remote_addr);
	m.local_port = p->key.local_port;
	copy_message(skb, &m, s);
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

/* Segments pay for this with a look at their socket's port. */
static __always_inline void on_dns_segment(struct __sk_buff *skb, bool sent)
{
	struct se_message m = { .sent = sent, .is_tcp = 1 };
	struct bpf_sock *sk = skb->sk;
	struct bpf_tcp_sock *tp;
	struct se_sock *s;

	if (!sk || sk->dst_port != bpf_htons(SE_DNS_PORT))
		return;
	sk = bpf_sk_fullsock(sk);
	tp = sk ? bpf_tcp_sock(sk) : NULL;
	if (!tp || (sent ? tp->data_segs_out : tp->data_segs_in) > SE_DNS_SEGMENTS)
		return;
	s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	if (!s)
		return;
	m.at = find_data(skb, &m);
	if (!m.at || m.at >= skb->len)
		return;
	m.bytes = skb->len - m.at;
	copy_message(skb, &m, s);
}

#endif
