//! Sidecars in pods: one pure function for `remora inject` and for the webhook
//! ([0015](../../../../docs/decisions/0015-injection.md)).

mod annotations;
mod bootstrap;
mod command;
mod failure;
mod kubernetes;
mod patch;
mod pod;
mod probes;
mod review;
mod settings;
mod shape;
mod text;
pub(crate) mod values;
mod who;

#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::init;

pub use failure::Failure;
pub use patch::diff;
pub use review::review;
pub use settings::{Interception, Native, Settings, Version};
pub use shape::{Owner, Report, object};
pub use text::{Rewritten, documents};
pub use who::Skip;

pub(crate) use command::{InjectArgs, run};

/// Says that a pod has been injected, and by which version.
pub const STATUS: &str = "remora.dev/injected";
/// What the CNI plugin makes the pod's rules of: arguments of `remora init`, as a list in JSON.
pub const RULES: &str = "remora.dev/cni";
/// Name of the sidecar's container.
pub const PROXY: &str = "remora-proxy";
/// Name of the init container.
pub const INIT: &str = "remora-init";

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It has a sidecar now.
    Injected {
        /// The template with the sidecar.
        template: Value,
        /// What whoever deploys it should know.
        notes: Vec<String>,
    },
    /// It stays as it is.
    Skipped(Skip),
}

/// Gives the pod of `template` (`metadata` and `spec`; a Pod is its own template) a sidecar.
///
/// # Errors
/// [`Failure`]: an annotation cannot be used, or the pod cannot have a sidecar that works.
pub fn pod(template: &Value, owner: &Owner<'_>, settings: &Settings) -> Result<Outcome, Failure> {
    if let Some(skip) = who::skip(template, owner, settings)? {
        return Ok(Outcome::Skipped(skip));
    }
    who::refuse(template)?;
    let (wanted, mut notes) = annotations::read(template, settings)?;
    who::refuse_group(template, &wanted)?;
    let mut template = template.clone();
    let probes = if wanted.rewrites_probes() {
        probes::rewrite(&mut template, &mut notes)?
    } else {
        probes::Probes::default()
    };
    who::ports(&template, &probes)?;
    // What it would say in the pod is said here, where it can be mended.
    init::check(&pod::init_arguments(&wanted, &probes)).map_err(|wrong| {
        Failure::new("metadata.annotations", wrong.join("; "), "change the annotations of these names")
    })?;
    pod::add(&mut template, owner, settings, &wanted, &probes);
    pod::warn(&template, &wanted, &mut notes);
    Ok(Outcome::Injected { template, notes })
}
