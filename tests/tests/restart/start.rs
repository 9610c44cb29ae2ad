//! Row L6: a proxy starts while its control plane is down.

use remora_tests::control_plane::ControlPlane;
use remora_tests::resources::{service, under, version};
use remora_tests::upstream::Upstream as _;
use remora_tests::wait::{eventually_async, reached};

use super::*;

/// A control plane's address at which nobody answers, and the port is kept.
fn nobody() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

#[tokio::test]
async fn l6_with_the_last_good_configuration_it_serves() {
    let scene = Scene::new().await;
    let state = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start().await;
    plane.publish(service(scene.origin.address(), 1));
    let proxy = |at| under(&[at]).argument("--state-dir").argument(state.path().to_str().unwrap());
    let first = proxy(plane.address).start().await;
    remora_tests::wait::eventually("saved", || state.path().join("last-good.pb.gz").is_file()).await;
    let address = plane.address;
    drop((first, plane));
    let proxy = proxy(address).start().await;
    let load = Offer::both(proxy.address("ingress"), 200).start();
    load.sends(100).await;
    load.end().await.with(executed(&scene.origin)).nothing_lost("L6");
}

/// Without one it is not ready, for as long as that lasts, and listens nowhere but on the admin port: nobody sends it anything, and who does is refused.
#[tokio::test]
async fn l6_without_one_it_is_not_ready_and_accepts_nothing() {
    let scene = Scene::new().await;
    let nobody = nobody();
    let at = nobody.local_addr().unwrap();
    let mut proxy = under(&[at]).launch();
    let gives_up = reached("the first wait is over", ms(40_000), async || {
        proxy.stderr().contains("listening without them")
    });
    println!("L6: it stopped waiting after {:.1?}", gives_up.await);
    proxy.find_admin().await;
    let ready = proxy.admin("GET", "/ready").await.unwrap();
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert!(ready.text().contains("configuration of the control plane"), "{}", ready.text());
    let listeners = proxy.admin("GET", "/listeners").await.unwrap().text();
    assert!(!listeners.contains("ingress"), "{listeners}");

    drop(nobody);
    let plane = ControlPlane::start_at(at).await;
    plane.publish(service(scene.origin.address(), 7));
    let ready = reached("readiness", ms(40_000), async || {
        proxy.admin("GET", "/ready").await.is_ok_and(|answer| answer.status == 200)
    });
    println!("L6: ready {:.1?} after the control plane came", ready.await);
    proxy.find_listeners().await;
    let mut client = proxy.http1().await;
    eventually_async("its routes", async || version(&mut client).await == 7).await;
}
