use std::sync::Arc;

use remora_xds::client::{Batch as Update, Incoming};
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::listener::v3::Listener;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use remora_xds::{Kind, Schema};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

use crate::config::manager::Manager;
use crate::config::manager::tests::{apply, incoming, manager, manager_with};
use crate::tls::testing::{Ca, Pair, WEAK_KEY, uri};

const ID: &str = "spiffe://mesh.example/ns/shop/sa/orders";
const OTHER: &str = "spiffe://mesh.example/ns/shop/sa/web";
const TLS_INSPECTOR: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";

fn sds(name: &str) -> Value {
    json!({ "name": name, "sds_config": { "ads": {}, "resource_api_version": "V3" } })
}

fn tls(kind: &str, common: &Value) -> Value {
    let kind = format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext");
    json!({ "name": "tls", "typed_config": { "@type": kind, "common_tls_context": common } })
}

/// A TCP listener with the TLS context `common`, to `cluster`.
fn listener(schema: &Schema, common: &Value) -> Incoming {
    let tcp = json!({ "name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "t", "cluster": "none",
    }});
    let value = json!({
        "name": "l",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [tcp], "transport_socket": tls("Downstream", common) }],
    });
    incoming::<Listener>(schema, &value)
}

fn text(text: &str) -> Value {
    json!({ "inline_string": text })
}

fn certificate(schema: &Schema, name: &str, chain: &str, key: &str) -> Incoming {
    let pair = json!({ "certificate_chain": text(chain), "private_key": text(key) });
    incoming::<Secret>(schema, &json!({ "name": name, "tls_certificate": pair }))
}

fn roots(schema: &Schema, name: &str, ca: &Ca) -> Incoming {
    let context = json!({ "trusted_ca": text(&ca.pem) });
    incoming::<Secret>(schema, &json!({ "name": name, "validation_context": context }))
}

/// The URI name of the certificate that the listener shows.
fn shown(manager: &Manager) -> Option<Box<str>> {
    let chain = &manager.listeners.get("l")?.value.chains[0];
    chain.tls.as_ref()?.certificates().next()?.uri.clone()
}

fn both() -> Value {
    json!({
        "tls_certificate_sds_secret_configs": [sds("own")],
        "combined_validation_context": {
            "default_validation_context": {},
            "validation_context_sds_secret_config": sds("roots"),
        },
    })
}

fn refused(manager: &mut Manager, resource: Incoming) -> String {
    let applied = manager.apply_ads(&Update::restored(Kind::Secret, vec![resource]), Instant::now());
    assert_eq!(applied.accepted, []);
    applied.refused[0].detail.clone()
}

#[tokio::test]
async fn a_listener_waits_for_its_secrets_and_then_shows_the_newest() {
    let (schema, ca) = (Schema::load(), Ca::new("root"));
    let mut manager = manager();
    let cluster = json!({ "name": "none", "type": "STATIC" });
    apply(&mut manager, Kind::Cluster, vec![incoming::<Cluster>(&schema, &cluster)]);
    apply(&mut manager, Kind::Listener, vec![listener(&schema, &both())]);
    let wanted = manager.ads_wanted().remove(&Kind::Secret).unwrap();
    assert_eq!(wanted, ["own".into(), "roots".into()].into());
    let own = |pair: &Pair| certificate(&schema, "own", &pair.chain, &pair.key);

    let first = ca.leaf(&[uri(ID)], |_| {});
    apply(&mut manager, Kind::Secret, vec![own(&first)]);
    assert!(manager.listeners.is_empty(), "it would verify nobody");
    apply(&mut manager, Kind::Secret, vec![roots(&schema, "roots", &ca)]);
    assert_eq!(shown(&manager).as_deref(), Some(ID));

    let listener_before = Arc::clone(&manager.listeners.get("l").unwrap().value);
    let changes = apply(&mut manager, Kind::Secret, vec![own(&ca.leaf(&[uri(OTHER)], |_| {}))]).changes;
    assert_eq!(shown(&manager).as_deref(), Some(OTHER));
    assert!(Arc::ptr_eq(&listener_before, &manager.listeners.get("l").unwrap().value));
    assert!(!changes.listeners && !changes.snapshot, "a certificate is no change of configuration");
}

