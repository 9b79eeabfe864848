//! What an App Container image says of the app it makes (App Container specification, aci.md and ace.md).
//!
//! Its isolators become podvm's. One that podvm does not know is refused by name, since what it guards against would not be
//! guarded against; those that the specification lets a host do without are passed over, which is said.

use std::collections::BTreeSet;
use std::path::PathBuf;

use podvm_image::appc::ImageManifest;
use podvm_image::appc::manifest::{App, EventName, Isolator, Port};
use podvm_pod::manifest::{
    AppImage, ByteSize, Capability, CpuLimit, EnvironmentVariable, Isolators, Protocol, Seccomp, UserSpec, VolumeName,
};
use serde_json::Value;

use super::error::PrepareError;
use super::image::{DeclaredPort, ImageSettings};

/// The variable that tells an app its name in the image.
const APP_NAME: &str = "AC_APP_NAME";
/// Isolators that a host may do without.
const PASSED_OVER: [&str; 4] =
    ["os/linux/selinux-context", "resource/block-bandwidth", "resource/block-iops", "resource/network-bandwidth"];

/// What is wrong with an isolator, as a sentence.
type Fault = String;

impl ImageSettings {
    /// Reads an image's manifest.
    ///
    /// # Errors
    /// [`PrepareError::Image`] for what podvm cannot do.
    pub fn of_appc(image: AppImage, manifest: &ImageManifest) -> Result<Self, PrepareError> {
        let name = image.name.clone();
        let wrong = |what: Fault| PrepareError::Image { image: name.clone(), what };
        let mut settings = Self { is_appc: true, ..Self::plain(image) };
        let Some(app) = &manifest.app else { return Ok(settings) };
        settings.entrypoint.clone_from(&app.exec);
        let short = manifest.name.rsplit('/').next().unwrap_or(&manifest.name);
        let variable = |name: &str, value: &str| EnvironmentVariable { name: name.into(), value: value.into() };
        settings.environment.push(variable(APP_NAME, short));
        settings.environment.extend(app.environment.iter().map(|pair| variable(&pair.name, &pair.value)));
        settings.working_directory = app.working_directory.as_ref().filter(|path| !path.is_empty()).map(PathBuf::from);
        settings.user = UserSpec { user: Some(app.user.clone()), group: Some(app.group.clone()) };
        settings.supplementary_gids.clone_from(&app.supplementary_gids);
        let handler = |event| app.handler(event).map(<[String]>::to_vec).unwrap_or_default();
        settings.pre_start = handler(EventName::PreStart);
        settings.post_stop = handler(EventName::PostStop);
        for port in &app.ports {
            match declared(port).map_err(wrong)? {
                Some(declared) => settings.ports.push(declared),
                None => settings.remarks.push(format!(
                    "image {name}: port {} is passed over: its protocol {:?} is neither tcp nor udp",
                    port.name, port.protocol
                )),
            }
        }
        for mount in &app.mount_points {
            // A name that no volume can have leaves those that the path gives.
            settings.declare_volume(mount.name.parse::<VolumeName>().ok(), mount.path.as_ref(), mount.read_only);
        }
        settings.volumes.sort_by(|one, other| one.path.cmp(&other.path));
        settings.isolators = isolators(app, &mut settings.remarks, &name).map_err(wrong)?;
        Ok(settings)
    }
}

/// A port; none when its protocol is one that podvm does not carry.
fn declared(port: &Port) -> Result<Option<DeclaredPort>, Fault> {
    let protocol = match port.protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Ok(None),
    };
    let number = |number: u32| u16::try_from(number).map_err(|_| format!("port {} is no port", port.name));
    let (first, count) = (number(port.port)?, number(port.count)?);
    let (name, socket_activated) = (Some(port.name.clone()), port.socket_activated);
    Ok(Some(DeclaredPort { name, port: first, protocol, count, socket_activated }))
}

fn isolators(app: &App, remarks: &mut Vec<String>, image: &str) -> Result<Isolators, Fault> {
    let mut isolators = Isolators::default();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for isolator in &app.isolators {
        let name = isolator.name.as_str();
        let fault = |what: Fault| format!("isolator {name}: {what}");
        if PASSED_OVER.contains(&name) {
            remarks.push(format!("image {image}: podvm does without the isolator {name}"));
            continue;
        }
        // Of two that go for one thing, the later counts, as in rkt; but not where they contradict each other.
        let other = match name {
            "os/linux/capabilities-retain-set" => "os/linux/capabilities-remove-set",
            "os/linux/capabilities-remove-set" => "os/linux/capabilities-retain-set",
            "os/linux/seccomp-retain-set" => "os/linux/seccomp-remove-set",
            "os/linux/seccomp-remove-set" => "os/linux/seccomp-retain-set",
            _ => "",
        };
        if seen.contains(other) {
            return Err(fault(format!("it excludes {other}, which is given, too")));
        }
        seen.insert(name);
        apply(isolator, &mut isolators).map_err(fault)?;
    }
    remarks.extend(narrow(&mut isolators).into_iter().map(|remark| format!("image {image}: {remark}")));
    Ok(isolators)
}

