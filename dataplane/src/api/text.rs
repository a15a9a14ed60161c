//! Flows by whatever text is shown of them: for those who type before they know which column it is in.

use super::who::ends_of;
use crate::flows::Flow;
use crate::model::flow::Side;
use crate::owners::process::ProcessTable;
use crate::owners::workload::Workload;

/// A word, and where it can be at all: to write an address costs more than to look at a name.
pub(super) struct Word {
    lower: String,
    may_be_address: bool,
    may_be_number: bool,
}

impl Word {
    pub(super) fn new(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        let all = |is: fn(char) -> bool| !lower.is_empty() && lower.chars().all(is);
        Self {
            may_be_address: all(|c| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '[' | ']')),
            may_be_number: all(|c| c.is_ascii_digit()),
            lower,
        }
    }

    /// Whether it is in what is shown of a flow, large or small.
    pub(super) fn is_in(&self, flow: &Flow, processes: &ProcessTable) -> bool {
        let views = || [Some(&flow.key), flow.translated()].into_iter().flatten();
        if self.may_be_address
            && views().any(|view| Side::BOTH.iter().any(|side| view.text(*side).contains(&self.lower)))
        {
            return true;
        }
        // A number is a part of a port with its address, above; and a pid as a whole.
        if self.may_be_number && flow.ends().any(|end| self.lower.parse() == Ok(end.owner.pid)) {
            return true;
        }
        let ends = ends_of(flow, processes);
        let mut ends = ends.iter().flatten();
        ends.any(|end| {
            let of_process = end.process.is_some_and(|process| {
                self.is_part_of(&process.name)
                    || process.exe.as_deref().is_some_and(|exe| self.is_part_of(exe))
                    || process.user.as_deref().is_some_and(|user| self.is_part_of(user))
            });
            of_process || end.workload.is_some_and(|workload| self.is_in_place(workload))
        })
    }

    fn is_in_place(&self, workload: &Workload) -> bool {
        let container = workload.container.as_ref().is_some_and(|container| {
            self.is_part_of(container.name_or_id())
                || container.id.starts_with(&self.lower)
                || self.is_part_of(&container.image)
        });
        container
            || workload.pod.as_ref().is_some_and(|pod| self.is_part_of(&pod.name) || self.is_part_of(&pod.namespace))
            || workload.unit.as_deref().is_some_and(|unit| self.is_part_of(unit))
    }

    fn is_part_of(&self, text: &str) -> bool {
        let (text, word) = (text.as_bytes(), self.lower.as_bytes());
        word.is_empty() || text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_large_or_small_and_looked_for_where_it_can_be() {
        assert!(Word::new("Nginx").is_part_of("NGINX-worker") && Word::new("").is_part_of(""));
        assert!(!Word::new("nginx").is_part_of("ngin"));
        let may = |text| (Word::new(text).may_be_address, Word::new(text).may_be_number);
        assert_eq!(
            [may("10.0"), may("443"), may("cafe"), may("[::1]:80"), may("nginx"), may("")],
            [(true, false), (true, true), (true, false), (true, false), (false, false), (false, false)]
        );
    }
}
