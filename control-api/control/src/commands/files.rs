//! `-f`.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::document::Text;

/// Texts with documents.
#[derive(Debug, Clone, Args)]
pub(crate) struct FileArgs {
    /// Files, folders with .yaml, .yml and .json files, or - for standard input
    #[arg(short, long = "filename", value_name = "FILE", num_args = 1..)]
    pub(crate) files: Vec<PathBuf>,
    /// Also the folders in folders
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
}

impl FileArgs {
    /// The body of a request with them.
    pub(crate) fn body(&self, namespace: &str) -> anyhow::Result<Value> {
        Ok(json!({"namespace": namespace, "files": self.read()?}))
    }

    /// Texts of all of them.
    pub(crate) fn read(&self) -> anyhow::Result<Vec<Text>> {
        let mut texts = Vec::new();
        for path in &self.files {
            if path.as_os_str() == "-" {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("standard input")?;
                texts.push(Text { name: "stdin".into(), text });
                continue;
            }
            for path in
                crate::files::list(path, self.recursive).with_context(|| path.display().to_string())?
            {
                texts.push(read(&path)?);
            }
        }
        if texts.is_empty() {
            bail!("there are no documents: -f names no .yaml, .yml or .json file");
        }
        Ok(texts)
    }
}

fn read(path: &Path) -> anyhow::Result<Text> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
    Ok(Text { name, text })
}