/// What an image says of itself can take privileges from the app, and give it none.
fn narrow(isolators: &mut Isolators) -> Vec<String> {
    let mut remarks = Vec::new();
    let allowed = Capability::default_set();
    let denied: Vec<&str> = isolators.capabilities.difference(&allowed).map(|capability| capability.name()).collect();
    isolators.capabilities.retain(|capability| allowed.contains(capability));
    if !denied.is_empty() {
        let denied = denied.join(",");
        remarks.push(format!("it asks for {denied}, which no image gives itself; --caps-retain gives capabilities"));
    }
    isolators.seccomp = match std::mem::take(&mut isolators.seccomp) {
        Seccomp::Default | Seccomp::Unconfined => Seccomp::Default,
        list => Seccomp::Narrowed { by: Box::new(list) },
    };
    if isolators.oom_score_adj.take_if(|score| *score < 0).is_some() {
        remarks
            .push("it asks to be spared when memory runs out, which no image does itself; --oom-score-adj does".into());
    }
    remarks
}

fn apply(isolator: &Isolator, to: &mut Isolators) -> Result<(), Fault> {
    let value = &isolator.value;
    match isolator.name.as_str() {
        "resource/memory" => {
            if let Some(thousandths) = limit(value)? {
                to.memory = Some(ByteSize(u64::try_from(thousandths / 1000).map_err(|_| "it is too much".to_owned())?));
            }
        }
        "resource/cpu" => {
            if let Some(thousandths) = limit(value)? {
                let thousandths = u32::try_from(thousandths).ok().filter(|number| *number > 0);
                to.cpu = Some(CpuLimit(thousandths.ok_or("it is no amount of CPU")?));
            }
        }
        "os/linux/cpu-shares" => {
            let shares = number(value)?;
            let shares = u64::try_from(shares).ok().filter(|shares| (2..=262_144).contains(shares));
            to.cpu_shares = Some(shares.ok_or("it must be 2 to 262144")?);
        }
        "os/linux/oom-score-adj" => {
            let score = i32::try_from(number(value)?).ok().filter(|score| (-1000..=1000).contains(score));
            to.oom_score_adj = Some(score.ok_or("it must be -1000 to 1000")?);
        }
        "os/linux/no-new-privileges" => {
            to.no_new_privileges = value.as_bool().ok_or("it must be true or false")?;
        }
        "os/linux/capabilities-retain-set" => to.capabilities = capabilities(value)?,
        "os/linux/capabilities-remove-set" => {
            let removed = capabilities(value)?;
            to.capabilities = Capability::default_set().difference(&removed).copied().collect();
        }
        "os/linux/seccomp-retain-set" => to.seccomp = seccomp(value, "retain")?,
        "os/linux/seccomp-remove-set" => to.seccomp = seccomp(value, "remove")?,
        _ => {
            return Err(
                "podvm does not know it, so that what it is for would not be guarded; use an image without it, or ask \
                        its maker"
                    .into(),
            );
        }
    }
    Ok(())
}

/// A resource's limit in thousandths; its request when that is all that is said, for that is what it has to do with.
fn limit(value: &Value) -> Result<Option<u128>, Fault> {
    let given = |name: &str| value.get(name).filter(|value| !value.is_null());
    let Some(quantity) = given("limit").or_else(|| given("request")) else {
        return Err("it has neither a limit nor a request".into());
    };
    let text = match quantity {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err(format!("{quantity} is no quantity")),
    };
    let thousandths =
        parse_quantity(&text).ok_or_else(|| format!("{text:?} is no quantity such as 500m, 2G or 64Mi"))?;
    // "0" is how some say that there is no limit.
    Ok((thousandths > 0).then_some(thousandths))
}