/// Row I5 of the fault matrix: a secret that cannot be used is refused by name, and the old one stays.
#[tokio::test]
async fn a_secret_that_cannot_be_used_is_refused_and_the_old_one_stays() {
    let (schema, ca) = (Schema::load(), Ca::new("root"));
    let mut manager = manager();
    let cluster = json!({ "name": "none", "type": "STATIC" });
    apply(&mut manager, Kind::Cluster, vec![incoming::<Cluster>(&schema, &cluster)]);
    apply(&mut manager, Kind::Listener, vec![listener(&schema, &both())]);
    let (good, other) = (ca.leaf(&[uri(ID)], |_| {}), ca.leaf(&[uri(OTHER)], |_| {}));
    let own = |chain: &str, key: &str| certificate(&schema, "own", chain, key);
    apply(&mut manager, Kind::Secret, vec![own(&good.chain, &good.key), roots(&schema, "roots", &ca)]);

    for (bad, says) in [
        (own(&other.chain, &good.key), "belongs to none of the certificates"),
        (own(&other.chain, ""), "holds no private key"),
        (own("", &other.key), "holds no certificate"),
        (own(&good.chain, WEAK_KEY), "holds a private key that cannot be used"),
        (roots(&schema, "own", &ca), "is not a certificate"),
        (certificate(&schema, "roots", &good.chain, &good.key), "is not a validation context"),
    ] {
        let detail = refused(&mut manager, bad);
        assert!(detail.contains(says), "{detail}");
        assert_eq!(shown(&manager).as_deref(), Some(ID));
    }
    // Nobody asked for it: no mistake, and nothing that anybody uses.
    let stranger = certificate(&schema, "stranger", &good.chain, &good.key);
    assert_eq!(apply(&mut manager, Kind::Secret, vec![stranger]).accepted, []);
}

#[tokio::test]
async fn a_cluster_is_not_warm_before_its_secrets_and_forgets_them_with_itself() {
    let (schema, ca) = (Schema::load(), Ca::new("root"));
    let mut manager = manager();
    let context = json!({ "validation_context_sds_secret_config": sds("roots") });
    let cluster = json!({ "name": "c", "type": "STATIC", "transport_socket": tls("Upstream", &context) });
    apply(&mut manager, Kind::Cluster, vec![incoming::<Cluster>(&schema, &cluster)]);
    let is_warm = |manager: &Manager| manager.clusters.get("c").unwrap().value.is_warm();
    assert!(!is_warm(&manager));
    apply(&mut manager, Kind::Secret, vec![roots(&schema, "roots", &ca)]);
    assert!(is_warm(&manager));

    let other = json!({ "name": "d", "type": "STATIC" });
    let mut update = Update::restored(Kind::Cluster, vec![incoming::<Cluster>(&schema, &other)]);
    update.complete = true;
    manager.apply_ads(&update, Instant::now());
    manager.promote(Instant::now());
    assert_eq!(manager.ads_wanted().remove(&Kind::Secret), Some([].into()));
}

/// A bootstrap with a static secret, or with the agent's.
fn bootstrap(agent: bool, secrets: &Value) -> Result<Manager, String> {
    let context = json!({ "tls_certificate_sds_secret_configs": [{ "name": "default" }] });
    let schema = Schema::load();
    let mut listener = schema.any_to_json(&listener(&schema, &context).any);
    listener.as_object_mut().unwrap().remove("@type");
    let statics = json!({ "listeners": [listener], "clusters": [{ "name": "none", "type": "STATIC" }], "secrets": secrets });
    let text = json!({ "static_resources": statics }).to_string();
    let parsed = schema.parse::<Bootstrap>(&text, "boot").unwrap();
    Manager::new(&parsed.message, "boot", parsed.map, agent).map_err(|errors| errors[0].to_string())
}

#[test]
fn a_static_secret_is_one_of_the_file_or_the_agent_s() {
    let pair = Ca::new("root").leaf(&[uri(ID)], |_| {});
    let secret = json!([{ "name": "default", "tls_certificate": {
        "certificate_chain": text(&pair.chain), "private_key": text(&pair.key),
    }}]);
    assert_eq!(shown(&bootstrap(false, &secret).unwrap()).as_deref(), Some(ID));
    let error = bootstrap(false, &json!([])).unwrap_err();
    assert!(error.contains("there is no secret \"default\" in static_resources.secrets"), "{error}");

    let mut manager = bootstrap(true, &json!([])).unwrap();
    assert!(!manager.is_warm());
    let own = Arc::new(pair.certificate());
    manager.put_own("default", crate::config::secrets::Material::Certificate(own));
    assert!(manager.is_warm() && shown(&manager).as_deref() == Some(ID));
}

