/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The iterators: sockets that are older than the agent, and the periodic scan over all tracked sockets. */
#ifndef SOCKEYE_SCAN_H
#define SOCKEYE_SCAN_H

/* Reading a wrong protocol number for a socket of another family is possible; AF_INET and AF_INET6 only. */
static __always_inline bool is_inet(struct sock *sk)
{
	return sk->__sk_common.skc_family == AF_INET || sk->__sk_common.skc_family == AF_INET6;
}

/* The IPv4 or IPv6 socket that is open as this file, or NULL. */
static __always_inline struct sock *inet_socket_of(struct file *file)
{
	struct socket *sock = file ? bpf_sock_from_file(file) : NULL;
	struct sock *sk = sock ? sock->sk : NULL;

	return sk && is_inet(sk) ? sk : NULL;
}

/* A UDP server has a port of its own and any number of peers; who has one peer and needs no certain port is a client. */
static __always_inline __u8 older_udp_traits(struct sock *sk)
{
	bool has_port = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_userlocks) & SOCK_BINDPORT_LOCK;

	if (sk->__sk_common.skc_dport)
		return has_port ? 0 : SE_UDP_ASKS;
	return has_port ? SE_UDP_SERVES : 0;
}

static __always_inline int seed_flags(struct sock *sk)
{
	__u8 state = sk->__sk_common.skc_state;

	if (sk->sk_protocol == IPPROTO_UDP)
		return SE_PRE_EXISTING | SE_UDP | SE_OWNER_CONFIRMED;
	if (sk->sk_protocol != IPPROTO_TCP || state == TCP_CLOSE)
		return -1;
	if (state == TCP_LISTEN)
		return SE_PRE_EXISTING | SE_ROLE_LISTENER;
	if (state == TCP_SYN_SENT)
		return SE_PRE_EXISTING | SE_INITIATOR | SE_OWNER_CONFIRMED;
	return SE_PRE_EXISTING | older_role(sk);
}

/* Every open socket of every process, at start. Runs after the hooks are attached: what they saw first stays. */
SEC("iter/task_file")
int se_seed(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = inet_socket_of(ctx->file);
	struct se_owner owner;
	struct tcp_sock *tp;
	struct se_sock *s;
	int flags;

	if (!task || !sk)
		return 0;
	flags = seed_flags(sk);
	if (flags < 0 || bpf_sk_storage_get(&se_socks, sk, NULL, 0))
		return 0;
	if (!(flags & SE_UDP) && (flags & SE_ROLE_MASK) != SE_ROLE_LISTENER && judge_connection(sk)) {
		count_ignored_tcp();
		return 0;
	}
	s = bpf_sk_storage_get(&se_socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return 0;
	owner = older_owner(task);
	s->pid = owner.pid;
	s->start_ticks = owner.start_ticks;
	s->flags = flags | owner.exec;
	s->netns = sk->__sk_common.skc_net.net->ns.inum;
	s->cookie = bpf_get_socket_cookie(sk);
	if (flags & SE_UDP)
		s->traits = older_udp_traits(sk);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	if (sk->__sk_common.skc_state != TCP_SYN_SENT && (flags & SE_ROLE_MASK) != SE_ROLE_LISTENER)
		note_begin(s, sk);
	/* What was acknowledged before is no sample of ours. */
	s->delivered = tp->delivered;
	s->acked_end = acked_end(tp);
	s->smooth = SE_SMOOTH_KERNEL;
	return 0;
}

/*
 * What the scan finds. A ring and not the iterator's own output: that holds 256 records, and each time that it is full
 * the kernel begins again at the head of a list of half of all sockets (there are as many lists as CPUs), so 100,000
 * sockets took 600 ms. The size is how long the kernel scans without a pause.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} se_scanned SEC(".maps");

/* Set by user space for one scan: emit the full record of every socket. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} se_scan_all SEC(".maps");

/*
 * Changes whenever anything in the record of a connection does but its age: no figure of a socket changes without a
 * segment in or out, and no owner without a count. Never 0.
 */
static __always_inline __u64 scanned_mark(const struct se_sock *s, __u8 state, struct tcp_sock *tp)
{
	__u32 owner = (16U | s->traits) << 24 | state << 16 | s->owner_changes << 8 | s->flags;

	return (__u64)owner << 32 | (tp->segs_in + tp->segs_out);
}

/*
 * Where a connection begins whose handshake is not over: nothing is noted of it yet, and what read_begin() looks at moves at
 * its end. snd_sml does not: it is where the last small segment ended, and before there is data where the connection begins
 * (tcp_connect_init, tcp_create_openreq_child). False: the socket is not whole yet (an accepted connection gets its address
 * and numbers one by one, and is hashed when it has them all; one that connects is hashed first, and has its number before
 * its SYN), or it is established now. The next scan tells of it.
 */
static __always_inline bool begin_of_handshake(struct se_sock *s, __u8 state, struct sock *sk, struct tcp_sock *tp)
{
	if (!sk->__sk_common.skc_node.pprev || !(tp->segs_in | tp->segs_out))
		return false;
	/* A server may answer data that came with the SYN (TCP Fast Open). */
	if (state == TCP_SYN_RECV && tp->segs_out)
		return true;
	barrier();
	s->seq_local = tp->snd_sml;
	barrier();
	return sk->__sk_common.skc_state == state;
}

/*
 * A scan over the states does not hold the sockets: the memory of one that is gone may belong to another one by now, of which
 * the record would have figures. And one that went on to another state meanwhile may have had its FIN acknowledged, which
 * would count as a byte of payload: the next record tells of it.
 */
static __always_inline void submit_if_still(void *record, const struct se_sock *s, __u8 state, struct sock *sk)
{
	barrier();
	if (bpf_get_socket_cookie(sk) == s->cookie && sk->__sk_common.skc_state == state)
		submit(record);
	else
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
}

static __always_inline bool defers(struct sock *sk)
{
	return BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_accept_queue.rskq_defer_accept);
}

