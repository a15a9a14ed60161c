/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* UDP packets as their process knows them, whatever was translated in its network namespace. */
#ifndef SOCKEYE_TRANSLATION_H
#define SOCKEYE_TRANSLATION_H

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
/* include/linux/skbuff.h and uapi/linux/netfilter/nf_conntrack_common.h: sk_buff._nfct is a pointer and a state */
#define SE_NFCT_STATE 7ULL
#define SE_NFCT_REPLY 3
#define SE_IPS_NAT 0x30 /* IPS_SRC_NAT | IPS_DST_NAT */

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

/* Since Linux 6.2. */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

struct se_packet {
	struct se_udp_key key;
	__u8 wire_local[16]; /* if traits say so */
	__u8 wire_remote[16];
	__u16 wire_local_port;
	__u16 wire_remote_port;
	__u32 bytes; /* payload */
	__u32 packets;
	__u32 payload_at; /* in the packet */
	__u64 head;
	__u8 traits;
	bool sent;
};

/*
 * The address translation of this network namespace has been applied to a packet that is sent before cgroup_skb/egress runs, and
 * is undone on one that is received before cgroup_skb/ingress does. So the packet alone tells of a sender another 5-tuple
 * than its process knows.
 */
static __always_inline void set_key(struct se_packet *p, const __u8 *local, __be16 local_port, const __u8 *remote,
				    __be16 remote_port)
{
	copy16(p->wire_local, p->key.local_addr);
	copy16(p->wire_remote, p->key.remote_addr);
	p->wire_local_port = p->key.local_port;
	p->wire_remote_port = p->key.remote_port;
	copy16(p->key.local_addr, local);
	copy16(p->key.remote_addr, remote);
	p->key.local_port = bpf_ntohs(local_port);
	p->key.remote_port = bpf_ntohs(remote_port);
	p->traits |= SE_UDP_TRANSLATED;
}

static __always_inline void widen(__u8 *addr, const union nf_inet_addr *from, bool is_ip4)
{
	if (is_ip4)
		map_v4(addr, from->all[0]);
	else
		copy16(addr, from);
}

/* What the process sent, from the packet's entry in the connection tracking: state 3 and above is a reply. */
static __always_inline void untranslate(struct sk_buff *skb, struct se_packet *p, bool is_ip4)
{
	union nf_inet_addr from = {}, to = {};
	__u8 local[16], remote[16];
	__be16 from_port, to_port;
	struct nf_conn *ct;
	__u64 nfct;

	if (!bpf_core_field_exists(skb->_nfct) || !bpf_core_type_exists(struct nf_conn))
		return;
	nfct = skb->_nfct;
	ct = (void *)(nfct & ~SE_NFCT_STATE);
	if (!ct || !(BPF_CORE_READ(ct, status) & SE_IPS_NAT))
		return;
	if ((nfct & SE_NFCT_STATE) < SE_NFCT_REPLY) {
		BPF_CORE_READ_INTO(&from, ct, tuplehash[0].tuple.src.u3);
		BPF_CORE_READ_INTO(&to, ct, tuplehash[0].tuple.dst.u3);
		from_port = BPF_CORE_READ(ct, tuplehash[0].tuple.src.u.all);
		to_port = BPF_CORE_READ(ct, tuplehash[0].tuple.dst.u.all);
	} else {
		BPF_CORE_READ_INTO(&from, ct, tuplehash[1].tuple.src.u3);
		BPF_CORE_READ_INTO(&to, ct, tuplehash[1].tuple.dst.u3);
		from_port = BPF_CORE_READ(ct, tuplehash[1].tuple.src.u.all);
		to_port = BPF_CORE_READ(ct, tuplehash[1].tuple.dst.u.all);
	}
	widen(local, &from, is_ip4);
	widen(remote, &to, is_ip4);
	set_key(p, local, from_port, remote, to_port);
}

/* The same before Linux 6.2, where a program cannot look behind __sk_buff: a connected socket knows its peer. */
static __always_inline void untranslate_connected(struct bpf_sock *sk, struct se_packet *p)
{
	__u8 local[16], remote[16];

	if (!sk->dst_port)
		return;
	if (sk->family == AF_INET) {
		map_v4(local, sk->src_ip4);
		map_v4(remote, sk->dst_ip4);
	} else {
		__u32 *l = (__u32 *)local, *r = (__u32 *)remote;

		l[0] = sk->src_ip6[0];
		l[1] = sk->src_ip6[1];
		l[2] = sk->src_ip6[2];
		l[3] = sk->src_ip6[3];
		r[0] = sk->dst_ip6[0];
		r[1] = sk->dst_ip6[1];
		r[2] = sk->dst_ip6[2];
		r[3] = sk->dst_ip6[3];
	}
	if (!same16(remote, p->key.remote_addr) || bpf_ntohs(sk->dst_port) != p->key.remote_port)
		set_key(p, local, bpf_htons(sk->src_port), remote, sk->dst_port);
}

/* What __sk_buff does not show. */
static __always_inline void look_behind(struct __sk_buff *ctx, struct bpf_sock *sk, struct se_packet *p)
{
	struct sk_buff *skb;

	if (bpf_cast_to_kern_ctx) {
		skb = bpf_cast_to_kern_ctx(ctx);
		p->head = (__u64)skb->head;
		if (p->sent)
			untranslate(skb, p, ctx->protocol == bpf_htons(ETH_P_IP));
	} else if (p->sent) {
		untranslate_connected(sk, p);
	}
}

#endif
