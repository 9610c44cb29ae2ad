//! One GET over a cluster, for the control runtime: small things that configuration names by URI, such as key sets.

use std::error::Error;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use remora_xds::client::Duplex;

use super::cluster::Cluster;
use super::connect;
use super::endpoint::Endpoint;
use crate::tls::client::{AlpnOffer, Target};

/// Asks endpoint number `turn` (they take turns) for `uri`; the answer has at most `most` bytes.
///
/// # Errors
/// Why there is no answer of status 200.
pub async fn get(
    cluster: &Cluster,
    turn: usize,
    uri: &Uri,
    most: usize,
) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
    let endpoints = cluster.endpoints().endpoints();
    let endpoint = turn.checked_rem(endpoints.len()).and_then(|n| endpoints.get(n)).cloned();
    let io = open(cluster, &endpoint.ok_or("the cluster has no endpoints")?).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, uri.authority().map_or("", |host| host.as_str()))
        .header(ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(format!("the answer is {}", answer.status()).into());
        }
        Ok(Limited::new(answer.into_body(), most).collect().await?.to_bytes())
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may end as soon as it has given everything to the body.
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.into()),
        },
    }
}

async fn open(cluster: &Cluster, endpoint: &Arc<Endpoint>) -> io::Result<Box<dyn Duplex>> {
    let (spec, address) = (cluster.spec(), endpoint.spec.address);
    let tcp = connect::connect(address, &spec.connect).await.map_err(io::Error::other)?;
    let Some(tls) = &spec.tls else { return Ok(Box::new(tcp)) };
    let host = endpoint.spec.hostname.as_deref();
    let target = Target { host, ..Target::new(address, AlpnOffer::Http1) };
    let (stream, _) = tls.connect(tcp, target).await.map_err(io::Error::other)?;
    Ok(Box::new(stream))
}