#[test]
fn certificates_in_files_are_read_again_when_the_files_change() {
    let ca = Ca::new("root");
    let (first, second) = (ca.leaf(&[uri(ID)], |_| {}), ca.leaf(&[uri(OTHER)], |_| {}));
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    let write = |pair: &Pair| {
        std::fs::write(&chain, &pair.chain).unwrap();
        std::fs::write(&key, &pair.key).unwrap();
    };
    write(&first);
    let (schema, mut manager) = (Schema::load(), manager());
    let pair = json!({ "certificate_chain": { "filename": chain }, "private_key": { "filename": key } });
    let cluster = json!({ "name": "none", "type": "STATIC" });
    apply(&mut manager, Kind::Cluster, vec![incoming::<Cluster>(&schema, &cluster)]);
    let context = json!({ "tls_certificates": [pair] });
    apply(&mut manager, Kind::Listener, vec![listener(&schema, &context)]);
    assert!(manager.watched_files().contains(&chain) && manager.watched_files().contains(&key));
    assert_eq!(manager.reload_material(), []);

    write(&second);
    assert_eq!(manager.reload_material(), []);
    assert_eq!(shown(&manager).as_deref(), Some(OTHER));
    // Half of a change, or a broken one.
    std::fs::write(&key, &first.key).unwrap();
    assert!(manager.reload_material()[0].to_string().contains("belongs to none"));
    assert_eq!(manager.reload_material(), [], "a mistake is told once");
    assert_eq!(shown(&manager).as_deref(), Some(OTHER));
    write(&first);
    assert_eq!(manager.reload_material(), []);
    assert_eq!(shown(&manager).as_deref(), Some(ID));
}

