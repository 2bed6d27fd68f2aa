//! What probes and lifecycle hooks do to a container: run a command, ask over HTTP, open a port, ask gRPC's health service, sleep.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::api::{Container, ExecAction, GrpcAction, Handler, HttpGet, Port, Probe};
use cri::Runtime;

/// kubelet keeps this much of an answer for the event.
const MAX_BODY: usize = 10 << 10;

/// Where the container is.
#[derive(Debug, Clone)]
pub struct Target {
    /// The runtime's id.
    pub id: String,
    /// The pod's address, or the node's with hostNetwork.
    pub ip: String,
    /// Its spec, for port names.
    pub container: Container,
}

/// What a probe or hook gave: success or failure with the other side's words, or an error of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Good.
    Success,
    /// The other side says no.
    Failure(String),
    /// It could not be asked.
    Error(String),
}

/// Runs a probe once.
pub async fn probe(runtime: &dyn Runtime, target: &Target, probe: &Probe) -> Answer {
    let limit = Duration::from_secs(probe.timeout());
    if let Some(action) = &probe.exec {
        return exec(runtime, target, action, limit).await;
    }
    let asked = async {
        if let Some(action) = &probe.http_get {
            http_get(target, action, "kube-probe/1.36").await
        } else if let Some(action) = &probe.tcp_socket {
            match tcp(target, &action.host, &action.port).await {
                Ok(_) => Answer::Success,
                Err(error) => Answer::Failure(error),
            }
        } else if let Some(action) = &probe.grpc {
            grpc(target, action).await
        } else {
            Answer::Error("missing probe handler".to_owned())
        }
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
        Answer::Failure(format!(
            "no answer within {}s: context deadline exceeded",
            limit.as_secs()
        ))
    })
}

/// Runs a lifecycle hook.
pub async fn hook(runtime: &dyn Runtime, target: &Target, handler: &Handler, limit: Duration) -> Answer {
    if let Some(action) = &handler.exec {
        return exec(runtime, target, action, limit).await;
    }
    let asked = async {
        if let Some(action) = &handler.http_get {
            http_get(target, action, "kube-lifecycle/1.36").await
        } else if let Some(action) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(action.seconds)).await;
            Answer::Success
        } else if let Some(action) = &handler.tcp_socket {
            match tcp(target, &action.host, &action.port).await {
                Ok(_) => Answer::Success,
                Err(error) => Answer::Failure(error),
            }
        } else {
            Answer::Success
        }
    };
    tokio::time::timeout(limit, asked)
        .await
        .unwrap_or_else(|_| Answer::Failure("the hook did not end in time".to_owned()))
}

async fn exec(runtime: &dyn Runtime, target: &Target, action: &ExecAction, limit: Duration) -> Answer {
    match runtime.exec_sync(&target.id, &action.command, limit).await {
        Ok(output) if output.exit_code == 0 => Answer::Success,
        Ok(output) => {
            let mut text = output.stdout;
            text.extend(output.stderr);
            text.truncate(MAX_BODY);
            Answer::Failure(String::from_utf8_lossy(&text).into_owned())
        }
        Err(error) if error.kind == cri::ErrorKind::Deadline => Answer::Failure(format!(
            "command timed out: {:?} timed out after {}s",
            action.command,
            limit.as_secs()
        )),
        Err(error) => Answer::Error(error.message),
    }
}

async fn tcp(target: &Target, host: &str, port: &Port) -> Result<TcpStream, String> {
    let host = if host.is_empty() { &target.ip } else { host };
    let port = port
        .resolve(&target.container)
        .filter(|p| *p != 0)
        .ok_or("couldn't find the port")?;
    TcpStream::connect((host, port))
        .await
        .map_err(|e| format!("dial tcp {host}:{port}: {e}"))
}

async fn http_get(target: &Target, action: &HttpGet, agent: &str) -> Answer {
    let stream = match tcp(target, &action.host, &action.port).await {
        Ok(stream) => stream,
        Err(error) => return Answer::Failure(error),
    };
    let answered = if action.scheme.eq_ignore_ascii_case("https") {
        match tls::connect(stream).await {
            Ok(stream) => ask(stream, target, action, agent).await,
            Err(error) => Err(error),
        }
    } else {
        ask(stream, target, action, agent).await
    };
    match answered {
        Ok((status, _)) if (200..400).contains(&status) => Answer::Success,
        Ok((status, _)) => Answer::Failure(format!("HTTP probe failed with statuscode: {status}")),
        Err(error) => Answer::Failure(error),
    }
}

