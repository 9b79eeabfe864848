//! What the new process does, from the clone to the program: the steps in order.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::wait::WaitStatus;
use nix::unistd::ForkResult;
use podvm_pod::archive::Archived;
use podvm_pod::exit::PODVM_ERROR;
use podvm_pod::manifest::{App, Capability};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Gid, Uid};

use super::program::Program;
use super::socket::AppSocket;
use super::terminal::{Terminal, take_control};
use super::user::User;
use super::{Job, LaunchError, Pod, control, etc, files, privileges, root, socket, system, volume};
use crate::seccomp::{self, Filter};
use crate::step::{Step, StepError};
use crate::sys::process;
use crate::sys::socket::shut_down;

/// The process's ends of its pipes; with a terminal it has none.
#[derive(Debug, Default)]
pub struct Pipes {
    /// Standard input; `/dev/null` when none.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// Everything the new process was given.
#[derive(Debug)]
pub struct Child<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Which of its apps.
    pub index: usize,
    /// What for.
    pub job: &'a Job,
    /// The app's main process, when another joins it.
    pub target: Option<BorrowedFd<'a>>,
    /// The socket to the supervisor.
    pub control: OwnedFd,
    /// Its pipes.
    pub pipes: Pipes,
}

/// A process that only waits for the word to go.
struct Ready {
    user: User,
    program: Program,
    filter: Option<Filter>,
    terminal: Option<Terminal>,
    streams: [OwnedFd; 3],
}

/// Runs the process to its program or its end.
///
/// # Safety
/// To be called in a process just cloned from a single-threaded one: it closes every descriptor it does not need, whoever
/// owns it.
pub unsafe fn run(child: Child<'_>) -> ! {
    let control = child.control.as_raw_fd();
    std::panic::set_hook(Box::new(move |panic| {
        // SAFETY: the descriptor stays open as long as the process lives.
        let control = unsafe { BorrowedFd::borrow_raw(control) };
        control::report_failure(control, &format!("the supervisor's new process failed: {panic}"), PODVM_ERROR);
        // SAFETY: ends the process without running anything of the supervisor's.
        unsafe { libc::_exit(PODVM_ERROR.into()) }
    }));
    // SAFETY: the caller promises that nobody owns the others in this process.
    let closed = unsafe { process::close_all_but(&child.descriptors()) };
    let closed = closed.step(|| "close the supervisor's files").map_err(|error| Some(error.into()));
    let code = match closed.and_then(|()| child.go()) {
        Err(Some(error)) => {
            let name = &child.pod.spec.apps[child.index].app.name;
            control::report_failure(child.control.as_fd(), &format!("app {name}: {error}"), error.code());
            error.code()
        }
        Err(None) => PODVM_ERROR,
    };
    // SAFETY: ends the process without running anything of the supervisor's.
    unsafe { libc::_exit(code.into()) }
}

