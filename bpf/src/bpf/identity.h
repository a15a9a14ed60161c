/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who owns a socket: the process identity record, sent the first time that a process is seen with a socket. */
#ifndef SOCKEYE_IDENTITY_H
#define SOCKEYE_IDENTITY_H

#define SE_PATH_DEPTH 24
#define SE_NAME_MAX 64
#define SE_CGROUP_DEPTH 16
#define SE_CGROUP_NAME_MAX 128

struct se_owner {
	__u32 pid;
	__u32 start_ticks;
	__u8 exec; /* in SE_EXEC_MASK */
};

static __always_inline __u8 exec_flags(__u64 exec_id)
{
	return (exec_id << 5) & SE_EXEC_MASK;
}

struct se_walk {
	struct se_identity *id;
	struct dentry *dentry;
	struct mount *mnt;
	__u32 at;
};

/* One step of the walk towards the root: the name of this entry, or across a mount point. 1 ends the loop. */
static long walk_step(__u64 step, struct se_walk *w)
{
	struct dentry *dentry = w->dentry, *parent = BPF_CORE_READ(dentry, d_parent);
	struct mount *mnt = w->mnt;
	long n;

	if (dentry == BPF_CORE_READ(mnt, mnt.mnt_root) || dentry == parent) {
		struct mount *up = BPF_CORE_READ(mnt, mnt_parent);

		if (up == mnt || !up) {
			w->id->exe_complete = 1;
			return 1;
		}
		w->dentry = BPF_CORE_READ(mnt, mnt_mountpoint);
		w->mnt = up;
		return 0;
	}
	if (w->at > SE_EXE_LEN - SE_NAME_MAX)
		return 1;
	n = bpf_probe_read_kernel_str(&w->id->exe[w->at], SE_NAME_MAX, BPF_CORE_READ(dentry, d_name.name));
	if (n <= 1 || n >= SE_NAME_MAX)
		return 1;
	w->at += n;
	w->dentry = parent;
	return 0;
}

/*
 * The path of an executable, from the leaf to the root, across mounts, as d_path() would walk it. bpf_d_path() is not
 * allowed in these hooks. Stops at the buffer's end; exe_complete tells.
 */
static __always_inline void read_exe(struct se_identity *id, struct mm_struct *mm)
{
	struct file *file = BPF_CORE_READ(mm, exe_file);
	struct vfsmount *vfs = BPF_CORE_READ(file, f_path.mnt);
	struct se_walk w = {
		.id = id,
		.dentry = BPF_CORE_READ(file, f_path.dentry),
		.mnt = (void *)vfs - bpf_core_field_offset(struct mount, mnt),
	};

	id->exe_complete = 0;
	if (file)
		bpf_loop(SE_PATH_DEPTH, walk_step, &w, 0);
	id->exe_len = w.at;
}

/* The beginning of the command line, from the memory of the calling process. Pages that are not present stay unread. */
static __always_inline void read_args(struct se_identity *id, struct mm_struct *mm, struct se_stats *st)
{
	unsigned long start = BPF_CORE_READ(mm, arg_start), end = BPF_CORE_READ(mm, arg_end);
	__u64 len;

	if (!start || end <= start)
		return;
	len = end - start;
	id->args_total = len;
	if (len > SE_ARGS_LEN)
		len = SE_ARGS_LEN;
	barrier_var(len); /* the verifier must see the bound on the register that is passed */
	if (bpf_probe_read_user(id->args, len, (void *)start))
		count(&st->args_unreadable);
	else
		id->args_len = len;
}

struct se_climb {
	struct se_cgroup *cg;
	struct kernfs_node *kn;
	__u32 at;
};

/* One step towards the root of the cgroup hierarchy. 1 ends the loop. */
static long climb_step(__u64 step, struct se_climb *c)
{
	struct kernfs_node *kn = c->kn, *parent;
	struct kernfs_node___rcu *rcu = (void *)kn;
	long n;

	if (bpf_core_field_exists(rcu->__parent))
		parent = BPF_CORE_READ(rcu, __parent);
	else
		parent = BPF_CORE_READ(kn, parent);
	if (!parent) {
		c->cg->complete = 1;
		return 1;
	}
	if (c->at > SE_CGROUP_LEN - SE_CGROUP_NAME_MAX)
		return 1;
	n = bpf_probe_read_kernel_str(&c->cg->path[c->at], SE_CGROUP_NAME_MAX, BPF_CORE_READ(kn, name));
	if (n <= 1 || n >= SE_CGROUP_NAME_MAX)
		return 1;
	c->at += n;
	c->kn = parent;
	return 0;
}

/* Sends the path of a cgroup unless it was sent before: a container can be gone before anybody can look at it. */
static __always_inline void send_cgroup(struct kernfs_node *kn, __u64 id, const bool early)
{
	struct se_climb c = { .kn = kn };
	__u8 one = 1;

	if (bpf_map_lookup_elem(&se_cgroups, &id))
		return;
	c.cg = early ? offer_early(SE_CGROUP, sizeof(*c.cg)) : reserve(SE_CGROUP, sizeof(*c.cg));
	if (!c.cg)
		return;
	c.cg->kind = SE_CGROUP;
	c.cg->complete = 0;
	c.cg->pad0 = 0;
	c.cg->cgroup_id = id;
	bpf_loop(SE_CGROUP_DEPTH, climb_step, &c, 0);
	c.cg->len = c.at;
	submit(c.cg);
	bpf_map_update_elem(&se_cgroups, &id, &one, BPF_ANY);
}

