//! Random edits of a small mesh, random timing, random refusals and reconnects: the client ends with what the snapshot says, and a
//! route in force never refers to a cluster that is not there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::model::{Client, Dialect, NAMED};
use super::*;

/// Longer than any run.
const ORDER_WAIT: Duration = Duration::from_secs(1 << 20);

/// One step of a run.
#[derive(Debug, Clone)]
enum Step {
    /// Cluster n: gone, or with this content.
    Cluster(u8, Option<u8>),
    /// Route n refers to those of these clusters that exist.
    Route(u8, Vec<u8>),
    /// Listener n: gone, or with this route.
    Listener(u8, Option<u8>),
    /// The server sees the edits.
    Publish,
    /// The server may send, so many times.
    Send(u8),
    /// The client takes the next response, and refuses resources with this digit in their name.
    Receive(Option<u8>),
    /// The server takes the next request.
    Request,
    /// The connection breaks.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0..4_u8;
    prop_oneof![
        3 => (n.clone(), proptest::option::weighted(0.7, 0..3_u8)).prop_map(|(c, v)| Step::Cluster(c, v)),
        3 => (n.clone(), proptest::collection::vec(0..4_u8, 0..3)).prop_map(|(r, cs)| Step::Route(r, cs)),
        2 => (n.clone(), proptest::option::weighted(0.7, 0..4_u8)).prop_map(|(l, r)| Step::Listener(l, r)),
        4 => Just(Step::Publish),
        8 => (1..4_u8).prop_map(Step::Send),
        8 => proptest::option::weighted(0.15, n).prop_map(Step::Receive),
        8 => Just(Step::Request),
        1 => Just(Step::Reconnect),
    ]
}

/// What the control plane means to serve.
#[derive(Default)]
struct Mesh {
    clusters: BTreeMap<u8, u8>,
    routes: BTreeMap<u8, Vec<u8>>,
    listeners: BTreeMap<u8, u8>,
}

impl Mesh {
    /// Always consistent: no route refers to a cluster that is not there.
    fn snapshot(&self) -> Arc<NodeSnapshot> {
        let mut snapshot = NodeSnapshot::default();
        let mut insert = |resource| snapshot.insert(Arc::new(resource));
        for (c, content) in &self.clusters {
            let name = format!("c{c}");
            insert(eds_cluster(&name, &content.to_string()));
            insert(endpoints(&name));
        }
        for r in 0..4 {
            let clusters = self.routes.get(&r).into_iter().flatten();
            let known: BTreeSet<_> =
                clusters.filter(|c| self.clusters.contains_key(c)).map(|c| format!("c{c}")).collect();
            insert(route(&format!("r{r}"), &known.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        for (l, r) in &self.listeners {
            insert(listener(&format!("l{l}"), &format!("r{r}")));
        }
        Arc::new(snapshot)
    }
}

struct Run<D: Dialect> {
    mesh: Mesh,
    newest: Arc<NodeSnapshot>,
    server: D,
    streams: u64,
    client: Client,
    responses: VecDeque<D::Response>,
    requests: VecDeque<D::Request>,
    now: Instant,
}

impl<D: Dialect> Run<D> {
    fn new() -> Self {
        let mut run = Self {
            mesh: Mesh::default(),
            newest: Arc::default(),
            server: D::new(0, Limits::default()),
            streams: 0,
            client: Client::default(),
            responses: VecDeque::new(),
            requests: VecDeque::new(),
            now: Instant::now(),
        };
        run.reconnect();
        run
    }

    fn reconnect(&mut self) {
        self.streams += 1;
        let limits = Limits { order_wait: ORDER_WAIT, response_bytes: 150, ..Limits::default() };
        self.server = D::new(self.streams, limits);
        self.server.snapshot(Arc::clone(&self.newest));
        self.responses.clear();
        self.requests = self.client.reconnect::<D>();
        // Without versions the server cannot know what the client still refers to.
        self.client.lenient |= !D::TELLS_VERSIONS && self.streams > 1;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Cluster(c, Some(content)) => drop(self.mesh.clusters.insert(c, content)),
            Step::Cluster(c, None) => drop(self.mesh.clusters.remove(&c)),
            Step::Route(r, clusters) => drop(self.mesh.routes.insert(r, clusters)),
            Step::Listener(l, Some(r)) => drop(self.mesh.listeners.insert(l, r)),
            Step::Listener(l, None) => drop(self.mesh.listeners.remove(&l)),
            Step::Publish => {
                self.newest = self.mesh.snapshot();
                self.server.snapshot(Arc::clone(&self.newest));
            }
            Step::Send(times) => {
                for _ in 0..times {
                    self.now += Duration::from_millis(30);
                    self.responses.extend(self.server.next(self.now));
                }
            }
            Step::Receive(refuse) => {
                if let Some(response) = self.responses.pop_front() {
                    let refuses = |name: &str| refuse.is_some_and(|n| name.ends_with(&n.to_string()));
                    self.requests.extend(self.client.take::<D>(response, refuses));
                }
            }
            Step::Request => {
                if let Some(request) = self.requests.pop_front() {
                    self.server.request(request).unwrap();
                }
            }
            Step::Reconnect => self.reconnect(),
        }
    }

    /// No more edits and refusals: everything that is under way arrives.
    fn settle(&mut self) {
        self.step(Step::Publish);
        for _ in 0..2 {
            for _ in 0..500 {
                self.step(Step::Request);
                self.step(Step::Send(3));
                self.step(Step::Receive(None));
            }
            // What waits for a kind that the client never asks for.
            self.now += ORDER_WAIT;
        }
        assert!(self.requests.is_empty() && self.responses.is_empty(), "it goes on and on");
    }

    fn check(&self) {
        for kind in Kind::ALL {
            let nothing = BTreeMap::new();
            let has = self.client.has.get(&kind).unwrap_or(&nothing);
            for resource in self.newest.kind(kind).values() {
                let name = &**resource.name();
                let wanted = !NAMED.contains(&kind) || self.client.names[&kind].contains(name);
                let refused = self.client.refused.contains_key(&(kind, name.to_owned()));
                let right = has.get(name).is_some_and(|(_, any)| any == resource.any());
                assert_eq!(right || refused, wanted || refused, "{kind} {name}");
            }
            let held_back = !self.client.refused.is_empty();
            let extra = has.keys().find(|name| self.newest.get(kind, name).is_none());
            assert!(extra.is_none() || held_back, "{kind} {extra:?} should be gone");
        }
    }
}

fn run<D: Dialect>(steps: Vec<Step>) {
    let mut run = Run::<D>::new();
    for step in steps {
        run.step(step);
    }
    run.settle();
    run.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn delta_converges_in_order(steps in proptest::collection::vec(step(), 0..120)) {
        run::<DeltaStream>(steps);
    }

    #[test]
    fn sotw_converges_in_order(steps in proptest::collection::vec(step(), 0..120)) {
        run::<SotwStream>(steps);
    }
}

/// A complete response repeats what the client refused before. When it takes it this time, nothing is held back any more.
#[test]
fn a_second_acceptance_ends_a_refusal() {
    run::<SotwStream>(vec![
        Step::Listener(1, Some(0)),
        Step::Request,
        Step::Publish,
        Step::Send(1),
        Step::Request,
        Step::Receive(None),
        Step::Send(1),
        Step::Receive(Some(1)),
        Step::Cluster(2, Some(0)),
        Step::Publish,
        Step::Listener(0, Some(0)),
        Step::Request,
        Step::Send(1),
        Step::Cluster(2, None),
    ]);
}
