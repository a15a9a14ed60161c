/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is left out before any state is made. Set by user space (bpf/src/filter.rs); by default nothing is. */
#ifndef SOCKEYE_FILTER_H
#define SOCKEYE_FILTER_H

#define SE_NETWORKS_MAX 4096

enum se_filter_flags {
	SE_IGNORE_TCP = 1,
	SE_IGNORE_UDP = 2,
	SE_IGNORE_LOOPBACK = 4,
	SE_ONLY_LOOPBACK = 8,
	SE_PORTS = 16,
	SE_ONLY_PORTS = 32,
	SE_NETWORKS = 64,
	SE_ONLY_NETWORKS = 128,
	SE_FILTER_EVER = 256, /* some sockets may have been left out that would not be now */
};

enum se_network { SE_NETWORK_IGNORE = 1, SE_NETWORK_ONLY = 2 };

struct se_filter {
	__u32 flags;
	__u32 number; /* another one for each filter that there was */
	__u32 ports_ignore[65536 / 32];
	__u32 ports_only[65536 / 32];
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct se_filter);
} se_filters SEC(".maps");

struct se_network_key {
	__u32 bits;
	__u8 addr[16];
};
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SE_NETWORKS_MAX);
	__type(key, struct se_network_key);
	__type(value, __u8);
} se_networks SEC(".maps");

static __always_inline __u32 filter_flags(void)
{
	__u32 zero = 0;
	const struct se_filter *f = bpf_map_lookup_elem(&se_filters, &zero);

	return f ? f->flags : 0;
}

static __always_inline __u16 filter_number(void)
{
	__u32 zero = 0;
	const struct se_filter *f = bpf_map_lookup_elem(&se_filters, &zero);

	return f ? f->number : 0;
}

static __always_inline bool has_port(const __u32 *ports, __u16 port)
{
	return ports[port >> 5] >> (port & 31) & 1;
}

/* 127.0.0.0/8, or ::1. */
static __always_inline bool is_loopback(const __u8 *addr)
{
	const __u64 *words = (const __u64 *)addr;
	const __u32 *last = (const __u32 *)addr;

	if (words[0])
		return false;
	return words[1] == bpf_cpu_to_be64(1) || (last[2] == bpf_htonl(0xffff) && addr[12] == 127);
}

static __always_inline __u8 network_of(const __u8 *addr)
{
	struct se_network_key key = { .bits = 128 };
	__u8 *found;

	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	found = bpf_map_lookup_elem(&se_networks, &key);
	return found ? *found : 0;
}

enum se_verdict {
	SE_WANTED = 0,
	SE_IGNORED = 1,
	SE_IGNORED_AT_COST = 2, /* networks were looked up: worth to be remembered */
};

/* The cheap ones first. It is enough if one end matches, so that both ends get one verdict. */
static __noinline int judge(const __u8 *local, const __u8 *remote, __u32 local_port, __u32 remote_port, bool is_tcp)
{
	__u32 zero = 0;
	const struct se_filter *f = bpf_map_lookup_elem(&se_filters, &zero);
	__u8 networks;
	bool found;

	if (!f || !(f->flags & ~SE_FILTER_EVER))
		return SE_WANTED;
	if (f->flags & (is_tcp ? SE_IGNORE_TCP : SE_IGNORE_UDP))
		return SE_IGNORED;
	if (f->flags & (SE_IGNORE_LOOPBACK | SE_ONLY_LOOPBACK)) {
		found = is_loopback(local) || is_loopback(remote);
		if (f->flags & (found ? SE_IGNORE_LOOPBACK : SE_ONLY_LOOPBACK))
			return SE_IGNORED;
	}
	if (f->flags & SE_PORTS) {
		if (has_port(f->ports_ignore, local_port) || has_port(f->ports_ignore, remote_port))
			return SE_IGNORED;
		if (f->flags & SE_ONLY_PORTS && !has_port(f->ports_only, local_port) &&
		    !has_port(f->ports_only, remote_port))
			return SE_IGNORED;
	}
	if (f->flags & SE_NETWORKS) {
		networks = network_of(local) | network_of(remote);
		if (networks & SE_NETWORK_IGNORE || (f->flags & SE_ONLY_NETWORKS && !(networks & SE_NETWORK_ONLY)))
			return SE_IGNORED_AT_COST;
	}
	return SE_WANTED;
}

#endif
