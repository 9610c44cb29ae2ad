//! The store in etcd.

use std::sync::Arc;
use std::time::Duration;

use remora_control::store::etcd::EtcdStore;
use remora_control::store::{Scope, Store, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{Etcd, free_port, start};
use crate::conformance::{self, Rig};

impl Rig for Etcd {
    async fn fresh(&self) -> Arc<dyn Store> {
        Arc::new(EtcdStore::connect(&self.fresh_address()).await.unwrap())
    }

    async fn compact(&self, store: &Arc<dyn Store>) {
        let revision = store.list(&Scope::All).await.unwrap().revision;
        let body = format!("{{\"revision\":{revision}}}");
        let request = format!(
            "POST /v3/kv/compaction HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(&self.client).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn etcd_does_what_a_store_must() {
    let Some(etcd) = start().await else { return };
    conformance::run(&etcd).await;
}

#[tokio::test]
async fn what_several_control_planes_share_is_the_same_for_all() {
    let Some(etcd) = start().await else { return };
    let address = format!("{}/mesh", etcd.client);
    let one: Arc<dyn Store> = Arc::new(EtcdStore::connect(&address).await.unwrap());
    let two: Arc<dyn Store> = Arc::new(EtcdStore::connect(&address).await.unwrap());
    let other: Arc<dyn Store> =
        Arc::new(EtcdStore::connect(&format!("{}/mesh2", etcd.client)).await.unwrap());
    let mut watch = two.watch(two.list(&Scope::All).await.unwrap().revision).await.unwrap();
    conformance::write(&other, "a", "x").await;
    let revision = conformance::write(&one, "a", "1").await;
    let events = watch.next().await.unwrap();
    assert_eq!(
        events.iter().map(|e| e.revision()).collect::<Vec<_>>(),
        [revision],
        "another prefix is another store"
    );
}

#[tokio::test]
async fn an_etcd_that_is_gone_is_named() {
    let nobody = EtcdStore::connect(&free_port()).await.unwrap_err();
    assert!(matches!(nobody, StoreError::Unavailable(_)), "{nobody}");
    let Some(mut etcd) = start().await else { return };
    let store = etcd.fresh().await;
    let mut watch = store.watch(store.list(&Scope::All).await.unwrap().revision).await.unwrap();
    etcd.child.kill().unwrap();
    etcd.child.wait().unwrap();
    let error = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let error = store.list(&Scope::All).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
}
