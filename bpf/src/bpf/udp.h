/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* UDP: who created a socket, and what each of its peers sent and received. */
#ifndef SOCKEYE_UDP_H
#define SOCKEYE_UDP_H

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define SE_V6_EXTENSIONS_MAX 4

struct ip4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__be16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ip6_header {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 next;
	__u8 hop_limit;
	__u8 saddr[16];
	__u8 daddr[16];
};

struct udp_header {
	__be16 source;
	__be16 dest;
	__be16 len;
	__be16 check;
};

SEC("cgroup/sock_create")
int se_sock_create(struct bpf_sock *sk)
{
	struct se_owner owner;
	struct se_sock *s;

	if (sk->protocol != IPPROTO_UDP)
		return 1;
	s = track(sk);
	if (!s)
		return 1;
	owner = current_owner(false);
	s->pid = owner.pid;
	s->start_ticks = owner.start_ticks;
	s->flags = SE_UDP | SE_OWNER_CONFIRMED | owner.exec;
	s->netns = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), nsproxy, net_ns, ns.inum);
	s->cookie = bpf_get_socket_cookie(sk);
	s->opened_ns = bpf_ktime_get_boot_ns();
	return 1;
}

SEC("cgroup/sock_release")
int se_sock_release(struct bpf_sock *sk)
{
	struct se_udp_close *c;

	if (sk->protocol != IPPROTO_UDP || !bpf_sk_storage_get(&se_socks, sk, NULL, 0))
		return 1;
	c = reserve(SE_UDP_CLOSE, sizeof(*c));
	if (!c)
		return 1;
	*(__u64 *)c = SE_UDP_CLOSE;
	c->cookie = bpf_get_socket_cookie(sk);
	submit(c);
	return 1;
}

struct se_packet {
	struct se_udp_key key;
	__u32 bytes; /* payload */
	__u32 packets;
	bool sent;
};

/* Length of the IP headers, or 0 when the packet is not UDP, or -1 when it cannot be read. Fills addresses. */
static __always_inline int parse_ip4(struct __sk_buff *skb, struct se_packet *p)
{
	struct ip4_header ip;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
		return -1;
	if (ip.protocol != IPPROTO_UDP)
		return 0;
	map_v4(p->key.local_addr, p->sent ? ip.saddr : ip.daddr);
	map_v4(p->key.remote_addr, p->sent ? ip.daddr : ip.saddr);
	return (ip.version_ihl & 0x0f) * 4;
}

static __always_inline int parse_ip6(struct __sk_buff *skb, struct se_packet *p)
{
	struct ip6_header ip;
	int at = sizeof(ip);
	__u8 next;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
		return -1;
	copy16(p->key.local_addr, p->sent ? ip.saddr : ip.daddr);
	copy16(p->key.remote_addr, p->sent ? ip.daddr : ip.saddr);
	next = ip.next;
	for (int i = 0; i < SE_V6_EXTENSIONS_MAX && next != IPPROTO_UDP; i++) {
		__u8 ext[2]; /* next header, length in 8 bytes without the first 8 (RFC 8200, section 4) */

		if (next != 0 && next != 43 && next != 60)
			return 0;
		if (bpf_skb_load_bytes(skb, at, ext, sizeof(ext)))
			return -1;
		next = ext[0];
		at += (ext[1] + 1) * 8;
	}
	return next == IPPROTO_UDP ? at : 0;
}

/* 1 = a UDP packet in p, 0 = something else, -1 = unreadable. A GSO packet carries gso_segs datagrams, one header. */
static __always_inline int parse_udp(struct __sk_buff *skb, struct se_packet *p)
{
	struct udp_header udp;
	int at;

	at = skb->protocol == bpf_htons(ETH_P_IP) ? parse_ip4(skb, p) : parse_ip6(skb, p);
	if (at <= 0)
		return at;
	if (bpf_skb_load_bytes(skb, at, &udp, sizeof(udp)))
		return -1;
	p->key.local_port = bpf_ntohs(p->sent ? udp.source : udp.dest);
	p->key.remote_port = bpf_ntohs(p->sent ? udp.dest : udp.source);
	p->bytes = skb->len - at - sizeof(udp);
	p->packets = skb->gso_segs ? skb->gso_segs : 1;
	return 1;
}

