use super::*;
use crate::route::action::{Action, DirectResponse};
use crate::route::header::HeaderMutations;
use crate::route::matcher::tests::get;
use crate::route::matcher::{HeaderKey, HeaderMatch, HeaderRule, RouteMatch};
use crate::route::re2::Pattern;
use bytes::Bytes;
use http::{Method, StatusCode};
use proptest::prelude::*;

fn route(path: PathMatch, name: &str) -> Route {
    Route {
        name: Some(name.into()),
        matcher: RouteMatch {
            path,
            headers: Box::new([]),
            query: Box::new([]),
            cookies: Box::new([]),
            grpc: false,
            fraction: None,
        },
        action: Action::Direct(DirectResponse { status: StatusCode::OK, body: Bytes::new() }),
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        overrides: Default::default(),
    }
}

fn exact(text: &str) -> PathMatch {
    PathMatch::Exact { text: text.into(), ignore_case: false }
}

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix { text: text.into(), ignore_case: false }
}

fn host(name: &str, domains: &[&str]) -> VirtualHost {
    let domains = domains.iter().map(|d| (*d).into()).collect();
    VirtualHost::new(name.into(), domains, RequireTls::None, vec![route(prefix("/"), name)])
}

fn table(hosts: Vec<VirtualHost>, rules: TableRules) -> RouteTable {
    RouteTable::new("t".into(), hosts, rules, vec![])
}

fn found(table: &RouteTable, host: &str, path: &str) -> String {
    describe(table.find(&Query { head: &get(host, path, &[]), internal: false, random: 0 }))
}

fn describe(found: Found<'_>) -> String {
    match found {
        Found::Route(_, route) => route.name.as_deref().unwrap_or("?").to_owned(),
        Found::TlsRequired(host) => format!("tls {}", host.name),
        Found::NoRoute(host) => format!("no route in {}", host.name),
        Found::NoVirtualHost => "no virtual host".to_owned(),
    }
}

#[test]
fn domains_exact_then_longest_suffix_then_longest_prefix_then_any() {
    let hosts = || {
        vec![
            host("any", &["*"]),
            host("exact", &["www.shop.example", "port.example:8080"]),
            host("suffix", &["*.example"]),
            host("longer", &["*.shop.example"]),
            host("dash", &["*-eu.example"]),
            host("prefix", &["www.shop.*"]),
            host("shorter", &["www.*"]),
        ]
    };
    let t = table(hosts(), TableRules::default());
    let want = [
        ("www.shop.example", "exact"),
        ("WWW.Shop.Example", "exact"),
        ("api.shop.example", "longer"),
        ("a.b.shop.example", "longer"),
        ("shop.example", "suffix"),
        ("api-eu.example", "dash"),
        (".example", "any"),
        ("-eu.example", "suffix"),
        ("www.shop.com", "prefix"),
        ("www.other.com", "shorter"),
        ("www.", "any"),
        ("port.example:8080", "exact"),
        ("port.example", "suffix"),
        ("www.shop.example:80", "prefix"),
        ("x.y", "any"),
    ];
    for (name, vhost) in want {
        // `.example` and `www.` are no valid authorities everywhere, so the index is asked as well.
        assert_eq!(
            t.domains.find(&name.to_ascii_lowercase()).map(|i| &*t.hosts[i].name),
            Some(vhost),
            "{name}"
        );
        if let Ok(authority) = name.parse::<http::uri::Authority>() {
            assert_eq!(found(&t, authority.as_str(), "/"), vhost, "{name}");
        }
    }
    assert_eq!(found(&t, "", "/"), "any");
    let without_any = table(hosts().split_off(1), TableRules::default());
    assert_eq!(found(&without_any, "x.y", "/"), "no virtual host");
    assert_eq!(found(&without_any, "", "/"), "no virtual host");
}

#[test]
fn ports_are_part_of_the_host_unless_ignored() {
    let hosts = || vec![host("a", &["a.example"]), host("v6", &["[::1]"]), host("p", &["a.example:81"])];
    let strict = table(hosts(), TableRules::default());
    assert_eq!(found(&strict, "a.example:80", "/"), "no virtual host");
    assert_eq!(found(&strict, "a.example:81", "/"), "p");
    let lax = table(hosts(), TableRules { ignore_port: true, ..TableRules::default() });
    assert_eq!(found(&lax, "a.example:80", "/"), "a");
    assert_eq!(found(&lax, "a.example:81", "/"), "a");
    assert_eq!(found(&lax, "[::1]:80", "/"), "v6");
    assert_eq!(found(&lax, "[::1]", "/"), "v6");
}

#[test]
fn another_header_may_choose_the_virtual_host() {
    let rules = TableRules { vhost_header: Some("x-vhost".parse().unwrap()), ..TableRules::default() };
    let t = table(vec![host("a", &["a"]), host("any", &["*"])], rules);
    let head = get("b", "/", &[("x-vhost", "A")]);
    assert_eq!(describe(t.find(&Query { head: &head, internal: false, random: 0 })), "a");
    assert_eq!(found(&t, "a", "/"), "any");
}

