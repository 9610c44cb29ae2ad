//! What listeners refuse.

use super::*;

#[test]
fn what_is_not_supported_is_refused_with_its_path() {
    let manager = HttpConnectionManager {
        add_user_agent: on(),
        proxy_100_continue: true,
        codec_type: 3,
        forward_client_cert_details: 3,
        via: "a\nb".into(),
        max_request_headers_kb: count(9000),
        stream_idle_timeout: seconds(-1),
        http_filters: vec![http_filter(&Router::default()), http_filter(&TcpProxy::default())],
        http2_protocol_options: Some(Http2ProtocolOptions {
            initial_stream_window_size: count(1),
            connection_keepalive: Some(KeepaliveSettings::default()),
            ..Http2ProtocolOptions::default()
        }),
        route_specifier: None,
        ..hcm()
    };
    let unknown_match = FilterChainMatch {
        server_names: vec!["*".into(), "*w.example".into()],
        transport_protocol: "quic".into(),
        source_ports: vec![0, 70000],
        prefix_ranges: vec![
            CidrRange { address_prefix: "ten".into(), prefix_len: None },
            CidrRange { address_prefix: "10.0.0.0".into(), prefix_len: count(33) },
        ],
        address_suffix: "1".into(),
        ..FilterChainMatch::default()
    };
    let pb = Listener {
        address: address("localhost", 70000),
        enable_reuse_port: off(),
        drain_type: 1,
        stat_prefix: "x".into(),
        listener_filters: vec![ListenerFilter { name: "tls".into(), ..ListenerFilter::default() }],
        socket_options: vec![SocketOption { level: 1, name: 2, ..SocketOption::default() }],
        default_filter_chain: Some(FilterChain {
            filter_chain_match: Some(FilterChainMatch::default()),
            ..chain_of(&TcpProxy { hash_policy: vec![Default::default()], ..TcpProxy::default() })
        }),
        ..listener(vec![
            chain_of(&manager),
            FilterChain { filter_chain_match: Some(unknown_match), ..FilterChain::default() },
        ])
    };
    insta::assert_snapshot!(errors(&pb));
}

#[test]
fn the_router_is_last_and_alone() {
    let two = HttpConnectionManager {
        http_filters: vec![http_filter(&Router::default()), http_filter(&Router::default())],
        ..hcm()
    };
    let text = errors(&listener(vec![chain_of(&two)]));
    assert!(text.contains("http_filters[0]: the router must be the last filter"), "{text}");
    let none = HttpConnectionManager { http_filters: vec![], ..hcm() };
    assert!(
        errors(&listener(vec![chain_of(&none)])).contains("http_filters: the last filter must be the router")
    );
    let mut optional = HttpFilter { is_optional: true, ..http_filter(&TcpProxy::default()) };
    let with = |optional: &HttpFilter| HttpConnectionManager {
        http_filters: vec![optional.clone(), http_filter(&Router::default())],
        ..hcm()
    };
    assert_eq!(http(&with(&optional)).filters.len(), 1);
    // What keeps requests out is not left out.
    if let Some(http_filter::ConfigType::TypedConfig(any)) = &mut optional.config_type {
        any.type_url = "type.googleapis.com/envoy.extensions.filters.http.oauth2.v3.OAuth2".into();
    }
    let text = errors(&listener(vec![chain_of(&with(&optional))]));
    assert!(text.contains("is not supported"), "{text}");
}

#[test]
fn overlapping_chains_are_refused() {
    let text = errors(&listener(vec![chain_of(&tcp()), chain_of(&tcp())]));
    assert!(
        text.contains("filter_chains[1].filter_chain_match: asks for the same as filter_chains[0]"),
        "{text}"
    );
    assert!(errors(&listener(vec![])).contains("filter_chains: a listener needs a filter chain"));
}
