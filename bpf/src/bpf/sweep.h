/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The two iterators: sockets that are older than the agent, and the periodic walk over all tracked sockets. */
#ifndef SOCKEYE_SWEEP_H
#define SOCKEYE_SWEEP_H

/* Reading a wrong protocol number for a socket of another family is possible; AF_INET and AF_INET6 only. */
static __always_inline bool is_inet(struct sock *sk)
{
	return sk->__sk_common.skc_family == AF_INET || sk->__sk_common.skc_family == AF_INET6;
}

static __always_inline int seed_flags(struct sock *sk)
{
	__u8 state = sk->__sk_common.skc_state;

	if (sk->sk_protocol == IPPROTO_UDP)
		return SE_SEEDED | SE_UDP | SE_CONFIRMED;
	if (sk->sk_protocol != IPPROTO_TCP || state == TCP_CLOSE)
		return -1;
	if (state == TCP_LISTEN)
		return SE_SEEDED | SE_ROLE_LISTENER;
	if (state == TCP_SYN_SENT)
		return SE_SEEDED | SE_INITIATOR | SE_CONFIRMED;
	return SE_SEEDED | SE_ROLE_UNKNOWN;
}

/* Every open socket of every process, at start. Runs after the hooks are attached: what they saw first stays. */
SEC("iter/task_file")
int se_seed(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task, *leader;
	struct file *file = ctx->file;
	struct socket *sock;
	struct se_sock *s;
	struct sock *sk;
	int flags;

	if (!task || !file)
		return 0;
	sock = bpf_sock_from_file(file);
	if (!sock)
		return 0;
	sk = sock->sk;
	if (!sk || !is_inet(sk))
		return 0;
	flags = seed_flags(sk);
	if (flags < 0 || bpf_sk_storage_get(&se_socks, sk, NULL, 0))
		return 0;
	s = bpf_sk_storage_get(&se_socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return 0;
	leader = task->group_leader;
	s->pid = leader->tgid;
	s->start_ticks = leader->start_boottime / SE_NS_PER_TICK;
	s->flags = flags | exec_flags(leader->self_exec_id);
	s->netns = sk->__sk_common.skc_net.net->ns.inum;
	return 0;
}

/* Every tracked socket of every namespace, with the kernel's own absolute counters, as packed struct se_flow. */
SEC("iter/bpf_sk_storage_map")
int se_sweep(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct se_sock *stored = ctx->value, s;
	struct sock *sk = ctx->sk;
	struct se_flow f = {};
	__u8 state, role;

	if (!sk || !stored)
		return 0;
	s.pid = stored->pid;
	s.start_ticks = stored->start_ticks;
	s.flags = stored->flags;
	s.opened_ns = stored->opened_ns;
	state = sk->__sk_common.skc_state;
	role = s.flags & SE_ROLE_MASK;
	if (s.flags & SE_UDP) {
		fill_flow(&f, SE_LISTENER, state, &s, sk, bpf_get_socket_cookie(sk));
		if (!f.local_port)
			return 0;
	} else if (state == TCP_LISTEN) {
		fill_flow(&f, SE_LISTENER, state, &s, sk, bpf_get_socket_cookie(sk));
	} else if (state != TCP_CLOSE && role != SE_ROLE_LISTENER) {
		fill_flow(&f, SE_SWEEP, state, &s, sk, bpf_get_socket_cookie(sk));
	} else {
		return 0;
	}
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	return 0;
}

#endif
