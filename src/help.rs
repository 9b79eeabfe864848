//! The help of `podvm` itself: its commands in groups, for there are too many for one list.

use clap::Subcommand;

use crate::cli::Command;

/// The commands by what they are for, in the order a user meets them.
const GROUPS: &[(&str, &[&str])] = &[
    ("Run pods", &["run", "prepare", "run-prepared", "stop", "pause", "resume", "rm", "gc"]),
    ("Look at pods", &["list", "status", "logs", "stats", "top", "cat-manifest"]),
    ("Work in pods", &["exec", "attach", "cp", "export"]),
    ("Images", &["fetch", "image", "trust"]),
    ("This installation", &["doctor", "version", "completion", "man"]),
];

/// clap's template for the help: as its own, with the commands in groups.
pub fn template() -> String {
    let commands = Command::augment_subcommands(clap::Command::new("podvm"));
    let mut text = String::from("{about}\n\n{usage-heading} {usage}\n");
    for (heading, names) in GROUPS {
        text.push_str(&format!("\n{heading}:\n"));
        for name in *names {
            let Some(command) = commands.find_subcommand(name) else { continue };
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let aliases: Vec<&str> = command.get_visible_aliases().collect();
            let also = if aliases.is_empty() { String::new() } else { format!(" [also: {}]", aliases.join(", ")) };
            text.push_str(&format!("  {name:<13} {about}{also}\n"));
        }
    }
    text.push_str("\n`podvm help COMMAND` tells more of a command, with examples.\n\nOptions:\n{options}{after-help}");
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let commands = Command::augment_subcommands(clap::Command::new("podvm"));
        let present: BTreeSet<&str> = commands.get_subcommands().map(clap::Command::get_name).collect();
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        assert_eq!(grouped.iter().copied().collect::<BTreeSet<_>>(), present);
        assert_eq!(grouped.len(), present.len());
    }

    #[test]
    fn the_help_shows_the_groups() {
        use clap::CommandFactory;
        let help = crate::cli::Cli::command().render_help().to_string();
        for part in ["Run pods:\n  run ", "Work in pods:\n  exec ", "[also: enter]", "--root <DIR>", "Exit codes"] {
            assert!(help.contains(part), "{part:?}\n{help}");
        }
    }
}
