//! What clients ask on request connections.

use std::time::Duration;

use podvm_pod::manifest::AppName;
use podvm_pod::protocol::{Event, ProcessId, Request, Response, SignalTarget, StreamKind};
use podvm_pod::status::AppState;

use super::Supervisor;
use super::connection::{WaitFor, refusal};
use super::process::{MAX_EXECS, Process, State};
use crate::app::launch::launch;
use crate::app::{Job, terminal};
use crate::processes;
use crate::step::note;

/// A number that no signal is above.
const LAST_SIGNAL: i32 = 64;

/// What is done about a request.
enum Reply {
    Now(Response),
    Later(WaitFor),
}

impl From<Response> for Reply {
    fn from(response: Response) -> Self {
        Self::Now(response)
    }
}

/// Why a request is refused, as a sentence.
pub(super) type Refusal = String;

impl Supervisor {
    pub(super) fn handle_request(&mut self, connection: u64, request: Request) {
        let reply = match request {
            Request::Stream { process, stream } => match self.attach(connection, process, stream) {
                Ok(()) => return,
                Err(message) => Err(message),
            },
            Request::Socket { app, index } => match self.connect_socket(connection, &app, index) {
                Ok(()) => return,
                Err(message) => Err(message),
            },
            Request::Exec(spec) => self.beside(&spec.app.clone(), &Job::Exec(spec)),
            Request::Archive { app, what } => self.beside(&app, &Job::Archive(what)),
            Request::Processes { app } => self.processes_of(&app),
            Request::Freeze { app, frozen } => self.freeze(app.as_ref(), frozen),
            Request::Start { process } => self.start_process(process),
            Request::Wait { process } => self.process(process).map(|_| Reply::Later(WaitFor::Exit(process))),
            Request::Signal { target, signal } => self.signal(&target, signal),
            Request::Close { process, stream } => self.close_stream(process, stream),
            Request::Resize { process, rows, columns } => self.resize(process, rows, columns),
            Request::Status => self.status(),
            Request::Stats => self.stats(),
            Request::Stop { grace_ms } => {
                self.stop(Duration::from_millis(grace_ms));
                Ok(Response::Done.into())
            }
        };
        let Some(connection) = self.connections.get_mut(&connection) else { return };
        match reply {
            Ok(Reply::Now(response)) => connection.answer(&response),
            Ok(Reply::Later(wait)) => connection.wait_for(wait),
            Err(message) => connection.answer(&refusal(message)),
        }
        self.answer_waiting();
    }

    fn process(&self, id: ProcessId) -> Result<&Process, Refusal> {
        self.processes.get(id).ok_or_else(|| format!("there is no process {}; it may have ended long ago", id.0))
    }

    fn attach(&mut self, connection: u64, id: ProcessId, stream: StreamKind) -> Result<(), Refusal> {
        if self.process(id)?.has_keys(stream) {
            return self.attach_keys(connection, id);
        }
        let number = self.process(id)?.check_stream(stream)?;
        let Some(mut client) = self.connections.remove(&connection) else { return Ok(()) };
        client.announce_stream();
        if let Some(process) = self.processes.get_mut(id) {
            process.attach(number, client.into_framed());
            // What the client sent along with its request is not announced by poll(2).
            process.serve_stream(number, rustix::event::PollFlags::empty(), rustix::event::PollFlags::empty());
        }
        Ok(())
    }

    fn attach_keys(&mut self, connection: u64, id: ProcessId) -> Result<(), Refusal> {
        let Some(mut client) = self.connections.remove(&connection) else { return Ok(()) };
        client.announce_stream();
        if let Some(process) = self.processes.get_mut(id)
            && let Err(error) = process.attach_keys(client.into_framed())
        {
            note(format_args!("nothing can be typed at process {}: {error}", id.0));
        }
        Ok(())
    }

    pub(super) fn app_index(&self, name: &AppName) -> Result<usize, Refusal> {
        let pod = self.pod.as_ref().ok_or("no pod runs yet")?;
        pod.app(name).ok_or_else(|| {
            let names: Vec<&str> = pod.apps.iter().map(|app| app.name.as_str()).collect();
            format!("there is no app {name} in this pod; its apps are: {}", names.join(", "))
        })
    }

    /// Another process in an app, which its client starts.
    fn beside(&mut self, app: &AppName, job: &Job) -> Result<Reply, Refusal> {
        let index = self.app_index(app)?;
        Ok(Reply::Later(WaitFor::Prepared(self.launch_beside(index, job)?)))
    }

    /// Makes another process in an app.
    pub(super) fn launch_beside(&mut self, index: usize, job: &Job) -> Result<ProcessId, Refusal> {
        if !self.processes.has_room() {
            return Err(format!("there are {MAX_EXECS} processes in the pod beside its apps; end some first"));
        }
        let pod = self.pod.as_ref().ok_or("no pod runs yet")?;
        let app = &pod.apps[index];
        if app.paused {
            return Err(format!("app {} is paused; let it go on with `podvm resume`", app.name));
        }
        let main = app.process.and_then(|id| self.processes.get(id)).filter(|process| process.state == State::Running);
        let main = main.ok_or_else(|| format!("app {} is not running", app.name))?;
        let target = main.pidfd().ok_or_else(|| format!("app {} is not running", app.name))?;
        // SAFETY: the supervisor is a single thread.
        let launched = unsafe { launch(&pod.launched_with, index, job, Some(target), app.cgroup.as_ref()) };
        let launched = launched.map_err(|error| error.to_string())?;
        Ok(self.processes.add(index, false, launched))
    }

