// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * For the load harness: what the kernel charges for the mechanisms that the agent is made of, without its work.
 *
 * Empty: the agent's hooks, with nothing in them. Bare: with them a state for each socket, made and copied to accepted
 * connections as the agent does it, and for each connection one record of the agent's size, with nothing in it.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "intf.h"
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Set by the loader. */
const volatile bool se_bare = false;

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(se_set_state, struct sock *sk, int old, int new)
{
	struct se_close *c;

	if (!se_bare || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (new == TCP_SYN_SENT || new == TCP_LISTEN) {
		track(sk);
	} else if (new == TCP_CLOSE && old != TCP_LISTEN) {
		c = reserve(SE_CLOSE, sizeof(*c));
		if (c) {
			__builtin_memset(c, 0, sizeof(*c));
			submit(c);
		}
	}
	return 0;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(se_read, struct sock *sk)
{
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(se_destroy, struct sock *sk)
{
	return 0;
}

SEC("tp_btf/tcp_probe")
int BPF_PROG(se_probe, struct sock *sk)
{
	return 0;
}

SEC("cgroup/sock_create")
int se_sock_create(struct bpf_sock *sk)
{
	return 1;
}

SEC("cgroup/sock_release")
int se_sock_release(struct bpf_sock *sk)
{
	return 1;
}

SEC("cgroup_skb/egress")
int se_egress(struct __sk_buff *skb)
{
	return 1;
}

SEC("cgroup_skb/ingress")
int se_ingress(struct __sk_buff *skb)
{
	return 1;
}
