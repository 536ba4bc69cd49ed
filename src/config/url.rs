//! URLs of app servers, and origins.
use super::UpstreamUrl;
use super::value::{Refused, refused};
use ::url::Url;

/// Reads the URL of an app server. Whether it ends in the hub path is asked elsewhere, since that is a setting of its own.
pub fn parse(text: &str) -> Result<UpstreamUrl, Refused> {
    let example = "write it like http://127.0.0.1:6100";
    let Ok(url) = Url::parse(text) else {
        return Err(match text.split_once("://") {
            None => refused(format!("{text:?} is not a URL"), format!("write http://{text}")),
            Some(_) => refused(format!("{text:?} is not a URL"), example),
        });
    };
    match url.scheme() {
        "http" | "ws" | "https" | "wss" => {}
        // `localhost:6100` parses as the scheme "localhost".
        _ if !text.contains("://") => {
            return Err(refused(format!("{text:?} has no scheme"), format!("write http://{text}")));
        }
        scheme => return Err(refused(format!("{scheme}:// is not a scheme of app servers"), example)),
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The password is not repeated: faults end up in logs.
        return Err(refused(
            "the URL carries a user name or password, which would not be sent",
            "take them out of the URL",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refused(format!("{text:?} has a query or fragment"), "take off everything from ? or # on"));
    }
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err(refused(format!("{text:?} names no host"), example));
    };
    if port == 0 {
        return Err(refused("port 0 is not a port one can connect to", example));
    }
    let host = match host {
        ::url::Host::Ipv6(address) => address.to_string(),
        host => host.to_string(),
    };
    Ok(UpstreamUrl {
        tls: matches!(url.scheme(), "https" | "wss"),
        host,
        port,
        base: url.path().trim_end_matches('/').to_string(),
        text: text.trim_end_matches('/').to_string(),
    })
}

/// Reads the address of another node's admin endpoint, `host:port` or `http://host:port`, and gives the first form.
pub fn peer(text: &str) -> Result<String, Refused> {
    let example = "write it like 10.0.0.2:9090 or node-2.internal:9090";
    let address = match text.split_once("://") {
        None => text,
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest.strip_suffix('/').unwrap_or(rest),
        Some((scheme, _)) => {
            return Err(refused(format!("{scheme}:// is not what admin endpoints speak"), example));
        }
    };
    // A password is not repeated: faults end up in logs.
    if address.contains('@') {
        return Err(refused("the address carries a user name or password, which would not be sent", example));
    }
    let url = Url::parse(&format!("http://{address}")).ok();
    let Some(host) = url.as_ref().and_then(Url::host).filter(|_| !address.contains(['/', '?', '#'])) else {
        return Err(refused(format!("{text:?} is not an address of another node"), example));
    };
    // URLs may go without a port and mean 80 then, where hardly an admin endpoint is.
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).filter(|port| *port != 0);
    match port {
        Some(port) => Ok(format!("{host}:{port}")),
        None => Err(refused(format!("{text:?} names no port"), format!("write {host}:9090 if it is the default one"))),
    }
}

/// Reads an origin as browsers send it: scheme, host, and port unless it is the scheme's own.
pub fn origin(text: &str) -> Result<String, Refused> {
    let example = "write it as browsers send it, e.g. https://app.example.com or http://localhost:8080";
    if text.contains('*') {
        return Err(refused(
            format!("{text:?}: wildcards are not supported"),
            "list every origin exactly, e.g. https://app.example.com",
        ));
    }
    if text.eq_ignore_ascii_case("null") {
        return Err(refused(
            "the origin null is sent by any sandboxed page and file",
            "serve the page from an origin of its own and list that",
        ));
    }
    let Ok(url) = Url::parse(text) else {
        return Err(refused(format!("{text:?} is not an origin"), example));
    };
    if !matches!(url.scheme(), "http" | "https") || !text.contains("://") {
        return Err(refused(format!("{text:?} is not an http or https origin"), example));
    }
    let exact = url.origin().ascii_serialization();
    if exact.eq_ignore_ascii_case(text) {
        Ok(exact)
    } else {
        // A path, a trailing slash, user-info, or the scheme's own port: the browser sends none, so it would never match.
        Err(refused(format!("{text:?} is not an exact origin and would never match"), format!("write {exact}")))
    }
}

impl UpstreamUrl {
    /// Whether two of them, perhaps written differently, lead to one place.
    pub(super) fn is_same_place(&self, other: &UpstreamUrl) -> bool {
        let place = |url: &UpstreamUrl| (url.tls, url.host.clone(), url.port, url.base.clone());
        place(self) == place(other)
    }

