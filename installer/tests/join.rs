//! `kedge join` as a process against a real join listener.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use serde_yaml_ng::Value;
use site::{Site, TOKEN};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_machine_joins_and_has_what_edgecore_needs() {
    let site = Site::start().await;
    let hash = site.identity.serving_ca().ca_hash();
    let output = site.join(TOKEN, &hash, &[]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let pki = site.path("state/pki");
    assert_eq!(mode(&pki.join("client.key")), 0o600);
    let read = |name: &str| fs::read(pki.join(name)).unwrap();
    assert_eq!(read("serving-ca.crt"), site.identity.serving_ca().pem().as_bytes());
    assert_eq!(read("tunnel-ca.crt"), site.identity.tunnel_ca().pem().as_bytes());
    tunnel::tls::identity_from_pem(&read("client.crt"), &read("client.key")).unwrap();
    let config = fs::read(site.path("etc/edgecore.yaml")).unwrap();
    let config: Value = serde_yaml_ng::from_slice(&config).unwrap();
    assert_eq!(config["nodeName"], "robot-1");
    assert_eq!(config["kind"], "EdgecoreConfig");
    assert_eq!(config["hub"]["addresses"][0], "hub.example:6444");
    let again = site.join(TOKEN, &hash, &[]).await;
    assert!(stderr(&again).contains("joined already"), "{}", stderr(&again));
    let spent = site.join(TOKEN, &hash, &["--force"]).await;
    assert!(stderr(&spent).contains("TokenSpent"), "{}", stderr(&spent));
}

#[tokio::test]
async fn a_refused_join_says_why_and_leaves_nothing() {
    let site = Site::start().await;
    let hash = site.identity.serving_ca().ca_hash();
    let other_hash = site.identity.tunnel_ca().ca_hash();
    let cases = [
        (TOKEN, other_hash.as_str(), &[][..], "--ca-hash"),
        ("zzz999.0123456789abcdef", &hash, &[], "TokenUnknown"),
        (TOKEN, &hash, &["--node", "robot-2"], "TokenUnknown"),
        ("nonsense", &hash, &[], "TokenMalformed"),
        (TOKEN, "sha256:12", &[], "64 hexadecimal digits"),
        (TOKEN, &hash, &["--node", "Robot"], "DNS subdomain"),
    ];
    for (token, hash, more, why) in cases {
        let output = site.join(token, hash, more).await;
        assert!(!output.status.success());
        assert!(stderr(&output).contains(why), "{why}: {}", stderr(&output));
        assert!(!site.path("state").exists() && !site.path("etc").exists());
    }
}
