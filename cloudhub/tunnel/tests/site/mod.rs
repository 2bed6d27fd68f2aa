//! A hub and edges on loopback, with CAs of their own.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod hosts;
pub(crate) mod killed;
pub(crate) mod namespace;
pub(crate) mod relay;

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType, SerialNumber,
};
use tunnel::{
    Admission, ClockFloor, Edge, EdgeConfig, EpochSource, Hub, HubConfig, Limits, Meter, PeerCertificate, Presence,
    QuicKeys, SERVER_NAME, Session, tls,
};

/// Certificates of one installation.
pub(crate) struct Pki {
    pub(crate) serving: CertifiedIssuer<'static, KeyPair>,
    pub(crate) tunnel: CertifiedIssuer<'static, KeyPair>,
}

fn ca(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Pki {
    pub(crate) fn new() -> Self {
        Self {
            serving: ca("serving"),
            tunnel: ca("tunnel"),
        }
    }

    pub(crate) fn hub_identity(&self) -> Arc<rustls::sign::SingleCertAndKey> {
        self.hub_identity_valid(None)
    }

    pub(crate) fn hub_identity_valid(&self, years: Option<(i32, i32)>) -> Arc<rustls::sign::SingleCertAndKey> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if let Some((from, to)) = years {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.serving).unwrap();
        tls::identity_from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    pub(crate) fn node_identity(&self, node: &str, generation: u64) -> Arc<rustls::sign::SingleCertAndKey> {
        self.node_identity_with(node, generation, Vec::new())
    }

    /// One of more than 12 000 bytes.
    pub(crate) fn large_node_identity(&self, node: &str, generation: u64) -> Arc<rustls::sign::SingleCertAndKey> {
        let filler = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 32_473, 1], vec![4; 12_000]);
        self.node_identity_with(node, generation, vec![filler])
    }

    fn node_identity_with(
        &self,
        node: &str,
        generation: u64,
        extensions: Vec<CustomExtension>,
    ) -> Arc<rustls::sign::SingleCertAndKey> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.custom_extensions = extensions;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("system:node:{node}"));
        params.subject_alt_names = vec![SanType::URI(
            format!("spiffe://kedge.internal/node/{node}").try_into().unwrap(),
        )];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let mut serial = generation.to_be_bytes().to_vec();
        serial.extend([0x7f; 8]);
        params.serial_number = Some(SerialNumber::from(serial));
        let certificate = params.signed_by(&key, &self.tunnel).unwrap();
        tls::identity_from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }
}

/// Lets everyone in but those named.
#[derive(Default)]
pub(crate) struct Gate {
    pub(crate) revoked: Mutex<HashSet<String>>,
    pub(crate) quarantined: Mutex<Vec<String>>,
    pub(crate) least_generation: AtomicU64,
}

impl Admission for Gate {
    fn admit(&self, certificate: &PeerCertificate, now: Duration) -> Result<(), String> {
        assert!(certificate.not_after > now);
        if self.revoked.lock().unwrap().contains(&certificate.node) {
            return Err(format!("node {} is revoked", certificate.node));
        }
        if certificate.generation < self.least_generation.load(Ordering::Relaxed) {
            return Err(format!("generation {} is old", certificate.generation));
        }
        Ok(())
    }

    fn quarantined(&self, node: &str) {
        self.quarantined.lock().unwrap().push(node.to_owned());
    }
}

/// Epochs in memory.
pub(crate) struct Epochs(pub(crate) AtomicU64);

impl EpochSource for Epochs {
    fn next(&self, above: u64) -> BoxFuture<'_, Result<u64, String>> {
        let next = self.0.load(Ordering::Relaxed).max(above) + 1;
        self.0.store(next, Ordering::Relaxed);
        Box::pin(async move { Ok(next) })
    }
}

/// One installation.
pub(crate) struct Site {
    pub(crate) pki: Pki,
    pub(crate) gate: Arc<Gate>,
    pub(crate) keys: QuicKeys,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self {
            pki: Pki::new(),
            gate: Arc::default(),
            keys: QuicKeys::generate(),
        }
    }

    pub(crate) fn hub(&self) -> Hub {
        self.hub_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    pub(crate) fn hub_at(&self, listen: SocketAddr) -> Hub {
        self.hub_with(listen, self.pki.hub_identity())
    }

    /// One that listens on a TCP address too, with UDP on a free port of its own.
    pub(crate) fn hub_over_tcp(&self, tcp: SocketAddr) -> Hub {
        let mut config = self.hub_config(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), self.pki.hub_identity());
        config.listen_tcp = vec![tcp];
        Hub::bind(config).unwrap()
    }

    /// One that listens on UDP and on TCP.
    pub(crate) fn hub_on(&self, udp: SocketAddr, tcp: SocketAddr) -> Hub {
        let mut config = self.hub_config(udp, self.pki.hub_identity());
        config.listen_tcp = vec![tcp];
        Hub::bind(config).unwrap()
    }

    pub(crate) fn hub_with(&self, listen: SocketAddr, certificate: Arc<rustls::sign::SingleCertAndKey>) -> Hub {
        Hub::bind(self.hub_config(listen, certificate)).unwrap()
    }

    pub(crate) fn hub_config(&self, listen: SocketAddr, certificate: Arc<rustls::sign::SingleCertAndKey>) -> HubConfig {
        HubConfig {
            listen,
            listen_tcp: Vec::new(),
            certificate,
            client_roots: Arc::new(tls::roots_from_pem(self.pki.tunnel.pem().as_bytes()).unwrap()),
            hub_instance: rand::random(),
            addresses: Vec::new(),
            limits: Limits::default(),
            keys: self.keys.clone(),
            admission: self.gate.clone(),
            dormant_for: tunnel::DORMANT_FOR,
        }
    }

    pub(crate) fn edge_config(&self, node: &str, hub: SocketAddr) -> EdgeConfig {
        EdgeConfig {
            node: node.to_owned(),
            hubs: vec![hub.to_string()],
            server_name: SERVER_NAME.to_owned(),
            roots: Arc::new(tls::roots_from_pem(self.pki.serving.pem().as_bytes()).unwrap()),
            certificate: self.pki.node_identity(node, 1),
            incarnation: [1; 16],
            epochs: Arc::new(Epochs(AtomicU64::new(0))),
            boot_id: "boot-1".to_owned(),
            agent: "agent-1".to_owned(),
            uplinks: tokio::sync::watch::channel(Vec::new()).1,
            fallback: tunnel::Fallback::default(),
            clock_floor: ClockFloor::default(),
            meter: Meter::default(),
            dormant_for: tunnel::DORMANT_FOR,
        }
    }

    pub(crate) fn edge(&self, node: &str, hub: SocketAddr) -> Edge {
        Edge::new(self.edge_config(node, hub)).unwrap()
    }
}

/// Waits until the session is what is wanted.
pub(crate) async fn becomes(session: &Session, wanted: Presence) {
    let mut presence = session.presence();
    let changed = soon(
        &format!("{wanted:?}"),
        presence.wait_for(|presence| *presence == wanted),
    )
    .await;
    assert!(changed.is_ok(), "the session is gone");
}

/// A deadline for everything that a test waits for.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(15), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within 15 s"),
    }
}

pub(crate) fn wall_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}
