// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The same hooks as the agent's, with nothing in them, for the load harness: what every agent pays that attaches to
 * them.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(se_set_state, struct sock *sk, int old, int new)
{
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
