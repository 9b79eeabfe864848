//! The smallest init there can be, and an initramfs that holds nothing else.
//!
//! It writes [`MARKER`] to its standard output and waits to be ended with its machine. It is machine code put into an ELF file
//! by hand, with no library and no start-up code: what is measured is the monitor and the kernel.

use std::io::{self, Write};

use cpio::NewcBuilder;

/// What the guest's init prints when it runs.
pub const MARKER: &str = "init-marker";

/// Where the program is loaded.
const BASE: u64 = 0x40_0000;
/// Bytes of the ELF header and the one program header.
const HEADERS: u64 = 64 + 56;

/// `write(1, text, 12); for (;;) pause();`, and behind it the text.
const CODE: [u8; 33] = [
    0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
    0xbf, 1, 0, 0, 0, // mov edi, 1 (standard output)
    0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip + 16], the end of the code
    0xba, 12, 0, 0, 0, // mov edx, 12
    0x0f, 0x05, // syscall
    0xb8, 34, 0, 0, 0, // mov eax, 34 (pause)
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // back to pause
];

/// The program as an ELF file (elf(5)).
pub fn program() -> Vec<u8> {
    let code = [&CODE[..], MARKER.as_bytes(), b"\n"].concat();
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2_u16, 62] {
        elf.extend(half.to_le_bytes()); // executable, x86-64
    }
    elf.extend(1_u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    for word in [1_u32, 5] {
        elf.extend(word.to_le_bytes()); // to be loaded, readable and executable
    }
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// An initramfs with the program as `/init`, and the console that it writes to.
///
/// # Errors
/// None but those of memory.
pub fn initramfs() -> io::Result<Vec<u8>> {
    const DIRECTORY: u32 = 0o040_755;
    const CHARACTER_DEVICE: u32 = 0o020_600;
    const PROGRAM: u32 = 0o100_755;
    let mut archive = Vec::new();
    let program = program();
    let entries: [(&str, u32, &[u8]); 3] =
        [("dev", DIRECTORY, &[]), ("dev/console", CHARACTER_DEVICE, &[]), ("init", PROGRAM, &program)];
    for (name, mode, content) in entries {
        let builder = NewcBuilder::new(name).mode(mode).rdev_major(5).rdev_minor(1);
        let mut writer = builder.write(&mut archive, content.len() as u32);
        writer.write_all(content)?;
        writer.finish()?;
    }
    cpio::newc::trailer(&mut archive)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_program_prints_its_marker_and_waits() {
        let path = std::env::temp_dir().join(format!("init-marker-{}", std::process::id()));
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = [0; MARKER.len()];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        let waits = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(said, MARKER.as_bytes());
        assert!(waits);
    }
}
