//! The user's end of a pod: this process's own terminal, standard streams and signals.
//!
//! Both the process that is a pod ([`crate::runner`]) and the one that executes another program in it
//! ([`crate::client`]) pass what the user types, sees and signals through these.

mod outputs;
mod signals;
mod streams;
mod terminal;

pub use outputs::{Outputs, spawn};
pub use signals::{Signals, is_passed_on};
pub use streams::{drain, feed, write_fully};
pub use terminal::{RawTerminal, TerminalSize};

/// Longest text from inside a pod that is passed on as a message.
const MAX_MESSAGE_CHARACTERS: usize = 2_000;

/// A text from inside a pod, made fit to be a message at the host: bounded, on one line, and unable to command a terminal.
pub fn printable(text: &str) -> String {
    let plain = |c: char| if commands_a_terminal(c) { ' ' } else { c };
    text.trim_end().chars().take(MAX_MESSAGE_CHARACTERS).map(plain).collect()
}

/// Whether a character does something to a terminal instead of being shown: controls, and those that turn the direction of writing, by
/// which a text can be made to look like another (Unicode TR 9).
pub fn commands_a_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_from_inside_cannot_command_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{9b}d\n"), "a [2Jb c d");
        assert_eq!(printable(&"x".repeat(10_000)).len(), MAX_MESSAGE_CHARACTERS);
    }
}
