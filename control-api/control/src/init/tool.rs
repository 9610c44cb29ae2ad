//! Runs the programs that know the kernel's language, with a limit on their time.

use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// They need milliseconds; iptables of the legacy kind waits for its lock for at most half of this.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a program did not run that is not there.
const MISSING: &str = "is not installed";

/// How a tool failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    /// The command line.
    pub(super) command: String,
    /// What it wrote to standard error, or why it did not run.
    pub(super) why: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.command, self.why)?;
        if self.is_forbidden() {
            f.write_str(". It needs the capability NET_ADMIN in this network namespace (in a pod: securityContext.capabilities.add)")?;
        }
        if self.is_unsupported() {
            f.write_str(". This kernel may lack what it needs: try the other --backend")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failed {}

impl Failed {
    pub(super) fn is_forbidden(&self) -> bool {
        let why = self.why.to_ascii_lowercase();
        why.contains("not permitted") || why.contains("permission denied")
    }

    /// There is no such program.
    pub(super) fn is_missing(&self) -> bool {
        self.why == MISSING
    }

    pub(super) fn is_unsupported(&self) -> bool {
        self.why.to_ascii_lowercase().contains("not supported")
    }
}

/// Where a program is, by PATH, and then where system programs are: users other than root have no sbin there.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Runs a program to its end, and gives its standard output.
///
/// # Errors
/// It is not there, did not end in time, or ended with a failure.
pub(super) async fn run(name: &str, arguments: &[&str], input: &str) -> Result<String, Failed> {
    let command = [&[name][..], arguments].concat().join(" ");
    let failed = |why: String| Failed { command: command.clone(), why };
    let program = find(name).ok_or_else(|| failed(MISSING.into()))?;
    let child = Command::new(program)
        .args(arguments)
        // Messages are read by this program.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|error| failed(error.to_string()))?;
    let ended = async {
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends before it has read everything says why on standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(LIMIT, ended).await {
        Ok(output) => output.map_err(|error| failed(error.to_string()))?,
        Err(_) => return Err(failed(format!("did not end within {} s", LIMIT.as_secs()))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // The first mistake is the cause; nft repeats the line under it.
    let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    Err(failed(if lines.is_empty() { output.status.to_string() } else { lines.join(" ") }))
}
