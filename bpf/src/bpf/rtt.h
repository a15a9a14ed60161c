/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Round-trip times of a connection: which acknowledgements are samples, and which smoothed time is shown. */
#ifndef SOCKEYE_RTT_H
#define SOCKEYE_RTT_H

/* A receiver that has nothing to send acknowledges a lone segment when a timer of 40 ms fires (TCP_DELACK_MIN). */
#define SE_DELAYED_ACK_MIN_US 38000
#define SE_DELAYED_ACK_MAX_US 52000
/* A handshake that took longer than the network by more than this was held up by one end. */
#define SE_HANDSHAKE_EXCESS_US 20000

static __always_inline bool fin_may_be_acked(__u8 state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING || state == TCP_LAST_ACK ||
	       state == TCP_TIME_WAIT;
}

/* The smoothed round-trip time and its deviation. 0 = not known. */
static __always_inline void read_smooth(struct se_flow *f, const struct se_sock *s, struct tcp_sock *tp)
{
	__u32 srtt_us = tp->srtt_us, mdev_us = tp->mdev_us;

	if (s->smooth >= SE_SMOOTH_OWN) {
		srtt_us = s->srtt_us;
		mdev_us = s->mdev_us;
	} else if (s->smooth == SE_SMOOTH_UNSURE && s->traits & SE_DEFERS) {
		srtt_us = 0; /* the client's thinking time */
		mdev_us = 0;
	}
	f->srtt_us = srtt_us >> 3;
	f->rttvar_us = mdev_us >> 2;
}

/* The end of the segment that was sent last of those which were acknowledged. Without SACK, of all that was. */
static __always_inline __u32 acked_end(struct tcp_sock *tp)
{
	return tp->rack.mstamp ? tp->rack.end_seq : tp->snd_una;
}

/* The receiver may have waited for something to send. What the network adds is taken from its best time. */
static __always_inline bool may_be_delayed(__u32 us, struct tcp_sock *tp)
{
	__u32 min_us = tp->rtt_min.s[0].v, excess_us = us - min_us;

	return us > min_us && excess_us >= SE_DELAYED_ACK_MIN_US && excess_us <= SE_DELAYED_ACK_MAX_US;
}

/*
 * The kernel's smoothed time begins with the handshake. On the side that accepted, that is how long the client took for its
 * acknowledgement, which it may put off until it has a request (and the kernel ignores it before: TCP_DEFER_ACCEPT): then
 * ours is shown, which begins with the first data, by the same rule (RFC 6298, in the units of tcp_rtt_estimator).
 */
static __always_inline void smooth(struct se_sock *s, struct tcp_sock *tp, __u32 us)
{
	__u32 srtt_us = tp->srtt_us >> 3;
	__s32 error_us;

	if (s->smooth == SE_SMOOTH_UNSURE) {
		s->smooth = SE_SMOOTH_KERNEL;
		if ((s->flags & SE_ROLE_MASK) == SE_RESPONDER && srtt_us > 4 * us &&
		    srtt_us - us > SE_HANDSHAKE_EXCESS_US) {
			s->srtt_us = us << 3;
			s->mdev_us = us << 1;
			s->smooth = SE_SMOOTH_OWN;
		}
	} else if (s->smooth == SE_SMOOTH_OWN) {
		error_us = us - (s->srtt_us >> 3);
		s->srtt_us += error_us;
		s->mdev_us += (error_us < 0 ? -error_us : error_us) - (s->mdev_us >> 2);
	}
}

/* The process closes, or sends no more: the kernel's time as it is before the FIN, which a receiver acknowledges late. */
static __always_inline void freeze_smooth(struct se_sock *s, struct tcp_sock *tp)
{
	if (s->smooth >= SE_SMOOTH_OWN || (s->smooth == SE_SMOOTH_UNSURE && s->traits & SE_DEFERS))
		return;
	s->srtt_us = tp->srtt_us;
	s->mdev_us = tp->mdev_us;
	s->smooth = SE_SMOOTH_FROZEN;
}

/*
 * The round-trip time of the segment that was sent last of those which were acknowledged since the last look (rack.rtt_us, see
 * net/ipv4/tcp_recovery.c, tcp_rack_advance). Only if it carried data or a SYN: a FIN, a probe of a closed window and a
 * keepalive are acknowledged when the receiver likes. Without SACK there is only the smoothed time. True if there is one.
 */
static __always_inline bool take_sample(struct se_sock *s, struct tcp_sock *tp, __u8 state)
{
	__u32 delivered = tp->delivered, segments = delivered - s->delivered, at = s->rtt_count, end, us;

	if (!segments)
		return false;
	s->delivered = delivered;
	end = acked_end(tp);
	if (end == s->acked_end || (end == tp->write_seq && fin_may_be_acked(state)))
		return false;
	s->acked_end = end;
	us = tp->rack.rtt_us ?: tp->srtt_us >> 3 ?: 1;
	if (segments == 1 && may_be_delayed(us, tp))
		return false;
	smooth(s, tp, us);
	if (at < SE_RTT_BATCH) {
		s->rtt_us[at] = us;
		s->rtt_count = at + 1;
	}
	return true;
}

#endif
