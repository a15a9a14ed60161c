/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps, and the only two ways in which something leaves the kernel: a ring record and the close overflow. */
#ifndef SOCKEYE_MAPS_H
#define SOCKEYE_MAPS_H

/* Which smoothed round-trip time is shown. */
enum se_smooth {
	SE_SMOOTH_UNSURE = 0, /* the kernel's, as far as is known: nothing that was sent has been acknowledged yet */
	SE_SMOOTH_KERNEL = 1, /* the kernel's */
	SE_SMOOTH_OWN = 2, /* ours, because the kernel's began with a time that was not the network's: see smooth() */
	SE_SMOOTH_FROZEN = 3, /* as it was at close(2): the kernel takes the acknowledgement of a FIN, too */
};

enum se_over {
	SE_GOES_ON = 0,
	SE_OVER = 1,     /* the last connection of this socket has ended, and its close is told */
	SE_LEFT_OUT = 2, /* its connection is not wanted: see filter.h */
};

/*
 * What is known of one socket. Lives and dies with it (sk_storage): nothing to clean up, nothing that can leak.
 * Written by the hooks that run while the socket is locked; read by the scan without a lock, word by word.
 */
struct se_sock {
	__u32 pid;
	__u32 start_ticks;
	__u8 flags;
	__u8 owner_changes;
	__u8 over;       /* enum se_over */
	__u8 traits;     /* enum se_traits, of UDP sockets se_udp_traits */
	__u32 netns;     /* of UDP sockets: cgroup_skb programs cannot read it from the socket */
	__u64 opened_ns; /* 0 = before the agent */
	__u64 scanned;   /* what the scan told of last: see scanned_mark() */
	/* TCP, where the connection began: see note_begin(). Both 0 = not noted */
	__u32 seq_local;
	__u32 seq_remote;
	__u64 cookie; /* of the socket: a scan may find the memory of one that is gone in use by another */
	/* Who holds a descriptor of it: see se_holders */
	__u32 walk; /* in which this was found out */
	__u32 holder_pid;
	__u32 holder_ticks;
	__u8 holder_exec;
	__u8 holders;    /* enum se_held */
	__u16 judged_by; /* of one that is left out: the number of the filter, modulo 65,536 */
	/*
	 * What is written with each sample, by se_probe on the CPU that received it or by se_read on that of the process, lies
	 * on cache lines of its own (the kernel puts the state 8 bytes after the beginning of one): who only compares the
	 * owner does not wait for them.
	 */
	__u64 pad1;
	__u32 rtt_count;
	__u32 delivered;        /* the kernel's count of segments that were acknowledged, when last looked at */
	__u64 rtt_batch_us;     /* the socket's clock (tcp_mstamp): of the oldest sample that waits */
	__u64 owner_changed_us; /* the same clock: when the owner last changed */
	__u32 acked_end;        /* where the segment ended that was sent last of those which were acknowledged */
	__u32 smooth;           /* enum se_smooth */
	__u32 srtt_us;          /* times 8, as in the kernel */
	__u32 mdev_us;          /* times 4 */
	__u32 rtt_us[SE_RTT_BATCH];
};

/* Set by the loader: sockets that are older than the agent may be of processes that it cannot see. */
const volatile __u8 se_blind;

/* Set by the loader: the socket's clock (tcp_mstamp) when it began. */
const volatile __u64 se_began_us;

/* What a walk over all open files has found. */
enum se_held {
	SE_HELD_BY_OWNER = 1,
	SE_HELD_BY_SEVERAL = 2,
};

/* CLONE: the kernel copies a listener's entry to each connection that it accepts, so a child has an owner at birth. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct se_sock);
} se_socks SEC(".maps");

/*
 * A ring for each CPU that is online, created by the loader: producers on different CPUs never share a cache line. CPUs that
 * come later share one.
 */
struct se_ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1); /* the loader sets the number of possible CPUs */
	__type(key, __u32);
	__array(values, struct se_ring);
} se_rings SEC(".maps");

/* Closes that found their ring full. Written once per socket by tcp.h, drained and emptied by user space's scan. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct se_close);
} se_closes SEC(".maps");

/*
 * UDP counters per socket and peer since the last drain. User space swaps the inner map for an empty one: the kernel
 * waits for running programs in that update (map_update of a map-in-map ends in synchronize_rcu), so the map that was
 * taken out is complete and nobody writes to it any more.
 */
struct se_udp_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	/* Sizes, not types: 6.1 takes a table without BTF, as the loader makes them, only for one without BTF. */
	__uint(key_size, sizeof(struct se_udp_key));
	__uint(value_size, sizeof(struct se_udp_value));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct se_udp_table);
} se_udp SEC(".maps");

/* Processes whose identity has been sent. LRU: an evicted one is sent again, which costs a record and loses nothing. */
struct se_sent {
	__u64 exec_id;
	__u64 cgroup_id;
	__u8 comm[SE_COMM_LEN];
	__u32 uid;
	__u32 pad0;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* pid << 32 | start_ticks */
	__type(value, struct se_sent);
} se_known SEC(".maps");

/* Cgroups whose path has been sent. Ids are not reused: they carry a generation. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u8);
} se_cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct se_stats);
} se_counts SEC(".maps");

/* Atomic although per CPU: a softirq may interrupt a program on the same CPU between load and store. */
static __always_inline void count(__u64 *counter)
{
	__sync_fetch_and_add(counter, 1);
}

static __always_inline struct se_stats *stats(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&se_counts, &zero);
}

/* The state of a socket, made if need be, or NULL with the failure counted. `sk`: any pointer that sk_storage takes. */
static __always_inline struct se_sock *track(void *sk)
{
	struct se_sock *s = bpf_sk_storage_get(&se_socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	struct se_stats *st;

	if (s)
		return s;
	st = stats();
	if (st)
		count(&st->storage_failed);
	return NULL;
}

static __always_inline void *reserve_uncounted(const __u64 bytes)
{
	__u32 cpu = bpf_get_smp_processor_id();
	void *ring = bpf_map_lookup_elem(&se_rings, &cpu);

	return ring ? bpf_ringbuf_reserve(ring, bytes, 0) : NULL;
}

/* A record in this CPU's ring, or NULL: the caller says what becomes of it then. */
static __always_inline void *offer(struct se_stats *st, enum se_kind kind, const __u64 bytes)
{
	count(&st->offered[kind]);
	return reserve_uncounted(bytes);
}

/* A record that nothing depends on yet: a full ring is no loss. */
static __always_inline void *offer_early(enum se_kind kind, const __u64 bytes)
{
	struct se_stats *st = stats();
	void *record = st ? reserve_uncounted(bytes) : NULL;

	if (record)
		count(&st->offered[kind]);
	return record;
}

/* A record in this CPU's ring, or NULL with the loss counted. */
static __always_inline void *reserve(enum se_kind kind, const __u64 bytes)
{
	struct se_stats *st = stats();
	void *record;

	if (!st)
		return NULL;
	record = offer(st, kind, bytes);
	if (!record)
		count(&st->lost[kind]);
	return record;
}

static __always_inline void submit(void *record)
{
	/* No wake-up: workers poll. Waking per record cost the producer three times as much as the record itself. */
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

#endif