/// A store and its password, in a context and in a secret of its own.
#[test]
fn a_store_and_its_password_are_read_again_when_they_change() {
    let [openssl, java] = [
        include_bytes!("../../../tls/pkcs12/stores/openssl.p12").as_slice(),
        include_bytes!("../../../tls/pkcs12/stores/java.p12"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (store, password) = (folder.path().join("own.p12"), folder.path().join("password"));
    std::fs::write(&store, openssl).unwrap();
    std::fs::write(&password, "changeit\n").unwrap();
    let pair = json!({ "pkcs12": { "filename": store }, "password": { "filename": password } });
    let schema = Schema::load();
    let mut in_context = manager();
    apply(&mut in_context, Kind::Listener, vec![listener(&schema, &json!({ "tls_certificates": [pair] }))]);
    let mut in_secret = bootstrap(false, &json!([{ "name": "default", "tls_certificate": pair }])).unwrap();
    for manager in [&mut in_context, &mut in_secret] {
        assert!(manager.watched_files().contains(&store) && manager.watched_files().contains(&password));
        std::fs::write(&password, "changed").unwrap();
        let told = manager.reload_material();
        assert!(told[0].to_string().contains("cannot be opened with this password"), "{told:?}");
        std::fs::write(&store, java).unwrap();
        std::fs::write(&password, "changeit").unwrap();
        assert_eq!(manager.reload_material(), []);
    }
}

/// `watched_directory` is that of a link on the way to the files, which is swapped.
#[test]
fn the_watched_directory_of_certificates_in_files_is_watched() {
    let pair = Ca::new("root").leaf(&[uri(ID)], |_| {});
    let folder = tempfile::tempdir().unwrap();
    let current = folder.path().join("v1");
    std::fs::create_dir(&current).unwrap();
    std::fs::write(current.join("chain.pem"), &pair.chain).unwrap();
    std::fs::write(current.join("key.pem"), &pair.key).unwrap();
    let pair = json!({
        "certificate_chain": { "filename": current.join("chain.pem") },
        "private_key": { "filename": current.join("key.pem") },
        "watched_directory": { "path": folder.path() },
    });
    let (schema, mut manager) = (Schema::load(), manager());
    apply(&mut manager, Kind::Listener, vec![listener(&schema, &json!({ "tls_certificates": [pair] }))]);
    assert_eq!(manager.directories(), [folder.path().to_path_buf()].into());

    let secret = json!([{ "name": "default", "tls_certificate": pair }]);
    assert_eq!(bootstrap(false, &secret).unwrap().directories(), [folder.path().to_path_buf()].into());
}

#[tokio::test(start_paused = true)]
async fn secrets_that_do_not_come_replace_no_listener_that_works() {
    let (schema, ca) = (Schema::load(), Ca::new("root"));
    let mut manager = manager();
    let cluster = json!({ "name": "none", "type": "STATIC" });
    apply(&mut manager, Kind::Cluster, vec![incoming::<Cluster>(&schema, &cluster)]);
    let own = |name: &str| json!({ "tls_certificate_sds_secret_configs": [sds(name)] });
    let pair = |name: &str, id: &str| {
        let pair = ca.leaf(&[uri(id)], |_| {});
        certificate(&schema, name, &pair.chain, &pair.key)
    };
    apply(&mut manager, Kind::Listener, vec![listener(&schema, &own("good"))]);
    apply(&mut manager, Kind::Secret, vec![pair("good", ID)]);
    apply(&mut manager, Kind::Listener, vec![listener(&schema, &own("late"))]);
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(!manager.promote(Instant::now()).listeners);
        assert!(manager.deadline().is_some_and(|at| at > Instant::now()), "no loop");
        assert_eq!(shown(&manager).as_deref(), Some(ID));
    }
    apply(&mut manager, Kind::Secret, vec![pair("late", OTHER)]);
    assert_eq!(shown(&manager).as_deref(), Some(OTHER));
}

/// A gateway gets a host whose secret never comes: the others follow the new listener all the same.
#[tokio::test(start_paused = true)]
async fn secrets_of_a_new_chain_that_do_not_come_hold_back_no_listener_for_ever() {
    let (schema, ca) = (Schema::load(), Ca::new("root"));
    let mut manager = manager();
    let cluster = json!({ "name": "none", "type": "STATIC" });
    apply(&mut manager, Kind::Cluster, vec![incoming::<Cluster>(&schema, &cluster)]);
    let hosts = |hosts: &[(&str, &str)]| {
        let own = |secret: &str| json!({ "tls_certificate_sds_secret_configs": [sds(secret)] });
        let one = |(host, secret): &(&str, &str)| {
            let mut chain =
                schema.any_to_json(&listener(&schema, &own(secret)).any)["filter_chains"][0].take();
            chain["name"] = (*host).into();
            chain["filter_chain_match"] = json!({ "server_names": [host] });
            chain
        };
        let chains: Vec<_> = hosts.iter().map(one).collect();
        let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": 0 } });
        let tls_inspector = json!({ "name": "tls", "typed_config": { "@type": TLS_INSPECTOR } });
        let value = json!({
            "name": "l", "address": address, "listener_filters": [tls_inspector], "filter_chains": chains,
        });
        incoming::<Listener>(&schema, &value)
    };
    let chains = |manager: &Manager| manager.listeners.get("l").map(|held| held.value.chains.len());
    let pair = ca.leaf(&[uri(ID)], |_| {});
    apply(&mut manager, Kind::Listener, vec![hosts(&[("a.example", "good")])]);
    apply(&mut manager, Kind::Secret, vec![certificate(&schema, "good", &pair.chain, &pair.key)]);
    assert_eq!(chains(&manager), Some(1));

    apply(&mut manager, Kind::Listener, vec![hosts(&[("a.example", "good"), ("b.example", "never")])]);
    assert_eq!(chains(&manager), Some(1), "it waits for a while");
    tokio::time::advance(Duration::from_secs(15)).await;
    assert!(manager.promote(Instant::now()).listeners);
    assert_eq!((chains(&manager), shown(&manager).as_deref()), (Some(2), Some(ID)));

    // A chain that works is not given up for one that does not, whatever the others are like.
    let worse = hosts(&[("a.example", "late"), ("b.example", "never"), ("c.example", "never")]);
    apply(&mut manager, Kind::Listener, vec![worse]);
    tokio::time::advance(Duration::from_secs(15)).await;
    assert!(!manager.promote(Instant::now()).listeners);
    assert_eq!((chains(&manager), shown(&manager).as_deref()), (Some(2), Some(ID)));
}

/// mTLS is switched on: the cluster comes before what its connections need.
#[tokio::test]
async fn secrets_that_do_not_come_replace_no_cluster_that_works() {
    let (schema, ca) = (Schema::load(), Ca::new("root"));
    let mut manager = manager();
    let context = json!({ "validation_context_sds_secret_config": sds("roots") });
    let cluster = |tls_or_none: Value| {
        let mut cluster = json!({ "name": "c", "type": "STATIC" });
        if !tls_or_none.is_null() {
            cluster["transport_socket"] = tls_or_none;
        }
        incoming::<Cluster>(&schema, &cluster)
    };
    let with_tls = |manager: &Manager| manager.clusters.get("c").unwrap().value.spec().tls.is_some();
    apply(&mut manager, Kind::Cluster, vec![cluster(Value::Null)]);
    apply(&mut manager, Kind::Cluster, vec![cluster(tls("Upstream", &context))]);
    assert!(!with_tls(&manager));
    assert_eq!(manager.ads_wanted().remove(&Kind::Secret), Some(["roots".into()].into()));
    // Taken back, and asked for again.
    apply(&mut manager, Kind::Cluster, vec![cluster(Value::Null)]);
    apply(&mut manager, Kind::Secret, vec![]);
    assert_eq!(manager.ads_wanted().remove(&Kind::Secret), Some([].into()));
    apply(&mut manager, Kind::Cluster, vec![cluster(tls("Upstream", &context))]);
    let applied = apply(&mut manager, Kind::Secret, vec![roots(&schema, "roots", &ca)]);
    assert!(with_tls(&manager) && applied.changes.clusters);
    apply(&mut manager, Kind::Cluster, vec![cluster(Value::Null)]);
    assert!(!with_tls(&manager));
}

/// Contexts of the control plane that name a file: it is read when they come, and when they come again.
#[tokio::test]
async fn a_file_of_secrets_is_read_for_contexts_that_come_later() {
    let pair = Ca::new("root").leaf(&[uri(ID)], |_| {});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sds.json");
    let secret = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "own",
        "tls_certificate": { "certificate_chain": text(&pair.chain), "private_key": text(&pair.key) },
    });
    let file = json!({ "resources": [secret] }).to_string();
    let named = |watched: bool| {
        let mut source = json!({ "path": path });
        if watched {
            source["watched_directory"] = json!({ "path": folder.path().join("..data") });
        }
        let config = json!({ "path_config_source": source, "resource_api_version": "V3" });
        json!({ "tls_certificate_sds_secret_configs": [{ "name": "own", "sds_config": config }] })
    };
    let (schema, mut manager) = (Schema::load(), manager());
    let cluster = json!({ "name": "none", "type": "STATIC" });
    apply(&mut manager, Kind::Cluster, vec![incoming::<Cluster>(&schema, &cluster)]);
    for _ in 0..2 {
        apply(&mut manager, Kind::Listener, vec![listener(&schema, &named(true))]);
        assert!(manager.has_unread_files() && manager.files().contains(&path));
        assert!(manager.apply_file(&path, &file).unwrap());
        manager.promote(Instant::now());
        assert_eq!(shown(&manager).as_deref(), Some(ID));
        assert!(!manager.has_unread_files() && !manager.apply_file(&path, &file).unwrap());
        assert_eq!(manager.directories(), [folder.path().join("..data")].into());
        // The same file, without the directory.
        apply(&mut manager, Kind::Listener, vec![listener(&schema, &named(false))]);
        assert_eq!(shown(&manager).as_deref(), Some(ID));
        let mut nothing = Update::restored(Kind::Listener, vec![]);
        (nothing.complete, nothing.first) = (true, false);
        manager.apply_ads(&nothing, Instant::now());
        assert!(manager.listeners.is_empty() && !manager.files().contains(&path));
    }
}

