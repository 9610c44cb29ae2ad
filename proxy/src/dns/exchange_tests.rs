//! Servers on loopback that answer rightly, wrongly and for others.

use tokio::net::TcpListener;

use super::*;
use crate::dns::wire::{HEADER, IN, kind};
use crate::upstream::dns::ServerSpec;

const RIGHT: [u8; 4] = [192, 0, 2, 1];
const FORGED: [u8; 4] = [192, 0, 2, 66];

fn key() -> Key {
    let name = wire::labels("www.example.com").unwrap();
    Key { name, kind: kind::A, class: IN, signatures: false, unchecked: false }
}

fn spec() -> ForwardSpec {
    let servers = ServerSpec::default();
    ForwardSpec { servers, timeout: Duration::from_secs(5), retries: 0, max_pending: 1 }
}

/// Without counting.
async fn ask(key: &Key, spec: &ForwardSpec, servers: &[SocketAddr]) -> Told {
    super::ask(key, spec, servers, &Stats::default(), &|| ()).await
}

/// Both, or a failure: each waits for the other.
async fn both<A, B>(asking: impl Future<Output = A>, serving: impl Future<Output = B>) -> (A, B) {
    let both = async { tokio::join!(asking, serving) };
    timeout(Duration::from_secs(20), both).await.expect("a question or an answer did not come")
}

/// The answer to a question with one address.
fn answer(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut out = question[..HEADER + key().name.len() + 4].to_vec();
    (out[2], out[3], out[7], out[11]) = (0x81, 0x80, 1, 0);
    out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    out.extend(address);
    out
}

fn address_of(told: &Told) -> Option<[u8; 4]> {
    let query = wire::Query::read(&Asked::new(&key(), 0, &[0; 32], false).message).unwrap();
    let Told::Answer(reply) = told else { return None };
    let message = reply.answer(&query, crate::dns::reply::Left::After(Duration::ZERO), false);
    message[message.len() - 4..].try_into().ok()
}

/// A question by UDP, and who asks.
async fn hear(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; BUFFER];
    let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
    buffer.truncate(length);
    (buffer, peer)
}

async fn udp() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn forged_answers_are_not_heard() {
    let (server, at) = udp().await;
    let (stranger, _) = udp().await;
    let serving = async {
        let (question, peer) = hear(&server).await;
        let forged = answer(&question, FORGED);
        let edited = |at: usize| {
            let mut edited = forged.clone();
            edited[at] ^= 1;
            edited
        };
        // Everything right, but from elsewhere.
        stranger.send_to(&forged, peer).await.unwrap();
        // Another ID, a question instead of an answer, another name, another type; and what is too short to be one.
        let question_again = [&forged[..2], &[1], &forged[3..]].concat();
        let kind = HEADER + key().name.len() + 1;
        for wrong in [edited(0), edited(1), question_again, edited(HEADER + 1), edited(kind), vec![0; 3]] {
            server.send_to(&wrong, peer).await.unwrap();
        }
        server.send_to(&answer(&question, RIGHT), peer).await.unwrap();
    };
    let (key, spec, servers) = (key(), spec(), [at]);
    let (told, ()) = both(ask(&key, &spec, &servers), serving).await;
    assert_eq!(address_of(&told), Some(RIGHT));
}

/// A port that is free for UDP may be taken for TCP.
async fn both_at_one_port() -> (UdpSocket, TcpListener, SocketAddr) {
    for _ in 0..100 {
        let (server, at) = udp().await;
        if let Ok(listener) = TcpListener::bind(at).await {
            return (server, listener, at);
        }
    }
    panic!("no port is free for both");
}

#[tokio::test]
async fn an_answer_with_other_letters_is_asked_for_again_by_tcp() {
    let (server, listener, at) = both_at_one_port().await;
    let serving = async {
        let (question, peer) = hear(&server).await;
        let mut forged = answer(&question, FORGED);
        forged[HEADER + 1] ^= 0x20;
        server.send_to(&forged, peer).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut again = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut again).await.unwrap();
        // By TCP a server may change the case: nobody else can answer there.
        let right = answer(&again, RIGHT).to_ascii_lowercase();
        stream.write_all(&framed(&[&again[..2], &right[2..]].concat())).await.unwrap();
        (question, again)
    };
    let (key, spec, servers) = (key(), spec(), [at]);
    let (told, (first, second)) = both(ask(&key, &spec, &servers), serving).await;
    assert_eq!(address_of(&told), Some(RIGHT));
    assert_ne!(first[..HEADER + 17], second[..HEADER + 17], "ID and letters are new");
}

/// Whose answers are never taken is counted, that somebody learns of it.
#[tokio::test]
async fn other_letters_without_tcp_are_counted() {
    let (server, at) = udp().await;
    let serving = async {
        let (question, peer) = hear(&server).await;
        let mut other = answer(&question, RIGHT);
        other[HEADER + 1] ^= 0x20;
        server.send_to(&other, peer).await.unwrap();
    };
    let (key, spec, servers, stats) = (key(), spec(), [at], Stats::default());
    let (told, ()) = both(super::ask(&key, &spec, &servers, &stats, &|| ()), serving).await;
    assert_eq!((told, stats.get(Count::OtherLetters)), (Told::Silence, 1));
}

