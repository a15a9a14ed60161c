//! Golden screens, and a session without a terminal.
