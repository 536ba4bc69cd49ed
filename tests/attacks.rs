//! Attacks, each on a running node that serves good clients meanwhile: none of these is lost, nothing of theirs is lost or reordered,
//! they hardly notice; the attackers are dealt with as documented and counted, and the node's memory stays within what it has printed.
//!
//! A hundred good clients and small attacks run with all other tests; a thousand and the whole attacks with
//! `cargo test --release --test attacks -- --ignored --nocapture`, which prints a table: milliseconds of good clients' round trips
//! (99th percentile before, during, longest during, 99th percentile after), seconds until the attackers were gone, MiB resident (before,
//! peak, after), MiB of the budget for what was attacked.

#[path = "common/arena.rs"]
mod arena;
#[path = "common/books.rs"]
mod books;
mod common;

use arena::{Arena, Scale};
use common::{PATIENCE, read_reply};
use std::io::Write;
use std::time::Duration;

/// Heads that drip: a byte now and then, and never the end.
fn slow_heads(scale: Scale) {
    let count = scale.of(1000);
    let arena = Arena::open("slow heads", scale, count, &["--request-head-timeout", "2s"]);
    arena.withstands(&["messages in pieces"], |arena| {
        let mut streams: Vec<_> = (0..count).map(|number| arena.dial(number)).collect();
        let head = b"GET /dotnetify HTTP/1.1\r\nHost: x\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
        for byte in head {
            streams.iter_mut().for_each(|stream| drop(stream.write_all(&[*byte])));
            std::thread::sleep(Duration::from_millis(20));
        }
        for stream in &mut streams {
            let reply = read_reply(stream, PATIENCE);
            assert!(reply.status == 408 && reply.closed, "{}", reply.text);
        }
        arena.rises("refusals", "head_timeout", count);
    });
}

macro_rules! attacks {
    ($($name:ident)*) => {
        $(
            #[test]
            #[ignore = "a thousand good clients; run: cargo test --release --test attacks -- --ignored --nocapture"]
            fn $name() {
                super::$name(super::Scale::FULL);
            }
        )*
    };
}

mod a_thousand_good_clients {
    attacks! { slow_heads }
}

mod a_hundred_good_clients {
    #[test]
    fn slow_heads() {
        super::slow_heads(super::Scale::QUICK);
    }
}
