use std::net::Ipv4Addr;
use std::pin::pin;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::io::Io;
use crate::upstream::cluster::tests::{spec, statics};

const LIMIT: Duration = Duration::from_secs(5);
const PRIORITY: RoutingPriority = RoutingPriority::Default;

/// A cluster that may have so many connections.
fn limited(max_connections: u32) -> Cluster {
    let mut spec = spec(statics(&[1]));
    spec.thresholds[0].max_connections = max_connections;
    Cluster::new(Arc::new(spec))
}

fn client(number: u16) -> Option<Origin> {
    let [high, low] = number.to_be_bytes();
    Some(Origin { ip: Ipv4Addr::new(10, 9, high, low).into(), mark: 0 })
}

fn pool(pools: &Pools, cluster: &Cluster, origin: Option<Origin>) -> Rc<EndpointPool> {
    pools.of(cluster, &cluster.endpoints().endpoints()[0], origin)
}

#[test]
fn each_client_has_connections_of_its_own_and_is_forgotten() {
    let (cluster, pools) = (limited(1024), Pools::default());
    let of = |origin| pool(&pools, &cluster, origin);
    let (shared, one, other) = (of(None), of(client(1)), of(client(2)));
    assert!(!Rc::ptr_eq(&shared, &one) && !Rc::ptr_eq(&one, &other));
    assert!(Rc::ptr_eq(&one, &of(client(1))) && Rc::ptr_eq(&shared, &of(None)));
    drop(other);
    for number in 2..=255 {
        let _unused = of(client(number));
        assert!(pools.clients() <= 64, "{number}");
    }
    assert!(Rc::ptr_eq(&one, &of(client(1))), "it is in use");
}

/// None that has a connection is forgotten to make the sum small.
#[test]
fn as_many_clients_as_have_connections_are_known() {
    let (cluster, pools) = (limited(1024), Pools::default());
    let of = |number| pool(&pools, &cluster, client(number));
    let connected: Vec<_> = (0..200).map(of).collect();
    assert_eq!(pools.clients(), 200);
    for pool in &connected {
        pool.open.set(1);
    }
    drop(connected);
    for number in 200..1000 {
        drop(of(number));
        assert!(pools.clients() <= 400, "{number}");
    }
    assert!((0..200).all(|number| of(number).open.get() == 1));
}

/// The first connection to an endpoint needs no permit; of clients there may be any number.
#[tokio::test]
async fn no_client_has_a_connection_beyond_the_limit() {
    let (cluster, pools) = (limited(0), Pools::default());
    let pool = pool(&pools, &cluster, client(1));
    let first = timeout(LIMIT, pool.h1(&cluster, PRIORITY, false)).await;
    assert_eq!(first.unwrap().unwrap_err(), Reason::UpstreamOverflow);
    let shared = timeout(LIMIT, pool.h2(&cluster, PRIORITY, false)).await;
    assert_eq!(shared.unwrap().err(), Some(Reason::UpstreamOverflow));
}

/// A connection at rest for a client, since `since`.
fn rests(pool: &Rc<EndpointPool>, cluster: &Cluster, stream: TcpStream, since: Instant) {
    let permit = pool.connection_permit(cluster, PRIORITY).expect("a permit");
    pool.open.set(pool.open.get() + 1);
    let conn = Conn::shared(Io::Tcp(stream), BytesMut::new());
    pool.put(IdleConn { conn, since, life: new_life(), server: None, permit });
}

#[tokio::test]
async fn a_new_client_gets_the_room_of_what_has_been_at_rest_for_longest() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    // Tasks of the worker watch connections at rest.
    let on_worker = async {
        let (cluster, other, pools) = (limited(2), limited(1), Pools::default());
        let began = Instant::now();
        let mut held = Vec::new();
        for (of, number, seconds) in [(&other, 9, 0), (&cluster, 2, 2), (&cluster, 1, 1)] {
            let stream = TcpStream::connect(at).await.unwrap();
            held.push(listener.accept().await.unwrap());
            let pool = pool(&pools, of, client(number));
            rests(&pool, of, stream, began + Duration::from_secs(seconds));
        }
        let at_rest = |of, number| pool(&pools, of, client(number)).idle.borrow().len();
        let newcomer = pool(&pools, &cluster, client(3));
        let first = newcomer.connection_permit(&cluster, PRIORITY);
        assert!(first.is_some());
        assert_eq!([at_rest(&cluster, 1), at_rest(&cluster, 2)], [0, 1], "the older one");
        assert_eq!(pool(&pools, &cluster, client(1)).open.get(), 0);
        let second = newcomer.connection_permit(&cluster, PRIORITY);
        assert!(second.is_some());
        // What is left is in use, and what rests for another cluster makes no room.
        assert!(newcomer.connection_permit(&cluster, PRIORITY).is_none());
        assert_eq!([at_rest(&cluster, 2), at_rest(&other, 9)], [0, 1]);
        assert_eq!(cluster.state().breaker(PRIORITY).active(Resource::Connections), 2);
        // Of an endpoint that is nobody's in particular the first one needs no room.
        assert!(pool(&pools, &cluster, None).connection_permit(&cluster, PRIORITY).is_some());
    };
    tokio::task::LocalSet::new().run_until(on_worker).await;
}

