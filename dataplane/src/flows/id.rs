//! What a flow is called by those who want to find it again.

use super::Flow;
use crate::model::flow::Proto;

/// The same for all, so that a flow keeps its name when it has ended.
const SEEDS: [u64; 4] = [0x736f_636b_6579_6501, 0x736f_636b_6579_6502, 0x736f_636b_6579_6503, 0x736f_636b_6579_6504];

impl Flow {
    /// A name that it keeps for as long as the agent knows it: of its socket, the moment when it was opened, and of UDP, whose
    /// sockets have many, both addresses in either order.
    #[must_use]
    pub fn id(&self) -> u64 {
        let [a, b, c, d] = SEEDS;
        let (one, other) = (self.key.initiator, self.key.responder);
        let addresses = (self.key.proto == Proto::Udp).then(|| (one.min(other), one.max(other)));
        ahash::RandomState::with_seeds(a, b, c, d).hash_one((self.cookie(), self.opened_ns, addresses))
    }
}
