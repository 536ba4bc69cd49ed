//! The demo page as it is served; how it behaves in a browser is not checked here.
use signalring::demo::page;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: page\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    answer
}

#[tokio::test]
async fn the_page_and_its_parts() {
    let nodes = vec!["http://127.0.0.1:5000".to_owned(), "http://127.0.0.1:5001".to_owned()];
    let server =
        page::serve(TcpListener::bind("127.0.0.1:0").await.expect("a free port"), nodes).await.expect("a page");
    assert_eq!(server.origin(), format!("http://{}", server.local_addr));

    let index = get(server.local_addr, "/?node=http://127.0.0.1:5001").await;
    assert!(index.starts_with("HTTP/1.1 200"), "{index}");
    assert!(index.contains("content-type: text/html"));
    assert!(index.contains("content-security-policy: default-src 'none'"));
    for id in
        ["first", "last", "full", "greetings", "time", "chat-input", "chat-send", "chat-log", "users", "status", "node"]
    {
        assert_eq!(index.matches(&format!("id=\"{id}\"")).count(), 1, "tests find the element #{id}");
    }
    // Each form field has a label.
    for field in ["first", "last", "name", "chat-input", "node"] {
        assert!(
            index.contains(&format!("<label for=\"{field}\">")) || index.contains(&format!("for=\"{field}\"")),
            "{field}"
        );
    }
    for (path, kind) in [("/client.js", "text/javascript"), ("/page.js", "text/javascript"), ("/style.css", "text/css")]
    {
        let file = get(server.local_addr, path).await;
        assert!(file.starts_with("HTTP/1.1 200") && file.contains(&format!("content-type: {kind}")), "{path}");
        assert!(index.contains(&path[1..]) || path == "/client.js", "the page uses {path}");
    }
    let listed = get(server.local_addr, "/nodes.json").await;
    assert!(listed.ends_with(r#"["http://127.0.0.1:5000","http://127.0.0.1:5001"]"#), "{listed}");
    assert!(get(server.local_addr, "/nothing").await.starts_with("HTTP/1.1 404"));
}

#[test]
fn nothing_is_fetched_from_elsewhere() {
    for text in [
        include_str!("../src/demo/page/index.html"),
        include_str!("../src/demo/page/style.css"),
        include_str!("../src/demo/page/page.js"),
        include_str!("../src/demo/page/client.js"),
    ] {
        for (at, _) in text.match_indices("//") {
            let before = &text[..at];
            let is_url = before.ends_with("http:") || before.ends_with("https:");
            let rest = &text[at..];
            let harmless = ["//127.0.0.1", "//www.w3.org"].iter().any(|start| rest.starts_with(start));
            assert!(!is_url || harmless, "{}", rest.lines().next().unwrap_or_default());
        }
    }
}
