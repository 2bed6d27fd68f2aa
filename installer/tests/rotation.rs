//! A node's certificate over its life: joined, renewed over the tunnel, run out and joined again with the old key.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cloudhub::identity::Identity;
use edgecore::rotation::{Pki, Rotation, rejoin, renew};
use futures::future::BoxFuture;
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use site::{Site, TOKEN};
use tunnel::{ClockFloor, ConnectError, Edge, EdgeConfig, EpochSource, Hub, HubConfig, Limits, SERVER_NAME, Session};

fn wall_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

struct Epochs(AtomicU64);

impl EpochSource for Epochs {
    fn next(&self, above: u64) -> BoxFuture<'_, Result<u64, String>> {
        let next = self.0.load(Ordering::Relaxed).max(above) + 1;
        self.0.store(next, Ordering::Relaxed);
        Box::pin(async move { Ok(next) })
    }
}

fn hub(identity: &Arc<Identity>) -> Hub {
    Hub::bind(HubConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        listen_tcp: Vec::new(),
        certificate: identity.serving(&[]).unwrap(),
        client_roots: Arc::new(identity.tunnel_ca().roots().unwrap()),
        hub_instance: [7; 16],
        addresses: Vec::new(),
        limits: Limits::default(),
        keys: identity.quic_keys().clone(),
        admission: identity.nodes().clone(),
        dormant_for: tunnel::DORMANT_FOR,
    })
    .unwrap()
}

fn edge(pki: &Pki, hub: &Hub) -> Edge {
    let identity = pki.load().unwrap();
    Edge::new(EdgeConfig {
        node: identity.node,
        hubs: vec![hub.local_addr().to_string()],
        server_name: SERVER_NAME.to_owned(),
        roots: pki.roots().unwrap(),
        certificate: identity.certificate,
        incarnation: [1; 16],
        epochs: Arc::new(Epochs(AtomicU64::new(0))),
        boot_id: "b".to_owned(),
        agent: "a".to_owned(),
        uplinks: tokio::sync::watch::channel(Vec::new()).1,
        fallback: tunnel::Fallback::default(),
        clock_floor: ClockFloor::default(),
        meter: tunnel::Meter::default(),
        dormant_for: tunnel::DORMANT_FOR,
    })
    .unwrap()
}

async fn joined() -> (Site, Pki) {
    let site = Site::start().await;
    let output = site.join(TOKEN, &site.identity.serving_ca().ca_hash(), &[]).await;
    assert!(output.status.success());
    let pki = Pki::new(site.path("state/pki"));
    (site, pki)
}

/// What the hub's node API does with `POST /v1/certificate`.
async fn serve_renewal(identity: &Identity, session: &Session) {
    let stream = session.accept_stream().await.unwrap();
    let node = session.peer().node.clone();
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let node = node.clone();
        async move {
            assert_eq!(request.uri().path(), "/v1/certificate");
            let body = request.into_body().collect().await?.to_bytes();
            let chain = identity.renew(&node, std::str::from_utf8(&body).unwrap()).unwrap();
            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(chain))))
        }
    });
    let http = hyper::server::conn::http1::Builder::new();
    http.serve_connection(TokioIo::new(stream), service).await.unwrap();
}

#[tokio::test]
async fn a_joined_node_attaches_and_renews_and_its_old_certificate_is_refused_from_then_on() {
    let (site, pki) = joined().await;
    let hub = hub(&site.identity);
    let stolen = edge(&pki, &hub);
    let edge = edge(&pki, &hub);
    let (session, at_hub) = tokio::join!(edge.connect(), hub.accept());
    let (session, at_hub) = (session.unwrap(), at_hub.unwrap());
    assert_eq!(at_hub.peer().node, "robot-1");
    let before = pki.load().unwrap();
    let (renewed, ()) = tokio::join!(renew(&pki, &session, "robot-1"), serve_renewal(&site.identity, &at_hub));
    let renewed = renewed.unwrap();
    assert!(renewed.not_after >= before.not_after);
    edge.set_certificate(renewed.certificate).await.unwrap();
    session.close(tunnel::CloseReason::Local);
    edge.connect().await.unwrap();
    let error = stolen.connect().await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Refused { reason } if reason.contains("generation")),
        "{error}"
    );
}

#[tokio::test]
async fn a_certificate_that_ran_out_is_replaced_by_proof_of_its_key() {
    let (site, pki) = joined().await;
    let folder = site.path("state/pki");
    let key = fs::read_to_string(folder.join("client.key")).unwrap();
    let request = rcgen::CertificateParams::default();
    let mut request = request;
    request.distinguished_name = rcgen::DistinguishedName::new();
    let csr = request
        .serialize_request(&rcgen::KeyPair::from_pem(&key).unwrap())
        .unwrap()
        .pem()
        .unwrap();
    let then = wall_now() - Duration::from_secs(100 * 86_400);
    let expired = site.identity.tunnel_ca().sign_node("robot-1", 1, &csr, then).unwrap();
    fs::write(folder.join("client.crt"), expired).unwrap();
    let hub = hub(&site.identity);
    let refused = edge(&pki, &hub).connect().await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused}");
    let rotation = Rotation {
        pki: pki.clone(),
        join_address: site.hub.to_string(),
        floor: ClockFloor::default(),
    };
    let renewed = rejoin::rejoin(&rotation, "robot-1").await.unwrap();
    assert!(renewed.not_after > wall_now());
    edge(&pki, &hub).connect().await.unwrap();
}
