//! The user an app runs as, looked up in the image's own `/etc/passwd` and `/etc/group` (passwd(5), group(5)), by the
//! rules of docker and podman: names or numbers; a number that no file knows is taken as it is; without a group the
//! user's own, and then all groups that list the user besides.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use podvm_pod::manifest::UserSpec;

/// Most bytes read of a user database; the rest is not looked at.
const MAX_DATABASE_BYTES: u64 = 4 << 20;

/// Who an app runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Other groups it is in.
    pub groups: Vec<u32>,
    /// Its home directory.
    pub home: String,
}

/// No such user or group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The image does not know the user.
    #[error("there is no user {0:?} in the image's /etc/passwd; name one that is there, or give a number")]
    NoUser(String),
    /// The image does not know the group.
    #[error("there is no group {0:?} in the image's /etc/group; name one that is there, or give a number")]
    NoGroup(String),
    /// The image does not have the file whose owner is meant.
    #[error("{path} of the image, whose owner the app is to run as, cannot be looked at: {reason}")]
    NoFile {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// An ID outside of the pod's (user_namespaces(7)).
    #[error(
        "there is no {kind} {id} in this pod, whose {kind}s are {ids}; choose another, or see `podvm doctor` for more"
    )]
    NotMapped {
        /// `user` or `group`.
        kind: &'static str,
        /// Which.
        id: u32,
        /// Which there are.
        ids: String,
    },
    /// A database that cannot be read.
    #[error("{path} of the image cannot be read: {reason}")]
    Unreadable {
        /// Which.
        path: &'static str,
        /// Why.
        reason: String,
    },
}

/// The ID that is none: system calls take it for "as it is", so that a process that became it would stay root (setresuid(2)).
const NO_ID: u32 = u32::MAX;

/// A number that can be a user's or a group's.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != NO_ID)
}

/// One line of `/etc/passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let home = fields.nth(1).unwrap_or("");
        (!name.is_empty()).then_some(Account { name, uid, gid, home })
    })
}

/// Name, number and members of each line of `/etc/group`.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password, gid) = (fields.next()?, fields.next()?, id(fields.next()?)?);
        (!name.is_empty()).then_some((name, gid, fields.next().unwrap_or("")))
    })
}

impl User {
    /// Looks `spec` up in the texts of a passwd and a group file, and adds `more` groups.
    ///
    /// # Errors
    /// A name that the files do not have.
    pub fn find(spec: &UserSpec, more: &[u32], passwd: &str, group: &str) -> Result<Self, UserError> {
        let wanted = spec.user.as_deref().unwrap_or("0");
        let number = id(wanted);
        let account = accounts(passwd)
            .find(|account| account.name == wanted)
            .or_else(|| accounts(passwd).find(|account| Some(account.uid) == number));
        let (uid, own_gid, home) = match (&account, number) {
            (Some(account), _) => (account.uid, account.gid, account.home),
            (None, Some(number)) => (number, 0, ""),
            (None, None) => return Err(UserError::NoUser(wanted.into())),
        };
        let mut found = Self { uid, gid: own_gid, groups: Vec::new(), home: home.into() };
        match spec.group.as_deref() {
            Some(name) => {
                let by_name = groups(group).find(|(other, ..)| *other == name).map(|(_, gid, _)| gid);
                found.gid = by_name.or_else(|| id(name)).ok_or_else(|| UserError::NoGroup(name.into()))?;
            }
            None => {
                if let Some(account) = account {
                    let lists = |members: &str| members.split(',').any(|member| member == account.name);
                    let listed = groups(group).filter(|(_, _, members)| lists(members));
                    found.groups.extend(listed.map(|(_, gid, _)| gid));
                }
            }
        }
        found.groups.extend(more);
        found.groups.sort_unstable();
        found.groups.dedup();
        if found.home.is_empty() {
            found.home = if uid == 0 { "/root".into() } else { "/".into() };
        }
        Ok(found)
    }

    /// Looks `spec` up in the files of the root this process is in.
    ///
    /// # Errors
    /// As [`Self::find`], or a file that cannot be read; a missing file is an empty one.
    pub fn find_here(spec: &UserSpec, more: &[u32]) -> Result<Self, UserError> {
        // appc: the owner of a file, or its group, by the file's path.
        let owner = |name: &Option<String>, number: fn(&std::fs::Metadata) -> u32| match name {
            Some(path) if path.starts_with('/') => match std::fs::metadata(path) {
                Ok(metadata) => Ok(Some(number(&metadata).to_string())),
                Err(error) => Err(UserError::NoFile { path: path.clone(), reason: error.to_string() }),
            },
            other => Ok(other.clone()),
        };
        let spec =
            UserSpec { user: owner(&spec.user, MetadataExt::uid)?, group: owner(&spec.group, MetadataExt::gid)? };
        let found = Self::find(&spec, more, &database("/etc/passwd")?, &database("/etc/group")?)?;
        found.within(&Ids::here("user"), &Ids::here("group"), more)
    }

    /// Leaves out groups that the pod does not have and only the image's file names.
    ///
    /// # Errors
    /// The pod does not have the user, its group, or one of those asked for.
    fn within(mut self, users: &Ids, groups: &Ids, asked: &[u32]) -> Result<Self, UserError> {
        users.check(self.uid)?;
        groups.check(self.gid)?;
        asked.iter().try_for_each(|gid| groups.check(*gid))?;
        self.groups.retain(|gid| groups.check(*gid).is_ok());
        Ok(self)
    }
}

