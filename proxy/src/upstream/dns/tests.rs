use super::super::{Answer, DnsKind, DnsTarget, LookupFamily, RefreshSpec, ServerSpec, SystemResolver};
use super::*;
use crate::upstream::endpoint::{AssignmentPolicy, EndpointSpec};
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;

fn spec(kind: DnsKind, hosts: &[&str]) -> DnsSpec {
    let target = |host: &&str| {
        let template = EndpointSpec {
            check: None,
            hostname: Some((*host).into()),
            logical: kind == DnsKind::Logical,
            ..EndpointSpec::new(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80)))
        };
        DnsTarget { host: (*host).into(), template }
    };
    DnsSpec {
        kind,
        targets: hosts.iter().map(target).collect(),
        policy: AssignmentPolicy::default(),
        family: LookupFamily::V4Only,
        servers: Arc::default(),
        refresh: RefreshSpec { jitter: Some(Duration::ZERO), ..RefreshSpec::default() },
    }
}

fn strict(hosts: &[&str]) -> DnsSpec {
    spec(DnsKind::Strict, hosts)
}

fn clusters(list: &[(&str, DnsSpec)]) -> Clusters {
    list.iter().map(|(name, spec)| ((*name).into(), Arc::new(spec.clone()))).collect()
}

fn good(ips: &[u8], ttl: u64) -> LookupResult {
    let addresses = ips.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect();
    Ok(Answer { addresses, ttl: Duration::from_secs(ttl) })
}

/// Last byte of every address.
fn ips(update: &DnsUpdate) -> Vec<u8> {
    let last = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 6,
    };
    update.assignment.endpoints.iter().map(|e| last(e.address.ip())).collect()
}

