//! Whom everybody is to trust: the secret, rotation, revocation, replicas.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use remora_control::ca::secret::ROOTCA;
use remora_control::ca::{Ca, Overlap, Phase, Root, Settings, Tokens};
use remora_control::control::{Options, Plane, StartError};
use remora_control::registry::{self, Registry};
use remora_control::store::{self, StoreError};
use remora_xds::Kind;
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig,
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tonic::Code;

use super::client::{Agent, joined, reason, tls, token};
use crate::ads::{CLUSTER, Client, WORKLOADS};
use crate::common::start;
use crate::support::{PATIENCE, Rig, SERVICE, options, plaintext, until};

const CALLER: &str = "sidecar~10.0.0.9~caller.default~default.svc";

fn overlap(least: u64) -> Overlap {
    Overlap { least: Duration::from_secs(least), most: Duration::from_secs(3600) }
}

async fn rig() -> Rig {
    let rig = Rig::with(|options| options.authority.overlap = overlap(0)).await;
    assert!(rig.apply(&format!("{SERVICE}{WORKLOADS}"), "").await.0.is_success());
    rig
}

/// A sidecar that has asked for the secret and taken it.
async fn sidecar(rig: &Rig) -> Client {
    let mut client = Client::connect(rig, CALLER).await;
    client.ask(Kind::Secret, ROOTCA).await;
    client.until(|c| c.has.contains_key(&(Kind::Cluster, CLUSTER.into())) && context(c).is_some()).await;
    client
}

fn context(client: &Client) -> Option<CertificateValidationContext> {
    let secret: Secret = client.get(Kind::Secret, ROOTCA)?;
    match secret.r#type {
        Some(Type::ValidationContext(context)) => Some(context),
        other => panic!("{other:?}"),
    }
}

fn trusted(client: &Client) -> Option<String> {
    match context(client)?.trusted_ca?.specifier {
        Some(Specifier::InlineString(pem)) => Some(pem),
        other => panic!("{other:?}"),
    }
}

fn roots(client: &Client) -> usize {
    trusted(client).unwrap().matches("BEGIN CERTIFICATE").count()
}

async fn phases(rig: &Rig) -> Vec<String> {
    let (_, ca) = rig.get("/remora/v1/ca").await;
    ca["roots"].as_array().unwrap().iter().map(|root| root["phase"].as_str().unwrap().to_owned()).collect()
}

async fn post(rig: &Rig, path: &str, body: &Value) -> (StatusCode, Value) {
    rig.send(Method::POST, path, "application/json", &body.to_string()).await
}

#[tokio::test]
async fn a_new_root_signs_when_every_node_has_taken_it() {
    let rig = rig().await;
    let old = joined(&rig, "caller").await;
    let mut client = sidecar(&rig).await;
    // One that never asked for it keeps nobody waiting.
    let _other = Client::connect(&rig, "sidecar~10.0.0.1~shop-1.default~default.svc").await;
    assert_eq!(post(&rig, "/remora/v1/ca/rotate", &json!({})).await.0, StatusCode::CREATED);
    let (status, again) = post(&rig, "/remora/v1/ca/rotate", &json!({})).await;
    assert_eq!((status, &again["reason"]), (StatusCode::CONFLICT, &json!("ca_root_announced")));

    // Whichever response brings it.
    let refusal = async || rig.get("/status").await.1["proxies"].to_string().contains("I do not like it");
    let deadline = Instant::now() + PATIENCE;
    while !refusal().await {
        assert!(Instant::now() < deadline, "no refusal");
        let step = client.step(Some((ROOTCA, "I do not like it")));
        let _ = timeout(Duration::from_millis(100), step).await;
    }
    rig.until("it is waited for", async || rig.get("/remora/v1/ca").await.1["waitsFor"] == json!([CALLER]))
        .await;
    assert_eq!(phases(&rig).await, ["Signing", "Announced"]);
    drop(client);
    let client = sidecar(&rig).await;
    assert_eq!(roots(&client), 2);
    rig.until("it signs", async || phases(&rig).await == ["Retiring", "Signing"]).await;
    assert_eq!(roots(&client), 2, "what the old one signed is trusted");

    let (_, ca) = rig.get("/remora/v1/ca").await;
    let id = |n: usize| ca["roots"][n]["id"].as_str().unwrap().to_owned();
    let distrust = async |id: &str| post(&rig, "/remora/v1/ca/distrust", &json!({"root": id})).await;
    let (status, refused) = distrust(&id(1)).await;
    assert_eq!((status, &refused["reason"]), (StatusCode::CONFLICT, &json!("ca_root_signs")));

    let mut agent = old;
    let before = agent.chain.clone();
    agent.ask(tls(&rig, Some(&agent)).await, None).await.unwrap();
    assert_ne!(before[0], agent.chain[0]);
    assert_eq!(distrust(&id(0)).await.0, StatusCode::OK);
    assert_eq!(phases(&rig).await, ["Signing"]);
}