    /// Value of the Host header; IPv6 in brackets, the default port left out.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default_port = if self.tls { 443 } else { 80 };
        if self.port == default_port { host } else { format!("{host}:{}", self.port) }
    }

    /// The suffix that has to go, if the URL names the hub as well (contract 6.8: it comes without).
    pub(super) fn hub_suffix<'a>(&self, hub_path: &'a str) -> Option<&'a str> {
        let ends_with = |suffix: &str| {
            let (base, suffix) = (self.base.as_bytes(), suffix.as_bytes());
            base.len() >= suffix.len() && base[base.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
        };
        [hub_path, "/dotnetify"].into_iter().find(|suffix| ends_with(suffix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(text: &str) -> (String, u16, String, String) {
        let url = parse(text).unwrap_or_else(|refused| panic!("{text}: {refused:?}"));
        (url.host.clone(), url.port, url.base.clone(), url.authority())
    }

    #[test]
    fn urls_are_taken_apart() {
        assert_eq!(good("http://127.0.0.1:6100"), ("127.0.0.1".into(), 6100, "".into(), "127.0.0.1:6100".into()));
        assert_eq!(good("http://app.internal/"), ("app.internal".into(), 80, "".into(), "app.internal".into()));
        assert_eq!(good("ws://[::1]:6100/tenant/a/"), ("::1".into(), 6100, "/tenant/a".into(), "[::1]:6100".into()));
        assert_eq!(good("https://app"), ("app".into(), 443, "".into(), "app".into()));
        assert_eq!(good("wss://app:80/x"), ("app".into(), 80, "/x".into(), "app:80".into()));
        assert_eq!(good("http://app:443"), ("app".into(), 443, "".into(), "app:443".into()));
        for (text, tls) in [("http://a", false), ("ws://a", false), ("https://a", true), ("wss://a", true)] {
            assert_eq!(parse(text).unwrap().tls, tls, "{text}");
        }
        assert_eq!(parse("http://a/").unwrap().text, "http://a");
    }

    #[test]
    fn what_cannot_be_dialled_says_why() {
        for (text, part) in [
            ("localhost:6100", "write http://localhost:6100"),
            ("app", "write http://app"),
            ("ftp://app", "not a scheme"),
            ("http://user:secret@app", "user name or password"),
            ("http://app?x=1", "query or fragment"),
            ("http://app:0", "port 0"),
            ("http://", "not a URL"),
            ("http://a b", "not a URL"),
        ] {
            let refused = parse(text).expect_err(text);
            let said = format!("{}; {}", refused.reason, refused.remedy);
            assert!(said.contains(part), "{text}: {said}");
            assert!(!said.contains("secret"));
        }
    }

    #[test]
    fn peers_are_host_and_port() {
        for (text, shown) in [
            ("10.0.0.2:9090", "10.0.0.2:9090"),
            ("http://10.0.0.2:9090/", "10.0.0.2:9090"),
            ("HTTP://Node-2:80", "node-2:80"),
            ("[::1]:9090", "[::1]:9090"),
        ] {
            assert_eq!(peer(text).as_deref(), Ok(shown), "{text}");
            assert_eq!(peer(shown).as_deref(), Ok(shown));
        }
        for (text, part) in [
            ("node-2", "write node-2:9090"),
            ("http://node-2/", "write node-2:9090"),
            ("[::1]", "write [::1]:9090"),
            ("node-2:0", "names no port"),
            ("https://node-2:9090", "https:// is not what"),
            ("node-2:9090/metrics", "is not an address"),
            ("me:secret@node-2:9090", "user name or password"),
            ("::1:9090", "is not an address"),
            ("", "is not an address"),
        ] {
            let refused = peer(text).expect_err(text);
            let said = format!("{}; {}", refused.reason, refused.remedy);
            assert!(said.contains(part) && !said.contains("secret"), "{text}: {said}");
        }
    }

    #[test]
    fn one_place_may_be_written_differently() {
        let same = |a: &str, b: &str| parse(a).unwrap().is_same_place(&parse(b).unwrap());
        assert!(same("http://App", "ws://app:80/") && same("https://app/x/", "wss://app:443/x"));
        assert!(!same("http://app", "https://app") && !same("http://app", "http://app/x"));
    }

    #[test]
    fn origins_are_exact() {
        assert_eq!(origin("https://app.example.com").unwrap(), "https://app.example.com");
        assert_eq!(origin("HTTP://Localhost:8080").unwrap(), "http://localhost:8080");
        for text in [
            "*",
            "https://*.example.com",
            "https://app.example.com/",
            "https://a/path",
            "https://a:443",
            "null",
            "app.example.com",
            "ftp://a",
            "localhost:80",
            "",
        ] {
            assert!(origin(text).is_err(), "{text}");
        }
        assert!(origin("https://a/").unwrap_err().remedy.contains("write https://a"));
    }
}
