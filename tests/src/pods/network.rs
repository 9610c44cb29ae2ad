//! Three nodes on one wire, each with the network of its pods behind it; beside them the control plane's machine, and one outside of the mesh.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::netns::Namespace;

/// Network interface of a node to its pods.
const BRIDGE: &str = "cni0";

/// Two addresses, as everything here has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Of a machine: 10.243.0.N and fd00:243::N.
    #[must_use]
    pub fn of_machine(number: u8) -> Self {
        let v6 = Ipv6Addr::new(0xfd00, 0x243, 0, 0, 0, 0, 0, number.into());
        Self { v4: Ipv4Addr::new(10, 243, 0, number), v6 }
    }

    /// Of a pod on a node: 10.244.NODE.N and fd00:244:NODE::N.
    #[must_use]
    pub fn of_pod(node: u8, number: u8) -> Self {
        let v6 = Ipv6Addr::new(0xfd00, 0x244, node.into(), 0, 0, 0, 0, number.into());
        Self { v4: Ipv4Addr::new(10, 244, node, number), v6 }
    }
}

/// Numbers of the machines that are no nodes.
const CONTROL: u8 = 10;
const OUTSIDE: u8 = 20;
/// Nodes are numbered from 1.
const NODES: [u8; 3] = [1, 2, 3];

/// The machines, with routes between the networks of all pods.
#[derive(Debug)]
pub struct Network {
    wire: Namespace,
    nodes: Vec<Namespace>,
    /// Where the control plane runs.
    pub control: Namespace,
    /// A machine that is not in the mesh.
    pub outside: Namespace,
}

impl Network {
    /// Builds all of it, without pods.
    ///
    /// # Panics
    /// When a command fails.
    #[must_use]
    pub fn new() -> Self {
        let wire = Namespace::new("wire");
        wire.must("ip link add br0 type bridge && ip link set br0 up");
        let nodes = NODES.map(|number| Namespace::new(&format!("node{number}"))).into();
        let [control, outside] = ["control", "outside"].map(Namespace::new);
        let network = Self { wire, nodes, control, outside };
        let others = [(CONTROL, &network.control), (OUTSIDE, &network.outside)];
        let machines = NODES.into_iter().zip(&network.nodes).chain(others);
        for (number, machine) in machines {
            network.plug(number, machine);
        }
        for (number, node) in NODES.into_iter().zip(&network.nodes) {
            let gateway = Addresses::of_pod(number, 1);
            node.must(&format!(
                "echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv6/conf/all/forwarding &&
                 ip link add {BRIDGE} type bridge && ip link set {BRIDGE} up &&
                 ip addr add {}/24 dev {BRIDGE} && ip addr add {}/64 dev {BRIDGE} nodad",
                gateway.v4, gateway.v6
            ));
        }
        network
    }

    /// Where the control plane is reached.
    #[must_use]
    pub fn control_address() -> Addresses {
        Addresses::of_machine(CONTROL)
    }

    /// Where the machine outside is reached.
    #[must_use]
    pub fn outside_address() -> Addresses {
        Addresses::of_machine(OUTSIDE)
    }

    /// A node, from 1.
    #[must_use]
    pub fn node(&self, number: u8) -> &Namespace {
        &self.nodes[usize::from(number) - 1]
    }

    /// A cable between the wire and a machine, and the machine's routes to the pods of the (other) nodes.
    fn plug(&self, number: u8, machine: &Namespace) {
        let (own, port) = (Addresses::of_machine(number), format!("m{number}"));
        self.wire.must(&format!(
            "ip link add {port} type veth peer name eth0 netns {} && ip link set {port} master br0 up",
            machine.name()
        ));
        let mut script = format!(
            "ip addr add {}/24 dev eth0 && ip addr add {}/64 dev eth0 nodad && ip link set eth0 up",
            own.v4, own.v6
        );
        for other in NODES.into_iter().filter(|other| *other != number) {
            let (pods, via) = (Addresses::of_pod(other, 0), Addresses::of_machine(other));
            script += &format!(
                " && ip route add {}/24 via {} && ip -6 route add {}/64 via {}",
                pods.v4, via.v4, pods.v6, via.v6
            );
        }
        machine.must(&script);
    }

    /// A namespace with an address in the network of a node's pods.
    ///
    /// # Panics
    /// When a command fails.
    #[must_use]
    pub fn pod(&self, name: &str, node: u8, number: u8) -> Namespace {
        let pod = Namespace::new(name);
        let (own, gateway) = (Addresses::of_pod(node, number), Addresses::of_pod(node, 1));
        self.node(node).must(&format!(
            "ip link add veth{number} type veth peer name eth0 netns {} && ip link set veth{number} master {BRIDGE} up",
            pod.name()
        ));
        pod.must(&format!(
            "ip addr add {}/24 dev eth0 && ip addr add {}/64 dev eth0 nodad && ip link set eth0 up &&
             ip route add default via {} && ip -6 route add default via {}",
            own.v4, own.v6, gateway.v4, gateway.v6
        ));
        pod
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}
