//! How commands print what they list: as a table for people, or as JSON for programs.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use podvm_pod::console::commands_a_terminal;
use serde::Serialize;

/// `--output`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns of text.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

/// The option of every command that lists.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct OutputArgs {
    /// Form of the output
    #[arg(long, short = 'o', value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// A table with these columns and no lines, whose cells are never broken.
pub fn table<const N: usize>(columns: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.map(str::to_uppercase));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Why something could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Nobody reads it any longer, as behind `| head`. It ends a command, and is no failure.
    #[error("nobody reads the output")]
    Unread,
    /// Such as a full disk.
    #[error("the output cannot be written: {0}")]
    Lost(#[source] io::Error),
    /// It has no form as JSON.
    #[error("the output cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Prints a text.
///
/// # Errors
/// [`OutputError`].
pub fn print_text(text: &str) -> Result<(), OutputError> {
    io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputError::Unread,
        _ => OutputError::Lost(error),
    })
}

/// Prints what is listed: as JSON, or as the text that `as_text` makes of it.
///
/// # Errors
/// [`OutputError`].
pub fn print<T: Serialize + ?Sized>(
    args: OutputArgs,
    listed: &T,
    as_text: impl FnOnce(&T) -> String,
) -> Result<(), OutputError> {
    let text = match args.output {
        Format::Table => harmless(&as_text(listed)),
        Format::Json => serde_json::to_string_pretty(listed)? + "\n",
    };
    print_text(&text)
}

/// A text for a terminal, whoever its words come from: nothing in it but ends of lines does anything but be seen.
fn harmless(text: &str) -> String {
    text.split('\n').map(one_line).collect::<Vec<_>>().join("\n")
}

/// The same of a text that is to be one line, and whose words are not to look like another.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if commands_a_terminal(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Words joined for a table's cell; a dash when there are none.
pub fn joined(words: impl IntoIterator<Item = String>) -> String {
    let text = words.into_iter().collect::<Vec<_>>().join(",");
    if text.is_empty() { "-".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_with_text() {
        let long = "x".repeat(150);
        let text = table(["uuid", "state"], [["1".into(), "running".into()], [long.clone(), "-".into()]]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("UUID{}STATE", " ".repeat(148)));
        assert_eq!(lines[1], format!("1{}running", " ".repeat(151)));
        assert_eq!(lines[2], format!("{long}  -"));
    }

    #[test]
    fn what_is_listed_commands_no_terminal() {
        assert_eq!(one_line("a\nimage: b"), "a\u{fffd}image: b");
        assert_eq!(harmless("a\x1b[2J\u{9b}b\n\u{202e}é\t"), "a\u{fffd}[2J\u{fffd}b\n\u{fffd}é\u{fffd}");
    }

    #[test]
    fn nothing_is_a_dash() {
        assert_eq!(joined([]), "-");
        assert_eq!(joined(["a".into(), "b".into()]), "a,b");
    }
}
