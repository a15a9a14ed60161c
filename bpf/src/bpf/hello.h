/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The first data of clients, where the operator wants it: it names whom they mean (TLS, HTTP, QUIC). */
#ifndef SOCKEYE_HELLO_H
#define SOCKEYE_HELLO_H

/* Segments that are looked at. The one that is being sent is counted already, and a hello may take two. */
#define SE_HELLO_SEGMENTS 2
#define SE_HELLO_HEAD 6
#define SE_QUIC_PORT 443
/* Shortest datagram with the beginning of a connection (RFC 9000, section 14.1). */
#define SE_QUIC_INITIAL 1200

/* Set by the loader. */
const volatile __u8 se_hello_wanted;

/* Whether a client's data begins like a ClientHello of TLS, or like a request of HTTP. */
static __always_inline bool is_hello(const __u8 *head)
{
	__u32 word = (__u32)head[0] << 24 | (__u32)head[1] << 16 | (__u32)head[2] << 8 | head[3];

	if (head[0] == 22 && head[1] == 3)
		return head[5] == 1;
	switch (word) {
	case 0x47455420: /* "GET " */
	case 0x504f5354: /* "POST" */
	case 0x48454144: /* "HEAD" */
	case 0x50555420: /* "PUT " */
	case 0x44454c45: /* "DELE" */
	case 0x4f505449: /* "OPTI" */
	case 0x434f4e4e: /* "CONN" */
	case 0x50415443: /* "PATC" */
		return true;
	}
	return false;
}

/* A segment that is sent. */
static __always_inline void on_hello_segment(struct __sk_buff *skb)
{
	struct se_message m = { .sent = 1, .is_tcp = 1, .kind = SE_HELLO, .most = SE_PAYLOAD_MAX };
	struct bpf_sock *sk = skb->sk;
	__u8 head[SE_HELLO_HEAD];
	struct bpf_tcp_sock *tp;
	struct se_sock *s;

	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	tp = sk ? bpf_tcp_sock(sk) : NULL;
	if (!tp || !tp->data_segs_out || tp->data_segs_out > SE_HELLO_SEGMENTS)
		return;
	m.at = find_data(skb, &m);
	if (!m.at || m.at + sizeof(head) > skb->len || bpf_skb_load_bytes(skb, m.at, head, sizeof(head)) ||
	    !is_hello(head))
		return;
	s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	if (!s)
		return;
	m.bytes = skb->len - m.at;
	copy_message(skb, &m, s);
}

/* A datagram that is sent: it may begin a connection of QUIC. Several may be in one packet: the first counts. */
static __always_inline void on_hello_datagram(struct __sk_buff *skb, const struct se_packet *p, const struct se_sock *s)
{
	struct se_message m = { .at = p->payload_at, .sent = 1, .kind = SE_HELLO, .most = SE_PAYLOAD_MAX };
	__u8 first;

	m.bytes = skb->gso_size && skb->gso_size < p->bytes ? skb->gso_size : p->bytes;
	if (p->key.remote_port != SE_QUIC_PORT || m.bytes < SE_QUIC_INITIAL)
		return;
	/* Long header, type 0 (version 1) or 1 (version 2). */
	if (bpf_skb_load_bytes(skb, m.at, &first, sizeof(first)) || (first & 0xe0) != 0xc0)
		return;
	copy16(m.remote_addr, p->key.remote_addr);
	m.local_port = p->key.local_port;
	copy_message(skb, &m, s);
}

#endif