async fn ask<S>(stream: S, target: &Target, action: &HttpGet, agent: &str) -> Result<(u16, Vec<u8>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let port = action.port.resolve(&target.container).unwrap_or_default();
    let host = if action.host.is_empty() {
        &target.ip
    } else {
        &action.host
    };
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let path = if action.path.starts_with('/') {
        action.path.clone()
    } else {
        format!("/{}", action.path)
    };
    let mut request = http::Request::get(path);
    let named = |name: &str| action.http_headers.iter().any(|h| h.name.eq_ignore_ascii_case(name));
    if !named("host") {
        request = request.header("host", format!("{host}:{port}"));
    }
    if !named("user-agent") {
        request = request.header("user-agent", agent);
    }
    if !named("accept") {
        request = request.header("accept", "*/*");
    }
    for header in &action.http_headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request
        .header("connection", "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        // A body beyond the limit is not read; the status counts.
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        Ok((status, body.map(|b| b.to_bytes().to_vec()).unwrap_or_default()))
    };
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        done = &mut exchange => done,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// grpc.health.v1.HealthCheckResponse.SERVING
const SERVING: i32 = 1;

async fn grpc(target: &Target, action: &GrpcAction) -> Answer {
    let host = match target.ip.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => target.ip.clone(),
    };
    let endpoint = match tonic::transport::Endpoint::from_shared(format!("http://{host}:{}", action.port)) {
        Ok(endpoint) => endpoint,
        Err(error) => return Answer::Error(error.to_string()),
    };
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => {
            return Answer::Failure(format!(
                "failed to connect service at \"{host}:{}\": {error}",
                action.port
            ));
        }
    };
    let mut client = tonic::client::Grpc::new(channel);
    if let Err(error) = client.ready().await {
        return Answer::Failure(error.to_string());
    }
    let request = tonic::Request::new(HealthRequest {
        service: action.service.clone().unwrap_or_default(),
    });
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthRequest, HealthResponse>::default();
    match client.unary(request, path, codec).await {
        Ok(response) if response.get_ref().status == SERVING => Answer::Success,
        Ok(response) => Answer::Failure(format!(
            "service unhealthy (responded with status {})",
            response.get_ref().status
        )),
        Err(status) => Answer::Failure(format!("health rpc failed: {}", status.message())),
    }
}

/// HTTPS probes do not check the certificate, by Kubernetes' definition: the pod's own address is asked whether it lives, and nothing is told.
mod tls {
    use super::{Arc, TcpStream};
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    struct AnyCertificate(Arc<CryptoProvider>);

    impl ServerCertVerifier for AnyCertificate {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }

    pub(super) async fn connect(stream: TcpStream) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
        let provider = Arc::new(ring::default_provider());
        let address = stream.peer_addr().map_err(|e| e.to_string())?;
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(ServerName::from(address.ip()), stream)
            .await
            .map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn target() -> Target {
        Target {
            id: "c".into(),
            ip: "127.0.0.1".into(),
            container: Container::default(),
        }
    }

    async fn answers_with(text: &'static str) -> Answer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("addr").port();
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut buffer = [0; 1024];
            let n = stream.read(&mut buffer).await.expect("read");
            assert!(buffer[..n].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            stream.write_all(text.as_bytes()).await.expect("write");
        };
        let action = HttpGet {
            path: "healthz".into(),
            port: Port::Number(port),
            ..HttpGet::default()
        };
        let probe_spec = Probe {
            http_get: Some(action),
            ..Probe::default()
        };
        let runtime = cri::fake::FakeRuntime::default();
        let target = target();
        let (answer, ()) = tokio::join!(probe(&runtime, &target, &probe_spec), serve);
        answer
    }

    #[tokio::test]
    async fn http_status_decides() {
        assert_eq!(answers_with("HTTP/1.1 204 No Content\r\n\r\n").await, Answer::Success);
        let failed = Answer::Failure("HTTP probe failed with statuscode: 503".into());
        assert_eq!(
            answers_with("HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno").await,
            failed
        );
        assert!(matches!(answers_with("garbage\r\n\r\n").await, Answer::Failure(_)));
    }

    #[tokio::test]
    async fn a_closed_port_is_a_failure() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("addr").port();
        let action = super::super::api::TcpSocket {
            port: Port::Number(port),
            host: String::new(),
        };
        let spec = Probe {
            tcp_socket: Some(action),
            ..Probe::default()
        };
        let runtime = cri::fake::FakeRuntime::default();
        assert_eq!(probe(&runtime, &target(), &spec).await, Answer::Success);
        drop(listener);
        assert!(matches!(probe(&runtime, &target(), &spec).await, Answer::Failure(_)));
        let spec = Probe {
            grpc: Some(GrpcAction { port, service: None }),
            ..Probe::default()
        };
        assert!(matches!(probe(&runtime, &target(), &spec).await, Answer::Failure(_)));
    }
}
