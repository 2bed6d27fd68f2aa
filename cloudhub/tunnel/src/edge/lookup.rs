//! The hub's name, looked up over the uplink that is to lead there: behind a private APN it may mean another address than elsewhere.
//!
//! - an uplink with a device: the machine's name servers are asked over a socket bound to it ([`dns`]), and the system's resolver beside;
//!   what the device says counts
//! - an uplink without one, a name of `/etc/hosts`, a name without a dot (it has search domains), or a device over which no name server
//!   answers: the system's resolver
//!
//! The answer is believed as little as any of DNS: whoever is there must have the hub's certificate.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use self::dns::Kind;
use super::Uplink;
use super::dial::AttemptError;
use crate::transport;

pub(crate) mod dns;

/// A name server that does not answer is no reason to wait longer.
const LOOKUP_WITHIN: Duration = Duration::from_secs(3);
/// The same over a device: there is the system's answer to go by.
const DEVICE_WITHIN: Duration = Duration::from_secs(1);
/// As many as the system's resolver asks (resolv.conf(5)).
const MAX_SERVERS: usize = 3;
/// systemd-resolved, which listens on loopback only, writes the servers of all links here.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The hub's addresses as this uplink sees them, at least one.
pub(super) async fn look_up(hub: &str, uplink: &Uplink) -> Result<Vec<SocketAddr>, AttemptError> {
    if let Ok(literal) = hub.parse() {
        return Ok(vec![literal]);
    }
    let (own, system) = tokio::join!(over_device(hub, uplink), by_system(hub));
    if own.is_empty() { system } else { Ok(own) }
}

async fn by_system(hub: &str) -> Result<Vec<SocketAddr>, AttemptError> {
    let fail = |why: String| AttemptError::Lookup {
        hub: hub.to_owned(),
        why,
    };
    let found = timeout(LOOKUP_WITHIN, tokio::net::lookup_host(hub)).await;
    let addresses: Vec<_> = found
        .map_err(|_| fail("no answer".to_owned()))?
        .map_err(|error| fail(error.to_string()))?
        .collect();
    if addresses.is_empty() {
        return Err(fail("no address".to_owned()));
    }
    Ok(addresses)
}

/// Empty when nothing was found so, for whatever reason.
async fn over_device(hub: &str, uplink: &Uplink) -> Vec<SocketAddr> {
    let Some((name, port)) = hub.rsplit_once(':') else {
        return Vec::new();
    };
    let (Some(_), Ok(port)) = (&uplink.device, port.parse::<u16>()) else {
        return Vec::new();
    };
    let hosts = read("/etc/hosts").await;
    if !name.contains('.') || is_among_hosts(&hosts, name) {
        return Vec::new();
    }
    let mut servers = Vec::new();
    for file in RESOLV_CONF {
        if servers.is_empty() {
            servers = name_servers(&read(file).await);
        }
    }
    let found = ask(&servers, name, uplink).await;
    found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

/// A file that is not there says nothing.
async fn read(file: &str) -> String {
    tokio::fs::read_to_string(Path::new(file)).await.unwrap_or_default()
}

fn is_among_hosts(hosts: &str, name: &str) -> bool {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .flat_map(|line| line.split_whitespace().skip(1))
        .any(|host| host.eq_ignore_ascii_case(name))
}

/// Those that can be reached over a device.
fn name_servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"));
    let servers = lines.filter_map(|server| server.trim().parse::<IpAddr>().ok());
    servers
        .filter(|server| !server.is_loopback())
        .take(MAX_SERVERS)
        .map(|server| SocketAddr::new(server, 53))
        .collect()
}

/// Asks all servers at once; the first that knows an address decides.
async fn ask(servers: &[SocketAddr], name: &str, uplink: &Uplink) -> Vec<IpAddr> {
    if servers.is_empty() {
        return Vec::new();
    }
    let asked = servers.iter().map(|server| Box::pin(ask_one(*server, name, uplink)));
    let first = async {
        match futures::future::select_ok(asked).await {
            Ok((addresses, _)) => addresses,
            Err(error) => {
                tracing::debug!(%error, uplink = uplink.name, name, "no name server of this uplink knows the hub");
                Vec::new()
            }
        }
    };
    timeout(DEVICE_WITHIN, first).await.unwrap_or_default()
}

/// The addresses of both families, at least one.
async fn ask_one(server: SocketAddr, name: &str, uplink: &Uplink) -> std::io::Result<Vec<IpAddr>> {
    let socket = transport::socket(uplink.source(server), uplink.device.as_deref())?;
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(server).await?;
    let ids: [u16; 2] = [rand::random(), rand::random()];
    for (id, kind) in ids.into_iter().zip([Kind::Aaaa, Kind::A]) {
        let query = dns::query(id, name, kind).ok_or(std::io::ErrorKind::InvalidInput)?;
        socket.send(&query).await?;
    }
    let (mut found, mut open) = (Vec::new(), ids.to_vec());
    let mut buffer = [0; 1500];
    while !open.is_empty() {
        let length = socket.recv(&mut buffer).await?;
        let Some((id, addresses)) = dns::answer(&buffer[..length]) else {
            continue;
        };
        if open.contains(&id) {
            open.retain(|wanted| *wanted != id);
            found.extend(addresses);
        }
    }
    if found.is_empty() {
        return Err(std::io::Error::other(format!("{server} knows no address of {name}")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_resolver_reads_them() {
        let hosts = "127.0.0.1 localhost\n10.0.0.9\thub.example  HUB # the.comment\n";
        assert!(is_among_hosts(hosts, "hub") && is_among_hosts(hosts, "Hub.Example"));
        assert!(!is_among_hosts(hosts, "the.comment") && !is_among_hosts(hosts, "10.0.0.9"));
        let conf = "# nameserver 9.9.9.9\nsearch example\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n nameserver 2001:db8::1\nnameserver x\n";
        let servers = name_servers(conf);
        assert_eq!(
            servers,
            ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]
        );
    }

    #[tokio::test]
    async fn the_servers_of_an_uplink_are_asked_for_both_families() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        let serve = async {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = server.recv_from(&mut buffer).await.unwrap();
                let query = &buffer[..length];
                server.send_to(b"noise", from).await.unwrap();
                server.send_to(&dns::tests::reply(query), from).await.unwrap();
            }
        };
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = [silent.local_addr().unwrap(), at];
        let uplink = Uplink::new("lo", Some("lo"));
        let found = tokio::select! {
            found = ask(&servers, "hub.example.org", &uplink) => found,
            never = serve => never,
        };
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().any(IpAddr::is_ipv4) && found.iter().any(IpAddr::is_ipv6));
        assert_eq!(
            ask(&servers[..1], "hub.example.org", &uplink).await,
            [] as [IpAddr; 0],
            "no answer"
        );
        assert_eq!(ask(&[], "hub.example.org", &uplink).await, [] as [IpAddr; 0]);
    }

    #[tokio::test]
    async fn literals_are_asked_of_nobody_and_what_only_the_system_knows_of_it() {
        let uplink = Uplink::new("lo", Some("lo"));
        let found = look_up("[2001:db8::1]:6444", &uplink).await.unwrap();
        assert_eq!(found, ["[2001:db8::1]:6444".parse().unwrap()]);
        let found = look_up("localhost:6444", &uplink).await.unwrap();
        assert!(
            found
                .iter()
                .all(|address| address.ip().is_loopback() && address.port() == 6444)
        );
        assert!(look_up("no such name:1", &uplink).await.is_err());
    }
}
