/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP: what the kernel's socket tells, and how a record is filled from it. Bytes and segments are its own counters. */
#ifndef SOCKEYE_CONNECTION_H
#define SOCKEYE_CONNECTION_H

static __always_inline void map_v4(__u8 *to, __be32 addr)
{
	__u32 *words = (__u32 *)to;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = addr;
}

static __always_inline void copy16(__u8 *to, const void *from)
{
	((__u64 *)to)[0] = ((const __u64 *)from)[0];
	((__u64 *)to)[1] = ((const __u64 *)from)[1];
}

static __always_inline bool same16(const void *a, const void *b)
{
	const __u64 *x = a, *y = b;

	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline void read_addresses(__u8 *local, __u8 *remote, struct sock *sk)
{
	if (sk->__sk_common.skc_family == AF_INET6) {
		BPF_CORE_READ_INTO((struct in6_addr_k *)local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO((struct in6_addr_k *)remote, sk, __sk_common.skc_v6_daddr);
	} else {
		map_v4(local, sk->__sk_common.skc_rcv_saddr);
		map_v4(remote, sk->__sk_common.skc_daddr);
	}
}

/* inet_sport outlives skc_num, which is 0 once the port was given back. */
static __always_inline __u16 local_port(struct sock *sk, struct tcp_sock *tp)
{
	return bpf_ntohs(tp ? tp->inet_conn.icsk_inet.inet_sport : BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
}

/* The socket's 5-tuple. */
static __always_inline void read_tuple(struct se_flow *f, struct sock *sk, struct tcp_sock *tp)
{
	f->local_port = local_port(sk, tp);
	f->remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	read_addresses(f->local_addr, f->remote_addr, sk);
}

/* What the filter says of a connection. */
static __always_inline int judge_connection(struct sock *sk)
{
	__u64 local[2], remote[2];

	if (!(filter_flags() & ~SE_FILTER_EVER))
		return SE_WANTED;
	read_addresses((__u8 *)local, (__u8 *)remote, sk);
	return judge((__u8 *)local, (__u8 *)remote, local_port(sk, bpf_skc_to_tcp_sock(sk)),
		     bpf_ntohs(sk->__sk_common.skc_dport), true);
}

static __always_inline void leave_out(struct se_sock *s)
{
	s->over = SE_LEFT_OUT;
	s->judged_by = filter_number();
}

static __always_inline void count_ignored_tcp(void)
{
	struct se_stats *st = stats();

	if (st)
		count(&st->ignored_tcp);
}

/* The first sequence number that bytes_acked includes, and the peer's initial one. */
static __always_inline void read_begin(struct tcp_sock *tp, __u32 *seq_local, __u32 *seq_remote)
{
	*seq_local = tp->snd_una - (__u32)tp->bytes_acked;
	*seq_remote = tp->rcv_nxt - (__u32)tp->bytes_received - 1;
}

/*
 * Keeps them for the life of the connection: they are its name in user space, and a scan that looks while another CPU is
 * between the two numbers of a difference (tcp_snd_una_update, tcp_rcv_nxt_update) would make up another connection.
 */
static __always_inline void note_begin(struct se_sock *s, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp)
		return;
	read_begin(tp, &s->seq_local, &s->seq_remote);
	/* A SYN is acknowledged at once, so it tells of the network; a SYN-ACK when the client likes. */
	s->acked_end = tp->snd_una - ((s->flags & SE_ROLE_MASK) == SE_INITIATOR);
}

static __always_inline __u16 at_most_u16(__u32 n)
{
	return n < 0xffff ? n : 0xffff;
}

/*
 * bytes_acked counts sequence numbers: the SYN of the side that connected, and a FIN once it is acknowledged
 * (net/ipv4/tcp_input.c, tcp_snd_una_update). A FIN takes the last number of write_seq (tcp_send_fin). bytes_received
 * counts the peer's FIN, after which tcp_fin() has set SOCK_DONE. The SYN stays in: only user space may learn the role
 * of a socket that is older than the agent.
 */
static __always_inline void read_counters(struct se_flow *f, const struct se_sock *s, struct sock *sk,
					  struct tcp_sock *tp)
{
	__u64 acked = tp->bytes_acked, received = tp->bytes_received;

	f->seq_local = s->seq_local;
	f->seq_remote = s->seq_remote;
	if (!(s->seq_local | s->seq_remote))
		read_begin(tp, &f->seq_local, &f->seq_remote);
	f->bytes_sent = acked - (acked && fin_may_be_acked(f->state) && tp->snd_una == tp->write_seq);
	f->bytes_received = received - (received && (sk->__sk_common.skc_flags >> SOCK_DONE & 1));
	f->segs_out = tp->segs_out;
	f->segs_in = tp->segs_in;
	f->retrans = tp->total_retrans;
	f->out_of_order = tp->rcv_ooopack;
	read_smooth(f, s, tp);
	f->window_local = at_most_u16(tp->rcv_wnd);
	f->window_remote = at_most_u16(tp->max_window);
	/* Three letters; the byte of the traits is filled after this. */
	*(__u32 *)f->congestion = *(const __u32 *)tp->inet_conn.icsk_ca_ops->name & bpf_htonl(0xffffff00);
}

static __always_inline __u32 age_of(__u64 ns)
{
	__u64 us = ns / 1000;

	return us < SE_AGE_MS ? us : SE_AGE_MS | (us / 1000);
}

static __always_inline void fill_flow(struct se_flow *f, __u8 kind, __u8 state, const struct se_sock *s,
				      struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	f->kind = kind;
	f->flags = s->flags;
	f->state = state;
	f->error = sk->sk_err;
	f->pid = s->pid;
	f->start_ticks = s->start_ticks;
	f->cookie = s->cookie;
	f->at_ns = bpf_ktime_get_boot_ns();
	f->age = s->opened_ns ? age_of(f->at_ns - s->opened_ns) : 0;
	read_tuple(f, sk, tp);
	f->netns = sk->__sk_common.skc_net.net->ns.inum;
	*(__u32 *)f->congestion = 0;
	if (tp)
		read_counters(f, s, sk, tp);
	f->traits = s->traits;
}

/* Round-trip samples of a connection that goes on. */
static __always_inline void flush_rtt(struct se_sock *s, struct sock *sk)
{
	struct se_rtt *r = reserve(SE_RTT, sizeof(*r));

	if (r) {
		r->kind = SE_RTT;
		r->count = s->rtt_count;
		r->flags = s->flags;
		r->pad0 = 0;
		r->pid = s->pid;
		r->start_ticks = s->start_ticks;
		r->seq_local = s->seq_local;
		r->cookie = s->cookie;
		if (sk->__sk_common.skc_family == AF_INET6)
			BPF_CORE_READ_INTO((struct in6_addr_k *)r->remote_addr, sk, __sk_common.skc_v6_daddr);
		else
			map_v4(r->remote_addr, sk->__sk_common.skc_daddr);
		__builtin_memcpy(r->samples_us, s->rtt_us, sizeof(r->samples_us));
		submit(r);
	}
	s->rtt_count = 0;
}

static __always_inline void begin(struct se_sock *s, struct sock *sk, __u8 flags)
{
	s->cookie = bpf_get_socket_cookie(sk);
	s->flags = flags;
	s->owner_changes = 0;
	s->rtt_count = 0;
	s->delivered = 0;
	s->over = SE_GOES_ON;
	s->traits &= SE_DEFERS; /* of its listener */
	s->smooth = SE_SMOOTH_UNSURE;
	s->scanned = 0;
	s->seq_local = 0;
	s->seq_remote = 0;
	s->opened_ns = bpf_ktime_get_boot_ns();
}

static __always_inline void set_owner(struct se_sock *s, const struct se_owner *owner)
{
	s->pid = owner->pid;
	s->start_ticks = owner->start_ticks;
	s->flags = (s->flags & ~SE_EXEC_MASK) | SE_OWNER_CONFIRMED | owner->exec;
}

/*
 * On which side a connection is of which the beginning was not seen. An accepted socket is a copy of its listener (sk_clone_lock), with
 * the length of the queue that listen() was given, and without the mark that bind() was given a port.
 */
static __always_inline __u8 older_role(struct sock *sk)
{
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_userlocks) & SOCK_BINDPORT_LOCK)
		return SE_INITIATOR;
	return sk->sk_max_ack_backlog ? SE_RESPONDER : SE_ROLE_UNKNOWN;
}

#endif
