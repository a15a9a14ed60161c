// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * A producer for the load harness, never attached: BPF_PROG_TEST_RUN runs it. Writes flow records into the rings as fast
 * as the real programs could, without sockets. Its cost per record is that of reserve() and submit() and of filling in
 * the record.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "intf.h"
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct se_order {
	__u64 records;
	__u64 flows; /* cookies are spread evenly over this many */
	__u64 seed;
	__u64 wake; /* wake the worker when it waits */
};

/* splitmix64 (Steele, Lea, Flood 2014): consecutive seeds give independent values. */
static __always_inline __u64 mix(__u64 x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static long produce_one(__u64 i, struct se_order *o)
{
	__u64 number = o->seed + i, cookie = mix(number) % o->flows + 1;
	struct se_flow *f = reserve(SE_SCAN, sizeof(*f));

	if (!f)
		return 0;
	__builtin_memset(f, 0, sizeof(*f));
	f->kind = SE_SCAN;
	f->flags = SE_INITIATOR | SE_OWNER_CONFIRMED;
	f->state = TCP_ESTABLISHED;
	f->cookie = cookie;
	f->at_ns = number + 1;
	f->local_addr[10] = f->local_addr[11] = f->remote_addr[10] = f->remote_addr[11] = 0xff;
	f->local_addr[12] = f->remote_addr[12] = 10;
	*(__u32 *)&f->remote_addr[12] ^= cookie >> 14 << 8;
	f->local_port = 1024 + cookie % 16384;
	f->remote_port = 443;
	f->seq_local = f->seq_remote = cookie;
	f->bytes_sent = number;
	if (o->wake)
		bpf_ringbuf_submit(f, 0);
	else
		submit(f);
	return 0;
}

SEC("raw_tp/sys_enter")
int se_produce(struct bpf_raw_tracepoint_args *ctx)
{
	struct se_order order = {
		.records = ctx->args[0],
		.flows = ctx->args[1],
		.seed = ctx->args[2],
		.wake = ctx->args[3],
	};

	if (order.flows)
		bpf_loop(order.records, produce_one, &order, 0);
	return 0;
}
