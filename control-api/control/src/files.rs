//! Folders of documents, and files of their owner's own.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Files of one folder tree.
const MOST: usize = 10_000;
/// Folders in folders.
const DEPTH: usize = 16;

/// Writes a file that only its owner reads.
///
/// # Errors
/// I/O.
pub(crate) fn private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    open_private(options.write(true).truncate(true), path)?.write_all(text.as_bytes())
}

/// Opens or makes a file, which from now on only its owner reads.
///
/// # Errors
/// I/O.
pub(crate) fn open_private(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    let file = options.create(true).mode(0o600).open(path)?;
    // The mode is for a file that is new.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// The documents' files at `path`, in order: itself if it is a file, else those that end with .yaml, .yml or .json. Names that begin
/// with a dot are left out, as are the folders behind them (`..data` of a mounted ConfigMap).
///
/// # Errors
/// It cannot be read, or has too many files.
pub(crate) fn list(path: &Path, recursive: bool) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    walk(path, if recursive { DEPTH } else { 0 }, &mut found)?;
    found.sort();
    Ok(found)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        // Follows links: files of a ConfigMap are links.
        if std::fs::metadata(&path)?.is_dir() {
            if depth > 0 {
                walk(&path, depth - 1, found)?;
            }
        } else if path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json") {
            found.push(path);
        }
        if found.len() > MOST {
            return Err(std::io::Error::other(format!("there are more than {MOST} files")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_so_even_if_it_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        private(&path, "new").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_folder_is_its_documents_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["b.yaml", "a.yml", "c.json", "note.txt", ".hidden.yaml"] {
            std::fs::write(at(name), "").unwrap();
        }
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("sub/d.yaml"), "").unwrap();
        let names = |recursive| {
            let list = list(folder.path(), recursive).unwrap();
            list.iter()
                .map(|p| p.strip_prefix(folder.path()).unwrap().display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(false), ["a.yml", "b.yaml", "c.json"]);
        assert_eq!(names(true), ["a.yml", "b.yaml", "c.json", "sub/d.yaml"]);
        assert_eq!(list(&at("note.txt"), false).unwrap(), [at("note.txt")], "who names a file means it");
        assert!(list(&at("none"), false).is_err());
    }
}