/*
 * Every tracked socket of every namespace, with the kernel's own absolute counters; of a connection that is as it was in
 * the last scan, only the cookie: most of many connections are idle. 1: the ring is full, come again.
 */
static __always_inline int scan_socket(struct sock *sk, struct se_sock *stored)
{
	__u32 zero = 0, *all = bpf_map_lookup_elem(&se_scan_all, &zero);
	struct se_sock s;
	__u64 mark = 0, *same;
	struct tcp_sock *tp;
	struct se_flow *f;
	__u8 state, kind;

	if (stored->over == SE_LEFT_OUT)
		return 0;
	/* The state first: that it is established is told after the beginning was noted. */
	state = sk->__sk_common.skc_state;
	barrier();
	s.cookie = stored->cookie;
	s.pid = stored->pid;
	s.start_ticks = stored->start_ticks;
	s.flags = stored->flags;
	s.owner_changes = stored->owner_changes;
	s.opened_ns = stored->opened_ns;
	s.seq_local = stored->seq_local;
	s.seq_remote = stored->seq_remote;
	s.smooth = stored->smooth;
	s.srtt_us = stored->srtt_us;
	s.mdev_us = stored->mdev_us;
	if (s.flags & SE_UDP) {
		if (!BPF_CORE_READ((struct inet_sock *)sk, inet_sport))
			return 0;
		kind = SE_LISTENER;
	} else if (state == TCP_LISTEN) {
		kind = SE_LISTENER;
		/* Each connection that it accepts gets a copy. */
		stored->traits = defers(sk) ? SE_DEFERS : 0;
	} else if (state != TCP_CLOSE && sk->__sk_common.skc_dport) {
		kind = SE_SCAN;
		if (is_missed(&s, sk)) {
			s.flags = (s.flags & ~SE_ROLE_MASK) | SE_RESPONDER;
			s.cookie = bpf_get_socket_cookie(sk); /* not that of its listener */
		}
		stored->traits |= bypass_trait(sk);
	} else {
		return 0;
	}
	s.traits = s.flags & SE_UDP ? 0 : stored->traits;
	tp = bpf_skc_to_tcp_sock(sk);
	if (kind == SE_SCAN && tp) {
		if ((state == TCP_SYN_SENT || state == TCP_SYN_RECV) && !begin_of_handshake(&s, state, sk, tp))
			return 0;
		mark = scanned_mark(&s, state, tp);
		if (mark == stored->scanned && all && !*all) {
			same = bpf_ringbuf_reserve(&se_scanned, sizeof(*same), 0);
			if (!same)
				return 1;
			*same = s.cookie;
			submit_if_still(same, &s, state, sk);
			return 0;
		}
	}
	f = bpf_ringbuf_reserve(&se_scanned, sizeof(*f), 0);
	if (!f)
		return 1;
	__builtin_memset(f, 0, sizeof(*f));
	fill_flow(f, kind, state, &s, sk);
	if (kind == SE_LISTENER)
		f->traits = BPF_CORE_READ_BITFIELD_PROBED(&sk->__sk_common, skc_ipv6only) ? SE_V6ONLY : 0;
	submit_if_still(f, &s, state, sk);
	stored->scanned = mark;
	return 0;
}

SEC("iter/bpf_sk_storage_map")
int se_scan(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct se_sock *stored = ctx->value;
	struct sock *sk = ctx->sk;

	return sk && stored ? scan_socket(sk, stored) : 0;
}

/*
 * The same over the open files of all processes, for Linux 7.0 and later: there a socket that is freed loses the way from
 * its state to itself first (bpf_selem_unlink_nofail), and a scan over the states that comes by just then takes the kernel
 * down with it (__bpf_sk_storage_map_seq_show: NULL pointer). This one holds each socket that it looks at. It does not see
 * those without a file: connections that nobody has accepted yet, and what is left of one after its process closed it.
 */
SEC("iter/task_file")
int se_scan_files(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = inet_socket_of(ctx->file);
	struct se_sock *stored;

	if (!sk)
		return 0;
	stored = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	return stored ? scan_socket(sk, stored) : 0;
}

#endif