/// A quantity in thousandths: digits, perhaps with decimals, and a suffix of thousands or of powers of two.
fn parse_quantity(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    let scale: u128 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" | "K" => 1000_u128.pow(2),
        "M" => 1000_u128.pow(3),
        "G" => 1000_u128.pow(4),
        "T" => 1000_u128.pow(5),
        "P" => 1000_u128.pow(6),
        "E" => 1000_u128.pow(7),
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        "Ei" => 1000 << 60,
        _ => return None,
    };
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || decimals.contains('.') || whole.len() > 15 || decimals.len() > 9 {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let part: u128 = if decimals.is_empty() { 0 } else { decimals.parse().ok()? };
    // What does not come out even counts whole.
    Some(whole * scale + (part * scale).div_ceil(10_u128.pow(decimals.len() as u32)))
}

fn number(value: &Value) -> Result<i64, Fault> {
    let parsed = match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    };
    parsed.ok_or_else(|| format!("{value} is no whole number"))
}

fn words(value: &Value) -> Result<Vec<&str>, Fault> {
    let listed = value.get("set").and_then(Value::as_array).filter(|list| !list.is_empty());
    let listed = listed.ok_or("it has no `set`, or an empty one")?;
    listed.iter().map(|word| word.as_str().ok_or_else(|| format!("{word} is no name"))).collect()
}

fn capabilities(value: &Value) -> Result<BTreeSet<Capability>, Fault> {
    let parse = |word: &str| word.parse().map_err(|error| format!("{error}"));
    words(value)?.into_iter().map(parse).collect()
}

