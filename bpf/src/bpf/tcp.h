/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP: life of a connection, its owner. Bytes and segments are the kernel's own counters. */
#ifndef SOCKEYE_TCP_H
#define SOCKEYE_TCP_H

/* So often a connection may change hands at once, and from then on once in a second. */
#define SE_OWNER_CHANGES_MAX 16
#define SE_OWNER_CHANGE_US 1000000ULL
#define SE_RTT_BATCH_US 1000000ULL

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
	if (!f)
		return;
	fill_flow(f, SE_SCAN, state, s, sk);
	submit(f);
}

static __always_inline void on_end(struct sock *sk, int old)
{
	struct se_sock *s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	struct se_stats *st;

	if (s) {
		on_close(s, sk, old);
	} else if (old != TCP_LISTEN && old != TCP_CLOSE && !judge_connection(sk)) {
		st = stats();
		if (st)
			count(&st->untracked_close);
	}
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
 * close; ESTABLISHED by whatever comes next (is_missed); both by the first read; a close by this tracepoint, which comes
 * right after nearly every close: what interrupts one of both programs finds the other one not running. The state that such
 * a socket left is not known any more: with no error it had sent its FIN.
 */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(se_destroy, struct sock *sk)
{
	struct se_sock *s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);

	if (s)
		on_close(s, sk, sk->sk_err ? TCP_ESTABLISHED : TCP_LAST_ACK);
	return 0;
}

/*
 * Something came for a connection: keeps the round-trip time of what it acknowledged. Samples travel in batches, and none
 * waits for longer than a second of further samples.
 */
static __always_inline void on_acked(struct se_sock *s, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u64 acked_us;

	if (s->over == SE_LEFT_OUT)
		return;
	if (!tp || !take_sample(s, tp, sk->__sk_common.skc_state))
		return;
	acked_us = tp->tcp_mstamp;
	if (s->rtt_count == 1)
		s->rtt_batch_us = acked_us;
	if (s->rtt_count >= SE_RTT_BATCH || acked_us - s->rtt_batch_us > SE_RTT_BATCH_US) {
		if (is_missed(s, sk))
			on_established(s, sk, false);
		else
			flush_rtt(s, sk);
	}
}

/*
 * On which side a connection is that is older than the agent. An accepted socket is a copy of its listener (sk_clone_lock), with
 * the length of the queue that listen() was given, and without the mark that bind() was given a port.
 */
static __always_inline __u8 older_role(struct sock *sk)
{
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_userlocks) & SOCK_BINDPORT_LOCK)
		return SE_INITIATOR;
	return sk->sk_max_ack_backlog ? SE_RESPONDER : SE_ROLE_UNKNOWN;
}

/* A connection whose readers take turns: each of them costs more than a read. */
static __always_inline bool changed_too_often(const struct se_sock *s, struct sock *sk)
{
	struct tcp_sock *tp;

	if (s->owner_changes < SE_OWNER_CHANGES_MAX)
		return false;
	tp = bpf_skc_to_tcp_sock(sk);
	return tp && tp->tcp_mstamp - s->owner_changed_us < SE_OWNER_CHANGE_US;
}

static __always_inline void owner_changed(struct se_sock *s, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	s->owner_changes++;
	if (tp)
		s->owner_changed_us = tp->tcp_mstamp;
}

/*
 * A connection all of whose beginning was missed (see se_destroy), or that is older than the agent, which could not see it, or
 * that another filter left out. NULL: it is not wanted. What was found out at some cost is remembered.
 */
static __always_inline struct se_sock *begin_late(struct se_sock *s, struct sock *sk)
{
	bool is_older = se_blind || filter_flags();
	int verdict = judge_connection(sk);

	if (!s && verdict != SE_IGNORED)
		s = track(sk);
	if (!s)
		return NULL;
	if (verdict) {
		leave_out(s);
		return NULL;
	}
	begin(s, sk, older_role(sk) | (is_older ? SE_PRE_EXISTING : 0));
	if (is_older)
		s->opened_ns = 0;
	note_begin(s, sk);
	return s;
}

/*
 * tcp_recvmsg() -> tcp_rcv_space_adjust(), after data was copied to the reader: it is the process that really uses the
 * socket (prefork servers accept in a child, descriptors are passed on). Stream parsers call it from softirq too, where
 * the socket is not owned by a process: sk_lock.owned tells them apart.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(se_read, struct sock *sk)
{
	struct se_sock *s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	struct task_struct *task = bpf_get_current_task_btf();
	struct se_owner owner;
	bool begins, same = false;
	__u8 exec;

	begins = !s || s->over == SE_LEFT_OUT;
	if (!begins)
		on_acked(s, sk);
	if (!sk->sk_lock.owned || (s && begins && s->judged_by == filter_number()))
		return 0;
	exec = exec_flags(task->group_leader->self_exec_id);
	if (!begins) {
		same = s->pid == (__u32)task->tgid && (s->flags & SE_EXEC_MASK) == exec;
		if ((same && s->flags & SE_OWNER_CONFIRMED) || changed_too_often(s, sk))
			return 0;
		if (is_missed(s, sk))
			on_established(s, sk, false);
		if (s->over == SE_LEFT_OUT)
			return 0;
	}
	owner = current_owner(true);
	if (!owner.pid)
		return 0;
	if (begins) {
		s = begin_late(s, sk);
		if (!s)
			return 0;
	}
	same = same && s->start_ticks == owner.start_ticks;
	set_owner(s, &owner);
	if (!same)
		owner_changed(s, sk);
	return 0;
}

/*
 * The sequence numbers of a segment and of the one after it, which the kernel notes in sk_buff.cb (struct tcp_skb_cb), in
 * their lower halves: the verifier allows reading cb byte by byte. A payload of 64 KiB looks like none, which only costs
 * a look at the socket.
 */
static __always_inline bool has_payload(const struct sk_buff *skb)
{
	return skb->cb[0] != skb->cb[4] || skb->cb[1] != skb->cb[5];
}

/*
 * tcp_rcv_established(), once per received segment (after GRO) and before it is looked at: what the segment before it
 * has acknowledged is there to see. With data it wakes a reader, who looks (se_read), and this is left at once.
 */
SEC("tp_btf/tcp_probe")
int BPF_PROG(se_probe, struct sock *sk, struct sk_buff *skb)
{
	struct se_sock *s;

	if (has_payload(skb))
		return 0;
	s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	if (s)
		on_acked(s, sk);
	return 0;
}

#endif
