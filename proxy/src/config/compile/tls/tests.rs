use remora_xds::diag::{Errors, SourceMap};
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType as SanTypePb;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SdsSecretConfig, SpiffeCertValidatorConfig, SubjectAltNameMatcher,
    TlsCertificate, TlsParameters,
};
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use remora_xds::pb::google::protobuf::{BoolValue, Duration as DurationPb, UInt32Value};

use rustls::{CommonState, NamedGroup};

use super::*;
use crate::config::names::Names;
use crate::tls::client::{AlpnOffer, Target};
use crate::tls::testing::{Ca, Pair, dns, expired, uri};

fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource { watched_directory: None, specifier: Some(Specifier::InlineString(text.to_owned())) })
}

fn file(path: &str) -> Option<DataSource> {
    Some(DataSource { watched_directory: None, specifier: Some(Specifier::Filename(path.to_owned())) })
}

fn certificate(pair: &Pair) -> TlsCertificate {
    TlsCertificate {
        certificate_chain: inline(&pair.chain),
        private_key: inline(&pair.key),
        ..TlsCertificate::default()
    }
}

fn trusting(ca: &Ca) -> CertificateValidationContext {
    CertificateValidationContext { trusted_ca: inline(&ca.pem), ..CertificateValidationContext::default() }
}

fn validate(context: CertificateValidationContext) -> Option<ValidationContextType> {
    Some(ValidationContextType::ValidationContext(context))
}

fn downstream(common: CommonTlsContext) -> DownstreamTlsContext {
    DownstreamTlsContext { common_tls_context: Some(common), ..DownstreamTlsContext::default() }
}

fn upstream(common: CommonTlsContext) -> UpstreamTlsContext {
    UpstreamTlsContext { common_tls_context: Some(common), ..UpstreamTlsContext::default() }
}

/// Runs a compiler, and gives its result and its errors as a person sees them.
fn run<T>(compile: impl FnOnce(&At<'_>, &mut Scope<'_>) -> Option<T>) -> (Option<T>, Vec<String>) {
    let mut errors = Errors::new("test", SourceMap::default());
    let mut names = Names::default();
    let made = compile(&At::root(), &mut Scope { errors: &mut errors, names: &mut names });
    let errors: Vec<_> = errors.into_list().iter().map(ToString::to_string).collect();
    assert_eq!(made.is_none(), !errors.is_empty(), "{errors:?}");
    (made, errors)
}

fn server(ctx: &DownstreamTlsContext) -> (Option<Arc<ServerTls>>, Vec<String>) {
    run(|at, scope| compile_downstream_tls(ctx, at, scope))
}

fn client(ctx: &UpstreamTlsContext) -> (Option<Arc<ClientTls>>, Vec<String>) {
    run(|at, scope| compile_upstream_tls(ctx, at, scope))
}

fn san(san_type: SanTypePb, pattern: MatchPattern) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: san_type as i32,
        matcher: Some(StringMatcher { ignore_case: false, match_pattern: Some(pattern) }),
        oid: String::new(),
    }
}

#[test]
fn a_downstream_context() {
    let ca = Ca::new("root");
    let pair = ca.leaf(&[uri("spiffe://a.example/x"), dns("a.example")], |_| {});
    let mut ctx = downstream(CommonTlsContext {
        tls_certificates: vec![certificate(&pair)],
        alpn_protocols: vec!["h2,http/1.1".into(), "istio".into()],
        validation_context_type: validate(CertificateValidationContext {
            match_typed_subject_alt_names: vec![
                san(SanTypePb::Uri, MatchPattern::Prefix("spiffe://a.example/".into())),
                san(
                    SanTypePb::Dns,
                    MatchPattern::SafeRegex(RegexMatcher { regex: "a|b".into(), engine_type: None }),
                ),
            ],
            ..trusting(&ca)
        }),
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..TlsParameters::default()
        }),
        ..CommonTlsContext::default()
    });
    ctx.require_client_certificate = Some(BoolValue { value: true });
    ctx.session_timeout = Some(DurationPb { seconds: 60, nanos: 0 });
    let (made, errors) = server(&ctx);
    assert_eq!(errors, [""; 0]);
    let made = made.unwrap();
    let params = made.params();
    assert!(params.require_client_certificate && !params.require_sni && !params.full_scan);
    assert_eq!(params.session_timeout, Some(std::time::Duration::from_secs(60)));
    assert_eq!(params.tls.alpn, [b"h2".to_vec(), b"http/1.1".to_vec(), b"istio".to_vec()]);
    assert_eq!(params.tls.versions.len(), 1);
    assert!(
        Arc::ptr_eq(&params.tls.provider, crate::tls::provider()),
        "no copy of the provider without need"
    );
    assert_eq!(made.certificates().next().unwrap().names, ["a.example".into()]);
}

