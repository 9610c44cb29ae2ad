//! Key sets that are fetched.

use std::sync::Arc;

use super::*;
use crate::policy::jwt::keys::{Fetched, RemoteKeys};

fn remote() -> Arc<RemoteKeys> {
    Arc::new(RemoteKeys {
        uri: "http://issuer/keys".parse().unwrap(),
        cluster: "issuer".into(),
        timeout: Duration::from_secs(1),
        cache: Duration::from_secs(600),
        retry: Duration::from_secs(1),
        state: Default::default(),
    })
}

#[test]
fn remote_keys_count_from_the_fetch_to_the_end_of_their_cache() {
    let remote = remote();
    let provider = Provider { keys: Keys::Remote(remote.clone()), ..provider(&RSA) };
    let token = RSA.token(json!({}));
    assert_eq!(verify(&provider, &token), Err(Reason::JwtKeysUnavailable));
    let now = Instant::now();
    let keys = KeySet::parse(&RSA.set("one")).unwrap();
    remote.state.put(Some(Arc::new(Fetched { keys, until: now + Duration::from_secs(600) })));
    let signatures = Default::default();
    let at =
        |seconds| Now { unix: NOW, instant: now + Duration::from_secs(seconds), signatures: &signatures };
    let verify = |seconds| provider.verify(Token::parse(&token).unwrap(), None, at(seconds)).map(|_| ());
    assert_eq!(verify(599), Ok(()));
    remote.state.put(None);
    assert_eq!(verify(599), Ok(()), "an attempt that failed takes nothing away");
    assert_eq!(verify(600), Err(Reason::JwtKeysUnavailable), "closed, not open");
}

/// The issuer may have a new key, which is not in the set that was fetched.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_known_is_missed() {
    let remote = remote();
    let keys = KeySet::parse(&RSA.set("one")).unwrap();
    remote.state.put(Some(Fetched { keys, until: Instant::now() + remote.cache }.into()));
    let provider = Provider { keys: Keys::Remote(remote.clone()), ..provider(&RSA) };
    let missed =
        async || tokio::time::timeout(remote.timeout, remote.state.unknown().notified()).await.is_ok();
    assert_eq!(verify(&provider, &RSA.token(json!({}))), Ok(()));
    assert!(!missed().await);
    let payload = json!({ "iss": "issuer", "aud": "shop", "exp": NOW + 600 }).to_string();
    let other = RSA.sign(&json!({ "alg": "RS256", "kid": "two" }), &payload);
    assert_eq!(verify(&provider, &other), Err(Reason::JwtUnknownKey));
    assert!(missed().await);
}
