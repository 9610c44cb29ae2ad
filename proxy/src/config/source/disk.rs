//! The last good configuration on disk: a proxy that starts while its control plane is down serves from it.
//!
//! One file, a gzip of one `DeltaDiscoveryResponse` with every resource that was taken and its version: readable by other
//! programs, with gzip's checksum and length at its end. It is written beside the old one and renamed over it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use prost::Message;
use remora_xds::Kind;
use remora_xds::client::{Batch, Incoming};
use remora_xds::pb::envoy::config::core::v3::ControlPlane;
use remora_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

use crate::config::manager::{Dumped, Unpacker};

const FILE: &str = "last-good.pb.gz";
/// What is larger is neither written nor read.
const MAX_BYTES: u64 = 256 << 20;

/// The file of one node.
#[derive(Debug, Clone)]
pub struct LastGood {
    folder: PathBuf,
    node: Arc<str>,
}

impl LastGood {
    /// The file of `node` in `folder`.
    #[must_use]
    pub const fn new(folder: PathBuf, node: Arc<str>) -> Self {
        Self { folder, node }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// What it holds, in the order in which it is to be applied. None: there is none.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or is another node's.
    pub fn load(&self) -> io::Result<Option<Vec<Batch>>> {
        let file = match File::open(self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        let mut content = GzDecoder::new(file).take(MAX_BYTES + 1);
        content.read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(too_large());
        }
        let saved = DeltaDiscoveryResponse::decode(bytes.as_slice()).map_err(io::Error::other)?;
        let node = saved.control_plane.map(|control| control.identifier).unwrap_or_default();
        if node != *self.node {
            return Err(io::Error::other(format!("it is that of node {node:?}")));
        }
        let mut batches: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, Vec::new())).collect();
        for resource in saved.resources {
            let Some(any) = resource.resource else { continue };
            if let Some(kind) = Kind::from_type_url(&any.type_url) {
                let (name, version) = (Some(resource.name.into()), resource.version.into());
                batches[kind.index()].1.push(Incoming { name, version, any });
            }
        }
        Ok(Some(batches.into_iter().map(|(kind, resources)| Batch::restored(kind, resources)).collect()))
    }

    /// Writes the resources. When this returns, they are on the disk.
    ///
    /// # Errors
    /// The folder cannot be written to, or there is too much; the old file stays.
    pub fn save(&self, resources: &[(Kind, Arc<str>, Dumped)]) -> io::Result<()> {
        let mut unpacker = Unpacker::default();
        let resource = |(kind, name, dumped): &(Kind, Arc<str>, Dumped)| Resource {
            name: name.to_string(),
            version: dumped.version.as_deref().unwrap_or_default().to_owned(),
            resource: Some(dumped.any(*kind, &mut unpacker)),
            ..Resource::default()
        };
        let saved = DeltaDiscoveryResponse {
            resources: resources.iter().map(resource).collect(),
            control_plane: Some(ControlPlane { identifier: self.node.to_string() }),
            ..DeltaDiscoveryResponse::default()
        };
        if saved.encoded_len() as u64 > MAX_BYTES {
            return Err(too_large());
        }
        fs::create_dir_all(&self.folder)?;
        // During a hot restart two processes write.
        let fresh = self.path().with_extension(format!("{}.new", std::process::id()));
        // It may hold private keys.
        // What somebody prepared there would keep its mode, or lead elsewhere.
        remove_if_there(&fresh)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        let mut out = GzEncoder::new(file, Compression::fast());
        out.write_all(&saved.encode_to_vec())?;
        out.finish()?.sync_all()?;
        fs::rename(&fresh, self.path())?;
        sync_folder(&self.folder)
    }
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {} MiB", MAX_BYTES >> 20))
}

/// Removes a file, or a link.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The rename is durable when the folder is.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::manager::Together;

    fn cluster(name: &str) -> (Kind, Arc<str>, Dumped) {
        let mut bytes = Together::default();
        bytes.add(name.as_bytes());
        let dumped = Dumped { stored: bytes.stored().next().unwrap(), version: Some("7".into()) };
        (Kind::Cluster, name.into(), dumped)
    }

    #[test]
    fn what_is_saved_is_loaded_by_the_same_node_only() {
        let folder = tempfile::tempdir().unwrap();
        let own = LastGood::new(folder.path().join("state"), "n".into());
        assert!(own.load().unwrap().is_none(), "nothing was saved yet");
        own.save(&[cluster("a"), cluster("b")]).unwrap();
        let batches = own.load().unwrap().unwrap();
        let clusters = batches.iter().find(|batch| batch.kind == Kind::Cluster).unwrap();
        let names: Vec<_> = clusters.resources.iter().map(|r| r.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(&*clusters.resources[0].version, "7");
        let other = LastGood::new(folder.path().join("state"), "m".into());
        assert_eq!(other.load().unwrap_err().to_string(), "it is that of node \"n\"");
    }

    #[test]
    fn damage_anywhere_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let own = LastGood::new(folder.path().to_path_buf(), "n".into());
        own.save(&[cluster("a")]).unwrap();
        let good = fs::read(own.path()).unwrap();
        let content = format!("{:?}", own.load().unwrap());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(own.path(), bad).unwrap();
            // Some bits of gzip say nothing (time, operating system, padding): with them changed, it is still the same.
            assert!(own.load().map_or(true, |loaded| format!("{loaded:?}") == content), "byte {at}");
            fs::write(own.path(), &good[..at]).unwrap();
            assert!(own.load().is_err(), "cut at {at}");
        }
    }
}
