//! Files of several documents.

use remora_xds::diag::Position;
use remora_xds::yaml;

use super::kubernetes;
use super::shape::{Report, object};
use super::{Settings, Skip};
use crate::document::Text;

/// Files with sidecars in them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rewritten {
    /// All documents of all files, in their order. One in which nothing has changed is as it was written, comments included.
    pub yaml: String,
    /// Who got a sidecar.
    pub injected: Vec<String>,
    /// Who did not, and why.
    pub skipped: Vec<(String, Skip)>,
    /// What whoever deploys it should know.
    pub notes: Vec<String>,
}

/// Gives every pod of the files a sidecar.
///
/// # Errors
/// Every mistake, with file and line.
pub fn documents(files: &[Text], settings: &Settings) -> Result<Rewritten, Vec<String>> {
    let (mut all, mut mistakes) = (Rewritten::default(), Vec::new());
    for file in files {
        for (skipped, part) in remora_mesh::split(&file.text) {
            match one(&file.name, part, skipped, settings) {
                Ok(report) => all.add(part, report),
                Err(wrong) => mistakes.extend(wrong),
            }
        }
    }
    if mistakes.is_empty() { Ok(all) } else { Err(mistakes) }
}

fn one(file: &str, text: &str, skipped: u32, settings: &Settings) -> Result<Report, Vec<String>> {
    let place = |at: Position| format!("{file}:{}:{}", at.line + skipped, at.column);
    let node = yaml::parse(text).map_err(|errors| {
        errors.into_iter().map(|e| format!("{}: {}", place(e.at), e.message)).collect::<Vec<_>>()
    })?;
    object(&kubernetes::json(&node), settings)
        .map_err(|failure| vec![format!("{}: {failure}", place(node.at))])
}

impl Rewritten {
    fn add(&mut self, part: &str, report: Report) {
        let text = match report.object {
            Some(object) => remora_xds::write_yaml(&object),
            None => part
                .strip_prefix("---")
                .unwrap_or(part)
                .trim_start_matches([' ', '\t', '\r', '\n'])
                .to_owned(),
        };
        if !text.trim().is_empty() {
            if !self.yaml.is_empty() {
                self.yaml.push_str("---\n");
            }
            self.yaml.push_str(&text);
            if !text.ends_with('\n') {
                self.yaml.push('\n');
            }
        }
        self.injected.extend(report.injected);
        self.skipped.extend(report.skipped);
        self.notes.extend(report.notes);
    }
}
