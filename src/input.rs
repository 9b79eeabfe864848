//! Files that a user names and podvm reads whole.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Most bytes of a configuration, a manifest or a list of variables: many times what anybody writes.
const MAX_BYTES: u64 = 8 << 20;

/// Reads a file, or a pipe to its end.
///
/// # Errors
/// Those of open(2) and read(2), and that it is larger than any such file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(bytes)
}

/// Reads a file of text.
///
/// # Errors
/// Those of [`read`], and that it is no UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_not_read_to_it() {
        assert!(read(Path::new("/dev/zero")).unwrap_err().to_string().contains("8 MiB"));
        assert_eq!(read_text(Path::new("/dev/null")).unwrap(), "");
    }
}