/// Both ends of one.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// Its own connection has a request that lasts; what others give up is as good.
#[tokio::test]
async fn a_client_that_waits_hears_of_what_comes_to_rest_for_another_one() {
    let (stream, _server) = connection().await;
    let on_worker = async {
        let (cluster, elsewhere, pools) = (limited(1), limited(0), Pools::default());
        let waiting = |of, number| {
            let pool = pool(&pools, of, client(number));
            pool.open.set(1);
            pool
        };
        let (of_another_limit, first) = (waiting(&elsewhere, 1), waiting(&cluster, 1));
        let (mut place, mut place_elsewhere) = (None, None);
        let mut waits_elsewhere = pin!(of_another_limit.wait(&elsewhere, PRIORITY, &mut place_elsewhere));
        assert!(poll_fn(|cx| Poll::Ready(waits_elsewhere.as_mut().poll(cx).is_pending())).await);
        {
            let mut waits = pin!(first.wait(&cluster, PRIORITY, &mut place));
            assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
            rests(&pool(&pools, &cluster, client(2)), &cluster, stream, Instant::now());
            timeout(LIMIT, waits).await.expect("it is told").unwrap();
        }
        assert!(first.connection_permit(&cluster, PRIORITY).is_some());
        assert_eq!(cluster.state().breaker(PRIORITY).overflow(Resource::Connections), 0);
        drop(place);
        assert_eq!([first.waiting.get(), of_another_limit.waiting.get()], [0, 1]);
    };
    tokio::task::LocalSet::new().run_until(on_worker).await;
}

/// Or that one would be refused, and the newcomer no better off.
#[tokio::test]
async fn a_newcomer_leaves_what_those_who_wait_were_told_of() {
    let (stream, _server) = connection().await;
    let on_worker = async {
        let (cluster, pools) = (limited(1), Pools::default());
        let (first, newcomer) = (pool(&pools, &cluster, client(1)), pool(&pools, &cluster, client(2)));
        first.open.set(1);
        let mut place = None;
        let mut waits = pin!(first.wait(&cluster, PRIORITY, &mut place));
        assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
        rests(&first, &cluster, stream, Instant::now());
        assert!(newcomer.connection_permit(&cluster, PRIORITY).is_none());
        timeout(LIMIT, waits).await.expect("it is told").unwrap();
        assert!(first.take_idle(&cluster).await.is_some());
    };
    tokio::task::LocalSet::new().run_until(on_worker).await;
}

/// A shared connection for a client, and a stream on it.
async fn stream_of(pool: &Rc<EndpointPool>, cluster: &Cluster) -> H2Slot {
    let (ours, theirs) = connection().await;
    tokio::task::spawn_local(async move {
        let mut server = h2::server::handshake(theirs).await.unwrap();
        while server.accept().await.is_some() {}
    });
    let permit = pool.connection_permit(cluster, PRIORITY).expect("a permit");
    let connected = Connected { io: Io::Tcp(ours), local: None, is_h2: true, server: None };
    pool.adopt_h2(connected, cluster, permit).await.unwrap().slot().1
}

#[tokio::test]
async fn a_client_that_waits_hears_of_the_last_stream_of_another_one() {
    let on_worker = async {
        let (cluster, pools) = (limited(1), Pools::default());
        let (other, first) = (pool(&pools, &cluster, client(2)), pool(&pools, &cluster, client(1)));
        let stream = stream_of(&other, &cluster).await;
        first.open.set(1);
        let mut place = None;
        {
            let mut waits = pin!(first.wait(&cluster, PRIORITY, &mut place));
            assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
            assert!(first.connection_permit(&cluster, PRIORITY).is_none(), "it is in use");
            drop(stream);
            timeout(LIMIT, waits).await.expect("it is told").unwrap();
        }
        assert!(first.connection_permit(&cluster, PRIORITY).is_some());
    };
    tokio::task::LocalSet::new().run_until(on_worker).await;
}

