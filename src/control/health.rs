//! One question to an admin endpoint, for health checks of containers: their images have no shell and no curl.
use crate::limits::HEALTH_ANSWER_BYTES_MAX;
use core::time::Duration;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;
use url::Url;

/// Asks `url` with GET and returns the first line of what it says, if it says it with a status of 2xx within `patience`.
///
/// # Errors
///
/// `InvalidInput` if the URL is not one of plain HTTP. Otherwise what is wrong with the one who was asked: nobody listens there, it is
/// silent, or it answers with another status; then the error's text has that status and the first line of its reason.
pub fn ask(url: &str, patience: Duration) -> io::Result<String> {
    let deadline = Instant::now() + patience;
    let wrong = |why: &str| io::Error::new(ErrorKind::InvalidInput, format!("{url:?} {why}"));
    let parsed = Url::parse(url).map_err(|_| wrong("is not a URL; write it like http://127.0.0.1:9090/ready"))?;
    if parsed.scheme() != "http" {
        return Err(wrong("is not an http:// URL; the admin endpoint speaks plain HTTP"));
    }
    let within = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let exchange = || -> io::Result<Vec<u8>> {
        let mut stream = connect(&parsed.socket_addrs(|| None)?, within)?;
        let path = &parsed[url::Position::BeforePath..url::Position::AfterQuery];
        let host = &parsed[url::Position::BeforeHost..url::Position::AfterPort];
        stream.set_write_timeout(Some(within()?))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        // A longer answer is cut: its status and its first line are all that is asked for.
        while answer.len() < HEALTH_ANSWER_BYTES_MAX {
            stream.set_read_timeout(Some(within()?))?;
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => answer.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answer)
    };
    let answer = exchange().map_err(|error| match error.kind() {
        // The read timeout of a socket is WouldBlock on Linux.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            io::Error::new(ErrorKind::TimedOut, format!("{url} has not answered in {} s", patience.as_secs_f32()))
        }
        kind => io::Error::new(kind, format!("{url}: {error}")),
    })?;
    let (status, said) = read(&answer)
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("{url} does not answer in HTTP")))?;
    if (200..300).contains(&status) { Ok(said) } else { Err(io::Error::other(format!("{url} says {status}: {said}"))) }
}

/// To the first address that takes the connection, as a name may have several.
fn connect(addresses: &[SocketAddr], within: impl Fn() -> io::Result<Duration>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, within()?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Status and first line of the body.
fn read(answer: &[u8]) -> Option<(u16, String)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(body) = head.parse(answer).ok()? else { return None };
    let said = String::from_utf8_lossy(&answer[body..]);
    Some((head.code?, said.lines().next().unwrap_or_default().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Somebody who says `answer` to the first who connects, and then closes if `close`.
    fn somebody(answer: &'static str, close: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/ready?a=b", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            let count = stream.read(&mut asked).unwrap();
            assert!(asked[..count].starts_with(b"GET /ready?a=b HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(answer.as_bytes()).unwrap();
            if !close {
                std::thread::sleep(Duration::from_secs(5));
            }
        });
        url
    }

    #[test]
    fn the_first_line_of_a_good_answer_is_what_was_said() {
        let url = somebody("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nready\nlater\n", true);
        assert_eq!(ask(&url, Duration::from_secs(5)).unwrap(), "ready");
    }

    #[test]
    fn every_other_answer_is_an_error_that_says_why() {
        let why = |answer, close| ask(&somebody(answer, close), Duration::from_millis(300)).unwrap_err().to_string();
        let unready = why("HTTP/1.1 503 Service Unavailable\r\n\r\nno lane is up\n", true);
        assert!(unready.ends_with("says 503: no lane is up"), "{unready}");
        assert!(why("SSH-2.0-OpenSSH\r\n", true).ends_with("does not answer in HTTP"));
        assert!(why("", true).ends_with("does not answer in HTTP"));
        assert!(why("", false).ends_with("has not answered in 0.3 s"));
        let refused = ask("http://127.0.0.1:1/ready", Duration::from_secs(5)).unwrap_err();
        assert!(refused.to_string().starts_with("http://127.0.0.1:1/ready: "), "{refused}");
        for url in ["127.0.0.1:9090", "https://127.0.0.1/ready", "ready"] {
            assert_eq!(ask(url, Duration::from_secs(5)).unwrap_err().kind(), ErrorKind::InvalidInput, "{url}");
        }
    }
}
