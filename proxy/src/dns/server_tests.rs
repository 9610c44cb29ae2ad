//! The sockets of a listener.

use super::*;
use crate::dns::ForwardSpec;
use crate::dns::table::Table;
use crate::upstream::dns::ServerSpec;

/// `www.example.com`, A.
const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";

#[tokio::test]
async fn a_socket_is_closed_while_questions_are_under_way() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let servers = ServerSpec { servers: vec![silent.local_addr().unwrap()], ..ServerSpec::default() };
    let forward = ForwardSpec { servers, timeout: Duration::from_secs(10), retries: 0, max_pending: 4 };
    let spec = DnsFilterSpec { stat_prefix: "dns".into(), table: Table::default(), forward: Some(forward) };
    let service = Service::new(Arc::new(spec), Arc::default(), Vec::new());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let serving = tokio::spawn(serve_udp(service, socket));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(QUESTION, at).await.unwrap();
    let heard = timeout(Duration::from_secs(10), silent.recv_from(&mut [0; 512])).await;
    heard.expect("a question").unwrap();
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    // Without SO_REUSEPORT: nobody else may have it.
    UdpSocket::bind(at).await.expect("it is closed");
}
