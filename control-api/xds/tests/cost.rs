//! What reading configuration costs: `cargo test --release -p remora-xds --test cost -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_types, reason = "measures real time, outside of any runtime")]

use std::fmt::Write;
use std::time::Instant;

use remora_xds::Schema;
use remora_xds::any;
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use remora_xds::yaml;

/// Anonymous resident memory, and the peak of all resident memory, in KiB.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("RssAnon:"), field("VmHWM:"))
}

fn measure<T>(what: &str, step: impl FnOnce() -> T) -> T {
    let (before, start) = (memory().0, Instant::now());
    let out = step();
    let (time, (after, peak)) = (start.elapsed(), memory());
    println!(
        "{what:<44} {:>9.2} ms   anonymous {before} -> {after} KiB, peak {peak}",
        time.as_secs_f64() * 1e3
    );
    out
}

fn clusters(n: usize) -> String {
    let mut text = String::from("static_resources:\n  clusters:\n");
    for i in 0..n {
        let _ = write!(
            text,
            "  - name: cluster-{i}\n    type: STATIC\n    connect_timeout: 5s\n    circuit_breakers: {{thresholds: [{{max_connections: 100}}]}}\n    \
             typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
             \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
             explicit_http_config: {{http2_protocol_options: {{}}}}\n    load_assignment:\n      cluster_name: cluster-{i}\n      \
             endpoints:\n      - lb_endpoints:\n"
        );
        for e in 0..10 {
            let _ = writeln!(
                text,
                "        - endpoint: {{address: {{socket_address: {{address: 10.{}.{}.{e}, port_value: 80}}}}}}",
                i / 256,
                i % 256
            );
        }
    }
    text
}

#[test]
#[ignore = "a measurement: cargo test --release -p remora-xds --test cost -- --ignored --nocapture"]
fn what_reading_configuration_costs() {
    let schema = measure("load the schema, first time", Schema::load);
    measure("drop it", || drop(schema));
    let schema = measure("load the schema, second time", Schema::load);
    let small = include_str!("bootstrap.yaml");
    measure("parse a bootstrap of 55 lines", || schema.parse::<Bootstrap>(small, "f").map(|_| ()).unwrap());
    measure("parse it again", || schema.parse::<Bootstrap>(small, "f").map(|_| ()).unwrap());
    let text = clusters(5_000);
    println!("5,000 clusters of 10 endpoints: {} KiB of YAML", text.len() >> 10);
    measure("of that, the YAML tree alone", || yaml::parse(&text).map(|_| ()).unwrap());
    let parsed = measure("parse 5,000 clusters", || schema.parse::<Bootstrap>(&text, "f").unwrap());
    let resources = parsed.message.static_resources.unwrap();
    let anys: Vec<_> = resources.clusters.iter().map(any::pack).collect();
    measure("check 5,000 clusters in protobuf", || {
        anys.iter().for_each(|any| schema.check_any(any, "cds").unwrap());
    });
    drop((parsed.map, resources.listeners, anys, text));
    measure("drop the rest", || drop((schema, resources.clusters)));
}
