//! Pure codecs: bytes in, views and bytes out. No socket, clock, thread, random or log; builds without `std`.

pub mod calendar;
pub mod dotnetify;
pub mod http;
pub mod proxy;
pub mod signalr;
pub mod ws;
