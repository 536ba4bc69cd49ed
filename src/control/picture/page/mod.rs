//! The picture's page. No build step and nothing fetched from elsewhere: it works without a network, and its scripts are its own.
//!
//! No Rust crate carries a graph library's assets that draws thousands of moving points; `graph.js` is what this picture needs of one.
use super::Reply;

/// Nothing but the page's own files and this node's answers. It may be shown inside a page of this machine (the demonstration's, which has
/// a port of its own); it has nothing to press that would change anything.
const POLICY: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self' http://127.0.0.1:* http://localhost:*\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n";

const FILES: [(&str, &str, &str); 5] = [
    ("/picture", "text/html; charset=utf-8", include_str!("index.html")),
    ("/picture/style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("/picture/picture.js", "text/javascript; charset=utf-8", include_str!("picture.js")),
    ("/picture/graph.js", "text/javascript; charset=utf-8", include_str!("graph.js")),
    ("/picture/traffic.js", "text/javascript; charset=utf-8", include_str!("traffic.js")),
];

/// Links in it are relative, so that it also works behind a proxy that puts a path in front.
pub(super) fn answer(path: &str) -> Option<Reply> {
    if path == "/" {
        return Some(Reply { headers: "Location: picture\r\n", ..Reply::text(302, "The picture is at picture.\n") });
    }
    let (_, content_type, text) = FILES.iter().find(|(known, _, _)| *known == path)?;
    Some(Reply { content_type, headers: POLICY, ..Reply::text(200, *text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_uses_its_files_and_nothing_else() {
        let (index, rest) = FILES.split_first().unwrap();
        let all: String = FILES.iter().map(|(_, _, text)| *text).collect();
        for (path, _, _) in rest {
            let name = path.rsplit('/').next().unwrap();
            assert!(all.contains(&format!("/{name}\"")), "{name} is used by none");
        }
        assert!(!index.2.contains("<style") && !index.2.contains(" style=") && !index.2.contains("<script>"));
        for scheme in ["http://", "https://", "ws://", "wss://"] {
            // The name of a vocabulary, which nobody fetches.
            let text = all.replace("http://www.w3.org/2000/svg", "");
            let foreign = text.find(scheme).map(|at| &text[at..at + 60]);
            assert_eq!(foreign, None, "the page names another place");
        }
    }
}
