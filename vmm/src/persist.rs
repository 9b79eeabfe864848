//! Saving and restoring: one trait for everything that is part of a snapshot, and its encoding.
//!
//! A saved state is a plain serde structure. [`encode`] puts a header before its postcard bytes, so that
//! a file of another kind or of another version is refused by name instead of being misread.

use serde::{Serialize, de::DeserializeOwned};

/// First bytes of every encoded state.
const MAGIC: [u8; 4] = *b"PVMS";

/// Version of all state structures together; any change of a structure's fields raises it.
const VERSION: u16 = 1;

/// Something whose state can be saved, and that can be made again from that state.
pub trait Persist: Sized {
    /// Everything that must survive; nothing that the host can provide anew (files, sockets).
    type State: Serialize + DeserializeOwned;

    /// What the host provides anew at restore: open files, sockets, limits.
    type Args;

    /// The state as it is now. The owner must be paused.
    fn save(&self) -> Self::State;

    /// Makes the object again. The state may come from a damaged file: whatever it holds is checked.
    ///
    /// # Errors
    /// [`PersistError::Invalid`] if the state contradicts itself or `args`.
    fn restore(args: Self::Args, state: Self::State) -> Result<Self, PersistError>;
}

/// Why a saved state could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// The bytes do not begin with the mark of a saved state.
    #[error("this is not a saved machine state; give a file that this program saved")]
    NotAState,
    /// The state was written by a version with other structures.
    #[error("the saved state has version {found}, this program reads version {VERSION}; save it anew")]
    OtherVersion {
        /// Version in the header.
        found: u16,
    },
    /// The structures after the header do not decode.
    #[error("the saved state is damaged; save it anew")]
    Damaged(#[source] postcard::Error),
    /// A structure could not be encoded.
    #[error("the state cannot be encoded")]
    Encode(#[source] postcard::Error),
    /// The state decodes, but its contents contradict each other or the configuration.
    #[error("the saved state of {what} does not fit: {why}")]
    Invalid {
        /// The part whose state it is.
        what: &'static str,
        /// What contradicts what.
        why: String,
    },
}

/// Encodes a state with its header.
///
/// # Errors
/// [`PersistError::Encode`] if serde refuses the structure.
pub fn encode<S: Serialize>(state: &S) -> Result<Vec<u8>, PersistError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    postcard::to_extend(state, bytes).map_err(PersistError::Encode)
}

/// Decodes what [`encode`] wrote.
///
/// # Errors
/// [`PersistError::NotAState`], [`PersistError::OtherVersion`] or [`PersistError::Damaged`].
pub fn decode<S: DeserializeOwned>(bytes: &[u8]) -> Result<S, PersistError> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(PersistError::NotAState)?;
    let (version, body) = rest.split_first_chunk().ok_or(PersistError::NotAState)?;
    let found = u16::from_le_bytes(*version);
    if found != VERSION {
        return Err(PersistError::OtherVersion { found });
    }
    postcard::from_bytes(body).map_err(PersistError::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_state_survives_the_round_trip() {
        let state = (7_u32, String::from("seven"), vec![1_u8, 2, 3]);
        let bytes = encode(&state).unwrap();
        assert_eq!(decode::<(u32, String, Vec<u8>)>(&bytes).unwrap(), state);
    }

    #[test]
    fn another_version_is_refused_by_number() {
        let mut bytes = encode(&1_u32).unwrap();
        bytes[4] = 99;
        let error = decode::<u32>(&bytes).unwrap_err();
        assert!(matches!(error, PersistError::OtherVersion { found: 99 }));
    }

    #[test]
    fn a_cut_state_is_damaged() {
        let bytes = encode(&String::from("a longer text")).unwrap();
        let error = decode::<String>(&bytes[..bytes.len() - 1]).unwrap_err();
        assert!(matches!(error, PersistError::Damaged(_)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode::<(u32, String, Vec<u8>)>(&bytes);
        }
    }
}