#[tokio::test]
async fn a_newcomer_leaves_the_connection_whose_stream_those_who_wait_were_told_of() {
    let on_worker = async {
        let (cluster, pools) = (limited(1), Pools::default());
        let (first, newcomer) = (pool(&pools, &cluster, client(1)), pool(&pools, &cluster, client(2)));
        let stream = stream_of(&first, &cluster).await;
        let mut place = None;
        let mut waits = pin!(first.wait(&cluster, PRIORITY, &mut place));
        assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
        drop(stream);
        assert!(newcomer.connection_permit(&cluster, PRIORITY).is_none());
        timeout(LIMIT, waits).await.expect("it is told").unwrap();
        assert!(first.take_h2(&cluster).is_some());
    };
    tokio::task::LocalSet::new().run_until(on_worker).await;
}

/// It cannot take what is left of the other protocol, and nobody else may: it would wait for ever.
#[tokio::test]
async fn who_waits_for_http1_gets_the_room_of_an_unused_http2_connection_beside_it() {
    for origin in [client(1), None] {
        let on_worker = async {
            let (cluster, pools) = (limited(1), Pools::default());
            let pool = pool(&pools, &cluster, origin);
            let stream = stream_of(&pool, &cluster).await;
            let mut place = None;
            {
                let mut waits = pin!(pool.wait(&cluster, PRIORITY, &mut place));
                assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
                assert!(pool.connection_permit(&cluster, PRIORITY).is_none(), "{origin:?}: it is in use");
                drop(stream);
                timeout(LIMIT, waits).await.expect("it is told").unwrap();
            }
            assert!(pool.connection_permit(&cluster, PRIORITY).is_some(), "{origin:?}");
            assert!(pool.h2.borrow().is_empty());
        };
        tokio::task::LocalSet::new().run_until(on_worker).await;
    }
}

/// A retry that wanted a connection of its own, and cannot have one.
#[tokio::test]
async fn who_wants_a_fresh_connection_takes_what_there_is_where_there_can_be_no_other() {
    for origin in [client(1), None] {
        let on_worker = async {
            let mut spec = spec(statics(&[1]));
            spec.thresholds[0].max_connections = 1;
            spec.http.http2.max_streams = 2;
            let (cluster, pools) = (Cluster::new(Arc::new(spec)), Pools::default());
            let pool = pool(&pools, &cluster, origin);
            let first = stream_of(&pool, &cluster).await;
            let second = timeout(LIMIT, pool.h2(&cluster, PRIORITY, true)).await.expect("at once");
            let mut waits = pin!(pool.h2(&cluster, PRIORITY, true));
            assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await, "{origin:?}");
            drop(first);
            assert!(timeout(LIMIT, waits).await.expect("an answer").is_ok(), "{origin:?}");
            drop(second.unwrap());
        };
        tokio::task::LocalSet::new().run_until(on_worker).await;
    }
}

/// The one connection of an endpoint may be beyond the limit, and passes that on to the other protocol.
#[tokio::test]
async fn the_grace_of_an_unused_connection_is_that_of_the_next_one() {
    let (idle, _server) = connection().await;
    let on_worker = async {
        let (cluster, pools) = (limited(0), Pools::default());
        let pool = pool(&pools, &cluster, None);
        let stream = stream_of(&pool, &cluster).await;
        assert!(pool.connection_permit(&cluster, PRIORITY).is_none(), "it is in use");
        assert_eq!(pool.open.get(), 1);
        drop(stream);
        rests(&pool, &cluster, idle, Instant::now());
        assert_eq!((pool.h2.borrow().len(), pool.open.get()), (0, 1));
        let _in_use = pool.take_idle(&cluster).await.unwrap();
        assert!(pool.connection_permit(&cluster, PRIORITY).is_none(), "it is in use");
        assert_eq!(cluster.state().breaker(PRIORITY).active(Resource::Connections), 0);
    };
    tokio::task::LocalSet::new().run_until(on_worker).await;
}

/// Others have all that the limit permits, which was lowered meanwhile: what was closed makes no room, and the endpoint has none any more.
#[tokio::test]
async fn who_closes_the_last_connection_of_an_endpoint_has_the_grace() {
    let on_worker = async {
        let (cluster, pools) = (limited(1), Pools::default());
        let pool = pool(&pools, &cluster, None);
        drop(stream_of(&pool, &cluster).await);
        let mut lower = spec(statics(&[1]));
        lower.thresholds[0].max_connections = 0;
        let cluster = cluster.with_spec(Arc::new(lower));
        assert!(pool.connection_permit(&cluster, PRIORITY).is_some());
        assert_eq!(pool.open.get(), 0);
    };
    tokio::task::LocalSet::new().run_until(on_worker).await;
}

