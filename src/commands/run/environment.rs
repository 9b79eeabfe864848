//! An app's environment: what every app has, what the image says, what the user says, each before the one before it.

use std::path::Path;

use podvm_pod::manifest::EnvironmentVariable;

use super::app_arguments::AppArgs;
use super::error::PrepareError;
use super::image::ImageSettings;
use super::manifest::Host;
use super::sockets;

/// Where programs are looked for when the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a terminal can do when this process's own does not say.
const DEFAULT_TERM: &str = "xterm";
/// The variable that tells the pod's name, which is never inherited.
pub const HOSTNAME: &str = "HOSTNAME";

/// The whole environment of an app.
///
/// # Errors
/// [`PrepareError::EnvironmentFile`].
pub fn environment(
    args: &AppArgs,
    image: &ImageSettings,
    hostname: &str,
    host: &Host,
) -> Result<Vec<EnvironmentVariable>, PrepareError> {
    let variable = |name: &str, value: &str| EnvironmentVariable { name: name.into(), value: value.into() };
    let mut environment = vec![variable("PATH", DEFAULT_PATH), variable(HOSTNAME, hostname)];
    if args.tty {
        environment.push(variable("TERM", host.term.as_deref().unwrap_or(DEFAULT_TERM)));
    }
    let mut set = |given: &EnvironmentVariable| match environment.iter_mut().find(|known| known.name == given.name) {
        Some(known) => known.value.clone_from(&given.value),
        None => environment.push(given.clone()),
    };
    if args.inherit_env {
        let is_inherited = |name: &str| name != HOSTNAME && !name.starts_with(sockets::VARIABLES);
        host.environment.iter().filter(|variable| is_inherited(&variable.name)).for_each(&mut set);
    }
    image.environment.iter().for_each(&mut set);
    for path in &args.set_env_file {
        read_file(path)?.iter().for_each(&mut set);
    }
    args.environment.iter().for_each(&mut set);
    Ok(environment)
}

fn read_file(path: &Path) -> Result<Vec<EnvironmentVariable>, PrepareError> {
    let wrong = |what: String| PrepareError::EnvironmentFile { path: path.into(), what };
    let text = crate::input::read_text(path).map_err(|error| wrong(error.to_string()))?;
    // Some editors begin a text with a mark of its byte order.
    parse(text.strip_prefix('\u{feff}').unwrap_or(&text)).map_err(wrong)
}

/// The variables of a file: `NAME=VALUE` lines; empty ones and those that begin with `#` say nothing.
fn parse(text: &str) -> Result<Vec<EnvironmentVariable>, String> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim_start()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| line.parse().map_err(|error| format!("line {number}: {error}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_variables_comments_and_empty_lines() {
        let variables = parse("# of the service\n\n A=1\nB=two words # no comment\nC=\n").unwrap();
        let told: Vec<_> = variables.iter().map(|v| (v.name.as_str(), v.value.as_str())).collect();
        assert_eq!(told, [("A", "1"), ("B", "two words # no comment"), ("C", "")]);
        let message = parse("A=1\nexport B\n").unwrap_err();
        assert!(message.contains("line 2") && message.contains("NAME=VALUE"), "{message}");
    }
}