/// The IDs that a user namespace has.
struct Ids {
    kind: &'static str,
    ranges: Vec<(u32, u32)>,
}

impl Ids {
    /// Those of the namespace that this process is in; all, when that cannot be known.
    fn here(kind: &'static str) -> Self {
        let map = std::fs::read_to_string(format!("/proc/self/{}id_map", &kind[..1])).unwrap_or_default();
        Self::of(kind, &map)
    }

    fn of(kind: &'static str, map: &str) -> Self {
        let range = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some((numbers.next()?.ok()?, numbers.nth(1)?.ok()?))
        };
        Self { kind, ranges: map.lines().filter_map(range).collect() }
    }

    fn check(&self, id: u32) -> Result<(), UserError> {
        if self.ranges.is_empty()
            || self.ranges.iter().any(|(first, count)| (*first..first.saturating_add(*count)).contains(&id))
        {
            return Ok(());
        }
        let shown = |(first, count): &(u32, u32)| match count {
            1 => first.to_string(),
            _ => format!("{first} to {}", first.saturating_add(count - 1)),
        };
        let ids = self.ranges.iter().map(shown).collect::<Vec<_>>().join(" and ");
        Err(UserError::NotMapped { kind: self.kind, id, ids })
    }
}

/// The text of a database. What is no regular file, such as a pipe that would never end, counts as missing.
fn database(path: &'static str) -> Result<String, UserError> {
    let unreadable = |error: io::Error| UserError::Unreadable { path, reason: error.to_string() };
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(Path::new(path));
    let file = match opened {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(String::new());
        }
        other => other.map_err(unreadable)?,
    };
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(MAX_DATABASE_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbad line\nredis:x:999:998:Redis:/data:/bin/false\n\
                          1000:x:7:7::/seven:\nx:y:notanumber:0::/:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,redis\nredis:x:998:\naudio:x:29:redisx\nlog:x:4:redis\n";

    fn find(text: &str) -> Result<User, UserError> {
        User::find(&text.into(), &[], PASSWD, GROUP)
    }

    #[test]
    fn names_numbers_and_groups_are_found() {
        let user =
            |uid, gid, groups: &[u32], home: &str| Ok(User { uid, gid, groups: groups.into(), home: home.into() });
        assert_eq!(find(""), user(0, 0, &[10], "/root"));
        assert_eq!(find("redis"), user(999, 998, &[4, 10], "/data"));
        assert_eq!(find("999"), user(999, 998, &[4, 10], "/data"));
        assert_eq!(find("redis:audio"), user(999, 29, &[], "/data"));
        assert_eq!(find("redis:5"), user(999, 5, &[], "/data"));
        assert_eq!(find("1234"), user(1234, 0, &[], "/"));
        assert_eq!(find("1234:1235"), user(1234, 1235, &[], "/"));
        // A name that looks like a number wins over the number, as in docker.
        assert_eq!(find("1000"), user(7, 7, &[], "/seven"));
    }

    #[test]
    fn unknown_names_are_named() {
        assert_eq!(find("nobody"), Err(UserError::NoUser("nobody".into())));
        assert_eq!(find("root:nogroup"), Err(UserError::NoGroup("nogroup".into())));
        assert_eq!(find("4294967296"), Err(UserError::NoUser("4294967296".into())));
    }

    #[test]
    fn supplementary_groups_are_added_once() {
        let user = User::find(&"redis".into(), &[10, 77], PASSWD, GROUP).unwrap();
        assert_eq!(user.groups, [4, 10, 77]);
    }

    proptest! {
        #[test]
        fn no_database_makes_it_panic(passwd in "[a-z0-9:,\n]{0,200}", group in "[a-z0-9:,\n]{0,200}", who in "[a-z0-9:]{0,6}") {
            let _ = User::find(&who.as_str().into(), &[1], &passwd, &group);
        }

        #[test]
        fn an_account_is_found_by_name_and_number(uid in 2000..NO_ID, gid in 0..NO_ID) {
            let passwd = format!("{PASSWD}someone:x:{uid}:{gid}::/home/someone:/bin/sh\n");
            for who in ["someone".to_owned(), uid.to_string()] {
                let user = User::find(&who.as_str().into(), &[], &passwd, GROUP).unwrap();
                prop_assert_eq!((user.uid, user.gid, user.home.as_str()), (uid, gid, "/home/someone"));
            }
        }
    }

    #[test]
    fn users_and_groups_are_those_that_the_pod_has() {
        let (users, groups) = (Ids::of("user", "0 1000 1\n"), Ids::of("group", "  0  1000  1\n 1 100000 65536\n"));
        let user = |uid, gid| User { uid, gid, groups: vec![0, 5, 70_000], home: "/".into() };
        assert_eq!(user(0, 65_536).within(&users, &groups, &[5]).unwrap().groups, [0, 5]);
        let error = |user: User, asked: &[u32]| user.within(&users, &groups, asked).unwrap_err().to_string();
        assert!(error(user(5, 0), &[]).contains("no user 5 in this pod, whose users are 0;"));
        assert!(error(user(0, 65_537), &[]).contains("no group 65537 in this pod, whose groups are 0 and 1 to 65536;"));
        assert!(error(user(0, 0), &[70_000]).contains("no group 70000"));
        let all = Ids::of("user", "         0          0 4294967295\n");
        assert!(all.check(0).is_ok() && all.check(u32::MAX - 1).is_ok());
        assert!(Ids::of("user", "").check(7).is_ok());
    }
}
