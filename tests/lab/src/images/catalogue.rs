//! The images that tests and the demo run.

use serde_json::json;

use super::{Description, User};
use crate::{LabError, apt};

/// The names of all images.
pub const NAMES: [&str; 5] = ["busybox", "etcd", "nginx", "redis", "postgres"];

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const POSTGRES: User = User { name: "postgres", id: 999, owns: &["var/lib/postgresql", "run/postgresql"] };
const NGINX: User = User { name: "www-data", id: 33, owns: &["var/lib/nginx", "var/log/nginx"] };

/// The description of one of [`NAMES`].
///
/// # Errors
/// If the package lists do not know what it is made of.
pub fn described(name: &str) -> Result<Description, LabError> {
    match name {
        "etcd" => Ok(etcd()),
        "nginx" => Ok(nginx()),
        "redis" => Ok(redis()),
        "postgres" => postgres(),
        "busybox" => Ok(plain("busybox", &[], json!({"Cmd": ["/bin/sh"], "Env": [PATH]}))),
        other => Err(LabError::io(format!("make the image {other}: there are {}", NAMES.join(", ")))(
            std::io::ErrorKind::NotFound.into(),
        )),
    }
}

fn plain(name: &str, packages: &[&str], config: serde_json::Value) -> Description {
    Description {
        name: name.into(),
        packages: packages.iter().copied().map(str::to_owned).collect(),
        without: Vec::new(),
        files: Vec::new(),
        user: None,
        config,
    }
}

/// Keeps its data in `/data`; clients come to port 2379.
fn etcd() -> Description {
    let config = json!({
        "Entrypoint": ["/usr/bin/etcd"],
        "Env": [PATH, "ETCD_DATA_DIR=/data"],
        "ExposedPorts": {"2379/tcp": {}, "2380/tcp": {}},
        "Volumes": {"/data": {}},
        "WorkingDir": "/",
        "Labels": {
            "io.podvm.port.client": "2379/tcp",
            "io.podvm.port.peer": "2380/tcp",
            "io.podvm.volume.data-dir": "/data",
        },
    });
    let mut image = plain("etcd", &["etcd-server"], config);
    image.files.push(("data/.keep".into(), 0o644, String::new()));
    image
}

/// Serves `/srv/www`.
fn nginx() -> Description {
    let config = json!({
        "Entrypoint": ["/usr/sbin/nginx"],
        "Cmd": ["-g", "daemon off;", "-c", "/etc/nginx/podvm.conf"],
        "Env": [PATH],
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/srv/www": {}},
        "Labels": {"io.podvm.port.http": "80/tcp"},
        "StopSignal": "SIGQUIT",
    });
    let mut image = plain("nginx", &["nginx", "nginx-common"], config);
    image.user = Some(NGINX);
    let text = "user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log /dev/stderr;\n\
                events { worker_connections 256; }\n\
                http {\n    include /etc/nginx/mime.types;\n    access_log off;\n    sendfile on;\n    \
                server { listen 80; listen [::]:80; root /srv/www; }\n}\n";
    image.files.push(("etc/nginx/podvm.conf".into(), 0o644, text.into()));
    image.files.push(("srv/www/index.html".into(), 0o644, "<p>nginx in a pod</p>\n".into()));
    image
}

/// The server and its tools, redis-benchmark among them.
fn redis() -> Description {
    let config = json!({
        "Entrypoint": ["/usr/bin/redis-server"],
        "Cmd": ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""],
        "Env": [PATH],
        "ExposedPorts": {"6379/tcp": {}},
        "WorkingDir": "/data",
    });
    let mut image = plain("redis", &["redis-server", "redis-tools"], config);
    image.files.push(("data/.keep".into(), 0o644, String::new()));
    image
}

/// The server as its own user; it makes its database when it finds none.
fn postgres() -> Result<Description, LabError> {
    let server = apt::depends("postgresql")?.into_iter().find(|name| {
        name.strip_prefix("postgresql-").is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let server =
        server.ok_or_else(|| LabError::io("find the postgresql package")(std::io::ErrorKind::NotFound.into()))?;
    let version = server.trim_start_matches("postgresql-");
    let home = format!("usr/lib/postgresql/{version}");
    let config = json!({
        "Entrypoint": ["/usr/local/bin/start-postgres"],
        "Env": [format!("{PATH}:/{home}/bin"), "PGDATA=/var/lib/postgresql/data", "LC_ALL=C"],
        "ExposedPorts": {"5432/tcp": {}},
        "User": "postgres",
        "WorkingDir": "/var/lib/postgresql",
        "StopSignal": "SIGINT",
    });
    let client = format!("postgresql-client-{version}");
    let mut image = plain("postgres", &[&server, &client, "tzdata"], config);
    // The just-in-time compiler drags a hundred megabytes of LLVM.
    image.without =
        vec![format!("{home}/lib/bitcode"), format!("{home}/lib/llvmjit.so"), "usr/share/zoneinfo/right".into()];
    image.user = Some(POSTGRES);
    let script = "#!/bin/sh\nset -e\n[ -s \"$PGDATA/PG_VERSION\" ] || initdb --auth=trust --no-sync --no-instructions\n\
                  grep -q podvm \"$PGDATA/pg_hba.conf\" || echo 'host all all all trust # podvm' >> \"$PGDATA/pg_hba.conf\"\n\
                  exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp \"$@\"\n";
    image.files.push(("usr/local/bin/start-postgres".into(), 0o755, script.into()));
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_but_a_wrong_one_is_described() {
        for name in NAMES.into_iter().filter(|name| *name != "postgres") {
            assert_eq!(described(name).unwrap().name, name);
        }
        assert!(described("tape").is_err());
    }
}
