//! `TlsParameters` and `alpn_protocols`.

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::TlsParameters;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use rustls::crypto::aws_lc_rs::{cipher_suite as suites, kx_group as groups};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::version::{TLS12, TLS13};
use rustls::{ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion};

use crate::config::compile::Scope;
use crate::config::compile::fields::refuse;
use crate::tls::{TlsParams, provider};

static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
static ONLY_12: &[&SupportedProtocolVersion] = &[&TLS12];
static ONLY_13: &[&SupportedProtocolVersion] = &[&TLS13];

/// Versions, cipher suites and groups. `TLS_AUTO` is TLS 1.2 to 1.3 on both sides (Envoy's clients end at 1.2).
pub(super) fn compile(params: Option<&TlsParameters>, at: &At<'_>, scope: &mut Scope<'_>) -> TlsParams {
    let Some(params) = params else { return TlsParams::default() };
    let TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = params;
    refuse!(scope, at; signature_algorithms, compliance_policies);
    let lowest = version(*tls_minimum_protocol_version, &at.field("tls_minimum_protocol_version"), scope);
    let highest = version(*tls_maximum_protocol_version, &at.field("tls_maximum_protocol_version"), scope);
    let versions = match (lowest, highest) {
        (Some(ProtocolVersion::TLSv1_3), Some(ProtocolVersion::TLSv1_2)) => {
            let at = at.field("tls_maximum_protocol_version");
            scope.errors.report(&at, "is lower than tls_minimum_protocol_version");
            BOTH
        }
        (Some(ProtocolVersion::TLSv1_3), _) => ONLY_13,
        (_, Some(ProtocolVersion::TLSv1_2)) => ONLY_12,
        _ => BOTH,
    };
    let suites = cipher_list(cipher_suites, &at.field("cipher_suites"), scope);
    let groups = curves(ecdh_curves, &at.field("ecdh_curves"), scope);
    TlsParams { provider: provider_of(suites, groups), versions, alpn: Vec::new() }
}

fn provider_of(
    suites: Vec<SupportedCipherSuite>,
    groups: Vec<&'static dyn SupportedKxGroup>,
) -> Arc<CryptoProvider> {
    let common = provider();
    if suites.is_empty() && groups.is_empty() {
        return Arc::clone(common);
    }
    let mut own = CryptoProvider::clone(common);
    if !suites.is_empty() {
        // `cipher_suites` is about TLS 1.2 only, as in Envoy.
        own.cipher_suites.retain(|suite| suite.tls13().is_some());
        own.cipher_suites.extend(suites);
    }
    if !groups.is_empty() {
        own.kx_groups = groups;
    }
    Arc::new(own)
}

fn version(value: i32, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ProtocolVersion> {
    match TlsProtocol::try_from(value) {
        Ok(TlsProtocol::TlsAuto) => None,
        Ok(TlsProtocol::TlSv12) => Some(ProtocolVersion::TLSv1_2),
        Ok(TlsProtocol::TlSv13) => Some(ProtocolVersion::TLSv1_3),
        Ok(TlsProtocol::TlSv10 | TlsProtocol::TlSv11) => {
            scope
                .errors
                .report(at, "TLS 1.0 and 1.1 are not supported (RFC 8996)")
                .fix("use TLSv1_2 or TLSv1_3");
            None
        }
        Err(_) => {
            scope.errors.report(at, format!("{value} is no TLS version"));
            None
        }
    }
}

/// OpenSSL's names and the IANA ones; `[a|b]` is a group of equal preference, of which the order is kept.
fn cipher_list(names: &[String], at: &At<'_>, scope: &mut Scope<'_>) -> Vec<SupportedCipherSuite> {
    let mut list = Vec::new();
    for (i, entry) in names.iter().enumerate() {
        for name in entry.split(':').flat_map(|e| e.trim_matches(['[', ']']).split('|')) {
            match cipher(name) {
                Some(suite) => list.push(suite),
                None => {
                    let message = format!("`{name}` is not a cipher suite that is supported");
                    scope
                        .errors
                        .report(&at.index(i), message)
                        .fix("use ECDHE with AES-GCM or CHACHA20-POLY1305");
                }
            }
        }
    }
    list
}

fn cipher(name: &str) -> Option<SupportedCipherSuite> {
    Some(match name {
        "ECDHE-ECDSA-AES128-GCM-SHA256" | "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => {
            suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        }
        "ECDHE-RSA-AES128-GCM-SHA256" | "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => {
            suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        }
        "ECDHE-ECDSA-AES256-GCM-SHA384" | "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => {
            suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        }
        "ECDHE-RSA-AES256-GCM-SHA384" | "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => {
            suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        }
        "ECDHE-ECDSA-CHACHA20-POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
            suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "ECDHE-RSA-CHACHA20-POLY1305" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => {
            suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        }
        _ => return None,
    })
}

/// Without any, the provider's own: X25519MLKEM768 first, as in Envoy 1.40, then X25519, P-256 and P-384.
fn curves(names: &[String], at: &At<'_>, scope: &mut Scope<'_>) -> Vec<&'static dyn SupportedKxGroup> {
    let mut list = Vec::new();
    for (i, name) in names.iter().enumerate() {
        match name.as_str() {
            "X25519" => list.push(groups::X25519),
            "P-256" => list.push(groups::SECP256R1),
            "P-384" => list.push(groups::SECP384R1),
            "X25519MLKEM768" => list.push(groups::X25519MLKEM768),
            other => {
                let message = format!("`{other}` is not a group that is supported");
                scope.errors.report(&at.index(i), message).fix("use X25519MLKEM768, X25519, P-256 or P-384");
            }
        }
    }
    list
}

/// Protocol names in the form of the wire. As in Envoy one entry may hold several, separated by commas.
pub(super) fn alpn(names: &[String], at: &At<'_>, scope: &mut Scope<'_>) -> Vec<Vec<u8>> {
    let mut protocols = Vec::new();
    for (i, entry) in names.iter().enumerate() {
        for name in entry.split(',') {
            if name.is_empty() || name.len() > 255 {
                scope.errors.report(&at.index(i), "a protocol name has 1 to 255 bytes (RFC 7301)");
            }
            protocols.push(name.as_bytes().to_vec());
        }
    }
    protocols
}
