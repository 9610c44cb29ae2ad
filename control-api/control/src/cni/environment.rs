//! Variables of a CNI call.

use std::path::PathBuf;

use super::failure::{Code, Failure};

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    const ALL: [(&'static str, Self); 6] = [
        ("ADD", Self::Add),
        ("DEL", Self::Del),
        ("CHECK", Self::Check),
        ("GC", Self::Gc),
        ("STATUS", Self::Status),
        ("VERSION", Self::Version),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, command)| *command == self).map_or("", |(name, _)| *name)
    }
}

/// What a runtime asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) command: Command,
    /// The network namespace, where the command is about one.
    pub(super) netns: Option<PathBuf>,
    /// None: this container is no pod of Kubernetes, or the command asks for none.
    pub(super) pod: Option<PodName>,
}

/// A pod, as a kubelet tells it (`CNI_ARGS`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodName {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Option<String>,
}

/// Reads the variables by `get`.
///
/// # Errors
/// One is missing, or not as the specification has it.
pub(super) fn read(get: &dyn Fn(&str) -> Option<String>) -> Result<Call, Failure> {
    let get = |name: &str| get(name).filter(|value| !value.is_empty());
    let wrong = |msg: String, details: &str| Failure::new(Code::Environment, msg, details);
    let Some(named) = get("CNI_COMMAND") else {
        let details = "this is a CNI plugin, which container runtimes call; `remora cni install` puts it where they look";
        return Err(wrong("CNI_COMMAND is missing".into(), details));
    };
    let found = Command::ALL.iter().find(|(name, _)| *name == named);
    let Some((_, command)) = found else {
        return Err(wrong(
            format!("CNI_COMMAND {named:?} is not known"),
            "write ADD, DEL, CHECK, GC, STATUS or VERSION",
        ));
    };
    let required: &[&str] = match command {
        Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
        Command::Gc | Command::Status | Command::Version => &[],
    };
    let missing: Vec<_> = required.iter().copied().filter(|name| get(name).is_none()).collect();
    if !missing.is_empty() {
        return Err(wrong(format!("{} is missing", missing.join(", ")), "the runtime has to set it"));
    }
    if required.is_empty() {
        return Ok(Call { command: *command, netns: None, pod: None });
    }
    let valid = get("CNI_CONTAINERID").is_some_and(|id| is_container(&id));
    if !valid {
        return Err(wrong(
            "CNI_CONTAINERID is wrong".into(),
            "letters, digits, '_', '.' and '-', the first a letter or digit",
        ));
    }
    if !get("CNI_IFNAME").is_some_and(|name| is_interface(&name)) {
        return Err(wrong("CNI_IFNAME is wrong".into(), "1 to 15 characters, no '/', ':' or white space"));
    }
    let pod = match command {
        // It has to come to its end, whatever is there.
        Command::Del => None,
        _ => pod(&get("CNI_ARGS").unwrap_or_default())?,
    };
    Ok(Call { command: *command, netns: get("CNI_NETNS").map(PathBuf::from), pod })
}

fn is_container(id: &str) -> bool {
    let mut bytes = id.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn is_interface(name: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && c != '/' && c != ':';
    (1..=15).contains(&name.len()) && name.chars().all(plain) && name != "." && name != ".."
}

/// `IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;…`
fn pod(args: &str) -> Result<Option<PodName>, Failure> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    for part in args.split(';').filter(|part| !part.is_empty()) {
        let Some((key, value)) = part.split_once('=') else {
            let msg = format!("CNI_ARGS: {part:?} has no value");
            return Err(Failure::new(
                Code::Environment,
                msg,
                "write K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0",
            ));
        };
        match key {
            "K8S_POD_NAMESPACE" => namespace = Some(value),
            "K8S_POD_NAME" => name = Some(value),
            "K8S_POD_UID" => uid = Some(value),
            _ => {}
        }
    }
    // They become a path.
    let plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    };
    match (namespace, name) {
        (None, None) => Ok(None),
        (Some(namespace), Some(name)) if plain(namespace) && plain(name) => Ok(Some(PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.filter(|uid| !uid.is_empty()).map(ToOwned::to_owned),
        })),
        _ => Err(Failure::new(
            Code::Environment,
            "CNI_ARGS names no pod",
            "K8S_POD_NAMESPACE and K8S_POD_NAME belong together, and are names of Kubernetes",
        )),
    }
}
