use proptest::prelude::{any as anything, prop, prop_assert_eq, proptest};

use super::*;

const FACTS: ConnectionFacts<'static> = ConnectionFacts {
    destination: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3)), 443),
    source: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 9)), 5000),
    direct_source: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 9)), 5000),
    transport: Transport::Tls,
    server_name: Some("www.shop.example"),
    application_protocols: &[b"h2", b"http/1.1"],
};

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|n| n.parse().unwrap()).collect()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&s| s.to_owned()).collect()
}

fn any() -> ChainMatch {
    ChainMatch::default()
}

fn port(port: u16) -> ChainMatch {
    ChainMatch { destination_port: Some(port), ..any() }
}

fn names(list: &[&str]) -> ChainMatch {
    ChainMatch { server_names: strings(list), ..any() }
}

fn find(matches: &[ChainMatch], facts: &ConnectionFacts<'_>) -> Option<usize> {
    ChainMatcher::new(matches, None).unwrap().find(facts)
}

#[test]
fn a_chain_that_asks_for_nothing_takes_everything() {
    assert_eq!(find(&[any()], &FACTS), Some(0));
    let alone = ChainMatcher::new(&[any()], Some(1)).unwrap();
    let local = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0));
    let other = ConnectionFacts { destination: local, source: local, server_name: None, ..FACTS };
    assert_eq!((alone.find(&FACTS), alone.find(&other)), (Some(0), Some(0)), "never the default chain");
    assert!(alone.ports.is_empty(), "most listeners of a mesh are of this kind, and there are thousands");
    assert_eq!(find(&[], &FACTS), None);
    assert_eq!(ChainMatcher::new(&[], Some(0)).unwrap().find(&FACTS), Some(0));
}

#[test]
fn each_criterion_prefers_the_more_specific() {
    let tls = ChainMatch { transport: Some(Transport::Tls), ..any() };
    let raw = ChainMatch { transport: Some(Transport::RawBuffer), ..any() };
    let alpn = |list| ChainMatch { application_protocols: strings(list), ..any() };
    let to = |list| ChainMatch { destination: nets(list), ..any() };
    let from = |list| ChainMatch { source: nets(list), ..any() };
    let direct = |list| ChainMatch { direct_source: nets(list), ..any() };
    let source_port = |port| ChainMatch { source_ports: vec![port], ..any() };
    let kind = |source_type| ChainMatch { source_type, ..any() };
    for (what, matches, want) in [
        ("port", vec![any(), port(443), port(80)], Some(1)),
        ("other ports", vec![port(80), port(8443)], None),
        ("destination", vec![to(&["10.0.0.0/8"]), to(&["10.1.2.0/24"]), to(&["10.1.0.0/16"])], Some(1)),
        ("destination host bits", vec![any(), to(&["10.1.2.99/24"])], Some(1)),
        ("other destination", vec![to(&["11.0.0.0/8"]), to(&["2001:db8::/32"])], None),
        ("exact name", vec![names(&["*.shop.example"]), names(&["www.shop.example"]), any()], Some(1)),
        ("wildcard", vec![names(&["*.example"]), names(&["*.shop.example"]), any()], Some(1)),
        ("short wildcard", vec![names(&["*.example"]), any()], Some(0)),
        ("wildcard is no exact name", vec![names(&["*.www.shop.example"]), any()], Some(1)),
        ("tls", vec![raw.clone(), tls.clone(), any()], Some(1)),
        ("raw only", vec![raw], None),
        ("first offered protocol wins", vec![alpn(&["http/1.1"]), alpn(&["h2"]), any()], Some(1)),
        ("second offered protocol", vec![alpn(&["http/1.1"]), any()], Some(0)),
        ("unknown protocol", vec![alpn(&["istio"]), any()], Some(1)),
        ("direct source", vec![any(), direct(&["192.168.0.0/16"])], Some(1)),
        ("external", vec![any(), kind(SourceType::Local), kind(SourceType::External)], Some(2)),
        ("not local", vec![any(), kind(SourceType::Local)], Some(0)),
        ("source", vec![any(), from(&["192.168.0.0/24"]), from(&["192.168.0.9/32"])], Some(2)),
        ("source port", vec![any(), source_port(5000)], Some(1)),
        ("other source port", vec![any(), source_port(5001)], Some(0)),
    ] {
        assert_eq!(find(&matches, &FACTS), want, "{what}");
    }
}

#[test]
fn an_earlier_criterion_decides_before_a_later_one() {
    let specific: Vec<(&str, ChainMatch)> = vec![
        ("destination port", port(443)),
        ("destination", ChainMatch { destination: nets(&["10.1.0.0/16"]), ..any() }),
        ("server name", names(&["www.shop.example"])),
        ("transport", ChainMatch { transport: Some(Transport::Tls), ..any() }),
        ("protocol", ChainMatch { application_protocols: strings(&["h2"]), ..any() }),
        ("direct source", ChainMatch { direct_source: nets(&["192.168.0.0/16"]), ..any() }),
        ("source type", ChainMatch { source_type: SourceType::External, ..any() }),
        ("source", ChainMatch { source: nets(&["192.168.0.0/16"]), ..any() }),
        ("source port", ChainMatch { source_ports: vec![5000], ..any() }),
    ];
    for earlier in 0..specific.len() {
        for later in earlier + 1..specific.len() {
            let both = [specific[later].1.clone(), specific[earlier].1.clone()];
            assert_eq!(find(&both, &FACTS), Some(1), "{} before {}", specific[earlier].0, specific[later].0);
        }
    }
}

