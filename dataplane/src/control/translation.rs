//! Flows of which one end is on this host, and whose addresses are translated on their way: the kernel's connection tracking
//! is asked when they are told of for the first time.

use std::time::{Duration, Instant};

use super::Control;
use crate::flows::report::FlowReport;
use crate::model::flow::{FlowKey, Side};
use crate::owners::conntrack::{Conntrack, Error, Translated};

/// It is tried again so long after it was not possible.
const AGAIN: Duration = Duration::from_secs(60);

/// Whom control asks.
#[derive(Default)]
pub(super) struct Translation {
    conntrack: Option<Conntrack>,
    again: Option<Instant>,
    /// Why not has been said.
    is_said: bool,
    /// Flows that nobody could be asked for, although it had worked before.
    failed: u64,
    keys: Vec<FlowKey>,
    numbers: Vec<usize>,
}

impl Translation {
    /// Flows that nobody could be asked for, although it had worked before.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    fn ask(&mut self) -> Vec<Option<Translated>> {
        if self.conntrack.is_none() && self.again.is_none_or(|again| Instant::now() >= again) {
            match Conntrack::new() {
                Ok(conntrack) => self.conntrack = Some(conntrack),
                Err(why) => self.give_up(&why),
            }
        }
        let Some(conntrack) = &mut self.conntrack else { return Vec::new() };
        match conntrack.ask_many(&self.keys) {
            Ok(answers) => answers,
            Err(why) => {
                self.failed += self.keys.len() as u64;
                self.give_up(&why);
                Vec::new()
            }
        }
    }

    fn give_up(&mut self, why: &Error) {
        self.conntrack = None;
        self.again = Some(Instant::now() + AGAIN);
        // A host without connection tracking translates nothing: that is how most are.
        if !std::mem::replace(&mut self.is_said, true) && !matches!(why, Error::NotLoaded) {
            tracing::info!("{why}; flows whose addresses are translated on their way have one tuple");
        }
    }
}

impl Control {
    /// Gives both tuples to what is told of for the first time, and has one end here.
    pub(super) fn translate(&mut self, reports: &mut [FlowReport]) {
        let Some(translation) = &mut self.translation else { return };
        translation.keys.clear();
        translation.numbers.clear();
        for (number, report) in reports.iter().enumerate() {
            let has_one_end = report.local[0] != report.local[1];
            if report.first && has_one_end && report.translated.is_none() && !is_within(&report.key) {
                translation.keys.push(report.key);
                translation.numbers.push(number);
            }
        }
        if translation.keys.is_empty() {
            return;
        }
        let answers = translation.ask();
        for (number, found) in translation.numbers.iter().zip(answers) {
            let Some(found) = found.filter(Translated::is_translated) else { continue };
            let report = &mut reports[*number];
            // The responder answers to whom it sees.
            let views = [found.original, found.reply.reversed()].map(|tuple| tuple.key(report.key.proto));
            let local = if report.local[Side::Initiator as usize] { Side::Initiator } else { Side::Responder };
            // Another connection that has the same addresses elsewhere.
            if views[local as usize] != report.key {
                continue;
            }
            self.table.see_translation(report.opening.place, local.other(), views[local.other() as usize]);
            report.key = views[Side::Initiator as usize];
            report.translated = Some(Box::new(views[Side::Responder as usize]));
        }
    }
}

/// Loopback traffic leaves no host.
fn is_within(key: &FlowKey) -> bool {
    key.initiator.addr.ip().is_loopback() || key.responder.addr.ip().is_loopback()
}
