/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* UDP: who uses a socket, and what each of its peers sent and received. */
#ifndef SOCKEYE_UDP_H
#define SOCKEYE_UDP_H

#define SE_V6_EXTENSIONS_MAX 4
/* include/uapi/linux/if_packet.h. LOOPBACK is what the host's own sockets get of what it sends to a group. */
#define SE_PACKET_BROADCAST 1
#define SE_PACKET_MULTICAST 2
#define SE_PACKET_LOOPBACK 5

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

/* Bytes of the packet where they lie, if they are in one piece, else a copy of them. NULL: there are not as many. */
static __always_inline const void *peek(struct __sk_buff *skb, const __u32 at, void *copy, const __u32 bytes)
{
	const void *from = (void *)(long)skb->data + at, *end = (void *)(long)skb->data_end;

	if (from + bytes <= end)
		return from;
	return bpf_skb_load_bytes(skb, at, copy, bytes) ? NULL : copy;
}

/* Length of the IP headers, or 0 when the packet is not UDP, or -1 when it cannot be read. Fills addresses. */
static __always_inline int parse_ip4(struct __sk_buff *skb, struct se_packet *p)
{
	struct ip4_header copy;
	const struct ip4_header *ip = peek(skb, 0, &copy, sizeof(copy));

	if (!ip)
		return -1;
	if (ip->protocol != IPPROTO_UDP)
		return 0;
	map_v4(p->key.local_addr, p->sent ? ip->saddr : ip->daddr);
	map_v4(p->key.remote_addr, p->sent ? ip->daddr : ip->saddr);
	return (ip->version_ihl & 0x0f) * 4;
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
	const struct udp_header *udp;
	struct udp_header copy;
	int at;

	at = skb->protocol == bpf_htons(ETH_P_IP) ? parse_ip4(skb, p) : parse_ip6(skb, p);
	if (at <= 0)
		return at;
	/* Without options and extensions, as nearly always. */
	if (at == sizeof(struct ip4_header))
		udp = peek(skb, sizeof(struct ip4_header), &copy, sizeof(copy));
	else if (at == sizeof(struct ip6_header))
		udp = peek(skb, sizeof(struct ip6_header), &copy, sizeof(copy));
	else
		udp = bpf_skb_load_bytes(skb, at, &copy, sizeof(copy)) ? NULL : &copy;
	if (!udp)
		return -1;
	p->key.local_port = bpf_ntohs(p->sent ? udp->source : udp->dest);
	p->key.remote_port = bpf_ntohs(p->sent ? udp->dest : udp->source);
	p->payload_at = at + sizeof(*udp);
	p->bytes = skb->len - p->payload_at;
	p->packets = skb->gso_segs ? skb->gso_segs : 1;
	return 1;
}

/* bpf_get_current_pid_tgid() is not for these hooks before Linux 6.10. */
static __always_inline __u32 caller_pid(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, tgid);
}

/*
 * The sender runs in this hook itself: who sends is the owner, and not who made the socket. Packets of user space's sockets are
 * sent in no other context.
 */
static __always_inline void follow_sender(struct se_sock *s)
{
	struct se_owner owner;

	if (s->traits & SE_UDP_KERNEL)
		return; /* its packets are sent in any context */
	owner = current_owner(false);
	if (owner.pid)
		set_owner(s, &owner);
}

static __always_inline void add_packet(struct se_udp_value *v, const struct se_packet *p)
{
	if (p->sent) {
		__sync_fetch_and_add(&v->bytes_sent, p->bytes);
		__sync_fetch_and_add(&v->packets_sent, p->packets);
	} else {
		__sync_fetch_and_add(&v->bytes_received, p->bytes);
		__sync_fetch_and_add(&v->packets_received, p->packets);
	}
	v->last_ns = bpf_ktime_get_coarse_ns(); /* to some milliseconds, for a tenth of what an exact one costs */
}

static __always_inline void set_wire(struct se_udp_value *v, const struct se_packet *p)
{
	copy16(v->wire_local, p->wire_local);
	copy16(v->wire_remote, p->wire_remote);
	v->wire_local_port = p->wire_local_port;
	v->wire_remote_port = p->wire_remote_port;
	v->traits |= SE_UDP_TRANSLATED;
}

static __always_inline void set_udp_owner(struct se_udp_value *v, const struct se_sock *s)
{
	v->pid = s->pid;
	v->start_ticks = s->start_ticks;
	v->flags = s->flags;
}

static __always_inline void spill_packet(const struct se_packet *p, const struct se_sock *s)
{
	struct se_datagram *d = reserve(SE_DATAGRAM, sizeof(*d));

	if (!d)
		return;
	d->kind = SE_DATAGRAM;
	d->sent = p->sent;
	d->flags = s ? s->flags : 0;
	d->pad0 = 0;
	d->pid = s ? s->pid : 0;
	d->at_ns = bpf_ktime_get_boot_ns();
	d->key = p->key;
	d->start_ticks = s ? s->start_ticks : 0;
	d->packets = p->packets;
	d->bytes = p->bytes;
	submit(d);
}

