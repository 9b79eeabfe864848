//! The frames between the lab's host end and the agent inside, over one virtio-serial port.
//!
//! A frame is: payload length (u32 little-endian), kind (u8), command id (u32 little-endian), payload. Output and
//! input are carried raw, everything else as JSON. Frames of a command that has ended are ignored by both ends.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The virtio-serial port's name, by which the agent finds it.
pub const PORT_NAME: &str = "podvm.lab.agent";

/// Most bytes of payload in one frame.
pub const MAX_PAYLOAD: usize = 1024 * 1024;

/// Most bytes of input that may be on their way to a command before it has read any of them.
pub const INPUT_WINDOW: usize = 256 * 1024;

/// How often the agent says that the machine goes on.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// A command to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Program and arguments; the program is searched for in `PATH`.
    pub argv: Vec<String>,
    /// The command's whole environment.
    pub env: Vec<(String, String)>,
    /// Where it starts; `/` if none.
    pub directory: Option<PathBuf>,
    /// Whether the command reads input. Without it, it reads `/dev/null`.
    pub reads_input: bool,
    /// Gives the command a terminal of this size; its standard error then comes as standard output.
    pub terminal: Option<TerminalSize>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Which of a command's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and all that a terminal shows.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It exited with this code.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
    /// It could not be started, and why.
    NotStarted(String),
}

impl Ended {
    /// The exit code a shell would give: 128+N for signal N, 127 for a command that could not be started.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Code(code) => *code,
            Self::Signal(signal) => 128 + signal,
            Self::NotStarted(_) => 127,
        }
    }
}

/// What the agent says of itself when it is up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// The kernel's release.
    pub kernel: String,
    /// Seconds since the machine's kernel started.
    pub uptime_seconds: f64,
    /// What could not be set up, though commands can run.
    pub warnings: Vec<String>,
}

/// One message, in either direction.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// To the agent: start a command under this id.
    Start(u32, Spawn),
    /// To the agent: bytes for the command's input.
    Input(u32, Vec<u8>),
    /// To the agent: the input is at its end.
    InputEnd(u32),
    /// To the agent: the terminal has a new size.
    Resize(u32, TerminalSize),
    /// To the agent: kill the command and all it started.
    Kill(u32),
    /// From the agent: up.
    Ready(Ready),
    /// From the agent: the command's output.
    Output(u32, Stream, Vec<u8>),
    /// From the agent: so many bytes of input have been passed on.
    InputTaken(u32, u32),
    /// From the agent, every [`HEARTBEAT`]: the machine goes on.
    Alive,
    /// From the agent: the command has ended, and all its output was sent.
    Ended(u32, Ended),
}

impl Frame {
    /// Writes the frame whole.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, id, payload) = self.encode()?;
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(9 + payload.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes.extend_from_slice(&payload);
        to.write_all(&bytes)
    }

    /// Reads the next frame; `None` when the other end is gone.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; 9];
        match from.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let [l0, l1, l2, l3, kind, i0, i1, i2, i3] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let id = u32::from_le_bytes([i0, i1, i2, i3]);
        if length > MAX_PAYLOAD {
            return Err(io::Error::other(format!("a frame of {length} bytes; {MAX_PAYLOAD} is the most")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Self::decode(kind, id, payload).map(Some)
    }

    fn encode(&self) -> io::Result<(u8, u32, Vec<u8>)> {
        Ok(match self {
            Self::Start(id, spawn) => (1, *id, serde_json::to_vec(spawn)?),
            Self::Input(id, data) => (2, *id, data.clone()),
            Self::InputEnd(id) => (3, *id, Vec::new()),
            Self::Resize(id, size) => (4, *id, serde_json::to_vec(size)?),
            Self::Kill(id) => (5, *id, Vec::new()),
            Self::Ready(ready) => (6, 0, serde_json::to_vec(ready)?),
            Self::Output(id, Stream::Stdout, data) => (7, *id, data.clone()),
            Self::Output(id, Stream::Stderr, data) => (8, *id, data.clone()),
            Self::InputTaken(id, bytes) => (9, *id, serde_json::to_vec(bytes)?),
            Self::Alive => (11, 0, Vec::new()),
            Self::Ended(id, ended) => (10, *id, serde_json::to_vec(ended)?),
        })
    }

    fn decode(kind: u8, id: u32, payload: Vec<u8>) -> io::Result<Self> {
        Ok(match kind {
            1 => Self::Start(id, serde_json::from_slice(&payload)?),
            2 => Self::Input(id, payload),
            3 => Self::InputEnd(id),
            4 => Self::Resize(id, serde_json::from_slice(&payload)?),
            5 => Self::Kill(id),
            6 => Self::Ready(serde_json::from_slice(&payload)?),
            7 => Self::Output(id, Stream::Stdout, payload),
            8 => Self::Output(id, Stream::Stderr, payload),
            9 => Self::InputTaken(id, serde_json::from_slice(&payload)?),
            11 => Self::Alive,
            10 => Self::Ended(id, serde_json::from_slice(&payload)?),
            other => return Err(io::Error::other(format!("a frame of unknown kind {other}"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_read_back_as_it_was_written() {
        let size = TerminalSize { rows: 24, columns: 80 };
        let spawn = Spawn {
            argv: vec!["echo".into(), "ü".into()],
            env: vec![("A".into(), "b=c".into())],
            directory: Some("/tmp".into()),
            reads_input: true,
            terminal: Some(size),
        };
        let ready = Ready { kernel: "6.1".into(), uptime_seconds: 1.5, warnings: vec!["w".into()] };
        let frames = [
            Frame::Start(7, spawn),
            Frame::Input(7, vec![0, 255]),
            Frame::InputEnd(7),
            Frame::Resize(7, size),
            Frame::Kill(7),
            Frame::Ready(ready),
            Frame::Output(7, Stream::Stdout, b"out".to_vec()),
            Frame::Output(7, Stream::Stderr, Vec::new()),
            Frame::InputTaken(7, 12),
            Frame::Alive,
            Frame::Ended(7, Ended::Signal(9)),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut from).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut from).unwrap(), None);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.extend([7, 0, 0, 0, 0]);
        assert!(Frame::read(&mut bytes.as_slice()).is_err());
    }
}
