//! A client, this proxy and a kubelet on real sockets, with real TLS.

use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::service::service_fn;
use kit::pki::Authority;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::store::Expect;

/// What a test's kubelet does: says what it was asked, streams, or upgrades to an echo.
async fn kubelet(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let body = |text: String| Full::from(text).map_err(|never| match never {}).boxed_unsync();
    if request.uri().path() == "/missing" {
        let mut response = Response::new(body("pod does not exist".into()));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    }
    if request.headers().contains_key(header::UPGRADE) {
        let upgraded = hyper::upgrade::on(&mut request);
        // The test's kubelet has no owner but its connection: the echo ends with it.
        let mut echo = JoinSet::new();
        echo.spawn(async move {
            let mut stream = TokioIo::new(upgraded.await.unwrap());
            let mut buffer = [0; 64];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..read]).await.unwrap();
            }
        });
        echo.detach_all();
        let response = Response::builder()
            .status(101)
            .header("Connection", "Upgrade")
            .header("Upgrade", request.headers()[header::UPGRADE].clone());
        return Ok(response.body(body(String::new())).unwrap());
    }
    let headers: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
    let said = format!("{} {} {headers:?}", request.method(), request.uri());
    Ok(Response::builder()
        .header("keep-alive", "timeout=5")
        .header("x-kubelet", "yes")
        .body(body(said))
        .unwrap())
}

struct Site {
    kubelets: Arc<Kubelets>,
    connector: TlsConnector,
    to: Endpoint,
    serving: Authority,
    tasks: JoinSet<()>,
    _folder: tempfile::TempDir,
}

impl Site {
    /// A kubelet whose certificate is for `name`, by an authority that is trusted or not.
    async fn new(name: &str, trusted: bool) -> Self {
        let (serving, clients) = (Authority::new("serving").unwrap(), Authority::new("clients").unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = Endpoint {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
        };
        let acceptor = acceptor(&serving.server(&[], &[name]).unwrap(), &clients.certificate);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let http = hyper::server::conn::http1::Builder::new();
                    let connection = http.serve_connection(TokioIo::new(stream), service_fn(kubelet));
                    let _ = connection.with_upgrades().await;
                });
            }
        });
        let (certificate, key) = clients
            .client("kube-apiserver-kubelet-client", &["system:masters"])
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (store, committer) = Store::open(folder.path()).unwrap();
        tasks.spawn(committer.run());
        let ca = ("kedge-system".to_owned(), "ca-serving".to_owned());
        let kubelets = Arc::new(Kubelets::new(store, (certificate, key), ca));
        let other = Authority::new("other").unwrap();
        let trust = if trusted { &serving } else { &other };
        let connector = connector(&kubelets.identity, roots(trust.certificate.as_bytes()).unwrap()).unwrap();
        Self {
            kubelets,
            connector,
            to,
            serving,
            tasks,
            _folder: folder,
        }
    }

    /// A plain listener that passes everything on.
    async fn listen(&mut self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (kubelets, connector, to) = (self.kubelets.clone(), self.connector.clone(), self.to.clone());
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (kubelets, connector, to) = (kubelets.clone(), connector.clone(), to.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (kubelets, connector, to) = (kubelets.clone(), connector.clone(), to.clone());
                        async move {
                            let path = request.uri().path_and_query().unwrap().as_str().to_owned();
                            let answer = kubelets.pass_on((&to, &connector), request, &path).await;
                            Ok::<_, Infallible>(answer.unwrap_or_else(|status| {
                                let text = status.to_json().to_string();
                                let body = Full::from(text).map_err(|never| match never {});
                                let mut response = Response::new(body.boxed_unsync());
                                *response.status_mut() = StatusCode::from_u16(status.code).unwrap();
                                response
                            }))
                        }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let connection = http.serve_connection(TokioIo::new(stream), service);
                    let _ = connection.with_upgrades().await;
                });
            }
        });
        address
    }
}

fn acceptor((certificate, key): &(String, String), client_ca: &str) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = Arc::new(roots(client_ca.as_bytes()).unwrap());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .unwrap();
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn ask(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn whole(address: SocketAddr, request: &str) -> String {
    let mut answer = String::new();
    ask(address, request).await.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_request_is_passed_on_without_the_callers_credentials() {
    let mut site = Site::new("127.0.0.1", true).await;
    let address = site.listen().await;
    let request = "GET /containerLogs/a/b/c?follow=true HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer secret\r\n\
                   Impersonate-User: root\r\nImpersonate-Extra-x: y\r\nX-Own: 1\r\nX-Hop: 1\r\n\
                   Connection: close, x-hop\r\n\r\n";
    let answer = whole(address, request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.contains("GET /containerLogs/a/b/c?follow=true [\"host\", \"x-own\"]"),
        "{answer}"
    );
    assert!(
        answer.contains("x-kubelet: yes") && !answer.contains("keep-alive"),
        "{answer}"
    );
}

#[tokio::test]
async fn an_upgrade_becomes_a_pipe_in_both_directions() {
    let mut site = Site::new("127.0.0.1", true).await;
    let address = site.listen().await;
    let request = "POST /exec/a/b/c HTTP/1.1\r\nHost: api\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n";
    let mut stream = ask(address, request).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains("upgrade: spdy/3.1"),
        "{head}"
    );
    for word in ["typed", "again"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut echo = [0; 5];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, word.as_bytes());
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "the end is carried too");
}

