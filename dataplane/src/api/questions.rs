//! The table of the threads that find out who is behind a socket.

use sockeye_ctl::{Table, rows};

use crate::owners::desk::DeskFigures;

/// What the threads count that find out who is behind a socket.
pub(crate) struct EnrichmentFigures {
    /// Questions, and what they are about.
    pub(crate) questions: [(&'static str, DeskFigures); 3],
    /// Of package databases.
    pub(crate) packages_left_out: u64,
    /// `rpm` was ended.
    pub(crate) rpm_killed: u64,
}

rows! {
    /// Questions about who is behind a socket, and the threads that look for answers.
    struct Questions: "questions" {
        /// what is asked about
        about: Text = &'static str,
        /// questions that wait
        waiting: Count = u64,
        /// since the oldest was asked that has no answer yet
        oldest: Milliseconds = u64,
        /// questions ever
        asked: Count = u64,
        /// those that found too many waiting, and are asked later
        not_asked: Count = u64,
        /// those without an answer by their deadline
        given_up: Count = u64,
        /// threads that hang in a question
        stuck: Count = u64,
        /// threads that took the place of another
        replaced: Count = u64,
    }
}

pub(super) fn questions(figures: &EnrichmentFigures) -> Table {
    Table::of(figures.questions.iter().map(row))
}

fn row((about, figures): &(&'static str, DeskFigures)) -> Questions {
    Questions {
        about,
        waiting: figures.waiting,
        oldest: figures.oldest_ms,
        asked: figures.asked,
        not_asked: figures.not_asked,
        given_up: figures.given_up,
        stuck: figures.stuck,
        replaced: figures.replaced,
    }
}