#[test]
fn a_dead_end_does_not_come_back() {
    // Port 443 is asked for, so the chain without a port is out, although its name would fit.
    let dead = [ChainMatch { server_names: strings(&["other"]), ..port(443) }, names(&["www.shop.example"])];
    assert_eq!(find(&dead, &FACTS), None);
    assert_eq!(ChainMatcher::new(&dead, Some(7)).unwrap().find(&FACTS), Some(7));
    let by_name = [
        ChainMatch { transport: Some(Transport::RawBuffer), ..names(&["www.shop.example"]) },
        names(&["*.shop.example"]),
    ];
    assert_eq!(find(&by_name, &FACTS), None);
}

#[test]
fn connections_without_a_name() {
    let facts = ConnectionFacts { server_name: None, application_protocols: &[], ..FACTS };
    assert_eq!(find(&[names(&["*.shop.example"]), any()], &facts), Some(1));
    let odd = ConnectionFacts { server_name: Some(".shop.example"), ..FACTS };
    assert_eq!(find(&[names(&["*.example"]), any()], &odd), Some(0));
    let dot = ConnectionFacts { server_name: Some("."), ..FACTS };
    assert_eq!(find(&[names(&["*.example"]), any()], &dot), Some(1));
}

#[test]
fn local_is_loopback_or_the_same_address() {
    let matches = [ChainMatch { source_type: SourceType::Local, ..any() }, any()];
    for (source, destination, want) in [
        ("127.0.0.1:1", "10.1.2.3:443", 0),
        ("[::1]:1", "[2001:db8::1]:443", 0),
        ("[::ffff:127.0.0.1]:1", "10.1.2.3:443", 0),
        ("10.1.2.3:1", "10.1.2.3:443", 0),
        ("10.1.2.4:1", "10.1.2.3:443", 1),
    ] {
        let facts = ConnectionFacts {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ..FACTS
        };
        assert_eq!(find(&matches, &facts), Some(want), "{source} -> {destination}");
    }
}

#[test]
fn mapped_addresses_match_as_ipv4() {
    let matches = [ChainMatch { destination: nets(&["10.1.2.3/32"]), ..any() }, any()];
    let facts = ConnectionFacts { destination: "[::ffff:10.1.2.3]:443".parse().unwrap(), ..FACTS };
    assert_eq!(find(&matches, &facts), Some(0));
}

#[test]
fn overlapping_matches_are_refused() {
    let overlap = |a: ChainMatch, b: ChainMatch| ChainMatcher::new(&[port(1), a, b], None).map(|_| ());
    assert_eq!(overlap(any(), any()), Err(ChainMatchError::Overlap(1, 2)));
    assert_eq!(overlap(names(&["a", "b"]), names(&["c", "b"])), Err(ChainMatchError::Overlap(1, 2)));
    let net = |list| ChainMatch { destination: nets(list), ..any() };
    assert_eq!(overlap(net(&["10.0.0.1/8"]), net(&["10.9.9.9/8"])), Err(ChainMatchError::Overlap(1, 2)));
    assert_eq!(overlap(net(&["10.0.0.0/8"]), net(&["10.0.0.0/9"])), Ok(()));
    // A chain that names a thing twice does not overlap with itself.
    assert_eq!(overlap(names(&["a", "a"]), names(&["b"])), Ok(()));
}

#[test]
fn a_match_that_explodes_is_refused() {
    let many = ChainMatch {
        server_names: (0..2000).map(|i| format!("n{i}")).collect(),
        source_ports: (1..2000).collect(),
        ..any()
    };
    assert_eq!(ChainMatcher::new(&[many], None).map(|_| ()), Err(ChainMatchError::TooMany(0)));
}

proptest! {
    #[test]
    fn longest_prefix_is_what_a_scan_finds(
        prefixes in proptest::collection::vec((anything::<u32>(), 0u8..=32), 0..40),
        address in anything::<u32>(),
        near in anything::<prop::sample::Index>(),
        low in 0u32..256,
    ) {
        let mut table = ByPrefix::<Option<IpNet>>::default();
        let nets: Vec<IpNet> = prefixes
            .iter()
            .map(|(bits, length)| IpNet::new(std::net::Ipv4Addr::from_bits(*bits).into(), *length).unwrap().trunc())
            .collect();
        for net in &nets {
            *table.entry(*net) = Some(*net);
        }
        let close = if prefixes.is_empty() { address } else { near.get(&prefixes).0 ^ low };
        for bits in [address, close] {
            let ip = IpAddr::V4(std::net::Ipv4Addr::from_bits(bits));
            let want = nets.iter().filter(|n| n.contains(&ip)).max_by_key(|n| n.prefix_len()).copied();
            prop_assert_eq!(table.find(ip).copied().flatten(), want);
        }
    }
}