#[tokio::test]
async fn a_server_without_edns_is_asked_again_without() {
    let (server, at) = udp().await;
    let serving = async {
        let (question, peer) = hear(&server).await;
        assert_eq!(question[11], 1, "EDNS");
        // It leaves the question out, as such servers do.
        let refusal = [&question[..2], &[0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0][..]].concat();
        server.send_to(&refusal, peer).await.unwrap();
        let (question, peer) = hear(&server).await;
        assert_eq!(question[11], 0, "no EDNS");
        server.send_to(&answer(&question, RIGHT), peer).await.unwrap();
    };
    let (key, spec, servers) = (key(), spec(), [at]);
    let (told, ()) = both(ask(&key, &spec, &servers), serving).await;
    assert_eq!(address_of(&told), Some(RIGHT));
}

#[tokio::test]
async fn ids_ports_and_letters_are_new_for_each_question() {
    let (server, at) = udp().await;
    let serving = async {
        let mut seen = Vec::new();
        for _ in 0..8 {
            let (question, peer) = hear(&server).await;
            server.send_to(&answer(&question, RIGHT), peer).await.unwrap();
            let name = question[HEADER..HEADER + key().name.len()].to_vec();
            seen.push((question[..2].to_vec(), peer.port(), name));
        }
        seen
    };
    let (key, spec, servers) = (key(), spec(), [at]);
    let asking = async {
        for _ in 0..8 {
            assert!(matches!(ask(&key, &spec, &servers).await, Told::Answer(_)));
        }
    };
    let ((), seen) = both(asking, serving).await;
    // By chance all of eight are the same once in 2^90.
    assert!(seen.iter().any(|(id, ..)| *id != seen[0].0), "IDs");
    assert!(seen.iter().any(|(_, port, _)| *port != seen[0].1), "ports");
    assert!(seen.iter().any(|(.., name)| *name != seen[0].2), "letters");
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails() {
    let (gone, nobody) = udp().await;
    drop(gone);
    let (server, at) = udp().await;
    let serving = async {
        let (question, peer) = hear(&server).await;
        let mut failed = answer(&question, FORGED);
        failed[3] = 0x82;
        server.send_to(&failed, peer).await.unwrap();
        let (question, peer) = hear(&server).await;
        server.send_to(&answer(&question, RIGHT), peer).await.unwrap();
    };
    let (key, spec, servers) = (key(), spec(), [nobody, at, at]);
    let (told, ()) = both(ask(&key, &spec, &servers), serving).await;
    assert_eq!(address_of(&told), Some(RIGHT));
}

/// What it says is no accident, as a lost datagram is.
#[tokio::test]
async fn a_server_that_has_failed_is_not_asked_again() {
    let (failing, fails) = udp().await;
    let (losing, loses) = udp().await;
    let fail = async || {
        let (question, peer) = hear(&failing).await;
        let mut failed = answer(&question, FORGED);
        failed[3] = 0x82;
        failing.send_to(&failed, peer).await.unwrap();
    };
    let nothing_more = || failing.try_recv_from(&mut [0; BUFFER]).unwrap_err().kind();
    let serving = async {
        fail().await;
        let _lost = hear(&losing).await;
        let (question, peer) = hear(&losing).await;
        losing.send_to(&answer(&question, RIGHT), peer).await.unwrap();
    };
    let (key, spec) = (key(), ForwardSpec { timeout: Duration::from_secs(1), retries: 3, ..spec() });
    let servers = [fails, loses];
    let (told, ()) = both(ask(&key, &spec, &servers), serving).await;
    assert_eq!(address_of(&told), Some(RIGHT));
    assert_eq!(nothing_more(), io::ErrorKind::WouldBlock);
    let servers = [fails];
    let (told, ()) = both(ask(&key, &spec, &servers), fail()).await;
    assert_eq!((told, nothing_more()), (Told::Failed, io::ErrorKind::WouldBlock));
}

/// One server fails, the other says nothing: that somebody is there is known before the question ends.
#[tokio::test]
async fn the_first_word_is_told_at_once() {
    let (failing, fails) = udp().await;
    let (silent, says_nothing) = udp().await;
    let (tell, mut heard) = tokio::sync::mpsc::channel(2);
    let serving = async {
        let (question, peer) = hear(&failing).await;
        let mut failed = answer(&question, FORGED);
        failed[3] = 0x82;
        failing.send_to(&failed, peer).await.unwrap();
        heard.recv().await.expect("a word");
        // Only now there is an answer.
        let (question, peer) = hear(&silent).await;
        silent.send_to(&answer(&question, RIGHT), peer).await.unwrap();
    };
    let (key, spec, servers, stats) = (key(), spec(), [fails, says_nothing], Stats::default());
    let word = || tell.try_send(()).unwrap();
    let (told, ()) = both(super::ask(&key, &spec, &servers, &stats, &word), serving).await;
    assert_eq!(address_of(&told), Some(RIGHT));
}

/// Whether anybody is there is one thing, whether there is an answer another.
#[tokio::test]
async fn a_failure_is_told_from_silence() {
    let (gone, nobody) = udp().await;
    let (silent, says_nothing) = udp().await;
    let (server, at) = udp().await;
    drop(gone);
    let serving = async {
        let (question, peer) = hear(&server).await;
        let mut failed = answer(&question, FORGED);
        failed[3] = 0x82;
        server.send_to(&failed, peer).await.unwrap();
    };
    let (key, spec) = (key(), spec());
    let short = ForwardSpec { timeout: Duration::from_millis(100), ..spec.clone() };
    assert_eq!(ask(&key, &short, &[nobody, says_nothing]).await, Told::Silence);
    let servers = [nobody, at];
    let (told, ()) = both(ask(&key, &spec, &servers), serving).await;
    assert_eq!(told, Told::Failed);
    assert_eq!(ask(&key, &spec, &[]).await, Told::Silence);
    drop(silent);
}