#[tokio::test]
async fn what_is_revoked_is_in_the_secret_and_gets_nothing() {
    let rig = rig().await;
    let mut client = sidecar(&rig).await;
    assert!(context(&client).unwrap().crl.is_none());
    let (mut agent, made) = (joined(&rig, "caller").await, token(&rig, "caller", &json!({})).await);
    let channel = tls(&rig, Some(&agent)).await;
    // A workload that is not known yet: it waits.
    let mut node = Client::over(channel.clone(), "sidecar~10.0.0.8~new.default~default.svc").await.unwrap();
    rig.until("it waits", async || rig.get("/status").await.1["proxies"].to_string().contains("default/new"))
        .await;
    let id = "spiffe://test/ns/default/sa/caller";
    let (status, answer) =
        post(&rig, "/remora/v1/ca/revoke", &json!({"identity": id, "reason": "key-compromise"})).await;
    assert_eq!((status, answer["revoked"].as_array().map(Vec::len)), (StatusCode::OK, Some(1)), "{answer}");
    client.until(|c| context(c).unwrap().crl.is_some()).await;
    assert_eq!(node.end().await.code(), Code::Unavailable, "it is to connect again");

    let denied = |id: &str| (Code::PermissionDenied, id.to_owned());
    assert_eq!(reason(agent.ask(channel.clone(), None).await), denied("ca_certificate_revoked"));
    let Err(node) = Client::over(channel, CALLER).await else {
        panic!("resources for a revoked certificate")
    };
    assert!(node.message().starts_with("ca_certificate_revoked: "), "{node}");
    let again = Agent::new().ask(plaintext(&rig).await, made["token"].as_str()).await;
    assert_eq!(reason(again), denied("ca_identity_revoked"));

    assert_eq!(post(&rig, "/remora/v1/ca/restore", &json!({"identity": id})).await.0, StatusCode::NO_CONTENT);
    assert_eq!(post(&rig, "/remora/v1/ca/restore", &json!({"identity": id})).await.0, StatusCode::NOT_FOUND);
    Agent::new().ask(plaintext(&rig).await, made["token"].as_str()).await.unwrap();
    for wrong in [json!({}), json!({"serial": "shop"}), json!({"identity": "spiffe://other/ns/a/sa/b"})] {
        let (status, answer) = post(&rig, "/remora/v1/ca/revoke", &wrong).await;
        assert!(status.is_client_error(), "{wrong}: {answer}");
    }
}

#[tokio::test]
async fn the_authority_survives_a_restart_and_nobody_else_reads_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        // The one before may still be closing the file.
        let plane = loop {
            match Plane::start(options(folder.path())).await {
                Err(StartError::Store(StoreError::Locked(_))) => tokio::task::yield_now().await,
                started => break started.unwrap(),
            }
        };
        let rig = Rig { plane, folder: tempfile::tempdir().unwrap() };
        rig.until("the authority", async || rig.get("/remora/v1/ca").await.0 == StatusCode::OK).await;
        seen.push(rig.get("/remora/v1/ca").await.1["roots"].clone());
        let mode = std::fs::metadata(folder.path().join("remora.redb")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert_eq!(seen[0][0]["id"], seen[1][0]["id"]);
}

/// A control plane answers as soon as it has read its documents; its authority begins a moment later.
#[tokio::test]
async fn a_token_that_is_wanted_before_the_authority_has_begun_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = store::open(&format!("redb:{}", folder.path().join("store").display())).await.unwrap();
    let registry = Arc::new(Registry::new(store));
    tokio::spawn(registry::follow(Arc::clone(&registry)));
    registry.filled().await;
    let (hour, given) = (Duration::from_secs(3600), None);
    let settings =
        Settings { trust_domain: "test".into(), ttl: hour, most_ttl: hour, overlap: overlap(0), given };
    let ca = Arc::new(Ca::new(Arc::clone(&registry), settings));
    let tokens = Tokens::new(registry, Arc::clone(&ca));
    let terms =
        serde_json::from_value(json!({ "namespace": "default", "serviceAccount": "orders" })).unwrap();
    let (made, ()) = tokio::join!(tokens.create(&terms), async {
        tokio::task::yield_now().await;
        ca.begin().await;
    });
    assert!(made.unwrap().0.starts_with("remora-"));
}

