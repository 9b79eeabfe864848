//! From `--port` to the ports that are forwarded.

use podvm_pod::manifest::{AppName, NetworkMode, PortRequest, Protocol, PublishedPort};

use super::error::PrepareError;
use super::image::{DeclaredPort, parse_port};

/// The ports to publish; `apps` are the pod's apps with the ports their images declare.
///
/// # Errors
/// [`PrepareError`] for a name no image has, one that several understand differently, or a port that is asked for twice.
pub fn resolve(
    requests: &[PortRequest],
    apps: &[(&AppName, &[DeclaredPort])],
    network: &NetworkMode,
) -> Result<Vec<PublishedPort>, PrepareError> {
    let mut ports: Vec<PublishedPort> = Vec::new();
    if !requests.is_empty() {
        check_network(network)?;
    }
    for request in requests {
        let Meaning { first, protocol, count, app, socket_activated } = meaning(&request.name, apps)?;
        if request.host_port.checked_add(count - 1).is_none() || first.checked_add(count - 1).is_none() {
            return Err(PrepareError::PortRange { name: request.name.clone(), count, first: request.host_port });
        }
        let host_ip = request.host_ip;
        ports.extend((0..count).map(|number| {
            let (host_port, pod_port) = (request.host_port + number, first + number);
            let (name, app) = (request.name.clone(), app.clone());
            PublishedPort { name, protocol, host_ip, host_port, pod_port, app, socket_activated }
        }));
    }
    check(&ports, network)?;
    Ok(ports)
}

/// Whether these ports can be published by a pod with this network.
///
/// # Errors
/// [`PrepareError`] for a network that has none, or a port of the host that is asked for twice.
pub fn check(ports: &[PublishedPort], network: &NetworkMode) -> Result<(), PrepareError> {
    if !ports.is_empty() {
        check_network(network)?;
    }
    for (index, port) in ports.iter().enumerate() {
        let ip = port.host_ip;
        let clashes = |other: &PublishedPort| {
            let same_address = other.host_ip == ip || other.host_ip.is_none() || ip.is_none();
            (other.host_port, other.protocol) == (port.host_port, port.protocol) && same_address
        };
        if ports[..index].iter().any(clashes) {
            return Err(PrepareError::PortTwice { port: port.host_port, protocol: port.protocol, ip });
        }
    }
    Ok(())
}

fn check_network(network: &NetworkMode) -> Result<(), PrepareError> {
    match network {
        NetworkMode::Default => Ok(()),
        NetworkMode::None => Err(PrepareError::PortWithoutNetwork("none")),
        NetworkMode::Host => Err(PrepareError::PortWithoutNetwork("host")),
    }
}

/// What a port's name means.
struct Meaning {
    /// The pod's port, or the first of several.
    first: u16,
    protocol: Protocol,
    count: u16,
    /// The app that knows it by this name.
    app: Option<AppName>,
    socket_activated: bool,
}

/// What a port's name means: first what the images call by it, else the number that it is.
fn meaning(name: &str, apps: &[(&AppName, &[DeclaredPort])]) -> Result<Meaning, PrepareError> {
    let named = |(app, ports): &(&AppName, &[DeclaredPort])| {
        let port = ports.iter().find(|port| port.name.as_deref() == Some(name))?;
        let (first, protocol, count) = (port.port, port.protocol, port.count.max(1));
        Some(Meaning { first, protocol, count, app: Some((*app).clone()), socket_activated: port.socket_activated })
    };
    let mut meanings = apps.iter().filter_map(named);
    let Some(meant) = meanings.next() else {
        let number = parse_port(name).map(|(first, protocol)| Meaning {
            first,
            protocol,
            count: 1,
            app: None,
            socket_activated: false,
        });
        return number.ok_or_else(|| PrepareError::PortUnknown { name: name.into(), known: known(apps) });
    };
    let key = |meaning: &Meaning| (meaning.first, meaning.protocol, meaning.count);
    match meanings.find(|other| key(other) != key(&meant)) {
        None => Ok(meant),
        Some(other) => {
            let text = |meaning: &Meaning| format!("{}/{}", meaning.first, meaning.protocol);
            let (first, second) = (text(&meant), text(&other));
            let [first_app, second_app] =
                [meant, other].map(|meaning| meaning.app.map(|app| app.to_string()).unwrap_or_default());
            Err(PrepareError::PortAmbiguous { name: name.into(), first, first_app, second, second_app })
        }
    }
}

fn known(apps: &[(&AppName, &[DeclaredPort])]) -> String {
    let ports = apps.iter().flat_map(|(_, ports)| *ports);
    let names: Vec<_> =
        ports.map(|port| port.name.clone().unwrap_or_else(|| format!("{}/{}", port.port, port.protocol))).collect();
    if names.is_empty() { "its images declare none".into() } else { format!("use one of {}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(name: Option<&str>, port: u16) -> DeclaredPort {
        DeclaredPort::new(name, port, Protocol::Tcp)
    }

    fn resolve_texts(texts: &[&str], network: NetworkMode) -> Result<Vec<PublishedPort>, PrepareError> {
        let (etcd, web): (AppName, AppName) = ("etcd".parse().unwrap(), "web".parse().unwrap());
        let (of_etcd, of_web) =
            ([declared(Some("client"), 2379), declared(Some("http"), 80)], [declared(Some("http"), 8080)]);
        let requests: Vec<PortRequest> = texts.iter().map(|text| text.parse().unwrap()).collect();
        resolve(&requests, &[(&etcd, &of_etcd), (&web, &of_web)], &network)
    }

    #[test]
    fn names_and_numbers_are_found() {
        let ports = resolve_texts(&["client:12379", "8080:127.0.0.1:81", "53/udp:53"], NetworkMode::Default).unwrap();
        let numbers: Vec<_> = ports.iter().map(|port| (port.pod_port, port.host_port, port.protocol)).collect();
        assert_eq!(numbers, [(2379, 12379, Protocol::Tcp), (8080, 81, Protocol::Tcp), (53, 53, Protocol::Udp)]);
    }

    #[test]
    fn what_cannot_be_published_is_named() {
        for (texts, part) in [
            (&["peer:1"][..], "use one of client, http, http"),
            (&["http:1"], "80/tcp in app etcd and 8080/tcp in app web"),
            (&["client:80", "81:80"], "port 80/tcp of the host is asked for twice"),
            (&["client:80", "81:127.0.0.1:80"], "at 127.0.0.1"),
        ] {
            let message = resolve_texts(texts, NetworkMode::Default).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        let message = resolve_texts(&["client:80"], NetworkMode::None).unwrap_err().to_string();
        assert!(message.contains("--net=none"), "{message}");
        assert_eq!(resolve_texts(&["80:127.0.0.1:80", "81:[::1]:80"], NetworkMode::Default).unwrap().len(), 2);
    }
}