fn scheduler() -> Scheduler {
    Scheduler::new(fastrand::Rng::with_seed(1))
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn failures_empty_no_cluster() {
    let (mut s, now) = (scheduler(), Instant::now());
    assert_eq!(s.set_clusters(clusters(&[("c", strict(&["a"]))]), now), []);
    let query = s.due(now).unwrap();
    assert_eq!(s.due(now), None);
    let update = s.answer(&query, good(&[1, 2], 0), now).pop().unwrap();
    assert_eq!((ips(&update), update.complete), (vec![1, 2], true));
    let failures = [
        Err(LookupError::NotFound),
        Err(LookupError::Empty),
        Err(LookupError::Timeout),
        Err(LookupError::Failed("SERVFAIL".into())),
        good(&[], 60),
    ];
    for (n, failure) in failures.into_iter().enumerate() {
        let at = s.next_due().unwrap();
        assert!(at <= now + 60 * SECOND);
        assert_eq!(s.due(at).as_ref(), Some(&query));
        let updates = s.answer(&query, failure, at);
        // The first failure is news, the others are not; the addresses stay in any case.
        assert_eq!(updates.len(), usize::from(n == 0));
        for update in updates {
            assert_eq!((ips(&update), update.failing.len()), (vec![1, 2], 1));
        }
    }
    let at = s.next_due().unwrap();
    s.due(at).unwrap();
    let update = s.answer(&query, good(&[2, 3], 60), at).pop().unwrap();
    assert_eq!((ips(&update), update.failing), (vec![2, 3], vec![]));
}

#[test]
fn a_first_failure_completes_the_cluster_without_endpoints() {
    let (mut s, now) = (scheduler(), Instant::now());
    s.set_clusters(clusters(&[("c", strict(&["a", "b"]))]), now);
    let (first, second) = (s.due(now).unwrap(), s.due(now).unwrap());
    let update = s.answer(&first, Err(LookupError::NotFound), now).pop().unwrap();
    assert_eq!((ips(&update), update.complete), (vec![], false));
    let update = s.answer(&second, good(&[2], 5), now).pop().unwrap();
    assert_eq!((ips(&update), update.complete, update.failing.len()), (vec![2], true, 1));
}

#[test]
fn one_question_serves_all_clusters_that_use_the_name() {
    let (mut s, now) = (scheduler(), Instant::now());
    let v6 = DnsSpec { family: LookupFamily::V6Only, ..strict(&["a"]) };
    s.set_clusters(clusters(&[("c", strict(&["a", "b"])), ("d", strict(&["a"])), ("e", v6)]), now);
    assert_eq!(s.names(), 3);
    let mut asked = Vec::new();
    while let Some(query) = s.due(now) {
        asked.push(query);
    }
    let a = asked.iter().find(|q| &*q.host == "a" && q.family == LookupFamily::V4Only).unwrap();
    let updates = s.answer(a, good(&[1], 5), now);
    assert_eq!(updates.iter().map(|u| &*u.cluster).collect::<Vec<_>>(), ["c", "d"]);
    // A new cluster gets the answer that is already there, and nobody asks again.
    let all = clusters(&[("d", strict(&["a"])), ("new", strict(&["a"]))]);
    let updates = s.set_clusters(all, now);
    assert_eq!(updates.iter().map(|u| (&*u.cluster, ips(u))).collect::<Vec<_>>(), [("new", vec![1])]);
    assert_eq!((s.names(), s.due(now)), (1, None));
    // An answer for a name that nobody uses any more changes nothing.
    let b = asked.iter().find(|q| &*q.host == "b").unwrap();
    assert_eq!(s.answer(b, good(&[9], 5), now), []);
}

#[test]
fn addresses_are_not_looked_up() {
    let (mut s, now) = (scheduler(), Instant::now());
    let updates = s.set_clusters(clusters(&[("c", strict(&["10.0.0.7", "::1"]))]), now);
    assert_eq!((ips(&updates[0]), updates[0].complete), (vec![7, 6], true));
    assert_eq!((s.due(now), s.next_due()), (None, None));
}

#[test]
fn rotation_is_news_to_logical_clusters_only() {
    let (mut s, now) = (scheduler(), Instant::now());
    s.set_clusters(clusters(&[("l", spec(DnsKind::Logical, &["a"])), ("s", strict(&["a"]))]), now);
    let query = s.due(now).unwrap();
    let updates = s.answer(&query, good(&[1, 2, 1], 5), now);
    assert_eq!(updates.iter().map(ips).collect::<Vec<_>>(), [vec![1], vec![1, 2]]);
    let at = s.next_due().unwrap();
    s.due(at).unwrap();
    let updates = s.answer(&query, good(&[2, 1], 5), at);
    assert_eq!(updates.iter().map(|u| (&*u.cluster, ips(u))).collect::<Vec<_>>(), [("l", vec![2])]);
    let at = s.next_due().unwrap();
    s.due(at).unwrap();
    assert_eq!(s.answer(&query, good(&[2, 1], 5), at), []);
}

#[test]
fn a_removed_cluster_leaves_no_timer() {
    let (mut s, now) = (scheduler(), Instant::now());
    s.set_clusters(clusters(&[("c", strict(&["a", "b"]))]), now);
    let asked = s.due(now).unwrap();
    s.set_clusters(Clusters::new(), now);
    assert_eq!((s.names(), s.next_due()), (0, None));
    // It comes back while its question is still under way: the late answer belongs to the past.
    s.set_clusters(clusters(&[("c", strict(&["a"]))]), now);
    assert_eq!(s.answer(&asked, good(&[1], 5), now), []);
    assert!(s.due(now).is_some());
}

#[test]
fn the_longest_refresh_does_not_overflow() {
    let (mut s, now) = (scheduler(), Instant::now());
    let long = Duration::from_secs(315_576_000_000);
    let refresh = RefreshSpec { rate: long, jitter: Some(long), ..RefreshSpec::default() };
    s.set_clusters(clusters(&[("c", DnsSpec { refresh, ..strict(&["a"]) })]), now);
    let query = s.due(now).unwrap();
    s.answer(&query, good(&[1], 5), now);
    assert!(s.next_due().unwrap() > now + long);
}

#[test]
fn refresh_times() {
    let mut rng = fastrand::Rng::with_seed(1);
    let seconds = Duration::from_secs;
    let ttl = RefreshSpec { respect_ttl: true, jitter: Some(Duration::ZERO), ..RefreshSpec::default() };
    for (ttl_secs, want) in [(0, 1), (1, 1), (30, 30), (86_400, 300)] {
        assert_eq!(ttl.after_answer(seconds(ttl_secs), &mut rng), seconds(want));
    }
    let plain = RefreshSpec { respect_ttl: false, ..ttl };
    assert_eq!(plain.after_answer(seconds(300), &mut rng), seconds(5));
    let jitter = RefreshSpec::default();
    let within = |d: Duration, low: u64, high: u64| (low..=high).contains(&(d.as_millis() as u64));
    for _ in 0..100 {
        assert!(within(jitter.after_answer(seconds(1), &mut rng), 5000, 5500));
        assert!(within(jitter.after_failure(1, &mut rng), 250, 500));
        assert!(within(jitter.after_failure(3, &mut rng), 1000, 2000));
        assert!(within(jitter.after_failure(u32::MAX, &mut rng), 1250, 2500));
    }
    let slow = RefreshSpec { failure: Some((seconds(2), seconds(60))), ..RefreshSpec::default() };
    assert!(within(slow.after_failure(2, &mut rng), 2000, 4000));
    assert!(within(slow.after_failure(30, &mut rng), 30_000, 60_000));
}

#[derive(Debug, Clone)]
enum Step {
    Clusters(Vec<(u8, Vec<u8>)>),
    Answer(Vec<u8>),
    Fail,
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let hosts = prop::collection::vec(0_u8..6, 0..4);
    prop_oneof![
        1 => prop::collection::vec((0_u8..4, hosts), 0..4).prop_map(Step::Clusters),
        3 => prop::collection::vec(1_u8..9, 0..4).prop_map(Step::Answer),
        2 => Just(Step::Fail),
        2 => (0_u64..20_000).prop_map(Step::Advance),
    ]
}

proptest! {
    /// Whatever happens: once a name had an address, no update takes the last one away while the name stays.
    #[test]
    fn a_name_never_loses_its_last_address(steps in prop::collection::vec(step(), 1..80)) {
        let (mut s, mut now) = (scheduler(), Instant::now());
        let mut running = Vec::new();
        let mut wanted = Clusters::new();
        let mut known: HashMap<Arc<str>, Vec<u8>> = HashMap::new();
        for step in steps {
            let updates = match step {
                Step::Clusters(list) => {
                    let next: Clusters = list.iter().map(|(c, hosts)| {
                        let mut hosts: Vec<_> = hosts.iter().map(|h| format!("h{h}")).collect();
                        hosts.sort();
                        hosts.dedup();
                        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
                        (format!("c{c}").into(), Arc::new(strict(&hosts)))
                    }).collect();
                    // A changed cluster starts anew.
                    known.retain(|name, _| wanted.get(name) == next.get(name) && next.contains_key(name));
                    wanted.clone_from(&next);
                    s.set_clusters(next, now)
                }
                Step::Advance(ms) => {
                    now += Duration::from_millis(ms);
                    running.extend(std::iter::from_fn(|| s.due(now)));
                    Vec::new()
                }
                Step::Answer(addresses) => match running.pop() {
                    Some(query) => s.answer(&query, good(&addresses, 3), now),
                    None => Vec::new(),
                },
                Step::Fail => match running.pop() {
                    Some(query) => s.answer(&query, Err(LookupError::Timeout), now),
                    None => Vec::new(),
                },
            };
            for update in updates {
                prop_assert!(wanted.contains_key(&update.cluster));
                let before = known.insert(Arc::clone(&update.cluster), ips(&update));
                if before.is_some_and(|b| !b.is_empty()) {
                    prop_assert!(!ips(&update).is_empty());
                }
            }
            let used: std::collections::BTreeSet<_> =
                wanted.values().flat_map(|c| c.targets.iter().map(|t| Arc::clone(&t.host))).collect();
            prop_assert_eq!(s.names(), used.len());
        }
    }
}

/// Answers by host; records how often each was asked.
#[derive(Default)]
struct Script {
    answers: Mutex<HashMap<String, LookupResult>>,
    asked: Mutex<HashMap<String, u32>>,
}

impl Script {
    fn set(&self, host: &str, result: LookupResult) {
        self.answers.lock().unwrap().insert(host.to_owned(), result);
    }
}

impl Resolver for Script {
    fn lookup(&self, query: Query) -> super::super::Lookup {
        *self.asked.lock().unwrap().entry(query.host.to_string()).or_default() += 1;
        let answer = self.answers.lock().unwrap().get(&*query.host).cloned();
        Box::pin(async move {
            match answer {
                Some(Err(LookupError::Failed(why))) if why == "panic" => panic!("as scripted"),
                Some(result) => result,
                None => std::future::pending().await,
            }
        })
    }
}

async fn next(updates: &mut mpsc::Receiver<DnsUpdate>) -> DnsUpdate {
    tokio::time::timeout(Duration::from_secs(600), updates.recv()).await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_driver_refreshes_and_survives_silence_and_panics() {
    let script = Arc::new(Script::default());
    script.set("a", good(&[1], 5));
    script.set("b", Err(LookupError::Failed("panic".into())));
    let (sender, mut updates) = mpsc::channel(1);
    let (driver, handle) = Driver::new(Arc::clone(&script), sender, fastrand::Rng::with_seed(1));
    let task = tokio::spawn(driver.run());
    handle.set_clusters(clusters(&[
        ("c", strict(&["a"])),
        ("d", strict(&["b"])),
        ("e", strict(&["silent"])),
    ]));
    let mut seen = HashMap::new();
    while seen.len() < 3 {
        let update = next(&mut updates).await;
        seen.insert(update.cluster.to_string(), update);
    }
    assert_eq!((ips(&seen["c"]), seen["c"].complete), (vec![1], true));
    assert!(matches!(seen["d"].failing[..], [(_, LookupError::Failed(_))]));
    assert_eq!(seen["e"].failing[0].1, LookupError::Timeout);
    // The fix is seen within the five seconds of reliability.md C9.
    let fixed = Instant::now();
    script.set("b", good(&[4], 5));
    let update = next(&mut updates).await;
    assert_eq!((&*update.cluster, ips(&update)), ("d", vec![4]));
    assert!(fixed.elapsed() <= Duration::from_secs(5));
    drop(handle);
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_consumer_gets_the_newest_update_of_each_cluster() {
    let script = Arc::new(Script::default());
    let names: Vec<String> = (0..1000).map(|n| format!("h{n}")).collect();
    names.iter().for_each(|n| script.set(n, good(&[1], 5)));
    let (sender, mut updates) = mpsc::channel(1);
    let (driver, handle) = Driver::new(Arc::clone(&script), sender, fastrand::Rng::with_seed(1));
    let task = tokio::spawn(driver.run());
    let all: Vec<_> = names.iter().map(|n| (n.as_str(), strict(&[n.as_str()]))).collect();
    handle.set_clusters(clusters(&all));
    tokio::time::sleep(Duration::from_secs(3)).await;
    names.iter().for_each(|n| script.set(n, good(&[2], 5)));
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(script.asked.lock().unwrap().values().all(|n| *n == 2), "one query a refresh");
    let mut old = 0;
    for _ in 0..1000 {
        old += usize::from(ips(&next(&mut updates).await) == [1]);
    }
    assert!(old <= 2, "{old}");
    drop(updates);
    handle.set_clusters([]);
    tokio::time::timeout(Duration::from_secs(60), task).await.unwrap().unwrap();
}

mod wire {
    //! The real resolver against a name server of our own.
    use super::*;
    use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
    use hickory_resolver::proto::rr::{RData, Record, RecordType};
    use tokio::net::UdpSocket;

    /// Answers a question: records with TTL, or an error code.
    type Zone = fn(&str, RecordType) -> Result<Vec<(RData, u32)>, ResponseCode>;

    async fn server(zone: Zone) -> (Arc<ServerSpec>, tokio::task::JoinHandle<()>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = vec![socket.local_addr().unwrap()];
        let spec = ServerSpec { servers, tcp: false, no_search: true };
        let task = tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..n]).unwrap();
                let query = question.queries[0].clone();
                let mut reply = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
                reply.metadata.recursion_desired = true;
                reply.metadata.recursion_available = true;
                reply.add_query(query.clone());
                match zone(query.name().to_utf8().trim_end_matches('.'), query.query_type()) {
                    Err(code) => reply.metadata.response_code = code,
                    Ok(records) => records.into_iter().for_each(|(data, ttl)| {
                        reply.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
                    }),
                }
                socket.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
            }
        });
        (Arc::new(spec), task)
    }

    async fn ask(servers: &Arc<ServerSpec>, host: &str, family: LookupFamily) -> LookupResult {
        let query = Query { host: host.into(), family, servers: Arc::clone(servers) };
        SystemResolver::default().lookup(query).await
    }

    fn zone(name: &str, kind: RecordType) -> Result<Vec<(RData, u32)>, ResponseCode> {
        let v4 = RData::A(Ipv4Addr::new(10, 0, 0, 4).into());
        let v6 = RData::AAAA("fd00::6".parse::<std::net::Ipv6Addr>().unwrap().into());
        match (name, kind) {
            ("both.test", RecordType::A) => Ok(vec![(v4, 30)]),
            ("both.test", RecordType::AAAA) => Ok(vec![(v6, 20)]),
            ("four.test", RecordType::A) => Ok(vec![(v4.clone(), 9), (v4, 0)]),
            ("four.test" | "none.test", _) => Ok(Vec::new()),
            ("broken.test", _) => Err(ResponseCode::ServFail),
            _ => Err(ResponseCode::NXDomain),
        }
    }

    #[tokio::test]
    async fn answers_families_and_errors() {
        let (servers, task) = server(zone).await;
        let answer = |ips: &[&str], ttl| {
            let addresses = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            Ok(Answer { addresses, ttl: Duration::from_secs(ttl) })
        };
        use LookupFamily::{All, Auto, V4Only, V4Preferred, V6Only};
        assert_eq!(ask(&servers, "both.test", V4Only).await, answer(&["10.0.0.4"], 30));
        assert_eq!(ask(&servers, "both.test", V6Only).await, answer(&["fd00::6"], 20));
        assert_eq!(ask(&servers, "both.test", Auto).await, answer(&["fd00::6"], 20));
        assert_eq!(ask(&servers, "both.test", V4Preferred).await, answer(&["10.0.0.4"], 30));
        assert_eq!(ask(&servers, "both.test", All).await, answer(&["10.0.0.4", "fd00::6"], 20));
        assert_eq!(ask(&servers, "four.test", Auto).await, answer(&["10.0.0.4", "10.0.0.4"], 0));
        assert_eq!(ask(&servers, "none.test", All).await, Err(LookupError::Empty));
        assert_eq!(ask(&servers, "gone.test", Auto).await, Err(LookupError::NotFound));
        assert!(matches!(ask(&servers, "broken.test", V4Only).await, Err(LookupError::Failed(_))));
        task.abort();
    }

    #[tokio::test]
    async fn localhost_needs_no_name_server() {
        let nobody =
            ServerSpec { servers: vec!["127.0.0.1:9".parse().unwrap()], tcp: false, no_search: true };
        let nobody = Arc::new(nobody);
        let ask = |family| ask(&nobody, "localhost", family);
        assert_eq!(ask(LookupFamily::Auto).await.unwrap().addresses, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
        assert_eq!(ask(LookupFamily::All).await.unwrap().addresses.len(), 2);
    }
}