async fn two_of(address: &str) -> [Arc<Ca>; 2] {
    let store = store::open(address).await.unwrap();
    let one = || {
        let registry = Arc::new(Registry::new(Arc::clone(&store)));
        tokio::spawn(registry::follow(Arc::clone(&registry)));
        let (hour, given) = (Duration::from_secs(3600), None);
        let settings =
            Settings { trust_domain: "test".into(), ttl: hour, most_ttl: hour, overlap: overlap(0), given };
        (Arc::clone(&registry), Arc::new(Ca::new(registry, settings)))
    };
    let (one, other) = (one(), one());
    tokio::join!(one.0.filled(), other.0.filled());
    tokio::join!(one.1.begin(), other.1.begin());
    tokio::spawn(Arc::clone(&one.1).follow());
    tokio::spawn(Arc::clone(&other.1).follow());
    [one.1, other.1]
}

/// Both begin at once, rotate at once, and reserve and move at once.
async fn agree(address: &str) {
    let [one, other] = two_of(address).await;
    let ids = |ca: &Ca| {
        ca.read(|a| a.roots().iter().map(|root| (root.id.clone(), root.phase)).collect::<Vec<_>>()).unwrap()
    };
    until("one root", async || ids(&one) == ids(&other)).await;
    let (first, old) = (ids(&one)[0].0.clone(), one.secret().unwrap());
    let (a, b) = tokio::join!(one.rotate(), other.rotate());
    let refused =
        [a.as_ref().err(), b.as_ref().err()].into_iter().flatten().map(|r| r.id()).collect::<Vec<_>>();
    assert_eq!(refused, ["ca_root_announced"]);
    let second = a.or(b).unwrap();
    let expected = vec![(first.clone(), Phase::Signing), (second.clone(), Phase::Announced)];
    until("both have both", async || ids(&one) == expected && ids(&other) == expected).await;

    // What was judged before there was a second root says nothing about it.
    one.advance(&old, &[]).await.unwrap();
    assert_eq!(ids(&one), expected);

    let hour = Duration::from_secs(3600);
    let new = one.secret().unwrap();
    // A root that signed nothing would go at once.
    one.signer(hour).await.unwrap();
    let (a, b, c) = tokio::join!(one.signer(2 * hour), other.signer(hour), one.advance(&new, &[]));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    let expected = vec![(first, Phase::Retiring), (second, Phase::Signing)];
    until("it signs", async || ids(&one) == expected && ids(&other) == expected).await;
    let until_when = |ca: &Ca| ca.read(|a| a.roots()[0].signed_until).unwrap();
    assert!(until_when(&one) > 0, "the old root stays for what it signed");
    assert_eq!(one.secret().unwrap().version(), other.secret().unwrap().version());
}

#[tokio::test]
async fn two_authorities_over_one_store_agree() {
    let folder = tempfile::tempdir().unwrap();
    agree(&format!("redb:{}", folder.path().join("store").display())).await;
    let Some(etcd) = start().await else { return };
    agree(&format!("etcd://{}", etcd.fresh_address())).await;
}

#[tokio::test]
async fn a_token_for_one_use_is_used_once_by_two_control_planes() {
    let Some(etcd) = start().await else { return };
    let address = format!("etcd://{}", etcd.fresh_address());
    let with = async || Rig::with(|options| options.store = Some(address.clone())).await;
    let (one, two) = (with().await, with().await);
    let made = token(&one, "shop", &json!({})).await;
    let text = made["token"].as_str();
    let (mut a, mut b) = (Agent::new(), Agent::new());
    let (at_one, at_two) = (plaintext(&one).await, plaintext(&two).await);
    let (a, b) = tokio::join!(a.ask(at_one, text), b.ask(at_two, text));
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    assert_eq!(reason(a.and(b)), (Code::Unauthenticated, "ca_token_used".into()));
}

/// The proxies of the other control plane count too.
#[tokio::test]
async fn a_new_root_waits_for_the_proxies_of_all_control_planes() {
    let Some(etcd) = start().await else { return };
    let address = format!("etcd://{}", etcd.fresh_address());
    let with = async || {
        let changed = |options: &mut Options| {
            options.store = Some(address.clone());
            options.authority.overlap = overlap(0);
        };
        Rig::with(changed).await
    };
    let (one, two) = (with().await, with().await);
    assert!(one.apply(&format!("{SERVICE}{WORKLOADS}"), "").await.0.is_success());
    let mut lagging = sidecar(&two).await;
    assert_eq!(post(&one, "/remora/v1/ca/rotate", &json!({})).await.0, StatusCode::CREATED);
    // It is sent the new one, says nothing, and is named for it at the other control plane.
    one.until("it is named", async || one.get("/remora/v1/ca").await.1["waitsFor"] == json!([CALLER])).await;
    assert_eq!(phases(&one).await, ["Signing", "Announced"]);
    lagging.until(|c| roots(c) == 2).await;
    one.until("it signs", async || phases(&one).await.last().unwrap() == "Signing").await;
    two.until("there too", async || phases(&two).await.last().unwrap() == "Signing").await;
}