impl Child<'_> {
    fn descriptors(&self) -> Vec<RawFd> {
        let pipes = [&self.pipes.stdin, &self.pipes.stdout, &self.pipes.stderr];
        let mut keep: Vec<RawFd> = pipes.into_iter().flatten().map(AsRawFd::as_raw_fd).collect();
        keep.push(self.control.as_raw_fd());
        keep.extend(self.target.map(|target| target.as_raw_fd()));
        keep.extend(self.sockets().iter().map(|socket| socket.as_fd().as_raw_fd()));
        // Standard streams stay until they are replaced, lest another file take the number of one.
        keep.extend([libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO]);
        keep
    }

    fn app(&self) -> &App {
        &self.pod.spec.apps[self.index].app
    }

    /// The sockets that the program gets: only an app's main process has any.
    fn sockets(&self) -> &[AppSocket] {
        match self.job {
            Job::Main => &self.pod.sockets[self.index],
            Job::PostStop | Job::Exec(_) | Job::Archive(_) => &[],
        }
    }

    /// Returns an error to report, or none when the supervisor is gone and nobody is left to hear it.
    fn go(&self) -> Result<Infallible, Option<LaunchError>> {
        if let Job::Archive(what) = self.job {
            return self.archive(what);
        }
        let ready = self.prepare()?;
        let terminal = ready.terminal.as_ref().map(|terminal| terminal.outer.as_fd());
        control::report_prepared(self.control.as_fd(), terminal).map_err(|_| None)?;
        if !control::wait_for_go(self.control.as_fd()) {
            return Err(None);
        }
        Ok(self.execute(ready)?)
    }

    /// Packs or unpacks the app's files, and ends.
    fn archive(&self, what: &Archived) -> Result<Infallible, Option<LaunchError>> {
        self.enter_walls().map_err(|error| Some(error.into()))?;
        control::report_prepared(self.control.as_fd(), None).map_err(|_| None)?;
        if !control::wait_for_go(self.control.as_fd()) {
            return Err(None);
        }
        // To the supervisor this is a program being executed.
        shut_down(self.control.as_fd(), libc::SHUT_RDWR);
        let code = files::run(what, &self.pipes);
        // SAFETY: ends the process without running anything of the supervisor's.
        unsafe { libc::_exit(code.into()) }
    }

    fn enter_walls(&self) -> Result<(), StepError> {
        process::reset_signals();
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        match self.target {
            None => self.build_walls(),
            Some(target) => {
                // Nobody in the app may look into this process, or trace it, before it is one of theirs.
                process::set_process_option(libc::PR_SET_DUMPABLE, 0).step(|| "hide from the app")?;
                process::join_namespaces(target, libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP)
                    .step(|| "join the app's namespaces")
            }
        }
    }

    fn prepare(&self) -> Result<Ready, LaunchError> {
        self.enter_walls()?;
        let app = self.app();
        let (words, user, more, terminal) = match self.job {
            Job::PostStop => (&app.post_stop, &app.user, &app.environment[..0], app.terminal),
            Job::Main | Job::Archive(_) => (&app.exec, &app.user, &app.environment[..0], app.terminal),
            Job::Exec(spec) => {
                (&spec.exec, spec.user.as_ref().unwrap_or(&app.user), &spec.environment[..], spec.terminal)
            }
        };
        let user = User::find_here(user, &app.supplementary_gids)?;
        let of_sockets = socket::variables(self.sockets());
        let variables: Vec<_> = app.environment.iter().chain(more).chain(&of_sockets).collect();
        let program = Program::new(words, &variables, &user, terminal)?;
        for limit in &app.isolators.rlimits {
            privileges::resource(&limit.name)?;
        }
        let filter = seccomp::filter(&app.isolators.seccomp, &app.isolators.capabilities)?;
        let terminal = if terminal { Some(self.open_terminal()?) } else { None };
        let streams = self.streams(terminal.as_ref(), &user).step(|| "set up the standard streams")?;
        Ok(Ready { user, program, filter, terminal, streams })
    }

    /// Builds the app's own walls and enters them.
    fn build_walls(&self) -> Result<(), StepError> {
        let (pod, app) = (self.pod, self.app());
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .step(|| "keep the app's mounts to itself")?;
        // Also where the app has no cgroup of its own: it is not to see the host's paths.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).step(|| "make a cgroup namespace")?;
        let root = root::assemble(pod, self.index)?;
        system::mount(&root, &pod.places.shm(), pod.cgroups)?;
        if !pod.has_own_devices && app.isolators.capabilities.contains(&Capability::Mknod) {
            system::keep_to_devices(&root)?;
        }
        volume::mount_all(&root, pod, self.index)?;
        etc::mount(&root, &pod.places.app(&app.name).join("etc"), &pod.spec, app.read_only_root)?;
        let directory = &app.working_directory;
        root.directory(directory).step(|| format!("make the working directory {}", directory.display()))?;
        system::conceal(&root)?;
        root::restrict_root(&root, pod, self.index)?;
        root::enter(&root)
    }

    fn open_terminal(&self) -> Result<Terminal, StepError> {
        let terminal = Terminal::open_here().step(|| "open a terminal in the app's /dev/pts")?;
        if self.target.is_none() {
            terminal.show_as_console().step(|| "show the terminal as /dev/console")?;
        }
        Ok(terminal)
    }

    /// The three standard streams, owned by the user, so that a program may open them again by `/dev/stdout`.
    fn streams(&self, terminal: Option<&Terminal>, user: &User) -> std::io::Result<[OwnedFd; 3]> {
        let uid = Some(Uid::from_raw(user.uid));
        if let Some(Terminal { inner, .. }) = terminal {
            rustix::fs::fchown(inner, uid, None)?;
            return Ok([inner.try_clone()?, inner.try_clone()?, inner.try_clone()?]);
        }
        let stream = |pipe: &Option<OwnedFd>| match pipe {
            Some(pipe) => {
                rustix::fs::fchown(pipe, uid, Some(Gid::from_raw(user.gid)))?;
                pipe.try_clone()
            }
            None => Ok(File::options().read(true).write(true).open("/dev/null")?.into()),
        };
        Ok([stream(&self.pipes.stdin)?, stream(&self.pipes.stdout)?, stream(&self.pipes.stderr)?])
    }

    /// Runs what must succeed before the app, and then the app. Returns only on errors.
    fn execute(&self, ready: Ready) -> Result<Infallible, LaunchError> {
        if matches!(self.job, Job::Main) && !self.app().pre_start.is_empty() {
            self.pre_start(&ready)?;
        }
        self.become_program(ready, self.sockets())
    }

    /// Runs the handler in a process of its own, which has all that the app will have but the control of its terminal.
    fn pre_start(&self, ready: &Ready) -> Result<(), LaunchError> {
        let app = self.app();
        let variables: Vec<_> = app.environment.iter().collect();
        let program = Program::new(&app.pre_start, &variables, &ready.user, ready.terminal.is_some())?;
        let filter = seccomp::filter(&app.isolators.seccomp, &app.isolators.capabilities)?;
        let clone = |stream: &OwnedFd| stream.try_clone();
        let [stdin, stdout, stderr] = &ready.streams;
        let streams = (|| Ok::<_, std::io::Error>([clone(stdin)?, clone(stdout)?, clone(stderr)?]))();
        let streams = streams.step(|| "set up the handler's streams")?;
        let (mut reader, mut writer) = std::io::pipe().step(|| "make a pipe")?;
        // SAFETY: this process has one thread.
        match unsafe { nix::unistd::fork() }.step(|| "make a process for the pre-start handler")? {
            ForkResult::Child => {
                drop(reader);
                let handler = Ready { user: ready.user.clone(), program, filter, terminal: None, streams };
                let Err(error) = self.become_program(handler, &[]);
                // Whoever reads it waits for the process's end in any case.
                let _ = writer.write_all(error.to_string().as_bytes());
                // SAFETY: ends the process without running anything of the supervisor's.
                unsafe { libc::_exit(error.code().into()) }
            }
            ForkResult::Parent { child } => {
                drop((writer, streams));
                let mut message = String::new();
                // Closed when the handler's program is executed.
                reader.read_to_string(&mut message).step(|| "hear of the pre-start handler")?;
                let status = loop {
                    match nix::sys::wait::waitpid(child, None) {
                        Err(nix::errno::Errno::EINTR) => {}
                        other => break other.step(|| "wait for the pre-start handler")?,
                    }
                };
                let (how, code) = match status {
                    WaitStatus::Exited(_, 0) => return Ok(()),
                    WaitStatus::Exited(_, code) if message.is_empty() => {
                        (format!("exited with {code}"), u8::try_from(code).unwrap_or(PODVM_ERROR))
                    }
                    WaitStatus::Exited(_, code) => {
                        (format!("cannot be run: {message}"), u8::try_from(code).unwrap_or(PODVM_ERROR))
                    }
                    WaitStatus::Signaled(_, signal, _) => {
                        (format!("was killed by {signal}"), u8::try_from(128 + signal as i32).unwrap_or(PODVM_ERROR))
                    }
                    _ => ("ended oddly".to_owned(), PODVM_ERROR),
                };
                Err(LaunchError::PreStart { program: app.pre_start[0].clone(), how, code })
            }
        }
    }

    /// Gives up what the app may not have and executes the program. Returns only on errors.
    fn become_program(&self, ready: Ready, sockets: &[AppSocket]) -> Result<Infallible, LaunchError> {
        let Ready { user, program, filter, terminal, streams } = ready;
        let app = self.app();
        privileges::set_limits(&app.isolators)?;
        process::leave_session_keyring();
        nix::unistd::setsid().step(|| "lead a session")?;
        if terminal.is_some() {
            take_control(streams[0].as_fd()).step(|| "take control of the terminal")?;
        }
        let directory = match self.job {
            Job::Exec(spec) => spec.working_directory.as_deref().unwrap_or(&app.working_directory),
            Job::Main | Job::PostStop | Job::Archive(_) => &app.working_directory,
        };
        // As root first: the way there may be closed to the user. Only where root is nobody, as on a network's filesystem,
        // is it the user's turn.
        let entered = nix::unistd::chdir(directory);
        privileges::become_user(&user, &app.isolators)?;
        entered.or_else(|_| nix::unistd::chdir(directory)).step(|| enter_what(directory))?;
        let file = program.find()?;
        let [stdin, stdout, stderr] = streams;
        nix::unistd::dup2_stdin(stdin).step(|| "set the standard input")?;
        nix::unistd::dup2_stdout(stdout).step(|| "set the standard output")?;
        nix::unistd::dup2_stderr(stderr).step(|| "set the standard error")?;
        // SAFETY: of what this process still uses, the control socket has a number beyond (see `launch`), and the rest is done with.
        let end = unsafe { socket::place(sockets) }.step(|| "hand the app its sockets")?;
        process::close_on_exec_from(end).step(|| "keep the supervisor's files from the program")?;
        if let Some(filter) = filter {
            process::install_seccomp_filter(filter.program()).step(|| "install the filter of system calls")?;
        }
        Err(program.execute(&file))
    }
}

fn enter_what(directory: &Path) -> String {
    format!("enter the working directory {}", directory.display())
}
