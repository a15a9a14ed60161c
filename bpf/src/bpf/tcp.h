/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP: life of a connection, from connect() or listen() to its close. */
#ifndef SOCKEYE_TCP_H
#define SOCKEYE_TCP_H

/*
 * connect() or listen(): the caller owns the socket. tcp_v4_connect() and inet_csk_listen_start() run in the process.
 * An open connection is not told of here: the scan finds it.
 */
static __always_inline void on_open(struct sock *sk, __u8 role)
{
	struct se_owner owner;
	struct se_sock *s;

	if (role == SE_INITIATOR && judge_connection(sk)) {
		count_ignored_tcp();
		/* It may have had another connection. */
		s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
		if (s)
			leave_out(s);
		return;
	}
	s = track(sk);
	if (!s)
		return;
	owner = current_owner(true);
	begin(s, sk, role);
	set_owner(s, &owner);
}

/*
 * A socket that connects is established when its SYN has been acknowledged. One that was restored (TCP_REPAIR, as CRIU does it)
 * has sent none: it goes on with somebody else's connection, on a side that the kernel was not told of.
 */
static __always_inline bool is_restored(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	return tp && !tp->bytes_acked;
}

/* In a sockmap the kernel keeps the state of that behind sk_user_data. */
static __always_inline __u8 bypass_trait(struct sock *sk)
{
	return (__u64)sk->sk_user_data & SK_USER_DATA_PSOCK ? SE_BYPASSED : 0;
}

/*
 * Softirq: `current` is whoever was interrupted. The owner is the one that connected, or came with the listener. One that
 * connected has been judged.
 */
static __always_inline void on_established(struct se_sock *s, struct sock *sk, bool connected)
{
	if (!connected && judge_connection(sk)) {
		leave_out(s);
		count_ignored_tcp();
		return;
	}
	if (s->over || (s->flags & SE_ROLE_MASK) != SE_INITIATOR)
		begin(s, sk, (connected ? SE_INITIATOR : SE_RESPONDER) | (s->flags & SE_EXEC_MASK));
	if (connected && is_restored(sk)) {
		s->flags &= ~SE_ROLE_MASK;
		s->traits |= SE_RESTORED;
	}
	s->traits |= bypass_trait(sk);
	note_begin(s, sk);
}

/* A connection with the state of its listener: its ESTABLISHED was missed (see se_destroy). A listener has no peer. */
static __always_inline bool is_missed(const struct se_sock *s, struct sock *sk)
{
	return (s->flags & SE_ROLE_MASK) == SE_ROLE_LISTENER && sk->__sk_common.skc_dport;
}

/*
 * Of a connection whose ESTABLISHED was missed: it never came to it. When two segments of a client that ends its handshake
 * come in on two CPUs at once, the kernel makes two sockets, and throws one away (inet_ehash_nolisten). That one has the
 * client's SYN, with which the kernel begins to count (tcp_create_openreq_child), and nothing else.
 */
static __always_inline bool was_never_open(struct tcp_sock *tp)
{
	return tp && tp->segs_in <= 1 && !tp->segs_out && !tp->bytes_received;
}

static __always_inline void fill_close(struct se_close *c, __u8 state, const struct se_sock *s, struct sock *sk)
{
	fill_flow(&c->flow, SE_CLOSE, state, s, sk);
	for (int i = 0; i < SE_CLOSE_RTT; i++)
		c->samples_us[i] = i < s->rtt_count ? s->rtt_us[i] : 0;
}

/* A close that found its ring full goes to a hash map that user space drains; only when that is full is it lost. */
static __always_inline void spill_close(__u8 state, const struct se_sock *s, struct sock *sk, struct se_stats *st)
{
	__u64 cookie = s->cookie;
	struct se_close c = {};

	fill_close(&c, state, s, sk);
	if (bpf_map_update_elem(&se_closes, &cookie, &c, BPF_NOEXIST))
		count(&st->lost[SE_CLOSE]);
	else
		count(&st->close_overflow);
}

/* The close record must not get lost: nothing could heal it. */
static __always_inline void emit_close(__u8 state, const struct se_sock *s, struct sock *sk)
{
	struct se_stats *st = stats();
	struct se_close *c;

	if (!st)
		return;
	c = offer(st, SE_CLOSE, sizeof(*c));
	if (!c) {
		spill_close(state, s, sk, st);
		return;
	}
	fill_close(c, state, s, sk);
	submit(c);
}

/*
 * The state stays until the kernel frees it with the socket: to delete it here would cost two callbacks of RCU. A socket
 * that connects again starts afresh (begin).
 */