static __always_inline void add_packet(struct se_udp_value *v, const struct se_packet *p, __u64 now)
{
	if (p->sent) {
		__sync_fetch_and_add(&v->bytes_sent, p->bytes);
		__sync_fetch_and_add(&v->packets_sent, p->packets);
	} else {
		__sync_fetch_and_add(&v->bytes_received, p->bytes);
		__sync_fetch_and_add(&v->packets_received, p->packets);
	}
	v->last_ns = now;
}

static __always_inline void spill_packet(const struct se_packet *p, const struct se_sock *s, __u64 now)
{
	struct se_datagram *d = reserve(SE_DATAGRAM, sizeof(*d));

	if (!d)
		return;
	d->kind = SE_DATAGRAM;
	d->sent = p->sent;
	d->flags = s ? s->flags : 0;
	d->pad0 = 0;
	d->pid = s ? s->pid : 0;
	d->at_ns = now;
	d->key = p->key;
	d->start_ticks = s ? s->start_ticks : 0;
	d->packets = p->packets;
	d->bytes = p->bytes;
	submit(d);
}

static __always_inline void account(struct se_packet *p, const struct se_sock *s)
{
	struct se_udp_value *v, fresh = {};
	__u64 now = bpf_ktime_get_boot_ns();
	struct se_stats *st;
	__u32 zero = 0;
	void *table = bpf_map_lookup_elem(&se_udp, &zero);

	if (!table)
		return;
	v = bpf_map_lookup_elem(table, &p->key);
	if (v) {
		add_packet(v, p, now);
		return;
	}
	fresh.first_ns = now;
	fresh.first_sent = p->sent;
	fresh.pid = s ? s->pid : 0;
	fresh.start_ticks = s ? s->start_ticks : 0;
	fresh.flags = s ? s->flags : 0;
	add_packet(&fresh, p, now);
	if (!bpf_map_update_elem(table, &p->key, &fresh, BPF_NOEXIST))
		return;
	/* Another CPU may have been faster; else the table is full. */
	v = bpf_map_lookup_elem(table, &p->key);
	if (v) {
		add_packet(v, p, now);
		return;
	}
	st = stats();
	if (st)
		count(&st->udp_table_full);
	spill_packet(p, s, now);
}

/* TCP must leave as early as possible: it pays for these hooks with every packet and gets nothing from them. */
static __always_inline bool is_tcp(struct __sk_buff *skb)
{
	const __u8 *ip = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (ip + 10 > end)
		return false; /* not in one piece: parsed with care below */
	return ip[ip[0] >> 4 == 4 ? 9 : 6] == IPPROTO_TCP;
}

static __always_inline void on_packet(struct __sk_buff *skb, bool sent)
{
	struct se_packet p = { .sent = sent };
	struct bpf_sock *sk;
	struct se_stats *st;
	struct se_sock *s;
	int is_udp;

	if (is_tcp(skb))
		return;
	sk = skb->sk;
	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	if (!sk || sk->protocol != IPPROTO_UDP)
		return;
	is_udp = parse_udp(skb, &p);
	if (is_udp <= 0) {
		st = stats();
		if (st)
			count(&st->udp_unparsed);
		return;
	}
	p.key.cookie = bpf_get_socket_cookie(skb);
	s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	if (s)
		p.key.netns = s->netns;
	account(&p, s);
}

SEC("cgroup_skb/egress")
int se_egress(struct __sk_buff *skb)
{
	on_packet(skb, true);
	return 1;
}

SEC("cgroup_skb/ingress")
int se_ingress(struct __sk_buff *skb)
{
	on_packet(skb, false);
	return 1;
}

#endif