    fn processes_of(&self, name: &AppName) -> Result<Reply, Refusal> {
        let index = self.app_index(name)?;
        match self.pod.as_ref().map(|pod| &pod.apps[index].state) {
            Some(AppState::Running { pid }) => Ok(Response::Processes { processes: processes::of_app(*pid) }.into()),
            _ => Err(format!("app {name} is not running")),
        }
    }

    fn freeze(&mut self, name: Option<&AppName>, frozen: bool) -> Result<Reply, Refusal> {
        let chosen = name.map(|name| self.app_index(name)).transpose()?;
        let pod = self.pod.as_mut().filter(|pod| !pod.is_stopping()).ok_or("the pod is not running")?;
        let mut statuses = Vec::new();
        let mut refusal = None;
        for (index, app) in pod.apps.iter_mut().enumerate().filter(|(index, _)| chosen.is_none_or(|it| it == *index)) {
            if !matches!(app.state, AppState::Running { .. }) {
                if chosen == Some(index) {
                    return Err(format!("app {} is not running", app.name));
                }
                continue;
            }
            match app.freeze(frozen) {
                Ok(()) => statuses.push(app.status()),
                Err(message) => refusal = Some(message),
            }
        }
        statuses.into_iter().for_each(|status| self.tell(&Event::App(status)));
        refusal.map_or_else(|| Ok(Response::Done.into()), Err)
    }

    fn start_process(&mut self, id: ProcessId) -> Result<Reply, Refusal> {
        self.process(id)?;
        let startable =
            |process: &&mut Process| !process.main && matches!(process.state, State::Prepared | State::Failed { .. });
        if let Some(process) = self.processes.get_mut(id).filter(startable) {
            process.go();
            return Ok(Reply::Later(WaitFor::Started(id)));
        }
        Err(format!("process {} was started before", id.0))
    }

    fn signal(&mut self, target: &SignalTarget, signal: i32) -> Result<Reply, Refusal> {
        if !(1..=LAST_SIGNAL).contains(&signal) {
            return Err(format!("there is no signal {signal}; see signal(7)"));
        }
        let pod = self.pod.as_ref().ok_or("no pod runs yet")?;
        let main = |index: usize| pod.apps[index].process.and_then(|id| self.processes.get(id));
        let targets: Vec<&Process> = match target {
            SignalTarget::Pod => (0..pod.apps.len()).filter_map(main).collect(),
            SignalTarget::App(name) => {
                let index = pod.app(name).ok_or_else(|| format!("there is no app {name} in this pod"))?;
                main(index).into_iter().collect()
            }
            SignalTarget::Process(id) => vec![self.process(*id)?],
        };
        let running: Vec<&Process> = targets.into_iter().filter(|process| process.state == State::Running).collect();
        if running.is_empty() {
            return Err("nothing is running that the signal could be sent to".into());
        }
        for process in running {
            process.signal(signal).map_err(|error| format!("signal {signal} cannot be sent: {error}"))?;
        }
        Ok(Response::Done.into())
    }

    fn close_stream(&mut self, id: ProcessId, kind: StreamKind) -> Result<Reply, Refusal> {
        self.process(id)?;
        if let Some(process) = self.processes.get_mut(id) {
            process.close_output(kind);
        }
        Ok(Response::Done.into())
    }

    fn resize(&mut self, id: ProcessId, rows: u16, columns: u16) -> Result<Reply, Refusal> {
        let terminal = self.process(id)?.terminal().ok_or_else(|| format!("process {} has no terminal", id.0))?;
        terminal::resize(terminal, rows, columns)
            .map_err(|error| format!("the terminal cannot be resized: {error}"))?;
        Ok(Response::Done.into())
    }

    fn status(&self) -> Result<Reply, Refusal> {
        let (apps, processes) = match &self.pod {
            Some(pod) => (pod.statuses(), pod.apps.iter().map(|app| app.process).collect()),
            None => (Vec::new(), Vec::new()),
        };
        Ok(Response::Status { apps, processes }.into())
    }

    fn stats(&self) -> Result<Reply, Refusal> {
        let apps = self.pod.as_ref().map(|pod| pod.stats()).unwrap_or_default();
        Ok(Response::Stats { apps }.into())
    }

    /// Answers the clients whose wait is over.
    pub(super) fn answer_waiting(&mut self) {
        for connection in self.connections.values_mut() {
            let Some(wait) = connection.waits_for() else { continue };
            let (WaitFor::Prepared(id) | WaitFor::Started(id) | WaitFor::Exit(id)) = wait;
            let response = match self.processes.get(id).map(|process| &process.state) {
                None => Some(refusal(format!("process {} is forgotten", id.0))),
                Some(state) => answer(wait, id, state),
            };
            if let Some(response) = response {
                connection.answer(&response);
            }
        }
    }
}

/// What a client hears that waits for a process in this state, if anything yet.
fn answer(wait: WaitFor, process: ProcessId, state: &State) -> Option<Response> {
    if let State::Failed { message, code } = state {
        return Some(Response::Error { message: message.clone(), code: *code });
    }
    match (wait, state) {
        (WaitFor::Prepared(_), State::SettingUp) => None,
        (WaitFor::Prepared(_), _) => Some(Response::Process { process }),
        (WaitFor::Started(_), State::SettingUp | State::Prepared | State::Starting) => None,
        (WaitFor::Started(_), _) => Some(Response::Done),
        (WaitFor::Exit(_), State::Ended(status)) => Some(Response::Exited { status: *status }),
        (WaitFor::Exit(_), _) => None,
    }
}
