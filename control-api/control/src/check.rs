//! `remora check`: mistakes in files, found by the code that runs them.

mod output;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use remora_mesh::{Documents, Finding, Rule, Severity};
use remora_xds::diag::ConfigError;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora check -f mesh.yaml
  remora check -f mesh.yaml policies.yaml --strict
  remora check -f mesh.yaml -o sarif > findings.sarif
  remora check -f bootstrap.yaml

A file is taken for mesh documents when a line of it begins with apiVersion:, else for a bootstrap. Mesh documents of all files are
checked together. A mistake is an error; what does nothing (a rule that no request gets to) is a warning.

Exit status: 0 without errors, 2 with errors; with --strict 1 when there are only warnings.")]
pub(crate) struct CheckArgs {
    /// Files to check
    #[arg(short, long = "filename", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// Warnings are a failure, too
    #[arg(long)]
    strict: bool,
    /// How findings are written: text to standard error, or json or sarif (2.1.0) to standard output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
    Sarif,
}

/// Exit status when only warnings were found, and that is a failure.
const DUBIOUS: u8 = 1;
/// Exit status when something is wrong.
const WRONG: u8 = 2;

pub(crate) fn run(args: &CheckArgs) -> ExitCode {
    let (mut findings, mut fine) = (Vec::new(), Vec::new());
    let mut documents: Vec<(String, String)> = Vec::new();
    for path in &args.files {
        match std::fs::read_to_string(path) {
            Ok(text) if is_mesh(&text) => documents.push((path.display().to_string(), text)),
            Ok(_) => check_bootstrap(path, &mut findings, &mut fine),
            Err(error) => findings.push(unreadable(path, &error.to_string())),
        }
    }
    if !documents.is_empty() {
        check_documents(&documents, &mut findings, &mut fine);
    }
    match args.output {
        Output::Text => output::text(&findings, &fine),
        Output::Json => println!("{}", output::json(&findings)),
        Output::Sarif => println!("{}", output::sarif(&findings)),
    }
    let errors = findings.iter().any(|finding| finding.severity == Severity::Error);
    match (errors, findings.is_empty()) {
        (true, _) => ExitCode::from(WRONG),
        (false, false) if args.strict => ExitCode::from(DUBIOUS),
        _ => ExitCode::SUCCESS,
    }
}

fn is_mesh(text: &str) -> bool {
    let begins = |line: &str| line.starts_with("apiVersion:") || line.starts_with("\"apiVersion\"");
    text.lines().any(begins) || text.trim_start().starts_with('{') && text.contains("\"apiVersion\"")
}

fn check_documents(files: &[(String, String)], findings: &mut Vec<Finding>, fine: &mut Vec<String>) {
    let texts = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let (all, found) = Documents::check(texts);
    if found.iter().all(|finding| finding.severity == Severity::Warning) {
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        fine.push(format!("{}: OK, {} documents", names.join(", "), all.len()));
    }
    findings.extend(found);
}

fn check_bootstrap(path: &Path, findings: &mut Vec<Finding>, fine: &mut Vec<String>) {
    let path = path.to_path_buf();
    // It may be one that is run with an identity agent.
    match remora_proxy::app::load(&path, true).and_then(remora_proxy::app::check) {
        Ok(()) => fine.push(format!("{}: OK", path.display())),
        Err(remora_proxy::app::StartError::Config(errors)) => {
            findings.extend(errors.into_iter().map(|error| Finding::mistake(Rule::Invalid, error)));
        }
        Err(error) => findings.push(unreadable(&path, &error.to_string())),
    }
}

fn unreadable(path: &Path, message: &str) -> Finding {
    let source: std::sync::Arc<str> = path.display().to_string().into();
    let message = message.strip_prefix(&*format!("{source}: ")).unwrap_or(message).to_owned();
    Finding::mistake(
        Rule::Syntax,
        ConfigError { source, position: None, path: String::new(), message, fix: None },
    )
}
