//! DNS of a program behind the rules: names of the mesh from its sidecar, all others from the name server.

use std::process::Stdio;

use remora_tests::netns::Running;
use remora_tests::wait::eventually;

use super::BACKENDS;
use super::net::{FAR, Namespace, Net, Sidecar, WEB, WEB_VIP, skipped};

/// A name server in the world that has one address for every name.
const SERVER: &str = r"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 53))
while True:
    q, peer = s.recvfrom(4096)
    end = q.index(b'\0', 12) + 5
    answer = b'\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\7'
    s.sendto(q[:2] + b'\x81\x80\0\1\0\1\0\0\0\0' + q[12:end] + answer, peer)
";
const SERVERS_ANSWER: &str = "192.0.2.7";

/// Asks for an IPv4 address as a program does, and prints the last one of the answer.
const CLIENT: &str = r"
import socket, struct, sys
host, name, tcp = sys.argv[1], sys.argv[2], sys.argv[3] == 'tcp'
labels = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.'))
q = b'\x12\x34\1\0\0\1\0\0\0\0\0\0' + labels + b'\0\0\1\0\1'
family = socket.AF_INET6 if ':' in host else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((host, 53))
if tcp:
    s.sendall(struct.pack('!H', len(q)) + q)
    f = s.makefile('rb')
    a = f.read(struct.unpack('!H', f.read(2))[0])
else:
    s.send(q)
    a = s.recv(512)
print(socket.inet_ntoa(a[-4:]) if a[7] else 'code %d' % (a[3] & 15), end='')
";

fn ask(pod: &Namespace, host: &str, name: &str, how: &str) -> String {
    let said = pod.run(&["python3", "-c", CLIENT, host, name, how]);
    if said.status == 0 { said.out } else { said.err }
}

fn name_server(far: &Namespace) -> Running {
    let mut command = far.command(&["python3", "-c", SERVER]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap().into()
}

#[tokio::test]
async fn programs_get_names_of_the_mesh_from_their_sidecar() {
    if skipped() {
        return;
    }
    for backend in BACKENDS {
        let net = Net::new();
        let _server = name_server(&net.far);
        eventually("the name server", || ask(&net.pod, FAR, "other.test", "udp") == SERVERS_ANSWER).await;
        assert_eq!(ask(&net.pod, FAR, WEB, "udp"), SERVERS_ANSWER, "{backend}: before");
        let _summary = net.pod.initialised(&format!("{backend} --capture-dns --dns-servers *"));
        let _sidecar = Sidecar::start(&net.pod).await;
        // Nobody listens by TCP or IPv6 there: the sidecar answers for whom the program asks.
        for (host, how) in [(FAR, "udp"), (FAR, "tcp"), ("fd77::1", "udp"), ("fd77::1", "tcp")] {
            assert_eq!(ask(&net.pod, host, WEB, how), WEB_VIP, "{backend}: {host} {how}");
            // What the sidecar asks itself is not led back to it.
            assert_eq!(ask(&net.pod, host, "other.test", how), SERVERS_ANSWER, "{backend}: {host} {how}");
        }
        // Who asks another server means that one.
        let _summary = net.pod.initialised(&format!("{backend} --capture-dns --dns-servers fd77::1"));
        assert_eq!(ask(&net.pod, "fd77::1", WEB, "udp"), WEB_VIP, "{backend}: a name server");
        assert_eq!(ask(&net.pod, FAR, WEB, "udp"), SERVERS_ANSWER, "{backend}: another server");
        let _gone = net.pod.initialised("--clean");
        assert_eq!(ask(&net.pod, FAR, WEB, "udp"), SERVERS_ANSWER, "{backend}: cleaned");
    }
}
