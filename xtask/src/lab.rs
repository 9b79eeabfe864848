//! `cargo xtask lab`: one command, or a shell, in the lab.

use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use podvm_lab::terminal::{self, RawMode};
use podvm_lab::{Flavour, Lab, LabCommand, LabConfig, RunError, Session, Stream};

/// The exit code for a command that was killed for taking too long, as timeout(1) has it.
const TIME_LIMIT_EXIT: u8 = 124;

/// What to run in the lab, and in which machine.
#[derive(clap::Args)]
pub struct Arguments {
    /// Use a Debian with systemd, with this host's tree at /host, instead of this host's tree itself
    #[arg(long)]
    full: bool,
    /// Count instructions: one CPU, whose clock goes on by one millisecond every 10^6 instructions
    #[arg(long)]
    icount: bool,
    /// Give the command this terminal; without a command, a shell
    #[arg(long, short)]
    interactive: bool,
    /// Kill the machine after this many seconds and exit with 124 [default: 600, interactive: none]
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<u64>,
    /// The machine's memory in MiB
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// The machine's CPUs [default: 1; with more, QEMU's nested virtualization hangs now and then]
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<u32>,
    /// Afterwards copy this file or directory of the lab to the host (default: to its name, here)
    #[arg(long, value_name = "LAB_PATH[=HOST_PATH]")]
    out: Vec<String>,
    /// Set a variable for the command; without a value, pass on ours
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Show the machine's kernel messages on standard error
    #[arg(long)]
    console: bool,
    /// Use an emulated machine even if this host's own KVM would do
    #[arg(long)]
    emulate: bool,
    /// Say on standard error how long the machine took to come up
    #[arg(long, short)]
    verbose: bool,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command; its exit code is ours.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let outs = arguments.out.iter().map(|out| parse_out(out)).collect::<anyhow::Result<Vec<_>>>()?;
    let command = command(&arguments)?;
    let mut session = select(&arguments).session()?;
    if arguments.verbose
        && let Some(ready) = session.ready()
    {
        let seconds = session.boot_time().as_secs_f64();
        eprintln!("lab: Linux {} up in {seconds:.1} s ({:.1} s in the machine)", ready.kernel, ready.uptime_seconds);
    }
    for warning in session.ready().into_iter().flat_map(|ready| &ready.warnings) {
        eprintln!("lab: {warning}");
    }
    let raw = if arguments.interactive { RawMode::enter().context("cannot set the terminal up")? } else { None };
    let ended = session.run(command, &mut write_through);
    drop(raw);
    let code = match ended {
        Ok(ended) => {
            if let podvm_lab::Ended::NotStarted(reason) = &ended {
                eprintln!("lab: {reason}");
            }
            u8::try_from(ended.exit_code()).unwrap_or(u8::MAX)
        }
        Err(error @ RunError::TimeLimit(_)) => {
            eprintln!("lab: {error}");
            return Ok(ExitCode::from(TIME_LIMIT_EXIT));
        }
        Err(error) => return Err(error.into()),
    };
    carry_out(&mut session, &outs)?;
    Ok(ExitCode::from(code))
}

fn select(arguments: &Arguments) -> Lab {
    let mut config = LabConfig::default();
    config.flavour = if arguments.full { Flavour::Full } else { Flavour::Fast };
    config.memory_mib = arguments.memory.unwrap_or(config.memory_mib);
    config.cpus = arguments.cpus.unwrap_or(config.cpus);
    config.icount = arguments.icount;
    config.show_console = arguments.console;
    if arguments.emulate { Lab::Emulated(config) } else { Lab::select(config) }
}

fn command(arguments: &Arguments) -> anyhow::Result<LabCommand> {
    let mut argv = arguments.command.clone();
    if argv.is_empty() {
        if !arguments.interactive {
            bail!(
                "no command was given; `cargo xtask lab -- COMMAND` runs one, `cargo xtask lab --interactive` a shell"
            );
        }
        argv = vec!["bash".into(), "-l".into()];
    }
    let mut command = LabCommand::new(argv);
    if !arguments.full {
        command = command.directory(std::env::current_dir().context("the current directory is gone")?);
    }
    for variable in &arguments.env {
        let (name, value) = match variable.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => (variable.as_str(), std::env::var(variable).with_context(|| format!("--env {variable}"))?),
        };
        command = command.env(name, value);
    }
    if arguments.interactive {
        command = command.terminal(terminal::size);
    }
    if arguments.interactive || !io::stdin().is_terminal() {
        command = command.input(io::stdin());
    }
    let limit = arguments.time_limit.or((!arguments.interactive).then_some(600));
    Ok(match limit {
        Some(seconds) => command.time_limit(Duration::from_secs(seconds)),
        None => command,
    })
}

/// Passes the command's output on as it comes.
pub fn write_through(stream: Stream, bytes: &[u8]) {
    // A reader that has gone away is no reason to stop the command.
    let _ = match stream {
        Stream::Stdout => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
        Stream::Stderr => io::stderr().write_all(bytes),
    };
}

fn parse_out(out: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
    if let Some((from, to)) = out.split_once('=') {
        return Ok((from.into(), to.into()));
    }
    let name = Path::new(out).file_name().filter(|name| !name.as_bytes().is_empty());
    let name = name.with_context(|| format!("--out {out}: name the place on the host, as in --out {out}=PATH"))?;
    Ok((out.into(), name.into()))
}

fn carry_out(session: &mut Session, outs: &[(PathBuf, PathBuf)]) -> anyhow::Result<()> {
    let here = std::env::current_dir().context("the current directory is gone")?;
    for (from, to) in outs {
        // In the fast flavour the lab's tree has the same paths as ours.
        let from = if from.is_absolute() { from.clone() } else { here.join(from) };
        session.carry_out(&from, to)?;
    }
    Ok(())
}