#[test]
fn an_upstream_context() {
    let ca = Ca::new("root");
    let pair = ca.leaf(&[uri("spiffe://a.example/x")], |_| {});
    let mut ctx = upstream(CommonTlsContext {
        tls_certificates: vec![certificate(&pair)],
        validation_context_type: validate(trusting(&ca)),
        ..CommonTlsContext::default()
    });
    ctx.sni = "outbound_.80_._.orders.shop.svc.cluster.local".into();
    ctx.auto_sni_san_validation = true;
    ctx.max_session_keys = Some(UInt32Value { value: 0 });
    let made = client(&ctx).0.unwrap();
    assert!(
        made.certificate().is_some()
            && made.params().verify_sni
            && made.peers().trust.get().unwrap().roots.is_some()
    );
    assert_eq!(made.params().sni.as_ref().unwrap().as_ref(), ctx.sni);
    assert_eq!((made.params().sessions, made.params().tls.versions.len()), (0, 2));
}

#[test]
fn verifying_nothing_must_be_written_down() {
    let missing = "common_tls_context.validation_context: the server would not be verified (set trusted_ca, or \
                   trust_chain_verification: ACCEPT_UNTRUSTED if that is what you want)";
    assert_eq!(client(&UpstreamTlsContext::default()).1, [format!("test: {missing}")]);
    let empty = CommonTlsContext {
        validation_context_type: validate(CertificateValidationContext::default()),
        ..CommonTlsContext::default()
    };
    assert!(client(&upstream(empty)).1[0].contains("validation_context.trusted_ca: is missing"));
    let accept = CommonTlsContext {
        validation_context_type: validate(CertificateValidationContext {
            trust_chain_verification: TrustChainVerification::AcceptUntrusted as i32,
            ..CertificateValidationContext::default()
        }),
        ..CommonTlsContext::default()
    };
    assert!(client(&upstream(accept)).0.unwrap().peers().trust.get().unwrap().roots.is_none());
}

#[test]
fn files_are_read_and_named_when_they_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca = Ca::new("root");
    let (pair, other) = (ca.leaf(&[dns("a")], |_| {}), ca.leaf(&[dns("a")], expired));
    let (chain, key) = (write("chain.pem", &pair.chain), write("key.pem", pair.key.trim_end()));
    let other_chain = write("other.pem", &other.chain);
    let with = |chain: &str, key: &str| {
        let certificate = TlsCertificate {
            certificate_chain: file(chain),
            private_key: file(key),
            ..TlsCertificate::default()
        };
        server(&downstream(CommonTlsContext {
            tls_certificates: vec![certificate],
            ..CommonTlsContext::default()
        }))
    };
    assert!(with(&chain, &key).0.is_some());
    let at = "test: common_tls_context.tls_certificates[0]";
    let absent = folder.path().join("absent.pem").to_str().unwrap().to_owned();
    let errors = with(&absent, &key).1;
    assert!(errors[0].starts_with(&format!("{at}.certificate_chain.filename: cannot read")), "{errors:?}");
    assert!(errors[0].ends_with("(name a file that the proxy's user can read)"), "{errors:?}");
    let errors = with(&other_chain, &key).1;
    assert!(
        errors[0].starts_with(&format!("{at}.private_key: {key}: the private key belongs to none")),
        "{errors:?}"
    );
    let errors = with(&key, &key).1;
    assert!(
        errors[0].starts_with(&format!("{at}.certificate_chain: {key}: holds no certificate")),
        "{errors:?}"
    );
    let errors = with(folder.path().to_str().unwrap(), &key).1;
    assert!(errors[0].contains("is not a regular file"), "{errors:?}");
}

#[test]
fn an_expired_certificate_is_no_error() {
    let ca = Ca::new("root");
    let pair = ca.leaf(&[dns("a")], expired);
    let common =
        CommonTlsContext { tls_certificates: vec![certificate(&pair)], ..CommonTlsContext::default() };
    assert!(server(&downstream(common)).0.is_some());
}

#[test]
fn one_line_break_at_the_end_is_no_part_of_a_password() {
    let read =
        |text: &str| run(|at, scope| material::read_password(&inline(text).unwrap(), at, scope)).0.unwrap();
    for (text, password) in [("x", "x"), ("x\n", "x"), ("x\r\n", "x"), ("x\n\n", "x\n"), (" x ", " x ")] {
        assert_eq!(read(text), password);
    }
}

