//! What a container runtime asks for.

use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use super::NAME;
use super::config::{self, Config, VERSIONS};
use super::environment::{self, Call, Command, PodName};
use super::failure::{Code, Failure};
use super::pod::{Decision, decide};
use crate::{init, kubernetes};

/// What a runtime may write: a result of many addresses is some kilobytes.
const LONGEST: u64 = 1 << 20;
/// For the API server. Runtimes give a plugin minutes, and try again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Exit status 0 with a result on standard output, or 1 with an error there.
pub(super) fn main() -> ExitCode {
    let mut text = String::new();
    let read = std::io::stdin().take(LONGEST).read_to_string(&mut text);
    let done = read
        .map_err(|error| Failure::new(Code::Io, "standard input cannot be read", error.to_string()))
        .and_then(|_| {
            let call = environment::read(&|name| std::env::var(name).ok())?;
            answer(&call, &text)
        });
    let (printed, status) = match done {
        Ok(Some(result)) => (result.to_string(), 0),
        Ok(None) => (String::new(), 0),
        Err(failure) => {
            eprintln!("{NAME}: {failure}");
            let version = config::version(&text).unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned());
            (failure.json(&version).to_string(), 1)
        }
    };
    // A runtime that does not listen has nothing to be told.
    let _ = std::io::stdout().write_all(printed.as_bytes());
    ExitCode::from(status)
}

fn answer(call: &Call, text: &str) -> Result<Option<Value>, Failure> {
    match call.command {
        Command::Version => {
            let version = config::version(text).unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned());
            Ok(Some(json!({"cniVersion": version, "supportedVersions": VERSIONS})))
        }
        // Rules go with their namespace, and nothing else is kept.
        Command::Del | Command::Gc => config::accept(text, call.command).map(|()| None),
        Command::Add => {
            let config = config::read(text, call.command)?;
            on_this_thread(rules(call, &config))??;
            // Not chained, as Multus calls it: nothing was made that a result could name.
            Ok(Some(config.previous.unwrap_or_else(|| json!({"cniVersion": config.version}))))
        }
        Command::Check => {
            let config = config::read(text, call.command)?;
            on_this_thread(rules(call, &config))?.map(|()| None)
        }
        // A runtime takes the whole node for not ready when it fails: only for what fails every ADD. Pods of excluded namespaces need neither
        // tools nor API server; for others ADD says what is missing.
        Command::Status => config::read(text, call.command).map(|_| None),
    }
}

/// The thread is the main one, which is what moves into another namespace.
fn on_this_thread<T>(what: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::new(Code::Later, "this node is out of something", error.to_string()))?;
    Ok(runtime.block_on(what))
}

/// ADD makes the rules, CHECK reads them back.
async fn rules(call: &Call, config: &Config) -> Result<(), Failure> {
    let (Some(pod), Some(netns)) = (&call.pod, &call.netns) else {
        eprintln!("{NAME}: left alone: no pod of Kubernetes (CNI_ARGS has no K8S_POD_NAME)");
        return Ok(());
    };
    if config.exclude_namespaces.contains(&pod.namespace) {
        return Ok(());
    }
    let arguments = match decide(&get(config, pod).await?, pod.uid.as_deref())? {
        Decision::Leave(_) => return Ok(()),
        Decision::Rules(arguments) => arguments,
    };
    enter(netns)?;
    let done = match call.command {
        Command::Add => init::establish(&arguments).await.map(|shown| {
            eprintln!("{NAME}: rules for {}/{}: {}", pod.namespace, pod.name, shown.join("; "));
        }),
        _ => init::holds(&arguments).await,
    };
    done.map_err(|why| match why {
        init::NotDone::Arguments(wrong) => {
            Failure::new(Code::Annotation, "the pod's annotation cannot be used", wrong.join("; "))
        }
        init::NotDone::Failed(error) => {
            Failure::new(Code::Rules, "the rules are not in place", format!("{error:#}"))
        }
    })
}

/// Moves this thread.
fn enter(netns: &Path) -> Result<(), Failure> {
    let failed = |why: std::io::Error| {
        let msg = format!("the network namespace {} cannot be entered", netns.display());
        Failure::new(Code::Rules, msg, why.to_string())
    };
    let file = std::fs::File::open(netns).map_err(failed)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| failed(error.into()))
}

/// The pod as the API server has it now: a copy in a cache may be from before its sidecar.
async fn get(config: &Config, pod: &PodName) -> Result<Value, Failure> {
    let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
    let later = |why: String| {
        let msg = format!("the pod {}/{} cannot be read", pod.namespace, pod.name);
        Failure::new(Code::Later, msg, why)
    };
    // Past an HTTP proxy: the runtime's HTTPS_PROXY is for its images.
    let client = kubernetes::direct(&config.kubeconfig).await.map_err(later)?;
    let request = http::Request::get(path).body(Vec::new()).map_err(|error| later(error.to_string()))?;
    let asked = tokio::time::timeout(PATIENCE, client.request::<Value>(request)).await;
    let asked =
        asked.map_err(|_| later(format!("the API server did not answer within {} s", PATIENCE.as_secs())))?;
    asked.map_err(|error| {
        let hint = match &error {
            kube::Error::Api(status) if status.code == 401 => {
                ": its token has ended or its account is gone: see the installer's log"
            }
            kube::Error::Api(status) if status.code == 403 => {
                ": the kubeconfig is from an installer that is gone (remora cni uninstall takes the plugin away)"
            }
            _ => "",
        };
        later(format!("{error}{hint}"))
    })
}
