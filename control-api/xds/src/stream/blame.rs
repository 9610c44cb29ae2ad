//! Which resources of a refused response are the bad ones. The protocol has no field for it: Remora's own client sends a
//! `ResourceError` for each; of Envoy and gRPC all that there is to go by is that the text names them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::any;
use crate::pb::envoy::service::discovery::v3::ResourceError;
use crate::pb::google::rpc::Status;
use crate::resource::Resource;

/// Bytes of a reason that are looked at and kept: a client may send megabytes, and each resource gets a reason.
const REASON_BYTES: usize = 4096;

/// What the client says of each resource in `sent`; None for those that it does not blame. When it blames none by name, all
/// of them are suspects.
pub(super) fn blame(error: &Status, sent: &[Arc<Resource>]) -> Vec<Option<Arc<str>>> {
    let message = reason(&error.message);
    let named: HashMap<String, Arc<str>> = { error.details.iter() }
        .take(sent.len())
        .filter_map(|detail| any::unpack::<ResourceError>(detail).ok())
        .filter_map(|e| {
            let why = e.error_detail.map_or_else(|| Arc::clone(&message), |detail| reason(&detail.message));
            Some((e.resource_name?.name, why))
        })
        .collect();
    let of = |resource: &Resource| {
        if named.is_empty() {
            return mentions(&message, resource.name()).then(|| Arc::clone(&message));
        }
        named.get(&**resource.name()).cloned()
    };
    let blamed: Vec<_> = sent.iter().map(|resource| of(resource)).collect();
    if blamed.iter().any(Option::is_some) {
        return blamed;
    }
    sent.iter().map(|_| Some(Arc::clone(&message))).collect()
}

/// The beginning of a text.
fn reason(text: &str) -> Arc<str> {
    text[..text.floor_char_boundary(REASON_BYTES)].into()
}

/// Whether `text` has `name` as a word of its own.
fn mentions(text: &str, name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '|' | '~');
    !name.is_empty()
        && text.match_indices(name).any(|(at, _)| {
            let after = &text[at + name.len()..];
            // A full stop or dash that is followed by nothing of a name ends the sentence.
            let goes_on = after.starts_with(part) && after.trim_start_matches(['.', '-']).starts_with(part);
            !text[..at].ends_with(part) && !goes_on
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::service::discovery::v3::ResourceName;

    fn sent(names: &[&str]) -> Vec<Arc<Resource>> {
        let cluster = |name: &&str| Cluster { name: (*name).into(), ..Cluster::default() };
        names.iter().map(|name| Arc::new(Resource::new(&cluster(name)))).collect()
    }

    fn text(message: &str) -> Status {
        Status { code: 3, message: message.into(), details: Vec::new() }
    }

    #[test]
    fn a_text_blames_those_that_it_names() {
        let sent = sent(&["a", "a.b", "web"]);
        let blamed = |message: &str| -> Vec<_> {
            let blamed = blame(&text(message), &sent);
            sent.iter().zip(blamed).filter(|(_, b)| b.is_some()).map(|(r, _)| r.name().to_string()).collect()
        };
        // As Envoy words it.
        assert_eq!(blamed("Error adding/updating cluster(s) web: type is not supported"), ["web"]);
        assert_eq!(blamed("'a.b' is bad."), ["a.b"]);
        assert_eq!(blamed("bad: a.b."), ["a.b"]);
        assert_eq!(blamed("bad: a. Sorry"), ["a"]);
        assert_eq!(blamed("all is lost"), ["a", "a.b", "web"], "nobody is named");
    }

    #[test]
    fn details_go_before_the_text() {
        let sent = sent(&["a", "b"]);
        let detail = ResourceError {
            resource_name: Some(ResourceName { name: "b".into(), ..ResourceName::default() }),
            error_detail: Some(text("no endpoints in a")),
        };
        let error = Status { details: vec![any::pack(&detail)], ..text("a and b") };
        assert_eq!(blame(&error, &sent), [None, Some("no endpoints in a".into())]);
    }

    #[test]
    fn a_reason_is_cut_and_shared() {
        let names: Vec<String> = (0..1000).map(|i| format!("n{i}")).collect();
        let sent = sent(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let blamed = blame(&text(&"ö".repeat(2 << 20)), &sent);
        let reasons: Vec<_> = blamed.into_iter().flatten().collect();
        assert_eq!(reasons.len(), 1000);
        assert!(reasons.iter().all(|r| r.len() == REASON_BYTES && Arc::ptr_eq(r, &reasons[0])));
        // Only as many details as there are resources can mean something.
        let detail = any::pack(&ResourceError {
            resource_name: Some(ResourceName { name: "n1".into(), ..ResourceName::default() }),
            error_detail: None,
        });
        let error = Status { details: vec![detail; 100_000], ..text("x") };
        assert_eq!(blame(&error, &sent).into_iter().flatten().count(), 1);
    }
}