#[test]
fn several_mistakes_at_once() {
    let mut ctx = downstream(CommonTlsContext {
        tls_certificates: vec![TlsCertificate {
            certificate_chain: inline("nothing"),
            private_key: inline("nothing"),
            pkcs12: inline("x"),
            ..TlsCertificate::default()
        }],
        tls_certificate_sds_secret_configs: vec![SdsSecretConfig::default()],
        alpn_protocols: vec!["h2,".into(), String::new()],
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv11 as i32,
            cipher_suites: vec!["[ECDHE-RSA-AES128-GCM-SHA256|AES128-SHA]".into()],
            ecdh_curves: vec!["X25519".into(), "P-521".into()],
            ..TlsParameters::default()
        }),
        ..CommonTlsContext::default()
    });
    ctx.ocsp_staple_policy = 2;
    let errors = server(&ctx).1;
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn matchers_that_would_accept_something_else() {
    let ca = Ca::new("root");
    let with = |matchers| {
        let context =
            CertificateValidationContext { match_typed_subject_alt_names: matchers, ..trusting(&ca) };
        let common =
            CommonTlsContext { validation_context_type: validate(context), ..CommonTlsContext::default() };
        client(&upstream(common)).1.join("\n")
    };
    let regex = |text: &str| MatchPattern::SafeRegex(RegexMatcher { regex: text.into(), engine_type: None });
    insta::assert_snapshot!(with(vec![
        san(SanTypePb::Uri, MatchPattern::Prefix("spiffe://a.example".into())),
        san(SanTypePb::IpAddress, MatchPattern::Exact("2001:DB8::1".into())),
        san(SanTypePb::Unspecified, MatchPattern::Exact("a".into())),
        san(SanTypePb::OtherName, MatchPattern::Exact("a".into())),
        san(SanTypePb::Dns, regex("(")),
        san(SanTypePb::Dns, regex("a)|(b")),
        SubjectAltNameMatcher { matcher: None, ..san(SanTypePb::Dns, MatchPattern::Exact("a".into())) },
    ]));
}

#[test]
fn a_server_needs_a_certificate_and_something_to_verify_clients_by() {
    let mut ctx = downstream(CommonTlsContext::default());
    ctx.require_client_certificate = Some(BoolValue { value: true });
    let errors = server(&ctx).1;
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].contains("common_tls_context.tls_certificates: a server needs a certificate"));
    assert!(errors[1].contains("require_client_certificate: there is nothing to verify"));
}

#[test]
fn ciphers_and_groups_are_for_the_context_alone() {
    let ca = Ca::new("root");
    let common = CommonTlsContext {
        tls_certificates: vec![certificate(&ca.leaf(&[dns("a")], |_| {}))],
        tls_params: Some(TlsParameters {
            cipher_suites: vec!["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-RSA-AES128-GCM-SHA256]".into()],
            ecdh_curves: vec!["P-256".into()],
            tls_maximum_protocol_version: TlsProtocol::TlSv12 as i32,
            ..TlsParameters::default()
        }),
        ..CommonTlsContext::default()
    };
    let made = server(&downstream(common)).0.unwrap();
    let provider = &made.params().tls.provider;
    assert_eq!(provider.cipher_suites.iter().filter(|s| s.tls13().is_none()).count(), 2);
    assert_eq!(provider.cipher_suites.iter().filter(|s| s.tls13().is_some()).count(), 3);
    assert_eq!(provider.kx_groups.len(), 1);
}

/// What is compiled here, the table of supported fields lets through.
#[test]
fn ciphers_and_groups_are_supported() {
    let params = serde_json::json!({
        "cipher_suites": ["ECDHE-ECDSA-AES128-GCM-SHA256"], "ecdh_curves": ["P-256"],
    });
    let text = serde_json::json!({ "common_tls_context": { "tls_params": params } }).to_string();
    let parsed = remora_xds::Schema::load().parse::<DownstreamTlsContext>(&text, "test");
    let context = parsed.expect("supported").message.common_tls_context.unwrap();
    assert_eq!(context.tls_params.unwrap().cipher_suites, ["ECDHE-ECDSA-AES128-GCM-SHA256"]);
}