#[tokio::test]
async fn a_root_that_is_given_takes_over_from_the_own_one() {
    let folder = tempfile::tempdir().unwrap();
    let [one, _] = two_of(&format!("redb:{}", folder.path().join("store").display())).await;
    let own = one.read(|a| a.roots()[0].id.clone()).unwrap();
    let given = Root::make("test", 1_800_000_000, &mut remora_control::ca::System).unwrap();
    let id = given.id.clone();
    let registry = one.registry();
    let settings = Settings { given: Some(Box::new(given)), ..one.settings().clone() };
    let two = Ca::new(Arc::clone(registry), settings);
    two.begin().await;
    let advance = async |laggards: &[String]| two.advance(&two.secret().unwrap(), laggards).await.unwrap();
    // The first time it is announced; what was judged before that moves nothing.
    advance(&[]).await;
    advance(&["slow".into()]).await;
    let ids = || {
        two.read(|a| a.roots().iter().map(|root| (root.id.clone(), root.phase)).collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(ids(), [(own.clone(), Phase::Signing), (id.clone(), Phase::Announced)]);
    advance(&[]).await;
    assert_eq!(ids().last(), Some(&(id, Phase::Signing)));
}

/// The bundle of each trust domain that the secret names, in its order.
fn bundles(client: &Client) -> Vec<(String, String)> {
    let validator = context(client).and_then(|context| context.custom_validator_config?.typed_config);
    let config: SpiffeCertValidatorConfig = remora_xds::any::unpack(&validator.unwrap()).unwrap();
    let pem = |bundle: TrustDomain| match bundle.trust_bundle.and_then(|source| source.specifier) {
        Some(Specifier::InlineString(pem)) => (bundle.name, pem),
        other => panic!("{other:?}"),
    };
    config.trust_domains.into_iter().map(pem).collect()
}

fn authority() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&key).unwrap().pem().replace("\r\n", "\n")
}

/// Whether the bundle of `abroad.example` is `pem`.
fn is_abroad(client: &Client, pem: &str) -> bool {
    bundles(client)[1].1.trim() == pem.trim()
}

#[tokio::test]
async fn other_trust_domains_have_bundles_of_their_own_which_follow_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("abroad.pem");
    let (first, second) = (authority(), authority());
    std::fs::write(&file, &first).unwrap();
    let option = format!("abroad.example={}", file.display());
    let rig = Rig::with(|options| {
        options.identity_files = None;
        options.authority.bundles = vec![option.parse().unwrap()];
    })
    .await;
    assert!(rig.apply(&format!("{SERVICE}{WORKLOADS}"), "").await.0.is_success());
    let mut client = sidecar(&rig).await;
    let domains: Vec<_> = bundles(&client).into_iter().map(|(domain, _)| domain).collect();
    assert_eq!(domains, ["test", "abroad.example"]);
    assert_eq!(roots(&client), 1, "agents go by the roots of this mesh alone");
    assert_eq!(Some(&bundles(&client)[0].1), trusted(&client).as_ref());
    assert!(is_abroad(&client, &first));

    std::fs::write(&file, "nothing").unwrap();
    std::fs::write(folder.path().join("new.pem"), format!("{first}{second}")).unwrap();
    std::fs::rename(folder.path().join("new.pem"), &file).unwrap();
    let both = format!("{first}{second}");
    client.until(|client| is_abroad(client, &both)).await;

    let listed = Rig::with(|options| options.authority.overlap = overlap(0)).await;
    assert!(listed.apply(&format!("{SERVICE}{WORKLOADS}"), "").await.0.is_success());
    let alone = sidecar(&listed).await;
    assert!(
        context(&alone).unwrap().custom_validator_config.is_none(),
        "without other domains nothing changes"
    );
}

#[tokio::test]
async fn a_bundle_that_is_none_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("abroad.pem");
    std::fs::write(&file, "nothing").unwrap();
    let mut options = options(folder.path());
    options.authority.bundles = vec![format!("abroad.example={}", file.display()).parse().unwrap()];
    let error = Plane::start(options).await.unwrap_err();
    assert!(matches!(error, StartError::Bundles(_)), "{error}");
    assert!(error.to_string().contains("abroad.pem: holds no certificate"), "{error}");
}