static __always_inline void on_close(struct se_sock *s, struct sock *sk, int old)
{
	struct tcp_sock *tp;

	if (s->over)
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (is_missed(s, sk)) {
		if (was_never_open(tp))
			return;
		on_established(s, sk, false);
		if (s->over)
			return;
	}
	if ((s->flags & SE_ROLE_MASK) == SE_ROLE_LISTENER)
		return;
	if (tp)
		take_sample(s, tp, old);
	if (s->rtt_count > SE_CLOSE_RTT)
		flush_rtt(s, sk);
	emit_close(old, s, sk);
	s->over = SE_OVER;
}

/*
 * tcp_close() and tcp_shutdown(), in the process. The connection is told of as it is now, although its close will follow:
 * that often comes in a softirq, and where the kernel leaves our programs out then, a short connection would have been
 * there for nobody. Whoever closes one without an owner, because its connect was missed (see se_destroy) and nobody has
 * read from it, has it.
 */
static __always_inline void on_shut(struct sock *sk, int state)
{
	struct se_sock *s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	struct se_owner owner;
	struct se_stats *st;
	struct tcp_sock *tp;
	struct se_flow *f;

	if (!s || !sk->sk_lock.owned)
		return;
	if (s->over == SE_LEFT_OUT)
		return;
	if (is_missed(s, sk))
		on_established(s, sk, false);
	if (s->over == SE_LEFT_OUT)
		return;
	s->traits |= bypass_trait(sk);
	tp = bpf_skc_to_tcp_sock(sk);
	if (tp) {
		take_sample(s, tp, sk->__sk_common.skc_state);
		freeze_smooth(s, tp);
	}
	if (!s->pid) {
		owner = current_owner(true);
		if (owner.pid)
			set_owner(s, &owner);
	}
	f = offer_early(SE_SCAN, sizeof(*f));
	if (!f) {
		st = stats();
		if (st)
			count(&st->shut_dropped);
		return;
	}
	fill_flow(f, SE_SCAN, state, s, sk);
	submit(f);
}

/*
 * A connection of which everything was missed before its end (see se_destroy); nobody knows whose it was. NULL: it was never
 * established, or before the agent began, and is none of its. The kernel notes the time of establishment as that from which it
 * measures its reader; the first read, which sets it anew, would have been seen (se_read).
 */
static __always_inline struct se_sock *begin_at_end(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct se_sock *s;

	if (!tp || tp->rcvq_space.time < se_began_us)
		return NULL;
	s = track(sk);
	if (!s)
		return NULL;
	begin(s, sk, older_role(sk));
	s->opened_ns -= bpf_ktime_get_ns() - tp->rcvq_space.time * 1000;
	note_begin(s, sk);
	return s;
}

static __always_inline void on_end(struct sock *sk, int old)
{
	struct se_sock *s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	struct se_stats *st;

	if (!s && old != TCP_LISTEN && old != TCP_CLOSE && !judge_connection(sk)) {
		s = begin_at_end(sk);
		st = stats();
		if (!s && st)
			count(&st->untracked_close);
	}
	if (s)
		on_close(s, sk, old);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(se_set_state, struct sock *sk, int old, int new)
{
	struct se_sock *s;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	switch (new) {
	case TCP_SYN_SENT:
	case TCP_LISTEN:
		on_open(sk, new == TCP_LISTEN ? SE_ROLE_LISTENER : SE_INITIATOR);
		break;
	case TCP_ESTABLISHED:
		s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
		if (s && s->over == SE_LEFT_OUT && old == TCP_SYN_SENT)
			break;
		if (!s && judge_connection(sk)) {
			if (old != TCP_SYN_SENT)
				count_ignored_tcp();
			break;
		}
		if (!s)
			s = track(sk);
		if (s)
			on_established(s, sk, old == TCP_SYN_SENT);
		break;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		on_shut(sk, new);
		break;
	case TCP_CLOSE:
		on_end(sk, old);
		break;
	}
	return 0;
}

/*
 * The kernel does not run a tracing program that is already running on the same CPU (bpf_trace_run, since 6.1): a
 * softirq that comes in between loses its event, and where tracepoints are preemptible (7.x) so does everything on that
 * CPU until the process that was preempted in the program goes on. The kernel counts them (recursion_misses). What
 * se_set_state misses, others make good for: a connect is told by ESTABLISHED, and its owner by the first read or the
 * close; ESTABLISHED by whatever comes next (is_missed); both by the first read, or by the end (begin_at_end); a close by this
 * tracepoint, which comes right after nearly every close: what interrupts one of both programs finds the other one not
 * running. The state that such a socket left is not known any more: with no error it had sent its FIN.
 */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(se_destroy, struct sock *sk)
{
	struct se_sock *s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);

	if (!s && sk->__sk_common.skc_dport && !judge_connection(sk))
		s = begin_at_end(sk);
	if (s)
		on_close(s, sk, sk->sk_err ? TCP_ESTABLISHED : TCP_LAST_ACK);
	return 0;
}

#endif