#[tokio::test]
async fn both_sides_agree_on_a_group() {
    let ca = Ca::new("root");
    let pair = ca.leaf(&[dns("a")], |_| {});
    let common = |groups: &[&str]| CommonTlsContext {
        tls_certificates: vec![certificate(&pair)],
        validation_context_type: validate(trusting(&ca)),
        tls_params: Some(TlsParameters {
            ecdh_curves: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..TlsParameters::default()
        }),
        ..CommonTlsContext::default()
    };
    let hybrid_first = &["X25519MLKEM768", "X25519", "P-256"][..];
    for (served, asked, agreed) in [
        (&[][..], &[][..], Some(NamedGroup::X25519MLKEM768)),
        (hybrid_first, hybrid_first, Some(NamedGroup::X25519MLKEM768)),
        (&["X25519MLKEM768"], &["X25519", "X25519MLKEM768"], Some(NamedGroup::X25519MLKEM768)),
        (&["X25519", "P-256"], &[], Some(NamedGroup::X25519)),
        (&[], &["X25519", "P-256"], Some(NamedGroup::X25519)),
        (&[], &["P-384"], Some(NamedGroup::secp384r1)),
        (&["P-256"], hybrid_first, Some(NamedGroup::secp256r1)),
        (&["X25519MLKEM768"], &["X25519", "P-256"], None),
    ] {
        let server = server(&downstream(common(served))).0.unwrap();
        let client = client(&upstream(common(asked))).0.unwrap();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let target = Target::new("192.0.2.7:443".parse().unwrap(), AlpnOffer::Nothing);
        let (accepted, connected) = tokio::join!(server.accept(far, b""), client.connect(near, target));
        let group = |connection: &CommonState| connection.negotiated_key_exchange_group().map(|g| g.name());
        let here = accepted.ok().and_then(|(stream, _)| group(stream.get_ref().1));
        let there = connected.ok().and_then(|(stream, _)| group(stream.get_ref().1));
        assert_eq!((here, there), (agreed, agreed), "{served:?} {asked:?}");
    }
}

fn bundle(name: &str, trust_bundle: Option<DataSource>) -> TrustDomain {
    TrustDomain { name: name.into(), trust_bundle, ..TrustDomain::default() }
}

/// A context with `envoy.tls.cert_validator.spiffe`.
fn federated(trust_domains: Vec<TrustDomain>) -> CertificateValidationContext {
    let config = SpiffeCertValidatorConfig { trust_domains, ..SpiffeCertValidatorConfig::default() };
    CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".into(),
            typed_config: Some(remora_xds::any::pack(&config)),
        }),
        ..CertificateValidationContext::default()
    }
}

#[test]
fn trust_domains_have_bundles_of_their_own() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theirs.pem");
    std::fs::write(&path, &theirs.pem).unwrap();
    let path = path.to_str().unwrap();
    let context =
        federated(vec![bundle("mesh.example", inline(&ours.pem)), bundle("abroad.example", file(path))]);
    let files = crate::config::secrets::Files::new(vec![path.into()], None);
    assert_eq!(validation::files_of(&context), files);
    let (made, _) = run(|at, scope| trust(&context, at, scope));
    let domains = made.unwrap().domains.unwrap();
    assert_eq!(domains.names().collect::<Vec<_>>(), ["abroad.example", "mesh.example"]);
    let id = crate::tls::identity::SpiffeId::parse("spiffe://abroad.example/x").unwrap();
    let pem = crate::tls::material::to_pem(&domains.bundle(Some(&id)).unwrap().certificates);
    assert_eq!(pem.trim(), theirs.pem.trim().replace("\r\n", "\n"));
    // Its own authorities beside it are for the agent, not for peers.
    let both = CertificateValidationContext { trusted_ca: inline(&ours.pem), ..context };
    assert_eq!(run(|at, scope| trust(&both, at, scope)).0.unwrap().roots.unwrap().certificates.len(), 1);
}

#[test]
fn mistakes_in_trust_domains() {
    let ca = Ca::new("root");
    let own = || bundle("mesh.example", inline(&ca.pem));
    let at = "test: custom_validator_config.typed_config.trust_domains";
    let workload = TrustDomain { workload_trust_domain: "x".into(), ..own() };
    for (domains, says) in [
        (vec![], format!("{at}: must have 1 to 256 entries")),
        (vec![own(), own()], format!("{at}[1].name: mesh.example occurs twice")),
        (
            vec![bundle("spiffe://a", inline(&ca.pem))],
            format!("{at}[0].name: \"spiffe://a\" is no trust domain"),
        ),
        (vec![bundle("a/b", inline(&ca.pem))], format!("{at}[0].name: \"a/b\" is no trust domain")),
        (vec![bundle("a.example", inline("none"))], format!("{at}[0].trust_bundle: ")),
        (vec![bundle("a.example", None)], format!("{at}[0].trust_bundle: is missing")),
        (vec![workload], format!("{at}[0].workload_trust_domain: ")),
    ] {
        let (_, errors) = run(|at, scope| trust(&federated(domains), at, scope));
        assert!(errors[0].contains(&says), "{says}: {errors:?}");
    }
    let mut untrusted = federated(vec![own()]);
    untrusted.trust_chain_verification = TrustChainVerification::AcceptUntrusted.into();
    let (_, errors) = run(|at, scope| trust(&untrusted, at, scope));
    assert!(
        errors[0].contains("custom_validator_config: means nothing under ACCEPT_UNTRUSTED"),
        "{errors:?}"
    );
    let mut other = federated(vec![own()]);
    let any = Some(remora_xds::any::pack(&TlsParameters::default()));
    other.custom_validator_config.as_mut().unwrap().typed_config = any;
    assert!(!run(|at, scope| trust(&other, at, scope)).1.is_empty());
}
