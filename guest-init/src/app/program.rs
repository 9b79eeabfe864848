//! Looking the app's program up and executing it (execve(2)), with errors a user understands.

use std::ffi::{CStr, CString};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, execve};
use podvm_pod::manifest::EnvironmentVariable;

use super::LaunchError;
use super::user::User;

/// Where programs are looked for when the environment has no `PATH`: docker's default.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program's arguments and environment, ready for the kernel.
#[derive(Debug)]
pub struct Program {
    name: String,
    search_path: String,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// A program with its arguments. Of variables named twice the later one counts; `HOME` is added when missing, and
    /// `TERM` for a terminal.
    ///
    /// # Errors
    /// No program, or a NUL byte in a word.
    pub fn new(
        words: &[String],
        variables: &[&EnvironmentVariable],
        user: &User,
        terminal: bool,
    ) -> Result<Self, LaunchError> {
        let name = words.first().filter(|name| !name.is_empty()).ok_or(LaunchError::NoProgram)?;
        let mut merged: Vec<(&str, &str)> = Vec::new();
        for variable in variables {
            let (name, value) = (variable.name.as_str(), variable.value.as_str());
            match merged.iter_mut().find(|(other, _)| *other == name) {
                Some(existing) => existing.1 = value,
                None => merged.push((name, value)),
            }
        }
        let mut add_missing = |name, value| {
            if !merged.iter().any(|(other, _)| *other == name) {
                merged.push((name, value));
            }
        };
        add_missing("HOME", &user.home);
        if terminal {
            add_missing("TERM", "xterm");
        }
        let search_path = merged.iter().find(|(name, _)| *name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
        let c_string = |text: String| CString::new(text.as_str()).map_err(|_| LaunchError::Nul(text));
        Ok(Self {
            name: name.clone(),
            search_path: search_path.into(),
            arguments: words.iter().cloned().map(c_string).collect::<Result<_, _>>()?,
            environment: merged
                .iter()
                .map(|(name, value)| c_string(format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Finds the program's file as execvp(3) does, for the user the calling process is, in the root it is in.
    ///
    /// # Errors
    /// Not found, or found but not executable by this user.
    pub fn find(&self) -> Result<CString, LaunchError> {
        let mut denied = None;
        for candidate in self.candidates() {
            match check_executable(&candidate) {
                Ok(()) => return CString::new(candidate.as_str()).map_err(|_| LaunchError::Nul(candidate)),
                Err(None) => {}
                Err(Some(reason)) => denied = denied.or(Some((candidate, reason))),
            }
        }
        Err(match denied {
            Some((program, reason)) => LaunchError::NotExecutable { program, reason },
            None => {
                let searched = (!self.name.contains('/')).then(|| self.search_path.clone());
                LaunchError::NotFound { program: self.name.clone(), searched }
            }
        })
    }

    fn candidates(&self) -> Vec<String> {
        if self.name.contains('/') {
            return vec![self.name.clone()];
        }
        let directory = |directory: &str| match directory {
            "" => format!("./{}", self.name),
            _ => format!("{directory}/{}", self.name),
        };
        self.search_path.split(':').map(directory).collect()
    }

    /// Executes `file`. Returns only when that fails.
    pub fn execute(&self, file: &CStr) -> LaunchError {
        let Err(errno) = execve(file, &self.arguments, &self.environment);
        let program = file.to_string_lossy().into_owned();
        let reason = match errno {
            Errno::ENOENT => {
                "the file is there, but the interpreter it names (a loader, or the one after #!) is not in the image"
                    .into()
            }
            Errno::ENOEXEC => "it is no program for this machine: a wrong architecture, or a script without #!".into(),
            Errno::E2BIG => "its arguments and environment are too long together".into(),
            other => io::Error::from(other).to_string(),
        };
        LaunchError::NotExecutable { program, reason }
    }
}

/// `Err(None)` when there is nothing, `Err(Some(..))` when what is there cannot be executed.
fn check_executable(path: &str) -> Result<(), Option<String>> {
    let metadata = match std::fs::metadata(Path::new(path)) {
        Ok(metadata) => metadata,
        Err(error) => {
            return Err(match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => None,
                _ => Some(error.to_string()),
            });
        }
    };
    if metadata.is_dir() {
        return Err(Some("it is a directory".into()));
    }
    access(path, AccessFlags::X_OK).map_err(|errno| Some(io::Error::from(errno).to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn user() -> User {
        User { uid: 0, gid: 0, groups: Vec::new(), home: "/root".into() }
    }

    fn variable(text: &str) -> EnvironmentVariable {
        text.parse().unwrap()
    }

    fn program(words: &[&str], variables: &[&str]) -> Result<Program, LaunchError> {
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        let variables: Vec<_> = variables.iter().map(|text| variable(text)).collect();
        Program::new(&words, &variables.iter().collect::<Vec<_>>(), &user(), true)
    }

    #[test]
    fn later_variables_win_and_home_and_term_are_added() {
        let environment = |variables: &[&str]| {
            let program = program(&["x"], variables).unwrap();
            program.environment.iter().map(|text| text.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(environment(&["A=1", "B=2", "A=3"]), ["A=3", "B=2", "HOME=/root", "TERM=xterm"]);
        assert_eq!(environment(&["HOME=/h", "TERM=dumb"]), ["HOME=/h", "TERM=dumb"]);
    }

    #[test]
    fn words_that_cannot_be_are_refused() {
        assert!(matches!(program(&[], &[]), Err(LaunchError::NoProgram)));
        assert!(matches!(program(&[""], &[]), Err(LaunchError::NoProgram)));
        assert!(matches!(program(&["a\0b"], &[]), Err(LaunchError::Nul(_))));
    }

    #[test]
    fn the_path_is_searched_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str, mode: u32| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        };
        make("a/tool", 0o644);
        make("b/tool", 0o755);
        make("c/tool", 0o755);
        std::fs::create_dir_all(dir.path().join("a/dir")).unwrap();
        let in_dirs = |word: &str, dirs: &[&str]| {
            let dirs: Vec<String> = dirs.iter().map(|name| dir.path().join(name).display().to_string()).collect();
            program(&[word], &[&format!("PATH={}", dirs.join(":"))]).unwrap().find()
        };
        let found = in_dirs("tool", &["missing", "a", "b", "c"]).unwrap();
        assert_eq!(found.to_str().unwrap(), dir.path().join("b/tool").to_str().unwrap());
        assert_eq!(in_dirs("tool", &["a"]).unwrap_err().code(), 126);
        assert_eq!(in_dirs("dir", &["a"]).unwrap_err().code(), 126);
        let missing = in_dirs("nothing", &["a", "b"]).unwrap_err();
        assert_eq!(missing.code(), 127);
        assert!(missing.to_string().contains("\"nothing\" is not found in PATH"), "{missing}");
        assert_eq!(program(&["/no/such"], &[]).unwrap().find().unwrap_err().code(), 127);
    }
}
