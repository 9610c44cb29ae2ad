use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::Metadata;
use crate::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use crate::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints};
use crate::pb::google::protobuf::value::Kind as ValueKind;
use crate::pb::google::protobuf::{ListValue, Struct, Value};

/// What a `google.protobuf.Value` is made of, without an order of its own.
#[derive(Debug, Clone)]
enum Json {
    Number(f64),
    List(Vec<Self>),
    Object(BTreeMap<String, Self>),
    /// A resource inside of the resource.
    Packed(BTreeMap<String, Self>),
}

fn json() -> impl Strategy<Value = Json> {
    (0..100_u32).prop_map(|n| Json::Number(n.into())).prop_recursive(4, 40, 6, |inner| {
        let object = prop::collection::btree_map("[a-c]{0,3}", inner.clone(), 0..6);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Json::List),
            object.clone().prop_map(Json::Object),
            object.prop_map(Json::Packed),
        ]
    })
}

/// Its maps have a random order of their own, each time.
fn value(json: &Json) -> Value {
    Value {
        kind: Some(match json {
            Json::Number(n) => ValueKind::NumberValue(*n),
            Json::List(list) => ValueKind::ListValue(ListValue { values: list.iter().map(value).collect() }),
            Json::Object(fields) | Json::Packed(fields) => ValueKind::StructValue(object(fields)),
        }),
    }
}

fn object(fields: &BTreeMap<String, Json>) -> Struct {
    Struct { fields: fields.iter().map(|(key, json)| (key.clone(), value(json))).collect() }
}

fn cluster(fields: &BTreeMap<String, Json>) -> Cluster {
    let packed = fields.iter().filter_map(|(key, json)| match json {
        Json::Packed(fields) => Some((key.clone(), any::pack(&cluster(fields)))),
        _ => None,
    });
    let metadata = fields.keys().map(|key| (key.clone(), object(fields)));
    Cluster {
        name: "a".into(),
        typed_extension_protocol_options: packed.collect(),
        metadata: Some(Metadata { filter_metadata: metadata.collect(), ..Metadata::default() }),
        ..Cluster::default()
    }
}

proptest! {
    #[test]
    fn equal_messages_have_equal_bytes_and_the_meaning_stays(
        fields in prop::collection::btree_map("[a-c]{0,3}", json(), 0..6)
    ) {
        let first = pack(&cluster(&fields));
        for _ in 0..3 {
            prop_assert_eq!(&first, &pack(&cluster(&fields)));
        }
        let mut again = first.clone();
        sort(&mut again);
        prop_assert_eq!(&first, &again);
        // Clusters that are packed are compared as bytes, which were those of an unsorted one.
        let mut read: Cluster = any::unpack(&first).unwrap();
        let mut wanted = cluster(&fields);
        for any in read.typed_extension_protocol_options.values_mut()
            .chain(wanted.typed_extension_protocol_options.values_mut()) {
            sort(any);
        }
        prop_assert_eq!(read, wanted);
    }

    #[test]
    fn bytes_that_are_no_message_keep_their_length(
        value in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x0a), Just(0x12), 0..8_u8], 0..80),
        cut in 0..80_usize,
    ) {
        let type_url = "type.googleapis.com/google.protobuf.Struct".to_owned();
        let length = value.len();
        let mut broken = Any { type_url: type_url.clone(), value };
        sort(&mut broken);
        prop_assert_eq!(broken.value.len(), length);
        let numbers = ["b", "a", "c"].map(|key| (key.to_owned(), Json::Number(1.0)));
        let mut cut_off = Any { type_url, value: object(&numbers.into()).encode_to_vec() };
        cut_off.value.truncate(cut);
        let length = cut_off.value.len();
        sort(&mut cut_off);
        prop_assert_eq!(cut_off.value.len(), length);
    }
}

/// The entry of a map of strings to messages that are empty.
fn entry(field: u8, key: &str, value: &[u8]) -> Vec<u8> {
    let mut inner = vec![0x0a, u8::try_from(key.len()).unwrap()];
    inner.extend(key.as_bytes());
    inner.extend([0x12, u8::try_from(value.len()).unwrap()]);
    inner.extend(value);
    let mut whole = vec![field << 3 | 2, u8::try_from(inner.len()).unwrap()];
    whole.extend(inner);
    whole
}

#[test]
fn of_entries_with_the_same_key_the_last_one_still_holds() {
    let number = |n: u8| Value { kind: Some(ValueKind::BoolValue(n == 1)) }.encode_to_vec();
    let type_url = "type.googleapis.com/google.protobuf.Struct".to_owned();
    let entries = [entry(1, "b", &number(1)), entry(1, "a", &number(1)), entry(1, "a", &number(0))];
    let mut any = Any { type_url, value: entries.concat() };
    sort(&mut any);
    assert_eq!(
        any.value,
        [entry(1, "a", &number(1)), entry(1, "a", &number(0)), entry(1, "b", &number(1))].concat()
    );
}

#[test]
fn maps_of_resources_are_found() {
    let keys = || (0..20).map(|n| (format!("key-{n}"), Struct::default()));
    let assignment = || {
        let metadata = Metadata { filter_metadata: keys().collect(), ..Metadata::default() };
        let endpoint = LbEndpoint { metadata: Some(metadata), ..LbEndpoint::default() };
        let group = LocalityLbEndpoints { lb_endpoints: vec![endpoint; 3], ..LocalityLbEndpoints::default() };
        ClusterLoadAssignment { endpoints: vec![group], ..ClusterLoadAssignment::default() }
    };
    assert_ne!(any::pack(&assignment()), any::pack(&assignment()), "maps are written in any order");
    assert_eq!(pack(&assignment()), pack(&assignment()));
    assert!(MAPS.named(&any::type_url::<Policy>()).is_none(), "a message without maps is not looked at");
}
