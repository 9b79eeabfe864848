//! Which shared libraries a tree of programs needs, found as the dynamic linker would: by the names in the ELF
//! files, and the names in the libraries found so.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{LabError, program};

/// Where Debian's libraries are, and where the base layer has them.
const LIBRARY_DIRECTORIES: [&str; 6] =
    ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib", "lib", "usr/lib64", "lib64"];

/// Pairs of a path in the image and the file that goes there, for every library that programs below `programs`
/// need and that is not among themselves.
///
/// # Errors
/// If a needed library is nowhere below `libraries`.
pub fn needed_by(programs: &Path, libraries: &Path) -> Result<Vec<(PathBuf, PathBuf)>, LabError> {
    let available = index(libraries)?;
    let own = elf_files(programs)?;
    let own_names: Vec<String> = own.iter().filter_map(|file| Some(file.file_name()?.to_str()?.to_owned())).collect();
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = own;
    while let Some(file) = open.pop() {
        for name in wanted(&file)? {
            if found.contains_key(&name) || own_names.contains(&name) {
                continue;
            }
            let Some(library) = available.get(&name) else {
                let what = format!("find {name}, which {} needs", file.display());
                return Err(LabError::io(what)(std::io::ErrorKind::NotFound.into()));
            };
            open.push(library.clone());
            found.insert(name, library.clone());
        }
    }
    Ok(found.into_iter().map(|(name, file)| (place(&name), file)).collect())
}

/// The dynamic linker is called by its full path; the others are searched for.
fn place(name: &str) -> PathBuf {
    let directory = if name.starts_with("ld-linux") { "usr/lib64" } else { "usr/lib/x86_64-linux-gnu" };
    Path::new(directory).join(name)
}

fn index(libraries: &Path) -> Result<HashMap<String, PathBuf>, LabError> {
    let mut available = HashMap::new();
    for directory in LIBRARY_DIRECTORIES {
        let directory = libraries.join(directory);
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            // A name is usually a link to a file beside it. Absolute links would lead out of the tree.
            let Ok(target) = fs::read_link(entry.path()) else {
                available.entry(entry.file_name().to_string_lossy().into_owned()).or_insert(entry.path());
                continue;
            };
            let relative = target.strip_prefix("/").map(|inside| libraries.join(inside));
            let file = relative.unwrap_or_else(|_| directory.join(&target));
            if file.is_file() {
                available.entry(entry.file_name().to_string_lossy().into_owned()).or_insert(file);
            }
        }
    }
    Ok(available)
}

fn elf_files(root: &Path) -> Result<Vec<PathBuf>, LabError> {
    let (mut files, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = open.pop() {
        let entries = fs::read_dir(&directory).map_err(LabError::io(format!("list {}", directory.display())))?;
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() && is_elf(&entry.path()) => files.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(files)
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// The libraries that an ELF file names, and the interpreter that starts it.
fn wanted(file: &Path) -> Result<Vec<String>, LabError> {
    let text = program::text(Command::new("readelf").args(["-d", "-l", "-W"]).arg(file).env("LC_ALL", "C"))?;
    Ok(parse(&text))
}

fn parse(readelf: &str) -> Vec<String> {
    let bracketed = |line: &str| Some(line.rsplit_once('[')?.1.split_once(']')?.0.to_owned());
    let name = |line: &str| {
        if line.contains("(NEEDED)") {
            return bracketed(line);
        }
        let interpreter = line.contains("interpreter:").then(|| bracketed(line)).flatten()?;
        interpreter.trim().rsplit([' ', '/']).next().map(str::to_owned)
    };
    readelf.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_names_and_the_interpreter_are_read() {
        let text = "      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]\n \
                    0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n";
        assert_eq!(parse(text), ["ld-linux-x86-64.so.2", "libc.so.6"]);
    }

    #[test]
    fn the_library_of_a_real_program_is_found() {
        let root = tempfile::tempdir().unwrap();
        fs::copy("/bin/ls", root.path().join("ls")).unwrap();
        let libraries = needed_by(root.path(), Path::new("/")).unwrap();
        assert!(libraries.iter().any(|(path, _)| path.ends_with("libc.so.6")), "{libraries:?}");
        assert!(libraries.iter().any(|(path, _)| path.starts_with("usr/lib64")), "{libraries:?}");
    }

    #[test]
    fn a_library_that_is_nowhere_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::copy("/bin/ls", root.path().join("ls")).unwrap();
        let error = needed_by(root.path(), root.path()).unwrap_err().to_string();
        assert!(error.contains(".so"), "{error}");
    }
}
