/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* DNS: what client sockets ask, and what they are told. The one payload that is read unless the operator wants more, or less. */
#ifndef SOCKEYE_DNS_H
#define SOCKEYE_DNS_H

#define SE_DNS_PORT 53
#define SE_DNS_HEADER 12 /* RFC 1035, section 4.1.1 */
#define SE_DNS_MAX 1024
/* Data segments of a TCP connection in each direction that are looked at: the length may come in one of its own. */
#define SE_DNS_SEGMENTS 2

/* Set by the loader. */
const volatile __u8 se_dns_wanted;

/* A datagram of a client's socket: its packet has been counted. */
static __always_inline void on_dns_datagram(struct __sk_buff *skb, const struct se_packet *p, const struct se_sock *s)
{
	struct se_message m = {
		.at = p->payload_at, .bytes = p->bytes, .sent = p->sent, .kind = SE_DNS, .most = SE_DNS_MAX
	};

	if (p->key.remote_port != SE_DNS_PORT || p->bytes < SE_DNS_HEADER)
		return;
	copy16(m.remote_addr, p->key.remote_addr);
	m.local_port = p->key.local_port;
	copy_message(skb, &m, s);
}

/* Segments pay for this with a look at their socket's port. */
static __always_inline void on_dns_segment(struct __sk_buff *skb, bool sent)
{
	struct se_message m = { .sent = sent, .is_tcp = 1, .kind = SE_DNS, .most = SE_DNS_MAX };
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