#[test]
fn tls_is_required_of_all_or_of_external_requests() {
    let mut all = host("all", &["all"]);
    all.require_tls = RequireTls::All;
    let mut external = host("external", &["external"]);
    external.require_tls = RequireTls::External;
    let t = table(vec![all, external], TableRules::default());
    let ask = |name: &str, scheme: Scheme, internal| {
        let mut head = get(name, "/", &[]);
        head.scheme = scheme;
        describe(t.find(&Query { head: &head, internal, random: 0 }))
    };
    assert_eq!(ask("all", Scheme::HTTP, true), "tls all");
    assert_eq!(ask("all", Scheme::HTTPS, false), "all");
    assert_eq!(ask("external", Scheme::HTTP, false), "tls external");
    assert_eq!(ask("external", Scheme::HTTP, true), "external");
    assert_eq!(ask("external", Scheme::HTTPS, false), "external");
}

#[test]
fn the_first_route_that_matches_wins_even_over_a_better_one() {
    let routes = vec![
        route(exact("/a"), "a"),
        route(prefix("/a"), "a*"),
        route(exact("/ab"), "never"),
        route(PathMatch::Regex(Pattern::new("/b.*").unwrap()), "b~"),
        route(prefix("/b"), "never"),
        route(PathMatch::Connect, "connect"),
    ];
    let vhost = VirtualHost::new("v".into(), vec!["*".into()], RequireTls::None, routes);
    let t = table(vec![vhost], TableRules { ignore_path_parameters: true, ..TableRules::default() });
    for (path, want) in
        [("/a", "a"), ("/a?x", "a"), ("/a;v=1/z", "a"), ("/ab", "a*"), ("/bc", "b~"), ("/c", "no route in v")]
    {
        assert_eq!(found(&t, "h", path), want, "{path}");
    }
    let mut connect = get("h", "/a", &[]);
    connect.method = Method::CONNECT;
    assert_eq!(describe(t.find(&Query { head: &connect, internal: false, random: 0 })), "connect");
}

#[test]
fn a_table_of_many_routes_prints_without_its_index() {
    let routes = (0..40).map(|i| route(exact(&format!("/{i}")), "r")).collect();
    let vhost = VirtualHost::new("v".into(), vec!["*".into()], RequireTls::None, routes);
    assert!(vhost.index.is_some());
    assert!(!format!("{:?}", table(vec![vhost], TableRules::default())).contains("index"));
}

fn any_path_match() -> impl Strategy<Value = PathMatch> {
    let text = "/[ab]{0,3}";
    prop_oneof![
        4 => (text, any::<bool>()).prop_map(|(t, i)| PathMatch::Exact { ignore_case: i && t.len() > 3, text: t.into() }),
        4 => (text, any::<bool>()).prop_map(|(t, i)| PathMatch::Prefix { ignore_case: i && t.len() > 3, text: t.into() }),
        2 => "/[ab]{1,3}".prop_map(|t| PathMatch::SeparatedPrefix { text: t.into(), ignore_case: false }),
        1 => Just(PathMatch::Regex(Pattern::new("/a*b/?").unwrap())),
        1 => Just(PathMatch::Connect),
        1 => Just(PathMatch::Prefix { text: "".into(), ignore_case: false }),
    ]
}

proptest! {
    /// The index is only a short cut: it finds what trying every route in order finds.
    #[test]
    fn the_index_keeps_the_order_of_the_file(
        paths in proptest::collection::vec((any_path_match(), any::<bool>()), LINEAR + 1..60),
        path in "/[abAB]{0,3}(/[ab]{0,2})?",
        with_header in any::<bool>(),
    ) {
        let routes: Vec<Route> = paths
            .into_iter()
            .enumerate()
            .map(|(i, (path, wants_header))| {
                let mut r = route(path, &i.to_string());
                if wants_header {
                    let key = HeaderKey::parse("x").unwrap();
                    r.matcher.headers = Box::new([HeaderMatch { key, rule: HeaderRule::Present(true), invert: false, missing_is_empty: false }]);
                }
                r
            })
            .collect();
        let vhost = VirtualHost::new("v".into(), vec![], RequireTls::None, routes);
        prop_assert!(vhost.index.is_some());
        let head = get("h", &path, if with_header { &[("x", "1")] } else { &[] });
        let subject = Subject::new(&head, false, 0);
        let naive = vhost.routes.iter().find(|r| r.matcher.is_match(&subject)).map(|r| r.name.clone());
        prop_assert_eq!(vhost.find(&subject).map(|r| r.name.clone()), naive);
    }

    #[test]
    fn no_host_and_no_path_panics(name in "[ -~]{0,20}", bytes in proptest::collection::vec(any::<u8>(), 0..12), path in "/[!-~]{0,20}") {
        let hosts = vec![host("a", &["*.a"]), host("b", &["b.*"]), host("c", &["c:1"]), host("d", &["*"])];
        let rules = TableRules { ignore_port: true, vhost_header: Some("x".parse().unwrap()), ..TableRules::default() };
        let t = table(hosts, rules);
        t.domains.find(&name);
        t.domains.find(&String::from_utf8_lossy(&bytes));
        let mut head = get("h", "/", &[]);
        if let Ok(path) = path.parse() {
            head.path = path;
        }
        if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
            head.headers.insert("x", value);
        }
        let _ = describe(t.find(&Query { head: &head, internal: false, random: 0 }));
    }
}
