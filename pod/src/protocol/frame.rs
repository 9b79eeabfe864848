//! Frames: a message's length as a little-endian u32, then the message as JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message in bytes. A longer one is refused before memory is set aside for it.
pub const MAX_FRAME_BYTES: u32 = 4 << 20;

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other end closed the connection between two messages.
    #[error("the other end closed the connection")]
    Closed,
    /// The connection failed, or ended within a message.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The message is longer than [`MAX_FRAME_BYTES`].
    #[error("a message of {0} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLong(u64),
    /// The message is not what is expected here.
    #[error("a message cannot be understood ({0}); are both ends of the same version?")]
    Malformed(#[from] serde_json::Error),
}

/// Sends one message.
///
/// # Errors
/// [`FrameError::TooLong`], or the connection's own error.
pub fn write_frame(connection: &mut impl Write, message: &impl Serialize) -> Result<(), FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() as u64 - 4;
    if length > u64::from(MAX_FRAME_BYTES) {
        return Err(FrameError::TooLong(length));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    connection.write_all(&frame)?;
    Ok(connection.flush()?)
}

/// Receives one message. Memory grows with what has arrived, not with what the length promises.
///
/// # Errors
/// [`FrameError::Closed`] when the connection ended between two messages; the other variants as they say.
pub fn read_frame<T: DeserializeOwned>(connection: &mut impl Read) -> Result<T, FrameError> {
    let mut length = [0; 4];
    let first = loop {
        match connection.read(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Err(FrameError::Closed);
    }
    connection.read_exact(&mut length[first..])?;
    let length = u32::from_le_bytes(length);
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length.into()));
    }
    let mut message = Vec::new();
    connection.take(length.into()).read_to_end(&mut message)?;
    if message.len() < length as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(serde_json::from_slice(&message)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Command, Envelope, Event, Request, Response};

    #[test]
    fn a_message_comes_out_as_it_went_in() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &Command::Stop { grace_ms: 7 }).unwrap();
        write_frame(&mut wire, &Command::Farewell).unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(read_frame::<Command>(&mut wire).unwrap(), Command::Stop { grace_ms: 7 });
        assert_eq!(read_frame::<Command>(&mut wire).unwrap(), Command::Farewell);
        assert!(matches!(read_frame::<Command>(&mut wire), Err(FrameError::Closed)));
    }

    #[test]
    fn a_lying_length_is_refused_without_setting_memory_aside() {
        let mut wire: &[u8] = &u32::MAX.to_le_bytes();
        assert!(matches!(read_frame::<Event>(&mut wire), Err(FrameError::TooLong(_))));
        let mut short: &[u8] = &[100, 0, 0, 0, b'{'];
        assert!(matches!(read_frame::<Event>(&mut short), Err(FrameError::Io(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read_frame::<Event>(&mut bytes.as_slice());
            let _ = read_frame::<Envelope>(&mut bytes.as_slice());
            let _ = read_frame::<Response>(&mut bytes.as_slice());
            let _ = serde_json::from_slice::<Request>(&bytes);
        }
    }
}
