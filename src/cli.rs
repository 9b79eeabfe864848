//! The command line: global options and the subcommands' own.
//!
//! `podvm run` takes several apps, separated by the argument `---`. The part before the first `---` is an ordinary command
//! line; each later part holds one more app's image, options and arguments.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

use crate::commands::run::AppArgs;
use crate::commands::{
    attach, cat_manifest, completion, cp, doctor, exec, export, gc, image, list, logs, man, pause, rm, run, stats,
    status, stop, top, trust, version,
};

/// What separates the apps of a pod.
const APP_SEPARATOR: &str = "---";

const PREPARE_USAGE: &str = "podvm prepare [OPTIONS] IMAGE [OPTIONS] [-- ARGS…] [--- IMAGE [APP OPTIONS] [-- ARGS…]]…";

/// Runs pods of containers, each pod in a micro-VM of its own
#[derive(Debug, Parser)]
#[command(name = "podvm", bin_name = "podvm", version, max_term_width = 100, arg_required_else_help = true)]
#[command(
    help_template = crate::help::template(),
    after_help = "Exit codes: that of the command run in a pod; 254 when podvm itself could not do what was asked."
)]
pub struct Cli {
    /// Options that go with every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that go with every command.
#[derive(Debug, Clone, clap::Args)]
pub struct GlobalArgs {
    /// Folder of podvm's state: images and pods [default: /var/lib/podvm; for ordinary users ~/.local/share/podvm]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub root: Option<PathBuf>,
    /// Configuration file [default: /etc/podvm/config.toml; for ordinary users ~/.config/podvm/config.toml before it]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pod of one or more images
    Run(Box<run::RunArgs>),
    /// Write a pod down, to be started later, and print its UUID
    #[command(after_help = "Start it with `podvm run-prepared UUID`.", override_usage = PREPARE_USAGE)]
    #[command(mut_arg("detach", |arg| arg.hide(true)), mut_arg("rm", |arg| arg.hide(true)))]
    Prepare(Box<run::RunArgs>),
    /// Start a pod that was prepared
    RunPrepared(run::RunPreparedArgs),
    /// List pods
    #[command(visible_aliases = ["ls", "ps"])]
    List(list::ListArgs),
    /// Show a pod and its apps
    Status(status::StatusArgs),
    /// Connect to a running app's input and output
    Attach(attach::AttachArgs),
    /// Copy files into a running app, or out of it
    Cp(cp::CpArgs),
    /// Write an app's root filesystem as a tar archive
    Export(export::ExportArgs),
    /// Show what running apps use: CPU time, memory, processes
    Stats(stats::StatsArgs),
    /// List the processes of a pod's apps
    Top(top::TopArgs),
    /// Hold a pod's apps still
    Pause(pause::PauseArgs),
    /// Let a paused pod's apps go on
    #[command(visible_alias = "unpause")]
    Resume(pause::PauseArgs),
    /// Print what a pod was made from, for `podvm run --pod-manifest`
    CatManifest(cat_manifest::CatManifestArgs),
    /// Execute another program in a running app
    #[command(visible_alias = "enter")]
    Exec(exec::ExecArgs),
    /// Show what a pod's apps have printed
    Logs(logs::LogsArgs),
    /// Stop running pods
    Stop(stop::StopArgs),
    /// Remove pods that have ended
    Rm(rm::RmArgs),
    /// Remove pods that ended half an hour ago and earlier, and what crashes left
    Gc(gc::GcArgs),
    /// Fetch images: the same as `podvm image fetch`
    Fetch(image::fetch::FetchArgs),
    /// Import, list and remove images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Say whose appc images may run: add, list and remove keys
    #[command(subcommand)]
    Trust(trust::TrustCommand),
    /// Check what this host can do
    Doctor(doctor::DoctorArgs),
    /// Show versions
    Version(version::VersionArgs),
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
    /// Write manual pages into a directory
    Man(man::ManArgs),
}

/// What a command line turned out to be.
#[derive(Debug)]
pub enum Parsed {
    /// A command.
    Command(Box<Cli>),
    /// Help or a version, to be printed.
    Text(String),
}

/// Reads the command line, program name first.
///
/// # Errors
/// The one message that says what is wrong with it.
pub fn parse(arguments: &[OsString]) -> Result<Parsed, String> {
    let mut parts = arguments.split(|argument| argument == APP_SEPARATOR);
    let head = parts.next().unwrap_or_default();
    match Cli::try_parse_from(head) {
        Ok(mut cli) => {
            if let Command::Run(args) | Command::Prepare(args) = &mut cli.command {
                for part in parts {
                    match AppPart::try_parse_from(std::iter::once(&OsString::from("podvm run")).chain(part)) {
                        Ok(part) => args.further_apps.push(part.app),
                        Err(error) => return text_or_message(&error),
                    }
                }
                if args.pod_manifest.is_none() && args.apps().any(|app| app.image.is_none()) {
                    return Err(
                        "an IMAGE is missing; name one for each app, or run `podvm run --pod-manifest FILE`".into()
                    );
                }
                if args.pod_manifest.is_some() && !args.further_apps.is_empty() {
                    return Err(
                        "--pod-manifest describes all apps of the pod; leave out --- and what follows it".into()
                    );
                }
                return Ok(Parsed::Command(Box::new(cli)));
            }
        }
        Err(error) if parts.next().is_none() => {
            return misplaced_argument(arguments, &error).map_or_else(|| text_or_message(&error), Err);
        }
        Err(_) => {}
    }
    // `---` means nothing to the other commands.
    Cli::try_parse_from(arguments)
        .map_or_else(|error| text_or_message(&error), |cli| Ok(Parsed::Command(Box::new(cli))))
}

/// One more app of a pod, after `---`; options of the whole pod belong before the first `---`
#[derive(Debug, Parser)]
#[command(name = "podvm run", bin_name = "podvm run [POD OPTIONS] … ---", max_term_width = 100)]
struct AppPart {
    #[command(flatten)]
    app: AppArgs,
}

fn text_or_message(error: &clap::Error) -> Result<Parsed, String> {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Parsed::Text(text)),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(format!("no command was given; see `podvm --help`\n\n{}", text.trim_end()))
        }
        _ => Err(one_message(&text)),
    }
}