/* One more packet of a socket and peer that have an entry. */
static __always_inline void account_again(struct se_udp_value *v, const struct se_packet *p, struct se_sock *s)
{
	add_packet(v, p);
	if (!p->sent)
		return;
	if (s && v->pid != s->pid)
		set_udp_owner(v, s);
	if (p->traits & SE_UDP_TRANSLATED && !(v->traits & SE_UDP_TRANSLATED))
		set_wire(v, p);
}

static __always_inline void account(struct se_packet *p, struct se_sock *s)
{
	struct se_udp_value *v, fresh = {};
	struct se_stats *st;
	__u32 zero = 0;
	void *table = bpf_map_lookup_elem(&se_udp, &zero);

	if (!table)
		return;
	v = bpf_map_lookup_elem(table, &p->key);
	/* Its program may be another one, although the process is the same: that is looked at once for each entry. */
	if (s && p->sent && (!v || caller_pid() != s->pid))
		follow_sender(s);
	if (v) {
		account_again(v, p, s);
		return;
	}
	fresh.first_ns = bpf_ktime_get_boot_ns();
	fresh.first_sent = p->sent;
	fresh.first_head = p->head;
	if (s) {
		set_udp_owner(&fresh, s);
		fresh.traits = s->traits;
	}
	if (p->traits & SE_UDP_TRANSLATED)
		set_wire(&fresh, p);
	fresh.traits |= p->traits;
	add_packet(&fresh, p);
	if (!bpf_map_update_elem(table, &p->key, &fresh, BPF_NOEXIST))
		return;
	/* Another CPU may have been faster; else the table is full. */
	v = bpf_map_lookup_elem(table, &p->key);
	if (v) {
		add_packet(v, p);
		return;
	}
	st = stats();
	if (st)
		count(&st->udp_table_full);
	spill_packet(p, s);
}

/* TCP must leave as early as possible: it pays for these hooks with every packet and gets nothing from them. */
static __always_inline bool is_tcp(struct __sk_buff *skb)
{
	const __u8 *ip = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (ip + 10 > end)
		return false; /* not in one piece: parsed with care below */
	return ip[ip[0] >> 4 == 4 ? 9 : 6] == IPPROTO_TCP;
}

/* A socket that was neither created nor found before: one of the kernel, or of a process that the agent does not see. */
static __always_inline struct se_sock *adopt(struct __sk_buff *ctx, struct bpf_sock *sk)
{
	struct sk_buff *skb;
	struct se_sock *s;
	struct sock *full;

	if (!bpf_cast_to_kern_ctx)
		return NULL; /* in which namespace it is cannot be read */
	s = track(sk);
	if (!s)
		return NULL;
	skb = bpf_cast_to_kern_ctx(ctx);
	s->flags = SE_UDP | SE_PRE_EXISTING;
	full = BPF_CORE_READ(skb, sk);
	s->traits = BPF_CORE_READ_BITFIELD_PROBED(full, sk_kern_sock) ? SE_UDP_KERNEL : 0;
	s->netns = BPF_CORE_READ(full, __sk_common.skc_net.net, ns.inum);
	s->cookie = bpf_get_socket_cookie(ctx);
	return s;
}

static __always_inline void on_packet(struct __sk_buff *skb, bool sent)
{
	struct se_packet p = { .sent = sent };
	struct bpf_sock *sk;
	struct se_stats *st;
	struct se_sock *s;
	int is_udp;

	if (is_tcp(skb)) {
		if (se_dns_wanted)
			on_dns_segment(skb, sent);
		if (se_hello_wanted && sent)
			on_hello_segment(skb);
		return;
	}
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
	look_behind(skb, sk, &p);
	if (!sent && (skb->pkt_type == SE_PACKET_BROADCAST || skb->pkt_type == SE_PACKET_MULTICAST ||
		      skb->pkt_type == SE_PACKET_LOOPBACK))
		p.traits |= SE_UDP_GROUP;
	if (filter_flags() & ~SE_FILTER_EVER &&
	    judge(p.key.local_addr, p.key.remote_addr, p.key.local_port, p.key.remote_port, false)) {
		st = stats();
		if (st)
			__sync_fetch_and_add(&st->ignored_udp, p.packets);
		return;
	}
	s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	if (!s)
		s = adopt(skb, sk);
	if (s)
		p.key.netns = s->netns;
	p.key.cookie = s ? s->cookie : bpf_get_socket_cookie(skb);
	account(&p, s);
	if (se_dns_wanted && s)
		on_dns_datagram(skb, &p, s);
	if (se_hello_wanted && s && sent)
		on_hello_datagram(skb, &p, s);
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
