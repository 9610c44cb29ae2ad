//! Tokens and key sets: whatever is a token is one in exactly one way.
#![no_main]

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use remora_proxy::policy::jwt::keys::KeySet;
use remora_proxy::policy::jwt::token::Token;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    // Parsing is all that is done with what a server of keys says.
    let _ = KeySet::parse(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    parse(text);
    // What the fuzzer writes is seldom base64: the same with the encoding done for it.
    if let Some((header, payload)) = text.split_once('\n') {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        parse(&format!("{}.{}.c2ln", part(header), part(payload)));
    }
});

fn parse(text: &str) {
    let Ok(token) = Token::parse(text) else { return };
    assert_eq!(format!("{}.{}", token.signed, token.signature), text);
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.encoded_payload).expect("it was decoded");
    let payload: Value = serde_json::from_slice(&payload).expect("it was read");
    assert_eq!(payload, token.payload);
    for (claim, read) in [("exp", token.expires), ("nbf", token.not_before)] {
        assert_eq!(payload.get(claim).is_some_and(|value| !value.is_null()), read.is_some(), "{claim}");
    }
    assert!(token.audiences().is_some());
}
