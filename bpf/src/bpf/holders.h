/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who holds a socket, where nobody has told by using it: a walk over the open files of all processes. */
#ifndef SOCKEYE_HOLDERS_H
#define SOCKEYE_HOLDERS_H

/* How long an accepted connection may wait for its first reader. */
#define SE_READER_WAIT_NS 1000000000ULL

/* Set by user space: the number of the walk times two, plus one while it decides. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} se_walk SEC(".maps");

/*
 * Whose owner may be another than the one that is known: a daemon goes on as a child of the process that made its listeners
 * and UDP sockets; a connection that was accepted belongs to the process of its listener until somebody reads from it.
 */
static __always_inline bool owner_may_differ(const struct se_sock *s)
{
	if (s->flags & SE_UDP || (s->flags & SE_ROLE_MASK) == SE_ROLE_LISTENER)
		return true;
	return !s->over && !(s->flags & SE_OWNER_CONFIRMED) &&
	       bpf_ktime_get_boot_ns() - s->opened_ns > SE_READER_WAIT_NS;
}

static __always_inline void note_holder(struct se_sock *s, __u32 walk, struct task_struct *leader)
{
	__u32 pid = leader->tgid, ticks = leader->start_boottime / SE_NS_PER_TICK;

	if (s->walk != walk) {
		s->walk = walk;
		s->holder_pid = pid;
		s->holder_ticks = ticks;
		s->holder_exec = exec_flags(leader->self_exec_id);
		s->holders = 0;
	} else if (s->holder_pid != pid) {
		s->holders |= SE_HELD_BY_SEVERAL;
	}
	if (pid == s->pid && ticks == s->start_ticks)
		s->holders |= SE_HELD_BY_OWNER;
}

/*
 * One that does not hold it any more is not its owner: the first one is that does, the oldest as a rule. What is held by one
 * process alone is that one's.
 */
static __always_inline void decide_owner(struct se_sock *s)
{
	if (!(s->holders & SE_HELD_BY_OWNER)) {
		s->pid = s->holder_pid;
		s->start_ticks = s->holder_ticks;
		s->flags = (s->flags & ~SE_EXEC_MASK) | s->holder_exec;
		s->owner_changes++;
	}
	if (!(s->holders & SE_HELD_BY_SEVERAL))
		s->flags |= SE_OWNER_CONFIRMED;
}

/* Run twice for each walk: to note, and to decide. */
SEC("iter/task_file")
int se_holders(struct bpf_iter__task_file *ctx)
{
	__u32 zero = 0, *step = bpf_map_lookup_elem(&se_walk, &zero);
	struct task_struct *task = ctx->task;
	struct sock *sk = inet_socket_of(ctx->file);
	struct se_sock *s;

	if (!task || !sk || !step)
		return 0;
	s = bpf_sk_storage_get(&se_socks, sk, NULL, 0);
	if (!s || !owner_may_differ(s))
		return 0;
	if (!(*step & 1))
		note_holder(s, *step, task->group_leader);
	else if (s->walk == *step - 1)
		decide_owner(s);
	return 0;
}

#endif
