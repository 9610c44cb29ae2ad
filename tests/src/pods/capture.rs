//! What goes over a wire, written down by tcpdump.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::netns::{Namespace, Running};
use crate::wait::eventually;

/// A tcpdump that runs.
#[derive(Debug)]
pub struct Capture {
    _process: Running,
    file: PathBuf,
    log: PathBuf,
}

/// Bytes that one side of a TCP connection sent first.
pub type First = BTreeMap<(SocketAddr, SocketAddr), Vec<u8>>;

impl Capture {
    /// Writes down all TCP of an interface (`any`: all of them) from now on.
    ///
    /// # Panics
    /// When tcpdump does not start.
    pub async fn start(at: &Namespace, interface: &str, folder: &Path) -> Self {
        let stem = folder.join(format!("{}-{interface}", at.name()));
        let (file, log) = (stem.with_extension("pcap"), stem.with_extension("tcpdump"));
        let child = at
            .command(&["setpriv", "--pdeathsig", "KILL", "tcpdump", "-n", "-U", "--immediate-mode"])
            .args(["-B", "8192", "-Z", "root", "-i", interface, "-w"])
            .arg(&file)
            .arg("tcp")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("log of tcpdump"))
            .spawn()
            .expect("tcpdump");
        let capture = Self { _process: child.into(), file, log };
        eventually("tcpdump", || capture.log().contains("listening on")).await;
        capture
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether these bytes went by in one piece so far.
    #[must_use]
    pub fn has(&self, text: &str) -> bool {
        let all = std::fs::read(&self.file).unwrap_or_default();
        all.windows(text.len()).any(|part| part == text.as_bytes())
    }

    /// What each side of each connection sent first.
    ///
    /// # Panics
    /// When the file is none that tcpdump makes of Ethernet or `any`.
    #[must_use]
    pub fn first_bytes(&self) -> First {
        let all = std::fs::read(&self.file).expect("capture");
        let word = |at: usize| u32::from_le_bytes(all[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(word(0), 0xa1b2_c3d4, "pcap of this machine's byte order");
        // Ethernet and SLL2: where the protocol stands, and how long the header is.
        let (protocol, header) = match word(20) {
            1 => (12, 14),
            276 => (0, 20),
            other => panic!("link type {other}"),
        };
        let (mut first, mut at) = (First::new(), 24);
        while at + 16 <= all.len() {
            let length = word(at + 8) as usize;
            // The last one may be half written.
            let Some(packet) = all.get(at + 16..at + 16 + length) else { break };
            let kind = u16::from_be_bytes([packet[protocol], packet[protocol + 1]]);
            if let Some((from, to, sent)) = tcp(kind, &packet[header..])
                && !sent.is_empty()
            {
                first.entry((from, to)).or_insert_with(|| sent.to_vec());
            }
            at += 16 + length;
        }
        first
    }
}

/// Both ends and the payload of an IP packet that is TCP.
fn tcp(kind: u16, packet: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    let ip = |at: usize, length: usize| -> Option<IpAddr> {
        let bytes = packet.get(at..at + length)?;
        <[u8; 4]>::try_from(bytes)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
            .ok()
    };
    let short = |bytes: &[u8], at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let (from, to, segment) = match kind {
        // Total length ends it: Ethernet pads.
        0x0800 if packet.get(9) == Some(&6) => {
            let begin = usize::from(packet[0] & 15) * 4;
            (ip(12, 4)?, ip(16, 4)?, packet.get(begin..short(packet, 2)?.into())?)
        }
        0x86dd if packet.get(6) == Some(&6) => {
            (ip(8, 16)?, ip(24, 16)?, packet.get(40..40 + usize::from(short(packet, 4)?))?)
        }
        _ => return None,
    };
    let ends = (SocketAddr::new(from, short(segment, 0)?), SocketAddr::new(to, short(segment, 2)?));
    let payload = segment.get(usize::from(segment.get(12)? >> 4) * 4..)?;
    Some((ends.0, ends.1, payload))
}