fn seccomp(value: &Value, mode: &str) -> Result<Seccomp, Fault> {
    let words = words(value)?;
    match (mode, words.iter().find(|word| word.starts_with('@'))) {
        (_, None) => {
            let errno = value.get("errno").and_then(Value::as_str).filter(|errno| !errno.is_empty());
            let errno = errno.map(|errno| format!(",errno={errno}")).unwrap_or_default();
            format!("mode={mode}{errno},{}", words.join(",")).parse().map_err(|error| format!("{error}"))
        }
        ("retain", Some(&"@appc.io/all")) | ("remove", Some(&"@appc.io/empty")) => Ok(Seccomp::Unconfined),
        ("retain", Some(&("@rkt/default-whitelist" | "@docker/default-whitelist")))
        | ("remove", Some(&("@rkt/default-blacklist" | "@docker/default-blacklist"))) => Ok(Seccomp::Default),
        (_, Some(word)) => Err(format!("podvm does not know what {word:?} stands for")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(app: Value) -> Result<ImageSettings, String> {
        let mut whole = json!({"exec": ["/app", "-x"], "user": "7", "group": "/etc/passwd"});
        whole.as_object_mut().unwrap().extend(app.as_object().unwrap().clone());
        let manifest =
            json!({"acKind": "ImageManifest", "acVersion": "0.8.11", "name": "example.com/web", "app": whole});
        let manifest = ImageManifest::parse(manifest.to_string().as_bytes()).unwrap();
        let image = AppImage { name: "example.com/web".into(), id: "sha256:0".into(), layers: Vec::new() };
        ImageSettings::of_appc(image, &manifest).map_err(|error| error.to_string())
    }

    fn with_isolators(list: Value) -> Result<ImageSettings, String> {
        settings(json!({"isolators": list}))
    }

    #[test]
    fn an_app_is_what_its_manifest_says() {
        let web = settings(json!({
            "workingDirectory": "/w", "supplementaryGIDs": [5], "environment": [{"name": "A", "value": "b"}],
            "ports": [{"name": "http", "port": 80, "protocol": "tcp", "socketActivated": true},
                      {"name": "data", "port": 20000, "count": 10, "protocol": "udp"}],
            "mountPoints": [{"name": "work", "path": "/var/lib/work/", "readOnly": true}],
            "eventHandlers": [{"name": "pre-start", "exec": ["/pre"]}, {"name": "post-stop", "exec": ["/post", "x"]}]
        }))
        .unwrap();
        assert_eq!((web.entrypoint, web.pre_start), (vec!["/app".to_owned(), "-x".into()], vec!["/pre".to_owned()]));
        assert_eq!((web.post_stop, web.supplementary_gids), (vec!["/post".to_owned(), "x".into()], vec![5]));
        assert_eq!(web.user, UserSpec { user: Some("7".into()), group: Some("/etc/passwd".into()) });
        assert_eq!(web.environment[0].value, "web");
        assert_eq!((web.ports[1].port, web.ports[1].count, web.ports[1].protocol), (20000, 10, Protocol::Udp));
        assert_eq!((web.volumes[0].names[0].as_str(), web.volumes[0].read_only), ("work", true));
        assert_eq!((web.ports[0].socket_activated, web.ports[1].socket_activated), (true, false));
        let odd = settings(json!({"ports": [{"name": "x", "port": 1, "protocol": "sctp"}]})).unwrap();
        assert!(odd.ports.is_empty() && odd.remarks[0].contains("sctp"), "{:?}", odd.remarks);
    }

    #[test]
    fn isolators_become_limits_and_privileges() {
        let web = with_isolators(json!([
            {"name": "resource/memory", "value": {"limit": "128Mi"}},
            {"name": "resource/cpu", "value": {"request": "250m", "limit": "1.5"}},
            {"name": "os/linux/cpu-shares", "value": 512},
            {"name": "os/linux/oom-score-adj", "value": -5},
            {"name": "os/linux/no-new-privileges", "value": true},
            {"name": "os/linux/capabilities-retain-set", "value": {"set": ["CAP_NET_ADMIN"]}},
            {"name": "os/linux/seccomp-remove-set", "value": {"errno": "EPERM", "set": ["mkdir"]}},
            {"name": "resource/block-iops", "value": {"default": true, "limit": "1000"}}
        ]))
        .unwrap();
        let isolators = web.isolators;
        assert_eq!((isolators.memory, isolators.cpu), (Some(ByteSize::mib(128)), Some(CpuLimit(1500))));
        assert_eq!(
            (isolators.cpu_shares, isolators.oom_score_adj, isolators.no_new_privileges),
            (Some(512), None, true)
        );
        assert!(isolators.capabilities.is_empty(), "no image gives itself more than the default");
        let by = Box::new("mode=remove,errno=EPERM,mkdir".parse().unwrap());
        assert_eq!(isolators.seccomp, Seccomp::Narrowed { by });
        for part in ["resource/block-iops", "CAP_NET_ADMIN", "--oom-score-adj"] {
            assert!(web.remarks.iter().any(|remark| remark.contains(part)), "{:?}", web.remarks);
        }
        let removed = json!([{"name": "os/linux/capabilities-remove-set", "value": {"set": ["CAP_CHOWN"]}}]);
        let capabilities = with_isolators(removed).unwrap().isolators.capabilities;
        assert_eq!(capabilities.len(), Capability::default_set().len() - 1);
        for set in ["@appc.io/all", "@docker/default-whitelist"] {
            let list = json!([{"name": "os/linux/seccomp-retain-set", "value": {"set": [set]}}]);
            assert_eq!(with_isolators(list).unwrap().isolators.seccomp, Seccomp::Default);
        }
    }

    #[test]
    fn what_cannot_be_guarded_is_refused_by_name() {
        for (name, value, part) in [
            ("example.com/frobnicate", json!(true), "isolator example.com/frobnicate: podvm does not know it"),
            ("os/unix/sysctl", json!({"a": "b"}), "os/unix/sysctl"),
            ("resource/memory", json!({}), "neither a limit nor a request"),
            ("resource/memory", json!({"limit": "lots"}), "\"lots\""),
            ("os/linux/cpu-shares", json!(1), "2 to 262144"),
            ("os/linux/no-new-privileges", json!("yes"), "true or false"),
            ("os/linux/capabilities-retain-set", json!({"set": ["CAP_FLY"]}), "CAP_FLY"),
            ("os/linux/capabilities-retain-set", json!({"set": []}), "empty"),
            ("os/linux/seccomp-retain-set", json!({"set": ["@x/y"]}), "@x/y"),
            ("os/linux/seccomp-remove-set", json!({"set": ["mkdir"], "errno": "EFLY"}), "EFLY"),
        ] {
            let message = with_isolators(json!([{"name": name, "value": value}])).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        let set = json!({"set": ["CAP_CHOWN"]});
        let both = json!([{"name": "os/linux/capabilities-retain-set", "value": set},
                          {"name": "os/linux/capabilities-remove-set", "value": set}]);
        assert!(with_isolators(both).unwrap_err().contains("excludes"));
    }

    #[test]
    fn quantities_are_read_in_all_their_units() {
        for (text, thousandths) in [
            ("128974848", Some(128_974_848_000)),
            ("125952Ki", Some(128_974_848_000)),
            ("123Mi", Some(128_974_848_000)),
            ("0.3", Some(300)),
            ("300m", Some(300)),
            ("2G", Some(2_000_000_000_000)),
            ("", None),
            (".5", None),
            ("1.2.3", None),
            ("-1", None),
            ("1Q", None),
        ] {
            assert_eq!(parse_quantity(text), thousandths, "{text}");
        }
    }
}
