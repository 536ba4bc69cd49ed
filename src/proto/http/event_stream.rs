//! The body of an event stream (reference 8): what the server's hub writes, as `text/event-stream`.
use alloc::vec::Vec;

/// Appends one event whose payload `write` appends: `data: ` before each line, CR LF after it, and CR LF at the end.
///
/// The payload is cut at LF, and a CR right before one is dropped: EventSource joins the lines with LF again. A CR alone ends a
/// line of an event stream as well (WHATWG HTML 9.2.5), so the payload is cut there, too; in JSON it can only be white space.
pub fn write_event<R>(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    const DATA: &[u8] = b"data: ";
    let start = out.len();
    out.extend_from_slice(DATA);
    let payload = out.len();
    let result = write(out);
    if out.len() == payload {
        out.truncate(start);
        out.extend_from_slice(b"\r\n");
        return result;
    }
    // Records have neither unless an app server writes its JSON over several lines.
    if memchr::memchr2(b'\n', b'\r', &out[payload..]).is_some() {
        let lines = out.split_off(payload);
        let lines = lines.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        for (index, line) in lines.flat_map(|line| line.split(|byte| *byte == b'\r')).enumerate() {
            if index > 0 {
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(DATA);
            }
            out.extend_from_slice(line);
        }
    }
    out.extend_from_slice(b"\r\n\r\n");
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_framed_as_aspnet_frames_them() {
        for (payload, event) in [
            ("{}\u{1e}", "data: {}\u{1e}\r\n\r\n"),
            ("", "\r\n"),
            ("a\nb", "data: a\r\ndata: b\r\n\r\n"),
            ("a\rb", "data: a\r\ndata: b\r\n\r\n"),
            ("a\r\n\r\nb\u{1e}", "data: a\r\ndata: \r\ndata: b\u{1e}\r\n\r\n"),
        ] {
            let mut out = b":\r\n".to_vec();
            write_event(&mut out, |out| out.extend_from_slice(payload.as_bytes()));
            assert_eq!(core::str::from_utf8(&out).unwrap(), alloc::format!(":\r\n{event}"));
        }
    }
}
