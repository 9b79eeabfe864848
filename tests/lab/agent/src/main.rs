//! The inside of the lab's machine.
//!
//! As PID 1 of the initramfs it sets the machine up ([`boot`]); as `podvm-lab-agent serve`, under itself in the
//! fast flavour and under systemd in the full one, it runs the commands that the host sends ([`serve`]).

mod boot;
mod serve;

use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::wait;

use podvm_lab_agent::plan::{AGENT_PATH, FlavourPlan};

fn main() -> ExitCode {
    if std::process::id() == 1 {
        let error = init();
        eprintln!("podvm lab: {error}");
        power_off();
    }
    match std::env::args().nth(1).as_deref() {
        Some("serve") => {
            let warnings = std::env::args().skip(2).collect();
            match serve::serve(warnings) {
                // The host has gone, and its machine with it.
                Ok(()) => power_off(),
                Err(error) => eprintln!("podvm lab: {error}"),
            }
            ExitCode::FAILURE
        }
        _ => {
            eprintln!("podvm-lab-agent runs inside the lab's machine; the lab is started by `cargo xtask lab`");
            ExitCode::FAILURE
        }
    }
}

/// PID 1: returns only what went wrong.
fn init() -> boot::BootError {
    let (plan, warnings) = match boot::set_up() {
        Ok(done) => done,
        Err(error) => return error,
    };
    let agent = Command::new(AGENT_PATH);
    match plan.flavour {
        FlavourPlan::Full => boot::hand_over_to_system(),
        FlavourPlan::Fast { .. } => supervise(agent, &warnings),
    }
}

/// Runs the agent and reaps all else until it ends.
fn supervise(mut agent: Command, warnings: &[String]) -> boot::BootError {
    let started = agent.arg("serve").args(warnings).envs(boot::ENVIRONMENT).spawn();
    let agent = match started {
        Ok(child) => child.id() as i32,
        Err(source) => return boot::BootError::Io { what: format!("start {AGENT_PATH}"), source },
    };
    loop {
        match wait() {
            Ok(status) if status.pid().is_some_and(|pid| pid.as_raw() == agent) => {
                return boot::BootError::AgentEnded(format!("{status:?}"));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return boot::BootError::AgentEnded(error.to_string()),
        }
    }
}

/// Stops the machine; QEMU, started so, takes a reset for its end.
fn power_off() -> ! {
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}
