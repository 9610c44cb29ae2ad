use proptest::prelude::*;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind};

use super::*;
use crate::pb::validate::bytes_rules::WellKnown as BytesWellKnown;
use crate::pb::validate::string_rules::WellKnown;
use crate::pb::validate::{
    BoolRules, BytesRules, DoubleRules, DurationRules, Int64Rules, KnownRegex, MessageRules, StringRules,
    UInt32Rules,
};
use crate::schema::Schema;

fn rules(check: Type) -> Rules {
    Rules::new(FieldRules { message: None, r#type: Some(check) }).unwrap()
}

/// What the rules say about one value, or nothing.
fn broken(check: Type, kind: &Kind, value: &Value) -> Option<String> {
    let mut said = None;
    rules(check).value(kind, value, &At::root(), &mut |_, broken| said = Some(broken));
    said
}

fn u32_rules(r: UInt32Rules, value: u32) -> Option<String> {
    broken(Type::Uint32(r), &Kind::Uint32, &Value::U32(value))
}

fn text(r: StringRules, value: &str) -> Option<String> {
    broken(Type::String(r), &Kind::String, &Value::String(value.into()))
}

fn known(kind: WellKnown, value: &str) -> bool {
    text(StringRules { well_known: Some(kind), ..StringRules::default() }, value).is_none()
}

#[test]
fn number_bounds() {
    let between = UInt32Rules { gte: Some(5), lt: Some(10), ..UInt32Rules::default() };
    assert_eq!(u32_rules(between.clone(), 5), None);
    assert_eq!(u32_rules(between.clone(), 9), None);
    assert_eq!(u32_rules(between.clone(), 10).unwrap(), "must be at least 5 and less than 10, not 10");
    assert!(u32_rules(between, 4).is_some());
    // Bounds the other way round: outside of 5..=10.
    let outside = UInt32Rules { gt: Some(10), lt: Some(5), ..UInt32Rules::default() };
    assert_eq!(u32_rules(outside.clone(), 4), None);
    assert_eq!(u32_rules(outside.clone(), 11), None);
    assert_eq!(u32_rules(outside, 7).unwrap(), "must be less than 5 or greater than 10, not 7");
    let lists = UInt32Rules { r#in: vec![1, 2], not_in: vec![2], ..UInt32Rules::default() };
    assert_eq!(u32_rules(lists.clone(), 1), None);
    assert_eq!(u32_rules(lists.clone(), 2).unwrap(), "must not be 2");
    assert_eq!(u32_rules(lists, 3).unwrap(), "must be one of 1, 2");
    let exact = UInt32Rules { r#const: Some(7), ..UInt32Rules::default() };
    assert_eq!(u32_rules(exact, 8).unwrap(), "must be 7");
    let ignored = UInt32Rules { gte: Some(5), ignore_empty: Some(true), ..UInt32Rules::default() };
    assert_eq!(u32_rules(ignored, 0), None);
}

#[test]
fn the_other_number_types() {
    let high = Int64Rules { lte: Some(-1), ..Int64Rules::default() };
    assert_eq!(broken(Type::Int64(high), &Kind::Int64, &Value::I64(0)).unwrap(), "must be at most -1, not 0");
    let low = DoubleRules { gt: Some(0.5), ..DoubleRules::default() };
    let said = broken(Type::Double(low.clone()), &Kind::Double, &Value::F64(0.5)).unwrap();
    assert_eq!(said, "must be greater than 0.5, not 0.5");
    // NaN keeps no bound.
    assert!(broken(Type::Double(low), &Kind::Double, &Value::F64(f64::NAN)).is_some());
    let on = BoolRules { r#const: Some(true) };
    assert_eq!(broken(Type::Bool(on), &Kind::Bool, &Value::Bool(false)).unwrap(), "must be true");
    assert_eq!(broken(Type::Bool(on), &Kind::Bool, &Value::Bool(true)), None);
}

#[test]
fn texts() {
    let rule = StringRules::default;
    for (rules, good, bad, said) in [
        (StringRules { min_len: Some(1), ..rule() }, "é", "", "must not be empty"),
        (StringRules { min_len: Some(2), ..rule() }, "éé", "é", "must have at least 2 characters, not 1"),
        (StringRules { max_len: Some(1), ..rule() }, "é", "ab", "must have at most 1 character, not 2"),
        (StringRules { len: Some(2), ..rule() }, "ab", "abc", "must have exactly 2 characters, not 3"),
        (StringRules { max_bytes: Some(2), ..rule() }, "é", "éa", "must have at most 2 bytes, not 3"),
        (StringRules { min_bytes: Some(2), ..rule() }, "é", "a", "must have at least 2 bytes, not 1"),
        (StringRules { len_bytes: Some(2), ..rule() }, "é", "a", "must have exactly 2 bytes, not 1"),
        (StringRules { pattern: Some("^a+$".into()), ..rule() }, "aa", "ab", "must match ^a+$"),
        (StringRules { prefix: Some("a".into()), ..rule() }, "ab", "b", "must start with \"a\""),
        (StringRules { suffix: Some("b".into()), ..rule() }, "ab", "a", "must end with \"b\""),
        (StringRules { contains: Some("b".into()), ..rule() }, "abc", "a", "must contain \"b\""),
        (StringRules { not_contains: Some("b".into()), ..rule() }, "a", "abc", "must not contain \"b\""),
        (StringRules { r#in: vec!["a".into(), "b".into()], ..rule() }, "a", "c", "must be one of a, b"),
        (StringRules { not_in: vec!["a".into()], ..rule() }, "b", "a", "must not be \"a\""),
        (StringRules { r#const: Some("a".into()), ..rule() }, "a", "b", "must be \"a\""),
        (
            StringRules { min_len: Some(2), ignore_empty: Some(true), ..rule() },
            "",
            "a",
            "must have at least 2 characters, not 1",
        ),
    ] {
        assert_eq!(text(rules.clone(), good), None, "{rules:?}");
        assert_eq!(text(rules.clone(), bad).as_deref(), Some(said), "{rules:?}");
    }
}

#[test]
fn well_known_texts() {
    for (kind, good, bad) in [
        (WellKnown::Email(true), "a.b@c.d", "a b@c"),
        (WellKnown::Hostname(true), "a-1.b.", "-a.b"),
        (WellKnown::Ip(true), "::1", "1.2.3"),
        (WellKnown::Ipv4(true), "1.2.3.4", "::1"),
        (WellKnown::Ipv6(true), "fe80::1", "1.2.3.4"),
        (WellKnown::Uri(true), "http://a/b?c#d", "/a"),
        (WellKnown::UriRef(true), "/a?b", "/a b"),
        (WellKnown::Address(true), "example.com", "a_b"),
        (WellKnown::Uuid(true), "123e4567-e89b-12d3-a456-426614174000", "123e4567e89b12d3a456426614174000"),
        (WellKnown::WellKnownRegex(KnownRegex::HttpHeaderName as i32), ":path", "a b"),
        (WellKnown::WellKnownRegex(KnownRegex::HttpHeaderName as i32), "x-a", ""),
        (WellKnown::WellKnownRegex(KnownRegex::HttpHeaderValue as i32), "a\tb é", "a\u{1}b"),
    ] {
        assert!(known(kind, good), "{kind:?} {good}");
        assert!(!known(kind, bad), "{kind:?} {bad}");
    }
    let lax = |value: &str| {
        let kind = WellKnown::WellKnownRegex(KnownRegex::HttpHeaderName as i32);
        text(StringRules { well_known: Some(kind), strict: Some(false), ..StringRules::default() }, value)
    };
    assert_eq!(lax("a b\u{1}"), None);
    assert_eq!(lax(""), None);
    assert_eq!(lax("a\nb").unwrap(), "must be a header name, not \"a\\nb\"");
    assert!(known(WellKnown::Ip(false), "x"));
}

#[test]
fn byte_strings() {
    let bytes = |rules: BytesRules, value: &'static [u8]| {
        broken(Type::Bytes(rules), &Kind::Bytes, &Value::Bytes(value.into()))
    };
    let rule = BytesRules::default;
    assert_eq!(bytes(BytesRules { max_len: Some(2), ..rule() }, b"ab"), None);
    assert_eq!(
        bytes(BytesRules { max_len: Some(2), ..rule() }, b"abc").unwrap(),
        "must have at most 2 bytes, not 3"
    );
    assert!(bytes(BytesRules { prefix: Some(b"a".to_vec()), ..rule() }, b"b").is_some());
    assert!(bytes(BytesRules { contains: Some(b"b".to_vec()), ..rule() }, b"abc").is_none());
    assert!(bytes(BytesRules { pattern: Some("^[0-9]+$".into()), ..rule() }, b"1a").is_some());
    assert!(bytes(BytesRules { r#in: vec![b"a".to_vec()], ..rule() }, b"b").is_some());
    let ip = BytesRules { well_known: Some(BytesWellKnown::Ip(true)), ..rule() };
    assert_eq!(bytes(ip.clone(), &[1, 2, 3, 4]), None);
    assert_eq!(bytes(ip, &[1]).unwrap(), "must be an IP address of 4 or 16 bytes");
}

fn pool() -> DescriptorPool {
    Schema::load().message("google.protobuf.Any").unwrap().parent_pool().clone()
}

fn message(name: &str, fields: &[(&str, Value)]) -> Value {
    let mut message = DynamicMessage::new(pool().get_message_by_name(name).unwrap());
    for (name, value) in fields {
        message.set_field_by_name(name, value.clone());
    }
    Value::Message(message)
}

#[test]
fn durations_wrappers_and_anys() {
    let seconds = |seconds| Duration { seconds, nanos: 0 };
    let duration = |r: DurationRules, s: i64, n: i32| {
        let value =
            message("google.protobuf.Duration", &[("seconds", Value::I64(s)), ("nanos", Value::I32(n))]);
        broken(Type::Duration(r), &Kind::String, &value)
    };
    let positive = DurationRules { gt: Some(seconds(0)), ..DurationRules::default() };
    assert_eq!(duration(positive.clone(), 0, 1), None);
    assert_eq!(duration(positive, 0, 0).unwrap(), "must be greater than 0s, not 0s");
    let short = DurationRules { lte: Some(seconds(1)), ..DurationRules::default() };
    assert_eq!(duration(short, 1, 500_000_000).unwrap(), "must be at most 1s, not 1.5s");
    let listed = DurationRules { r#in: vec![seconds(1)], ..DurationRules::default() };
    assert_eq!(duration(listed, 2, 0).unwrap(), "must be one of 1s");

    let wrapped = message("google.protobuf.UInt32Value", &[("value", Value::U32(3))]);
    let small = UInt32Rules { lt: Some(3), ..UInt32Rules::default() };
    assert_eq!(broken(Type::Uint32(small), &Kind::String, &wrapped).unwrap(), "must be less than 3, not 3");

    let any = message("google.protobuf.Any", &[("type_url", Value::String("t/a".into()))]);
    let only = AnyRules { r#in: vec!["t/b".into()], ..AnyRules::default() };
    assert_eq!(broken(Type::Any(only), &Kind::String, &any).unwrap(), "must hold one of t/b");
    let not = AnyRules { not_in: vec!["t/a".into()], ..AnyRules::default() };
    assert_eq!(broken(Type::Any(not), &Kind::String, &any).unwrap(), "must not hold t/a");
}

#[test]
fn enums() {
    let kind = Kind::Enum(pool().get_enum_by_name("envoy.config.core.v3.TrafficDirection").unwrap());
    let check = |r: EnumRules, n| broken(Type::Enum(r), &kind, &Value::EnumNumber(n));
    let defined = EnumRules { defined_only: Some(true), ..EnumRules::default() };
    assert_eq!(check(defined.clone(), 2), None);
    assert_eq!(check(defined, 3).unwrap(), "3 is none of its values");
    assert_eq!(
        check(EnumRules { r#in: vec![1, 2], ..EnumRules::default() }, 0).unwrap(),
        "must be one of INBOUND, OUTBOUND"
    );
    assert_eq!(
        check(EnumRules { not_in: vec![1], ..EnumRules::default() }, 1).unwrap(),
        "must not be INBOUND"
    );
    assert_eq!(check(EnumRules { r#const: Some(1), ..EnumRules::default() }, 2).unwrap(), "must be INBOUND");
}

/// What the rules say about a field of a real message, with the path.
fn field_broken(rules: FieldRules, owner: &str, field: &str, set: bool, value: &Value) -> Vec<String> {
    let desc = pool().get_message_by_name(owner).unwrap().get_field_by_name(field).unwrap();
    let mut said = Vec::new();
    let root = At::root();
    let mut report = |at: &At<'_>, broken: String| said.push(format!("{at}: {broken}"));
    Rules::new(rules).unwrap().field(&desc, set, value, &root.field(field), &mut report);
    said
}

#[test]
fn lists_and_maps() {
    let strings = |all: &[&str]| Value::List(all.iter().map(|s| Value::String((*s).to_owned())).collect());
    let items = FieldRules {
        message: None,
        r#type: Some(Type::String(StringRules { min_len: Some(2), ..StringRules::default() })),
    };
    let list = RepeatedRules {
        min_items: Some(1),
        max_items: Some(3),
        unique: Some(true),
        items: Some(Box::new(items.clone())),
        ignore_empty: None,
    };
    let check = |all: &[&str], r: RepeatedRules| {
        let rules = FieldRules { message: None, r#type: Some(Type::Repeated(Box::new(r))) };
        field_broken(rules, "envoy.config.route.v3.VirtualHost", "domains", !all.is_empty(), &strings(all))
    };
    assert_eq!(check(&["ab", "cd"], list.clone()), Vec::<String>::new());
    assert_eq!(check(&[], list.clone()), ["domains: must not be empty"]);
    assert_eq!(
        check(&["ab", "c", "ab", "de"], list.clone()),
        [
            "domains: must have at most 3 items, not 4",
            "domains[2]: occurs twice in the list",
            "domains[1]: must have at least 2 characters, not 1"
        ]
    );
    assert_eq!(check(&[], RepeatedRules { ignore_empty: Some(true), ..list }), Vec::<String>::new());

    let map = MapRules { min_pairs: Some(1), keys: Some(Box::new(items)), ..MapRules::default() };
    let rules = FieldRules { message: None, r#type: Some(Type::Map(Box::new(map))) };
    let (owner, field) = ("envoy.config.cluster.v3.Cluster", "typed_extension_protocol_options");
    let any = message("google.protobuf.Any", &[]);
    let value = Value::Map([(MapKey::String("x".into()), any)].into());
    assert_eq!(
        field_broken(rules.clone(), owner, field, true, &value),
        [format!("{field}.x: the key must have at least 2 characters, not 1")]
    );
    let empty = Value::Map([].into());
    assert_eq!(field_broken(rules, owner, field, false, &empty), [format!("{field}: must not be empty")]);
}

#[test]
fn presence_decides_whether_an_unset_field_is_checked() {
    let owner = "envoy.config.cluster.v3.Cluster";
    let min = FieldRules {
        message: None,
        r#type: Some(Type::String(StringRules { min_len: Some(1), ..StringRules::default() })),
    };
    let name = Value::String(String::new());
    assert_eq!(field_broken(min.clone(), owner, "name", false, &name), ["name: must not be empty"]);
    // A member of a oneof has presence.
    assert!(field_broken(min, "envoy.config.route.v3.RouteMatch", "prefix", false, &name).is_empty());
    let required =
        FieldRules { message: Some(MessageRules { required: Some(true), skip: None }), r#type: None };
    let unset = message("google.protobuf.Duration", &[]);
    assert_eq!(
        field_broken(required, owner, "connect_timeout", false, &unset),
        ["connect_timeout: is required"]
    );
    let required = DurationRules { required: Some(true), ..DurationRules::default() };
    let required = FieldRules { message: None, r#type: Some(Type::Duration(required)) };
    assert_eq!(
        field_broken(required, owner, "connect_timeout", false, &unset),
        ["connect_timeout: is required"]
    );
}

#[test]
fn rules_that_check_nothing_are_dropped() {
    assert!(Rules::new(FieldRules::default()).is_none());
    assert!(
        Rules::new(FieldRules {
            message: Some(MessageRules { skip: Some(true), required: None }),
            r#type: None
        })
        .unwrap()
        .skip
    );
}

proptest! {
    #[test]
    fn any_text_is_safe_for_every_well_known_form(value in any::<String>()) {
        for kind in [
            WellKnown::Email(true), WellKnown::Hostname(true), WellKnown::Uri(true), WellKnown::UriRef(true),
            WellKnown::Address(true), WellKnown::Uuid(true),
            WellKnown::WellKnownRegex(KnownRegex::HttpHeaderName as i32),
        ] {
            let _ = known(kind, &value);
        }
    }
}
