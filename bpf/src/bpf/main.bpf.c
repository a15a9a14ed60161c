// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * sockeye's kernel side. Read in this order: maps.h (state, rings, loss counters), filter.h (what is left out), identity.h (who
 * owns a socket), rtt.h, connection.h, tcp.h and reads.h, translation.h, payload.h with dns.h and hello.h, udp.h, scan.h and
 * holders.h (the iterators).
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "intf.h"
#include "maps.h"
#include "filter.h"
#include "identity.h"
#include "rtt.h"
#include "connection.h"
#include "tcp.h"
#include "reads.h"
#include "translation.h"
#include "payload.h"
#include "dns.h"
#include "hello.h"
#include "udp.h"
#include "scan.h"
#include "holders.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Keeps the full types of all records in the object's BTF, for the layout test and for the inner map's definition. */
const volatile union {
	struct se_flow flow;
	struct se_close close;
	struct se_rtt rtt;
	struct se_datagram datagram;
	struct se_udp_close udp_close;
	struct se_udp_key udp_key;
	struct se_udp_value udp_value;
	struct se_identity identity;
	struct se_cgroup cgroup;
	struct se_payload payload;
	struct se_stats stats;
} se_layouts;
