//! An initial file system of this very program and the libraries it runs with.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, ModeFileType, trailer};

/// The program interpreter, as every x86-64 executable names it.
const INTERPRETER: &str = "/lib64/ld-linux-x86-64.so.2";
/// Where the interpreter looks for libraries without a cache.
const LIBRARIES: &str = "/lib/x86_64-linux-gnu";

/// Writes the archive into `directory`.
pub fn write(directory: &Path) -> io::Result<PathBuf> {
    let mut archive = Archive { bytes: Vec::new(), directories: BTreeSet::new(), next_inode: 1 };
    archive.device("/dev/console", 5, 1)?;
    archive.device("/dev/null", 1, 3)?;
    archive.file("/init", &fs::read("/proc/self/exe")?)?;
    for library in mapped_libraries()? {
        let bytes = fs::read(&library)?;
        let name = library.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("ld-") {
            archive.file(INTERPRETER, &bytes)?;
        }
        archive.file(&format!("{LIBRARIES}/{name}"), &bytes)?;
    }
    let path = directory.join("initramfs.cpio");
    fs::write(&path, trailer(archive.bytes)?)?;
    Ok(path)
}

/// The shared objects in this process.
fn mapped_libraries() -> io::Result<BTreeSet<PathBuf>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    Ok(paths.filter(|path| path.contains(".so")).map(PathBuf::from).collect())
}

struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<PathBuf>,
    next_inode: u32,
}

impl Archive {
    fn entry(&mut self, path: &Path, kind: ModeFileType, mode: u32) -> Builder {
        self.next_inode += 1;
        let name = path.to_string_lossy();
        Builder::new(name.trim_start_matches('/')).ino(self.next_inode).nlink(1).mode(mode).set_mode_file_type(kind)
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        let parents: Vec<_> = path.ancestors().skip(1).filter(|path| path.parent().is_some()).collect();
        for directory in parents.into_iter().rev() {
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, ModeFileType::Directory, 0o755).write(&mut self.bytes, 0).finish()?;
            }
        }
        Ok(())
    }

    fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.parents(path.as_ref())?;
        let entry = self.entry(path.as_ref(), ModeFileType::Char, 0o600).rdev_major(major).rdev_minor(minor);
        entry.write(&mut self.bytes, 0).finish()?;
        Ok(())
    }

    fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.parents(path.as_ref())?;
        let entry = self.entry(path.as_ref(), ModeFileType::Regular, 0o755);
        let mut writer = entry.write(&mut self.bytes, content.len() as u32);
        io::Write::write_all(&mut writer, content)?;
        writer.finish()?;
        Ok(())
    }
}