/* What tells a process from all others, and whether its identity was sent. */
struct se_self {
	struct task_struct *task;
	__u32 flags; /* PF_* */
	struct se_owner owner;
	struct kernfs_node *kn;
	struct se_sent now;
};

/* By plain loads, which only tracing programs may do: no call of a helper for each pointer. */
static __always_inline void read_self_traced(struct se_self *self)
{
	struct task_struct *task = bpf_get_current_task_btf(), *leader = task->group_leader;

	self->task = (void *)bpf_get_current_task();
	self->flags = task->flags;
	self->owner.pid = leader->tgid;
	self->owner.start_ticks = leader->start_boottime / SE_NS_PER_TICK;
	self->kn = leader->cgroups->dfl_cgrp->kn;
	self->now.exec_id = leader->self_exec_id;
	self->now.cgroup_id = self->kn->id;
	self->now.uid = leader->real_cred->uid.val;
	__builtin_memcpy(self->now.comm, leader->comm, SE_COMM_LEN);
}

static __always_inline void read_task(struct se_self *self, struct task_struct *task)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct kernfs_node *kn = BPF_CORE_READ(leader, cgroups, dfl_cgrp, kn);

	self->task = task;
	self->flags = BPF_CORE_READ(task, flags);
	self->owner.pid = BPF_CORE_READ(leader, tgid);
	self->owner.start_ticks = BPF_CORE_READ(leader, start_boottime) / SE_NS_PER_TICK;
	self->kn = kn;
	self->now.exec_id = BPF_CORE_READ(leader, self_exec_id);
	self->now.cgroup_id = BPF_CORE_READ(kn, id);
	self->now.uid = BPF_CORE_READ(leader, real_cred, uid.val);
	BPF_CORE_READ_INTO(&self->now.comm, leader, comm);
}

static __always_inline bool is_same(const struct se_sent *a, const struct se_sent *b)
{
	const __u64 *x = (const __u64 *)a->comm, *y = (const __u64 *)b->comm;

	return a->exec_id == b->exec_id && a->cgroup_id == b->cgroup_id && a->uid == b->uid && x[0] == y[0] &&
	       x[1] == y[1];
}

/*
 * The identity of a process, once for each image, cgroup, user and name that it has. `early`: it is not the one that runs this
 * hook, so its command line cannot be read, and nothing is lost if there is no room: /proc tells.
 */
static __always_inline void send_identity(const struct se_self *self, __u64 key, const bool early)
{
	struct task_struct *task = self->task, *leader = BPF_CORE_READ(task, group_leader), *parent;
	struct se_identity *id;
	struct mm_struct *mm;
	struct se_stats *st;

	send_cgroup(self->kn, self->now.cgroup_id, early);
	st = stats();
	id = early ? offer_early(SE_IDENTITY, sizeof(*id)) : reserve(SE_IDENTITY, sizeof(*id));
	if (!id || !st) {
		if (id)
			bpf_ringbuf_discard(id, BPF_RB_NO_WAKEUP);
		return;
	}
	mm = BPF_CORE_READ(task, mm); /* the first thread may be gone already, and its memory with it */
	parent = BPF_CORE_READ(leader, real_parent);
	id->kind = SE_IDENTITY;
	id->pid = self->owner.pid;
	id->start_ticks = self->owner.start_ticks;
	id->ppid = BPF_CORE_READ(parent, tgid);
	id->uid = BPF_CORE_READ(leader, real_cred, uid.val);
	id->gid = BPF_CORE_READ(leader, real_cred, gid.val);
	id->parent_uid = BPF_CORE_READ(parent, real_cred, uid.val);
	id->flags = self->owner.exec;
	__builtin_memset(id->pad0, 0, sizeof(id->pad0));
	id->at_ns = bpf_ktime_get_boot_ns();
	id->cgroup_id = self->now.cgroup_id;
	BPF_CORE_READ_INTO(&id->comm, leader, comm);
	BPF_CORE_READ_INTO(&id->parent_comm, parent, group_leader, comm);
	read_exe(id, mm);
	id->args_len = 0;
	id->args_total = 0;
	if (!early)
		read_args(id, mm, st);
	submit(id);
	bpf_map_update_elem(&se_known, &key, &self->now, BPF_ANY);
}

/* Sends the identity unless it was sent as it is now. {0, 0} for kernel threads. */
static __always_inline struct se_owner make_known(struct se_self *self, const bool early)
{
	struct se_owner nobody = {};
	struct se_sent *sent;
	__u64 key;

	if (self->flags & PF_KTHREAD)
		return nobody;
	self->owner.exec = exec_flags(self->now.exec_id);
	key = (__u64)self->owner.pid << 32 | self->owner.start_ticks;
	sent = bpf_map_lookup_elem(&se_known, &key);
	if (!sent || !is_same(sent, &self->now))
		send_identity(self, key, early);
	return self->owner;
}

/*
 * The process that runs this hook, made known to user space. {0, 0} for kernel threads. Only for hooks that run in the
 * context of the process that made the system call, never in softirq. `traced`: the hook is a BTF tracepoint.
 */
static __always_inline struct se_owner current_owner(const bool traced)
{
	struct se_self self = {};

	if (traced)
		read_self_traced(&self);
	else
		read_task(&self, (void *)bpf_get_current_task());
	return make_known(&self, false);
}

/* A process that is older than the agent, made known to user space. */
static __always_inline struct se_owner older_owner(struct task_struct *task)
{
	struct se_self self = {};

	read_task(&self, task);
	return make_known(&self, true);
}

#endif
