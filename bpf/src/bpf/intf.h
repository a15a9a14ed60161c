/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The boundary between the kernel programs and user space: every record that crosses it, once.
 * bpf/src/records.rs declares the same layouts in Rust; bpf/tests/layout.rs proves them equal from the object's BTF.
 *
 * No `packed`: padding is explicit, so that a record is copied by words. Addresses are 16 bytes in network order,
 * IPv4 as ::ffff:a.b.c.d. Ports are in host order. Times are CLOCK_BOOTTIME nanoseconds unless the name says otherwise.
 */
#ifndef SOCKEYE_INTF_H
#define SOCKEYE_INTF_H

#define SE_COMM_LEN 16
#define SE_EXE_LEN 256
#define SE_ARGS_LEN 512
#define SE_CGROUP_LEN 512
#define SE_RTT_BATCH 22
#define SE_CLOSE_RTT 8
#define SE_CONGESTION_LEN 3 /* enough to tell the kernel's apart */
/* Start times are compared with field 22 of /proc/PID/stat, whose unit is 1/USER_HZ = 10 ms on every architecture. */
#define SE_NS_PER_TICK 10000000ULL

enum se_kind {
	SE_CLOSE = 0,     /* se_close: the last word on a TCP connection */
	SE_SCAN = 1,      /* se_flow: a live TCP socket, seen by the scan, or when its process has closed it */
	SE_LISTENER = 2,  /* se_flow: a listening TCP or a bound UDP socket, seen by the scan */
	SE_RTT = 3,       /* se_rtt: a batch of round-trip samples of one socket */
	SE_DATAGRAM = 4,  /* se_datagram: one UDP packet that found the UDP table full */
	SE_UDP_CLOSE = 5, /* se_udp_close: a UDP socket is gone */
	SE_IDENTITY = 6,  /* se_identity: a process, at its first socket */
	SE_CGROUP = 7,    /* se_cgroup: a cgroup, at the first process in it that is seen */
	SE_DNS = 8,       /* se_payload: a message to or from a DNS server, of one of its clients */
	SE_HELLO = 9,     /* se_payload: the first data that a client sends, if that is wanted */
	SE_KINDS = 10,
};

enum se_role { SE_ROLE_UNKNOWN = 0, SE_INITIATOR = 1, SE_RESPONDER = 2, SE_ROLE_LISTENER = 3 };

enum se_flags {
	SE_ROLE_MASK = 0x03,
	SE_OWNER_CONFIRMED = 0x04, /* the owner itself connected, or has read from the socket */
	SE_PRE_EXISTING = 0x08,    /* older than the agent */
	SE_UDP = 0x10,
	SE_EXEC_MASK = 0xe0, /* number of the owner's exec(), modulo 8: tells programs of one process apart */
};

/* What else is known of a socket. */
enum se_traits {
	SE_V6ONLY = 0x01,   /* a listener on an IPv6 address that takes no IPv4 */
	SE_RESTORED = 0x02, /* made by TCP_REPAIR: its counters begin in the middle of a connection */
	SE_BYPASSED = 0x04, /* was in a sockmap: programs may carry its data past TCP and its counters */
	SE_DEFERS = 0x08,   /* accepted by, or itself a listener that waits for data (TCP_DEFER_ACCEPT) */
};

/* Names are found by what was asked before a connection was opened, so microseconds count; after 35 minutes they do not. */
#define SE_AGE_MS 0x80000000

struct se_flow {
	__u8 kind;
	__u8 flags;
	__u8 state; /* TCP state; in SE_CLOSE the state that the socket left */
	__u8 error; /* sk_err */
	__u32 pid;  /* tgid of the owner, 0 = unknown */
	__u64 cookie;
	__u64 at_ns;
	__u32 start_ticks; /* of the owner */
	__u32 age;         /* since the socket was opened: microseconds, or with SE_AGE_MS milliseconds */
	__u8 local_addr[16];
	__u8 remote_addr[16];
	__u16 local_port;
	__u16 remote_port;
	__u32 netns;
	__u64 bytes_sent;     /* acknowledged by the peer, without a FIN; on the initiator still with its SYN */
	__u64 bytes_received; /* in order, without a FIN */
	__u32 segs_out;
	__u32 segs_in;
	__u32 retrans;
	__u32 out_of_order;
	__u32 srtt_us;
	__u32 rttvar_us;
	__u16 window_local;                 /* bytes that the peer may send now, at most 65,535 */
	__u16 window_remote;                /* the most that the peer ever let us send, likewise */
	__u8 congestion[SE_CONGESTION_LEN]; /* beginning of the name of the congestion control */
	__u8 traits;                        /* enum se_traits */
	__u32 seq_local; /* first sequence number that bytes_acked counts: ISN of who connected, ISN + 1 of who accepted */
	__u32 seq_remote; /* ISN of the peer */
};

/* A connection that is over, with the round-trip samples that were not sent before. */
struct se_close {
	struct se_flow flow;
	__u32 samples_us[SE_CLOSE_RTT]; /* 0 = none */
};

