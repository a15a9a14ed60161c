/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP: what goes on in a connection that lives: who reads from it, and its round-trip samples. */
#ifndef SOCKEYE_READS_H
#define SOCKEYE_READS_H

/* So often a connection may change hands at once, and from then on once in a second. */
#define SE_OWNER_CHANGES_MAX 16
#define SE_OWNER_CHANGE_US 1000000ULL
#define SE_RTT_BATCH_US 1000000ULL

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