#[tokio::test]
async fn a_kubelet_of_another_authority_or_address_is_not_asked() {
    for (name, trusted) in [("127.0.0.1", false), ("10.0.0.9", true)] {
        let mut site = Site::new(name, trusted).await;
        let address = site.listen().await;
        let answer = whole(address, "GET /pods HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
        assert!(
            answer.contains("error dialing backend") && answer.contains("certificate"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn what_is_fetched_is_bounded_and_must_be_there() {
    let site = Site::new("127.0.0.1", true).await;
    let fetch = |path: &'static str, limit| fetch(&site.to, &site.connector, path, limit);
    assert!(
        fetch("/metrics/resource", 1000)
            .await
            .unwrap()
            .starts_with(b"GET /metrics/resource")
    );
    assert_eq!(fetch("/metrics/resource", 3).await.unwrap_err().code, 500);
    assert!(fetch("/missing", 1000).await.unwrap_err().message.contains("404"));
    let (node, nobody) = (site.kubelets.node("n1"), site.kubelets.connector());
    assert_eq!(node.unwrap_err().message, "nodes \"n1\" not found");
    assert_eq!(nobody.map(|_| ()).unwrap_err().code, 503, "no Secret, no trust");
}

#[tokio::test]
async fn node_and_authority_are_read_from_the_store_as_they_are_now() {
    let site = Site::new("127.0.0.1", true).await;
    let store = &site.kubelets.store;
    let node = json!({"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                      "daemonEndpoints": {"kubeletEndpoint": {"Port": site.to.port}}}});
    let nodes = kinds::row("", "v1", "nodes").unwrap().storage;
    store
        .put(Key::new(nodes, "", "n1"), Expect::Absent, node)
        .await
        .unwrap();
    let secrets = Key::new(
        kinds::row("", "v1", "secrets").unwrap().storage,
        "kedge-system",
        "ca-serving",
    );
    let secret = |ca: &Authority| json!({"data": {"tls.crt": STANDARD.encode(&ca.certificate)}});
    let other = Authority::new("other").unwrap();
    let stored = store
        .put(secrets.clone(), Expect::Absent, secret(&other))
        .await
        .unwrap();
    let fetch = || site.kubelets.fetch("n1", "/pods", 1000);
    assert!(fetch().await.unwrap_err().message.contains("certificate"));
    let expect = Expect::Version(stored.resource_version);
    store.put(secrets, expect, secret(&site.serving)).await.unwrap();
    assert!(
        fetch().await.unwrap().starts_with(b"GET /pods"),
        "the new authority is taken at once"
    );
}

#[test]
fn a_node_is_called_at_the_address_that_comes_first() {
    let node = |addresses: Value, port: Value| json!({"status": {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    let internal = json!({"type": "InternalIP", "address": "10.98.0.1"});
    let found = endpoint(&node(
        json!([{"type": "ExternalIP", "address": "1.2.3.4"}, internal]),
        json!(10300),
    ))
    .unwrap();
    assert_eq!(found.to_string(), "10.98.0.1:10300");
    let v6 = endpoint(&node(
        json!([{"type": "InternalIP", "address": "fd00::1"}]),
        Value::Null,
    ))
    .unwrap();
    assert_eq!(v6.to_string(), "[fd00::1]:10250");
    let none = endpoint(&node(json!([]), json!(1))).unwrap_err();
    assert!(
        none.message
            .ends_with("no preferred addresses found; known addresses: []")
    );
}

#[test]
fn refusals_of_logs_are_the_real_servers() {
    let bad = log_refusal(
        StatusCode::BAD_REQUEST,
        "container \"c\" in pod \"p\" is waiting to start",
        "p",
    );
    assert_eq!((bad.code, bad.reason), (400, "BadRequest"));
    let missing = log_refusal(StatusCode::NOT_FOUND, "pod does not exist", "p");
    assert_eq!(
        missing.message,
        "the server could not find the requested resource ( pods/log p)"
    );
    assert_eq!(missing.details.unwrap().kind, "pods/log");
    let broken = log_refusal(StatusCode::INTERNAL_SERVER_ERROR, "no", "p");
    assert_eq!(broken.message, "Internal error occurred: no");
}
