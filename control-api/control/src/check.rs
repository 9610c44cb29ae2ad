//! `remora check`: mistakes in files, found by the code that runs them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use remora_mesh::Documents;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora check -f mesh.yaml
  remora check -f mesh.yaml policies.yaml
  remora check -f bootstrap.yaml

A file is taken for mesh documents when a line of it begins with apiVersion:, else for a bootstrap. Mesh documents of all files are
checked together. Exit status: 0 when everything is right, 2 when something is wrong.")]
pub(crate) struct CheckArgs {
    /// Files to check
    #[arg(short, long = "filename", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
}

const WRONG: u8 = 2;

pub(crate) fn run(args: &CheckArgs) -> ExitCode {
    let mut mistakes = 0;
    let mut documents: Vec<(String, String)> = Vec::new();
    for path in &args.files {
        match std::fs::read_to_string(path) {
            Ok(text) if is_mesh(&text) => documents.push((path.display().to_string(), text)),
            Ok(_) => mistakes += check_bootstrap(path),
            Err(error) => {
                eprintln!("{}: {error}", path.display());
                mistakes += 1;
            }
        }
    }
    if !documents.is_empty() {
        mistakes += check_documents(&documents);
    }
    if mistakes == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("remora check: {mistakes} mistake(s)");
    ExitCode::from(WRONG)
}

fn is_mesh(text: &str) -> bool {
    let begins = |line: &str| line.starts_with("apiVersion:") || line.starts_with("\"apiVersion\"");
    text.lines().any(begins) || text.trim_start().starts_with('{') && text.contains("\"apiVersion\"")
}

fn check_documents(files: &[(String, String)]) -> usize {
    match Documents::read(files.iter().map(|(name, text)| (name.as_str(), text.as_str()))) {
        Ok(all) => {
            let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
            println!("{}: OK, {} documents", names.join(", "), all.len());
            0
        }
        Err(errors) => {
            for error in &errors {
                eprintln!("{error}");
            }
            errors.len()
        }
    }
}

fn check_bootstrap(path: &Path) -> usize {
    let path = path.to_path_buf();
    match remora_proxy::app::load(&path).and_then(remora_proxy::app::check) {
        Ok(()) => {
            println!("{}: OK", path.display());
            0
        }
        Err(error) => {
            eprintln!("{error}");
            if let remora_proxy::app::StartError::Config(errors) = &error { errors.len() } else { 1 }
        }
    }
}
