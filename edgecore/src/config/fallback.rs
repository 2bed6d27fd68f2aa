//! How the hub is reached where a site blocks UDP.

use serde::{Deserialize, Serialize};

use super::{ConfigError, HubConfig, check};

/// What most sites let out.
const HTTPS: u16 = 443;

/// The way over TCP: it is taken by itself where UDP does not get through, and left when it does again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FallbackConfig {
    /// Whether TCP is tried at all.
    pub enabled: bool,
    /// The hub's TCP port; 0: those of `hub.addresses` and of `hub.joinAddress`, and 443, whichever answers.
    pub port: u16,
    /// The site's HTTP proxy, `http://HOST:PORT`; empty: none.
    pub proxy: String,
    /// A file whose first line is the proxy's `USER:PASSWORD`; empty: it wants none.
    pub proxy_credentials_file: String,
}

impl Default for FallbackConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            port: 0,
            proxy: String::new(),
            proxy_credentials_file: String::new(),
        }
    }
}

impl FallbackConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let proxy = self.proxy.is_empty() || self.proxy.parse::<tunnel::Proxy>().is_ok();
        check(
            proxy,
            "hub.fallback.proxy",
            &self.proxy,
            "http://HOST:PORT, without user, password or path",
        )?;
        check(
            self.proxy_credentials_file.is_empty() || !self.proxy.is_empty(),
            "hub.fallback.proxyCredentialsFile",
            &self.proxy_credentials_file,
            "of use without hub.fallback.proxy",
        )
    }
}

impl HubConfig {
    /// The way over TCP as the tunnel wants it.
    #[must_use]
    pub fn over_tcp(&self) -> tunnel::Fallback {
        let FallbackConfig {
            enabled,
            port,
            proxy,
            proxy_credentials_file,
        } = &self.fallback;
        let join = self
            .join_address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        tunnel::Fallback {
            ports: match (enabled, port) {
                (false, _) => Vec::new(),
                // The address's own, as 0 says to the tunnel.
                (true, 0) => [0].into_iter().chain(join).chain([HTTPS]).collect(),
                (true, port) => vec![*port],
            },
            // It was looked at when the file was.
            proxy: proxy
                .parse()
                .ok()
                .map(|proxy: tunnel::Proxy| match proxy_credentials_file.as_str() {
                    "" => proxy,
                    file => proxy.with_credentials(file),
                }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(fallback: &str) -> HubConfig {
        let text = format!("{{addresses: ['hub:7000'], joinAddress: 'hub:7001', fallback: {fallback}}}");
        serde_yaml_ng::from_str(&text).unwrap()
    }

    #[test]
    fn by_itself_each_port_that_may_be_the_hubs_is_tried() {
        assert_eq!(hub("{}").over_tcp().ports, [0, 7001, 443]);
        assert_eq!(hub("{port: 8443}").over_tcp().ports, [8443]);
        assert!(hub("{enabled: false, port: 8443}").over_tcp().ports.is_empty());
        let proxied = hub("{proxy: 'http://proxy.site:3128'}").over_tcp();
        assert_eq!(proxied.proxy.clone().unwrap().authority(), "proxy.site:3128");
        let known = hub("{proxy: 'http://proxy.site:3128', proxyCredentialsFile: /etc/kedge/proxy}").over_tcp();
        assert_eq!(
            known.proxy,
            proxied.proxy.map(|proxy| proxy.with_credentials("/etc/kedge/proxy"))
        );
    }

    #[test]
    fn a_proxy_that_is_none_is_named() {
        for proxy in [
            "proxy.site:3128",
            "https://proxy.site:3128",
            "http://me:secret@proxy.site:3128",
        ] {
            let error = hub(&format!("{{proxy: '{proxy}'}}"))
                .fallback
                .validate()
                .unwrap_err()
                .to_string();
            let wanted =
                format!("hub.fallback.proxy: {proxy:?} is not http://HOST:PORT, without user, password or path");
            assert_eq!(error, wanted);
        }
        let lonely = hub("{proxyCredentialsFile: /etc/kedge/proxy}").fallback.validate();
        let wanted = "hub.fallback.proxyCredentialsFile: \"/etc/kedge/proxy\" is not of use without hub.fallback.proxy";
        assert_eq!(lonely.unwrap_err().to_string(), wanted);
        let misspelt = serde_yaml_ng::from_str::<HubConfig>("{fallback: {ports: [443]}}").unwrap_err();
        assert!(misspelt.to_string().contains("ports"), "{misspelt}");
        assert!(serde_yaml_ng::from_str::<HubConfig>("{fallback: {port: 70000}}").is_err());
    }
}
