//! `podvm image history`.

use anyhow::Result;
use podvm_image::Store;
use podvm_pod::console::commands_a_terminal;
use podvm_pod::manifest::ByteSize;
use serde::Serialize;

use crate::output::{OutputArgs, print, table};

/// Most characters of a step's command that the table shows.
const MOST_SHOWN: usize = 60;

/// Options of `podvm image history`.
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    /// Image: a name, or the beginning of an ID
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Show commands whole
    #[arg(long)]
    pub full: bool,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Step {
    created: Option<String>,
    created_by: String,
    comment: String,
    layer: Option<String>,
    size_bytes: Option<u64>,
}

/// Shows an image's steps, the last first.
pub fn run(args: &HistoryArgs, store: &Store) -> Result<u8> {
    let steps: Vec<Step> = store
        .history(&args.image)?
        .into_iter()
        .rev()
        .map(|step| Step {
            created: step.created,
            created_by: step.created_by,
            comment: step.comment,
            layer: step.layer.map(|(layer, _)| layer.to_string()),
            size_bytes: step.layer.map(|(_, size)| size),
        })
        .collect();
    print(args.output, &steps, |steps| {
        let rows = steps.iter().map(|step| {
            let layer = step.layer.as_deref().map_or("-", |layer| &layer["sha256:".len()..][..12]);
            let size = step.size_bytes.map_or("-".to_owned(), |size| ByteSize(size).to_string());
            let created = step.created.clone().unwrap_or_else(|| "-".to_owned());
            [layer.to_owned(), created, size, shown(step, args.full)]
        });
        table(["layer", "created", "size", "created by"], rows)
    })?;
    Ok(0)
}

/// A step's command in one line.
fn shown(step: &Step, full: bool) -> String {
    let text = if step.created_by.is_empty() { &step.comment } else { &step.created_by };
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words.join(" ").chars().filter(|c| !commands_a_terminal(*c)).collect();
    match line.char_indices().nth(MOST_SHOWN) {
        Some((at, _)) if !full => format!("{}…", &line[..at]),
        _ if line.is_empty() => "-".to_owned(),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_cut_at_a_character() {
        let step = |text: &str| Step {
            created: None,
            created_by: text.into(),
            comment: "c".into(),
            layer: None,
            size_bytes: None,
        };
        assert_eq!(shown(&step("RUN  a \\\n  b\x1b"), false), "RUN a \\ b");
        assert_eq!(shown(&step(""), false), "c");
        let long = "é".repeat(100);
        assert_eq!(shown(&step(&long), false).chars().count(), MOST_SHOWN + 1);
        assert_eq!(shown(&step(&long), true), long);
    }
}