/// A static secret that nobody uses for a while follows its files all the same.
#[test]
fn a_static_secret_that_is_used_again_is_not_stale() {
    let ca = Ca::new("root");
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    let write = |pair: &Pair| {
        std::fs::write(&chain, &pair.chain).unwrap();
        std::fs::write(&key, &pair.key).unwrap();
    };
    write(&ca.leaf(&[uri(ID)], |_| {}));
    let pair = json!({ "certificate_chain": { "filename": chain }, "private_key": { "filename": key } });
    let (schema, mut manager) =
        (Schema::load(), manager_with(json!([{ "name": "own", "tls_certificate": pair }])));
    let cluster = json!({ "name": "none", "type": "STATIC" });
    apply(&mut manager, Kind::Cluster, vec![incoming::<Cluster>(&schema, &cluster)]);
    let context = json!({ "tls_certificate_sds_secret_configs": [{ "name": "own" }] });
    apply(&mut manager, Kind::Listener, vec![listener(&schema, &context)]);
    assert_eq!(shown(&manager).as_deref(), Some(ID));
    let mut nothing = Update::restored(Kind::Listener, vec![]);
    (nothing.complete, nothing.first) = (true, false);
    manager.apply_ads(&nothing, Instant::now());
    assert!(manager.listeners.is_empty());

    write(&ca.leaf(&[uri(OTHER)], |_| {}));
    assert!(manager.watched_files().contains(&chain));
    assert_eq!(manager.reload_material(), []);
    apply(&mut manager, Kind::Listener, vec![listener(&schema, &context)]);
    assert_eq!(shown(&manager).as_deref(), Some(OTHER));
}