/// Of an endpoint that is gone only the stream is left.
#[tokio::test]
async fn a_client_that_waits_hears_of_the_last_stream_of_a_pool_that_is_forgotten() {
    let on_worker = async {
        let (cluster, pools) = (limited(1), Pools::default());
        let (other, first) = (pool(&pools, &cluster, client(2)), pool(&pools, &cluster, client(1)));
        let stream = stream_of(&other, &cluster).await;
        other.close();
        pools.by_origin.retain(|pool| !Rc::ptr_eq(pool, &other));
        drop(other);
        first.open.set(1);
        let mut place = None;
        {
            let mut waits = pin!(first.wait(&cluster, PRIORITY, &mut place));
            assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
            drop(stream);
            timeout(LIMIT, waits).await.expect("it is told").unwrap();
        }
        assert!(first.connection_permit(&cluster, PRIORITY).is_some());
    };
    tokio::task::LocalSet::new().run_until(on_worker).await;
}

/// What rested is gone, and whoever was told of it must not wait for it.
#[tokio::test]
async fn who_waits_hears_that_the_pool_closes() {
    let (stream, _server) = connection().await;
    let on_worker = async {
        let (cluster, pools) = (limited(1), Pools::default());
        let pool = pool(&pools, &cluster, client(1));
        rests(&pool, &cluster, stream, Instant::now());
        pool.close();
        assert_eq!(pool.open.get(), 0);
        let _faster = cluster.try_acquire(Resource::Connections, PRIORITY).unwrap();
        let said = timeout(LIMIT, pool.h1(&cluster, PRIORITY, false)).await.expect("an answer");
        assert_eq!(said.err(), Some(Reason::UpstreamOverflow));
    };
    tokio::task::LocalSet::new().run_until(on_worker).await;
}

/// The one connection of a client ends, another client is faster, and nobody will tell those who wait any more.
#[tokio::test]
async fn all_who_wait_hear_that_no_connection_of_their_client_will_come_free() {
    let (cluster, pools) = (limited(1), Pools::default());
    let pool = pool(&pools, &cluster, client(1));
    let _faster = cluster.try_acquire(Resource::Connections, PRIORITY).unwrap();
    pool.open.set(1);
    let h1 = async || timeout(LIMIT, pool.h1(&cluster, PRIORITY, false)).await.expect("an answer").err();
    let h2 = async || timeout(LIMIT, pool.h2(&cluster, PRIORITY, false)).await.expect("an answer").err();
    let said = tokio::join!(h1(), h1(), h2(), async { pool.released() });
    let refused = Some(Reason::UpstreamOverflow);
    assert_eq!(said, (refused, refused, refused, ()));
    assert_eq!(cluster.state().breaker(PRIORITY).active(Resource::Pending), 0);
}

#[tokio::test]
async fn a_connection_that_is_being_made_is_waited_for() {
    let (cluster, pools) = (limited(0), Pools::default());
    let pool = pool(&pools, &cluster, client(1));
    let underway = Underway::start(&pool);
    let mut waits = pin!(pool.h1(&cluster, PRIORITY, false));
    let first = poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await;
    assert!(first, "there will be one");
    assert_eq!(cluster.state().breaker(PRIORITY).active(Resource::Pending), 1);
    // It fails.
    drop(underway);
    let said = timeout(LIMIT, waits).await.expect("an answer");
    assert_eq!(said.err(), Some(Reason::UpstreamOverflow));
}

/// Nobody knows when opaque bytes end: for them there is no grace, and the limit is exact.
#[tokio::test]
async fn no_opaque_connection_is_beyond_the_limit() {
    let (cluster, pools) = (limited(0), Pools::default());
    for origin in [None, client(1)] {
        let opaque = pools.opaque(&cluster, &cluster.endpoints().endpoints()[0], origin, PRIORITY);
        let opaque = timeout(LIMIT, opaque).await;
        assert_eq!(opaque.expect("an answer").err(), Some(Reason::UpstreamOverflow), "{origin:?}");
    }
}

/// What rests makes room, whichever endpoint it is to. Nobody listens at these.
#[tokio::test]
async fn an_opaque_connection_gets_the_room_of_what_rests() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let on_worker = async {
        let mut spec = spec(statics(&[1, 2]));
        spec.thresholds[0].max_connections = 1;
        let (cluster, pools) = (Cluster::new(Arc::new(spec)), Pools::default());
        let resting = pool(&pools, &cluster, None);
        rests(&resting, &cluster, stream, Instant::now());
        let opaque = pools.opaque(&cluster, &cluster.endpoints().endpoints()[1], None, PRIORITY);
        let opaque = timeout(LIMIT, opaque).await;
        assert_eq!(opaque.expect("an answer").err(), Some(Reason::ConnectFailure));
        assert_eq!((resting.idle.borrow().len(), resting.open.get()), (0, 0));
        assert_eq!(cluster.state().breaker(PRIORITY).active(Resource::Connections), 0);
    };
    tokio::task::LocalSet::new().run_until(on_worker).await;
}
