//! Tokens of end users: `jwtRules`, and rules about what tokens say.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod compiled;
    pub(crate) mod profile;
}

use remora_xds::Schema;
use support::compiled::{compiler, found, shown, sidecar};

const USERS: &str = include_str!("../../../deploy/examples/users.yaml");

/// Tokens: the filter, the clusters of the servers with the keys, and rules about claims.
#[test]
fn tokens_are_verified_in_front_of_the_program() {
    let node = sidecar(&compiler(USERS), "default", "carts-1");
    let policy = "AuthenticationPolicy/default/carts";
    let listener = &node.listeners["inbound"];
    assert!(listener.documents.iter().any(|key| key.to_string() == policy), "{:?}", listener.documents);
    let text = Schema::load().any_to_yaml(&listener.body);
    let (_, filters) = text.split_once("http_filters:").unwrap();
    let (filters, _) = filters.split_once("- name: envoy.filters.http.router").unwrap();
    let keys = node.clusters.values().filter(|cluster| cluster.name.starts_with("jwks|"));
    insta::assert_snapshot!(format!("{}http_filters:{filters}", shown(keys)));
}

#[test]
fn a_key_server_is_verified_by_what_the_rule_says() {
    let cluster = |uri: &str, more: &str| {
        let rule = format!("    jwksUri: {uri}\n    caCertificates: {more}\n");
        let text = USERS.replace("    jwksUri: https://login.example/.well-known/jwks.json\n", &rule);
        let node = sidecar(&compiler(&text), "default", "carts-1");
        let keys = node.clusters.values().find(|cluster| cluster.name.starts_with("jwks|")).unwrap();
        Schema::load().any_to_yaml(&keys.body)
    };
    let by_address = cluster("https://[2001:db8::1]:8443/keys", r#""-----BEGIN CERTIFICATE-----""#);
    for line in [
        "name: \"jwks|8443|default/carts:jwtRules[0]|2001:db8::1\"",
        "type: STATIC",
        "san_type: IP_ADDRESS",
        "exact: \"2001:db8::1\"",
        "inline_string: \"-----BEGIN CERTIFICATE-----\"",
    ] {
        assert!(by_address.contains(line), "{line} in {by_address}");
    }
    assert!(!by_address.contains("sni:"), "{by_address}");
    let plain = cluster("http://keys.example/", "null");
    assert!(plain.contains("STRICT_DNS") && !plain.contains("transport_socket"), "{plain}");
}

#[test]
fn rules_about_tokens_that_mean_nothing_are_refused() {
    let with = |old: &str, new: &str| {
        assert!(USERS.contains(old), "{old}");
        found(&USERS.replacen(old, new, 1))
    };
    let uri = "jwksUri: https://login.example/.well-known/jwks.json";
    let header = "header: x-user, claim: sub";
    for (old, new, says) in [
        (
            uri,
            "jwksUri: login.example/keys",
            "jwtRules[0].jwksUri: \"login.example/keys\" is no absolute URI",
        ),
        (uri, "timeout: 1s", "jwtRules[0]: has no keys"),
        (uri, "jwks: '[]'", "jwtRules[0].jwks: is no JSON Web Key Set"),
        (uri, "jwks: '{keys: [{kty: oct, k: eA}]}'", "jwtRules[0].jwks: is no JSON Web Key Set"),
        (uri, "jwks: '{\"keys\": []}'", "jwtRules[0].jwks: has no key that can be used"),
        (
            uri,
            "jwks: '{\"keys\": [{\"kty\": \"EC\", \"crv\": \"P-521\"}]}'",
            "jwks: has no key that can be used",
        ),
        (header, "header: Authorization, claim: sub", "header: Authorization is not for claims"),
        (
            uri,
            "jwksUri: https://a.example/\n    jwks: '{\"keys\": [{}]}'",
            "jwtRules[0].jwks: stands beside jwksUri",
        ),
        (
            uri,
            "jwksUri: http://a.example/\n    caCertificates: x",
            "caCertificates: nothing is verified by it",
        ),
        (uri, "jwksUri: https://a.example/\n    caCertificates: x", "caCertificates: has no certificate"),
        (uri, "jwksUri: https://a.example/\n    timeout: 0s", "timeout: must be more than 0s"),
        ("issuer: https://login.example", "issuer: ''", "jwtRules[0].issuer: is empty"),
        ("audiences: [carts]", "audiences: ['']", "audiences[0]: is empty"),
        (header, "header: content-length, claim: sub", "header: content-length is not for claims"),
        (header, "header: x user, claim: sub", "is no name of a header"),
        (header, "header: x-user, claim: a..b", "claim: is no name of a claim"),
        ("{name: x-tool-token}", "{name: 'x tool'}", "fromHeaders[0].name"),
        ("    fromHeaders:", "    fromHeader:", "did you mean fromHeaders?"),
        (
            "  jwtRules:",
            "  mtls: {mode: Disabled}\n  jwtRules:",
            "jwtRules: nobody would enforce it on port 8080",
        ),
        ("{name: http, port: 8080}", "{name: db, port: 8080}", "no port of Service \"carts\" speaks HTTP"),
        ("requestPrincipals: [\"*\"]", "requestPrincipals: [ann]", "\"ann\" is nobody"),
        ("request.auth.claims[realm][roles]", "request.auth.claims[]", "is nothing that can be asked for"),
        (
            "targetRefs: [{kind: Service, name: carts}]\n  jwtRules",
            "targetRefs: []\n  jwtRules",
            "[reference] mesh.yaml:42:5: spec.rules[1]: asks for a token, and no tokens are verified for \"carts\"",
        ),
    ] {
        let said = with(old, new);
        assert!(said.contains(says), "{new}: {said}");
    }
    let twice = USERS.replace("issuer: tools", "issuer: https://login.example");
    assert_eq!(found(&twice), "", "tokens in another place");
    let twice = twice.replace("    fromHeaders: [{name: x-tool-token}]\n", "");
    assert!(found(&twice).contains("jwtRules[1].issuer: issuer \"https://login.example\" occurs twice"));
}

/// A program that believes that its tokens were looked at is not reached around that.
#[test]
fn opaque_bytes_do_not_get_around_tokens() {
    let two = USERS.replace(
        "ports: [{name: http, port: 8080}]\n---",
        "ports: [{name: http, port: 8080}, {name: tcp-raw, port: 90, targetPort: 8080}]\n---",
    );
    let (without_rules, _) = two.split_once("---\n# Everybody with a token").unwrap();
    let node = sidecar(&compiler(without_rules), "default", "carts-1");
    let text = Schema::load().any_to_yaml(&node.listeners["inbound"].body);
    let (_, network) = text.split_once("envoy.filters.network.rbac").unwrap();
    let (network, _) = network.split_once("stat_prefix").unwrap();
    assert!(network.contains("rules") && !network.contains("policies"), "nobody is allowed: {network}");
}

/// What only a token says never holds on a port that carries none: an `Allow` allows nobody, a `Deny` names its ports.
#[test]
fn a_port_without_http_has_no_end_users() {
    let two = USERS.replace(
        "ports: [{name: http, port: 8080}]\n---",
        "ports: [{name: http, port: 8080}, {name: tcp-db, port: 90}]\n---",
    );
    let two = two.replace("ports: [{port: 8080}]", "ports: [{port: 8080}, {port: 90}]");
    let node = sidecar(&compiler(&two), "default", "carts-1");
    let text = Schema::load().any_to_yaml(&node.listeners["inbound"].body);
    let (_, network) = text.split_once("envoy.filters.network.rbac").unwrap();
    let (network, _) = network.split_once("stat_prefix").unwrap();
    assert!(!network.contains("policies"), "nobody is allowed: {network}");
    let denies = two.replace("  rules:\n  - from", "  action: Deny\n  rules:\n  - from");
    assert!(found(&denies).contains("would deny everything on port 90"), "{}", found(&denies));
}
