//! The first bytes of a connection: an answer stays what it is however many bytes follow, and where rustls reads a ClientHello too, it reads
//! the same name and the same protocols.
#![no_main]

use libfuzzer_sys::fuzz_target;
use remora_proxy::listener::detect::{ClientHelloInfo, Detected, detect};
use rustls::server::Acceptor;

fuzz_target!(|bytes: &[u8]| {
    let whole = detect(bytes);
    for end in 0..bytes.len().min(600) {
        let early = detect(&bytes[..end]);
        assert!(early == Detected::NeedMore || early == whole, "{early:?} of {end} bytes, then {whole:?}");
    }
    let (Detected::Tls(ours), Some(theirs)) = (whole, by_rustls(bytes)) else { return };
    // A name that is no DNS name is none for rustls.
    assert!(theirs.sni.is_none() || theirs.sni == ours.sni, "{theirs:?} is {ours:?}");
    assert_eq!(theirs.alpn, ours.alpn);
});

fn by_rustls(mut bytes: &[u8]) -> Option<ClientHelloInfo> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            let protocols = hello.alpn().into_iter().flatten();
            return Some(ClientHelloInfo {
                sni: hello.server_name().map(|name| name.to_ascii_lowercase().into()),
                alpn: protocols.map(Into::into).collect(),
            });
        }
    }
    None
}
