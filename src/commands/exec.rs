//! `podvm exec` (rkt's `enter`): another program in a running app.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::Result;
use podvm_pod::client::{ClientError, ExecStreams, exec};
use podvm_pod::console::Signals;
use podvm_pod::manifest::{AppName, EnvironmentVariable, UserSpec};
use podvm_pod::protocol::ExecSpec;

use super::target::RunningPod;
use crate::config::Config;
use crate::report;

/// What is executed when nothing is said.
const DEFAULT_SHELL: &str = "/bin/sh";

const EXAMPLES: &str = "\
Examples:
  podvm exec -it 8d3f bash                         a shell in the one app of a pod
  podvm exec --app db 8d3f -- redis-cli info       a program in an app of several
The exit code is the program's, 128+N when signal N killed it; 127: no such program; 126: it cannot be executed; 254: podvm failed.";

/// Options of `podvm exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ExecArgs {
    /// App to execute the program in; needed when the pod has several
    #[arg(long, value_name = "APP")]
    pub app: Option<AppName>,
    /// Connect this terminal's or pipe's input to the program
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the program a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// User to run as, with an optional :GROUP [default: the app's]
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// Set a variable beside those of the app: NAME=VALUE
    #[arg(long, short, value_name = "VARIABLE")]
    pub environment: Vec<EnvironmentVariable>,
    /// Directory to start in [default: the app's]
    #[arg(long, short, value_name = "DIR")]
    pub working_dir: Option<PathBuf>,
    /// The pod: its UUID, or enough of its beginning
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Program and arguments [default: /bin/sh, with a terminal if this is one]
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Executes a program; returns its exit code.
pub fn run(args: &ExecArgs, config: &Config) -> Result<u8> {
    let pod = RunningPod::find(config, &args.pod)?;
    let spec = spec(args, pod.app(args.app.as_ref())?);
    let signals = Signals::block()?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = ExecStreams { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
    match exec(&pod.client(), spec, streams, signals) {
        Ok(status) => Ok(status.code()),
        Err(error @ ClientError::Refused { .. }) => {
            report(&error.to_string());
            Ok(error.exit_code())
        }
        Err(error) => Err(error.into()),
    }
}

fn spec(args: &ExecArgs, app: AppName) -> ExecSpec {
    let is_shell = args.command.is_empty();
    let has_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let terminal = args.tty || (is_shell && has_terminal);
    let mut environment = args.environment.clone();
    if terminal && !environment.iter().any(|variable| variable.name == "TERM") {
        let value = std::env::var("TERM").unwrap_or_else(|_| "xterm".into());
        environment.push(EnvironmentVariable { name: "TERM".into(), value });
    }
    ExecSpec {
        app,
        exec: if is_shell { vec![DEFAULT_SHELL.into()] } else { args.command.clone() },
        user: args.user.as_deref().map(UserSpec::from),
        environment,
        working_directory: args.working_dir.clone(),
        terminal,
        stdin: args.interactive || is_shell,
    }
}