/// Who knows other runners writes the program's arguments right behind the image.
fn misplaced_argument(arguments: &[OsString], error: &clap::Error) -> Option<String> {
    let runs = arguments.iter().any(|argument| argument == "run" || argument == "prepare");
    let Some(ContextValue::String(found)) = error.get(ContextKind::InvalidArg) else { return None };
    let is_word = runs && error.kind() == ErrorKind::UnknownArgument && !found.starts_with('-');
    is_word.then(|| {
        format!(
            "unexpected argument {found:?}; what the image's program is given stands after --, as in: IMAGE -- {found}"
        )
    })
}

/// Makes one line of clap's report, which spreads what is wrong and what helps over several paragraphs.
fn one_message(text: &str) -> String {
    let before_usage = text.split("\n\nUsage:").next().unwrap_or(text).split("\n\nFor more information").next();
    let lines = before_usage.unwrap_or(text).lines().map(str::trim).filter(|line| !line.is_empty());
    let message = lines.collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    format!("{message}; `--help` tells more")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Cli, String> {
        let arguments: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        match parse(&arguments)? {
            Parsed::Command(cli) => Ok(*cli),
            Parsed::Text(text) => Err(text),
        }
    }

    fn run_args(text: &str) -> run::RunArgs {
        match parse_text(text).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        AppPart::command().debug_assert();
    }

    #[test]
    fn options_stand_before_and_after_the_image() {
        let args = run_args("podvm run --private-net --port=client:2379 --memory 64M etcd --name db -- --listen=x --y");
        assert_eq!(args.app.image.as_deref(), Some("etcd"));
        assert_eq!(args.app.arguments, ["--listen=x", "--y"]);
        assert_eq!(args.app.name.as_ref().unwrap().as_str(), "db");
        assert_eq!(args.ports.len(), 1);
        assert_eq!(args.network(), podvm_pod::manifest::NetworkMode::Default);
    }

    #[test]
    fn three_dashes_begin_another_app() {
        let args = run_args("podvm run --net=none a -- --- b --memory 32M -- --- -e A=b c -- x ---y");
        assert_eq!(args.app.image.as_deref(), Some("a"));
        assert_eq!(args.further_apps.len(), 2);
        assert_eq!(args.further_apps[0].image.as_deref(), Some("b"));
        assert!(args.further_apps[0].memory.is_some() && args.app.memory.is_none());
        assert_eq!(args.further_apps[1].arguments, ["x", "---y"]);
    }

    #[test]
    fn a_pod_is_prepared_as_it_is_run() {
        let cli = parse_text("podvm prepare --net=none a --- b --memory 32M").unwrap();
        let Command::Prepare(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(args.further_apps.len(), 1);
        let help = parse_text("podvm prepare --help").unwrap_err();
        assert!(help.contains("--volume") && !help.contains("--detach") && !help.contains("--rm"), "{help}");
    }

    #[test]
    fn three_dashes_are_an_ordinary_argument_of_other_commands() {
        let cli = parse_text("podvm exec 1234 echo --- x").unwrap();
        let Command::Exec(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(args.command, ["echo", "---", "x"]);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (text, part) in [
            ("podvm run --memory 1Q etcd", "1Q"),
            ("podvm run --port 80 etcd", "NAME:[IP:]PORT"),
            ("podvm run --volume data,kind=tape etcd", "kind"),
            ("podvm run --frobnicate etcd", "--frobnicate"),
            ("podvm run busybox ls /", "IMAGE -- ls"),
            ("podvm run -v /srv:data busybox", "SOURCE:TARGET"),
            ("podvm run", "IMAGE"),
            ("podvm run a --- --volume x,kind=empty b", "--volume"),
            ("podvm run --stage1 qemu etcd", "qemu"),
            ("podvm run a --- --memory 32M", "IMAGE"),
            ("podvm run --pod-manifest pod.json etcd", "--pod-manifest"),
            ("podvm run --pod-manifest pod.json --memory 32M", "--memory"),
            ("podvm run --seccomp mode=retain etcd", "names no system call"),
            ("podvm run --oom-score-adj 1001 etcd", "1001"),
            ("podvm run --rlimit files=1 etcd", "nofile"),
            ("podvm run --dns dns.example etcd", "IP address"),
            ("podvm run --hosts-entry db=10.0.0.5 etcd", "IP=NAME"),
            ("podvm run --net=bridge etcd", "bridge"),
            ("podvm frob", "frob"),
        ] {
            let message = parse_text(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
            assert!(!message.contains("error:"), "{message}");
        }
    }

    #[test]
    fn keys_are_trusted_for_a_prefix_or_for_all_images() {
        for text in [
            "podvm trust add --root key.asc",
            "podvm trust add key.asc --root",
            "podvm --root /x trust add --root key.asc",
            "podvm --root /x trust add --prefix a.example key.asc",
            "podvm trust rm --root 6C6C33B5CA738FBD0663884E3DD9A6CD330FB593",
        ] {
            parse_text(text).unwrap();
        }
        for text in
            ["podvm trust add key.asc", "podvm --root /x trust add key.asc", "podvm trust add --root --prefix a k"]
        {
            let message = parse_text(text).unwrap_err();
            assert!(message.contains("--prefix"), "{message}");
        }
    }

    #[test]
    fn help_is_no_error() {
        let arguments: Vec<OsString> = ["podvm", "run", "--help"].map(OsString::from).into();
        let Ok(Parsed::Text(help)) = parse(&arguments) else { panic!("no help") };
        assert!(help.contains("--volume") && help.contains("Examples"), "{help}");
    }
}
