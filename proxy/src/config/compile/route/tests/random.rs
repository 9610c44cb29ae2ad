//! Tables of any kind.

use super::*;

fn any_route() -> impl Strategy<Value = pb::Route> {
    let path = prop_oneof![
        "[/a-z?#{}()*\\[\\]\\\\]{0,8}".prop_map(PathSpecifier::Prefix),
        "[/a-z]{0,8}".prop_map(PathSpecifier::Path),
        ".{0,8}".prop_map(PathSpecifier::PathSeparatedPrefix),
        "[/a-z.*+?()\\[\\]{}|\\\\]{0,8}".prop_map(|r| PathSpecifier::SafeRegex(pattern(&r))),
    ];
    let rewrite = "[ -~]{0,8}";
    (path, rewrite, ".{0,6}", any::<i32>(), any::<i64>(), any::<i32>(), any::<u32>()).prop_map(
        |(path, rewrite, header, number, secs, nanos, w)| {
            let mut action = weighted(vec![weight("a", w), weight("b", w)]);
            action.prefix_rewrite = rewrite.clone();
            action.priority = number % 3;
            action.timeout = Some(Duration { seconds: secs, nanos });
            let mut r = route(on(path), action);
            r.request_headers_to_add =
                vec![append(&header, &rewrite), add("x", &header, HeaderAppendAction::AddIfAbsent)];
            r
        },
    )
}

proptest! {
    /// No message makes the compiler panic, and what it accepts can be asked anything.
    #[test]
    fn any_table_compiles_or_is_refused(routes in proptest::collection::vec(any_route(), 0..16), domain in "[a-z*.:]{0,6}", path in "/[a-z/]{0,6}") {
        let mut pb = table(routes);
        pb.virtual_hosts[0].domains = vec![domain, "*".into()];
        let (table, _) = compile(&pb);
        let head = get("a.b", &path, &[]);
        if let Found::Route(_, route) = table.find(&Query { head: &head, internal: false, random: 1 }) {
            let mut headers = HeaderMap::new();
            route.request_headers.apply(&mut headers, &mut |_, _| None);
            if let Action::Forward(action) = &route.action {
                let _ = route.target(action, 5, &headers);
                if let Some(rewrite) = &action.path_rewrite {
                    let _ = rewrite.apply(&head.path, &route.matcher.path, &headers, &mut |_, _| None);
                }
            }
        }
    }
}
