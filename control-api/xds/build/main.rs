//! Embeds the part of Envoy's API that `supported.txt` names. Crate `envoy-types` ships the descriptors of the whole
//! API beside its sources; this script finds them, keeps the supported messages and fields, and writes them compressed.

#[path = "../src/blob.rs"]
mod blob;
mod maps;
mod prune;
mod table;
mod typed_struct;

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use prost_reflect::DescriptorPool;

type Res<T> = Result<T, Box<dyn Error>>;

fn main() -> Res<()> {
    let here = PathBuf::from(env("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env("OUT_DIR")?);
    for path in ["supported.txt", "build", "src/blob.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let types = find_types(&here)?;
    println!("cargo::rerun-if-changed={}", types.display());

    let bytes = std::fs::read(&types).map_err(|e| format!("cannot read {}: {e}", types.display()))?;
    let mut pool = DescriptorPool::decode(bytes.as_slice())?;
    pool.add_file_descriptor_proto(typed_struct::file())?;
    let table = table::parse(&std::fs::read_to_string(here.join("supported.txt"))?)?;
    let blob = prune::prune(&pool, &table)?;
    // What the library will do at start must work.
    DescriptorPool::decode(blob.descriptors.as_slice())?;
    compress(&out.join("schema.bin.gz"), &blob.encode_to_vec())?;
    compress(&out.join("maps.bin.gz"), &maps::maps(&pool).encode_to_vec())?;
    compress(&out.join("known.txt.gz"), prune::known_types(&pool).as_bytes())
}

fn env(name: &str) -> Res<String> {
    std::env::var(name).map_err(|e| format!("{name}: {e}").into())
}

/// Path of the descriptor set in the sources of crate `envoy-types`.
fn find_types(here: &Path) -> Res<PathBuf> {
    let cargo = env("CARGO")?;
    let mut said = String::new();
    // Strictest first: nothing may change the lock file or wait for a network unless there is no other way.
    for flags in [&["--offline", "--locked"][..], &["--offline"], &[]] {
        let output = Command::new(&cargo)
            .args(["metadata", "--format-version", "1"])
            .args(flags)
            .arg("--manifest-path")
            .arg(here.join("Cargo.toml"))
            .output()?;
        if !output.status.success() {
            said = String::from_utf8_lossy(&output.stderr).into_owned();
            continue;
        }
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let packages = metadata["packages"].as_array().ok_or("cargo metadata: no packages")?;
        let manifest = packages
            .iter()
            .find(|p| p["name"] == "envoy-types")
            .and_then(|p| p["manifest_path"].as_str())
            .ok_or("cargo metadata: no package envoy-types")?;
        let root = Path::new(manifest).parent().ok_or("cargo metadata: odd manifest path")?;
        return Ok(root.join("src/generated/types.bin"));
    }
    Err(format!("cargo metadata failed: {said}").into())
}

fn compress(path: &Path, bytes: &[u8]) -> Res<()> {
    let mut writer = flate2::write::GzEncoder::new(File::create(path)?, flate2::Compression::best());
    writer.write_all(bytes)?;
    writer.finish()?;
    Ok(())
}