struct se_rtt {
	__u8 kind;
	__u8 count; /* samples that are filled */
	__u8 flags;
	__u8 pad0;
	__u32 pid;
	__u32 start_ticks;
	__u32 seq_local; /* with the cookie: which connection */
	__u64 cookie;
	__u8 remote_addr[16];
	__u32 samples_us[SE_RTT_BATCH]; /* at least 1 */
};

struct se_udp_key {
	__u64 cookie;
	__u8 local_addr[16];
	__u8 remote_addr[16];
	__u16 local_port;
	__u16 remote_port;
	__u32 netns;
};

/* What else is known of a UDP socket and peer. */
enum se_udp_traits {
	SE_UDP_TRANSLATED = 0x01, /* wire_local and wire_remote hold other addresses than the key */
	SE_UDP_SERVES = 0x02,     /* older than the agent: was bound to a port, and not connected */
	SE_UDP_GROUP = 0x04,      /* came to a multicast or broadcast address */
	SE_UDP_ASKS = 0x08,       /* older than the agent: is connected, and was given no port by bind() */
	SE_UDP_KERNEL = 0x10,     /* the kernel's own socket */
};

struct se_udp_value {
	__u64 bytes_sent;     /* payload */
	__u64 bytes_received; /* payload */
	__u64 first_ns;
	__u64 last_ns; /* CLOCK_MONOTONIC_COARSE */
	__u32 packets_sent;
	__u32 packets_received;
	__u32 pid;
	__u32 start_ticks;
	__u8 first_sent; /* 1: the first packet went out */
	__u8 flags;
	__u8 traits; /* enum se_udp_traits */
	__u8 pad0;
	__u16 wire_local_port;
	__u16 wire_remote_port;
	__u64 first_head; /* where the first packet lay in memory, 0 = not known: who received the same one has the same here */
	__u8 wire_local[16];  /* as the peer sees this end, if addresses are translated where this end is */
	__u8 wire_remote[16]; /* and as it sees itself */
};

struct se_datagram {
	__u8 kind;
	__u8 sent; /* 1: went out, 0: came in */
	__u8 flags;
	__u8 pad0;
	__u32 pid;
	__u64 at_ns;
	struct se_udp_key key;
	__u32 start_ticks;
	__u32 packets;
	__u64 bytes;
};

struct se_udp_close {
	__u8 kind;
	__u8 pad0[7];
	__u64 cookie;
};

struct se_identity {
	__u8 kind;
	__u8 exe_complete; /* 1: exe holds the path up to the root */
	__u16 exe_len;
	__u32 pid;
	__u32 start_ticks;
	__u32 ppid;
	__u32 uid;
	__u32 gid;
	__u32 parent_uid;
	__u32 args_total; /* length of the command line; args holds its beginning */
	__u32 args_len;
	__u8 flags; /* of SE_EXEC_MASK */
	__u8 pad0[3];
	__u64 at_ns; /* CLOCK_BOOTTIME: records of several CPUs come in any order */
	__u64 cgroup_id;
	__u8 comm[SE_COMM_LEN];
	__u8 parent_comm[SE_COMM_LEN];
	__u8 exe[SE_EXE_LEN];   /* path components, the last one first, each with a NUL */
	__u8 args[SE_ARGS_LEN]; /* as in /proc/PID/cmdline */
};

struct se_cgroup {
	__u8 kind;
	__u8 complete; /* 1: path holds the path up to the root of the hierarchy */
	__u16 len;
	__u32 pad0;
	__u64 cgroup_id;
	__u8 path[SE_CGROUP_LEN]; /* path components, the last one first, each with a NUL */
};

/* The bytes that were copied follow it. */
struct se_payload {
	__u8 kind;
	__u8 sent;  /* 1: went out, 0: came in */
	__u8 flags; /* of the owner */
	__u8 is_tcp;
	__u32 pid;
	__u64 at_ns;
	__u64 cookie;
	__u32 start_ticks;
	__u32 netns; /* 0 = not known (TCP) */
	__u8 remote_addr[16];
	__u16 local_port;
	__u16 copied; /* bytes that follow */
	__u32 bytes;  /* of the datagram or segment; less were copied if it is large */
};

/* One per CPU: what was offered to the rings and what did not fit, by kind of record, and every other loss. */
struct se_stats {
	__u64 offered[SE_KINDS];
	__u64 lost[SE_KINDS];
	__u64 close_overflow;  /* closes that found the ring full and went to the overflow map (not lost) */
	__u64 shut_dropped;    /* closes by a process that found it full (not lost: the end follows) */
	__u64 storage_failed;  /* sockets that could not be tracked: no memory for their storage */
	__u64 untracked_close; /* connections that ended without ever having been tracked */
	__u64 udp_table_full;  /* UDP packets sent through the ring because the table was full (not lost) */
	__u64 udp_unparsed;    /* packets of UDP sockets whose headers could not be read */
	__u64 args_unreadable; /* command lines that were not in memory */
	__u64 ignored_tcp;     /* TCP sockets that were left out: see filter.h */
	__u64 ignored_udp;     /* UDP packets, likewise */
	__u64 dns_left_out;    /* messages of DNS that were more than is looked at */
	__u64 hellos_left_out; /* first data of clients, likewise */
};

#endif
