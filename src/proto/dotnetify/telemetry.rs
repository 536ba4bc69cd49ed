//! What a node tells an Observer about itself once a second (contract 7.2, 3).
//!
//! ```text
//! {"type":1,"target":"Invoke","arguments":["ReceiveTelemetry",[{"proc_cpu":1.25,..}],{"HubId":"fRr82pUPRESdT1NCLXmSPg"}]}␞
//! ```
//!
//! The hub id stands *instead of* a `$fwdConnContext`: with a context the Observer would take the record for a client's message.
use crate::proto::signalr::msgpack::{self, write};
use crate::proto::signalr::record::RECORD_SEPARATOR;
use crate::proto::signalr::{Protocol, json};
use alloc::vec::Vec;

/// One reading, in hundredths, so that two decimals are exact. None: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// Hundredths of a percent of the whole machine: all processors busy are 10,000.
    pub process_cpu: Option<u64>,
    /// Hundredths of a percent of the whole machine.
    pub total_cpu: Option<u64>,
    /// Hundredths of a MB (1,048,576 bytes).
    pub process_memory: Option<u64>,
    /// Hundredths of a percent of the machine's memory.
    pub total_memory: Option<u64>,
}

impl Telemetry {
    /// In the order of the original's dictionary, by the names the Observer's dashboards look for.
    fn members(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("proc_cpu", self.process_cpu),
            ("total_cpu", self.total_cpu),
            ("proc_mem", self.process_memory),
            ("total_mem", self.total_memory),
        ]
    }
}

/// Appends one whole record with the framing of the lane's protocol. `hub_id` is plain ASCII without anything to escape
/// (`ids::HubId`), and the one that the contexts on the same lane have: the Observer draws both as one node.
pub fn write(protocol: Protocol, hub_id: &[u8], usage: &Telemetry, out: &mut Vec<u8>) {
    debug_assert!(hub_id.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')));
    match protocol {
        Protocol::Json => write_json(hub_id, usage, out),
        Protocol::MessagePack => write_message_pack(hub_id, usage, out),
    }
}

fn write_json(hub_id: &[u8], usage: &Telemetry, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":1,\"target\":\"Invoke\",\"arguments\":[\"ReceiveTelemetry\",[{\"");
    for (index, (name, value)) in usage.members().into_iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(b",\"");
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        match value {
            Some(hundredths) => decimal(hundredths, out),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.extend_from_slice(b"}],{\"HubId\":\"");
    out.extend_from_slice(hub_id);
    out.extend_from_slice(b"\"}]}");
    out.push(RECORD_SEPARATOR);
}

/// As .NET and JavaScript write a double that was rounded to two decimals: without trailing zeros, without a point before nothing.
fn decimal(hundredths: u64, out: &mut Vec<u8>) {
    json::integer(hundredths / 100, out);
    let [tens, ones] = [hundredths / 10 % 10, hundredths % 10].map(|digit| b'0' + digit as u8);
    match (tens, ones) {
        (b'0', b'0') => {}
        (tens, b'0') => out.extend_from_slice(&[b'.', tens]),
        (tens, ones) => out.extend_from_slice(&[b'.', tens, ones]),
    }
}

/// Numbers as 64-bit floating point whatever their value: what MessagePack for C# makes of the `double` in the original's dictionary.
fn write_message_pack(hub_id: &[u8], usage: &Telemetry, out: &mut Vec<u8>) {
    msgpack::write_record(out, |out| {
        // [1, {}, nil, "Invoke", ["ReceiveTelemetry", [{..}], {"HubId": id}], []]
        write::array_len(6, out);
        write::uint(1, out);
        write::map_len(0, out);
        write::nil(out);
        write::text(b"Invoke", out);
        write::array_len(3, out);
        write::text(b"ReceiveTelemetry", out);
        write::array_len(1, out);
        let members = usage.members();
        write::map_len(members.len() as u32, out);
        for (name, value) in members {
            write::text(name.as_bytes(), out);
            match value {
                Some(hundredths) => write::float(hundredths as f64 / 100.0, out),
                None => write::nil(out),
            }
        }
        write::map_len(1, out);
        write::text(b"HubId", out);
        write::text(hub_id, out);
        write::array_len(0, out);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;

    const HUB_ID: &[u8] = b"fRr82pUPRESdT1NCLXmSPg";
    const USAGE: Telemetry =
        Telemetry { process_cpu: Some(125), total_cpu: Some(1050), process_memory: Some(8531), total_memory: None };

    fn written(protocol: Protocol, usage: &Telemetry) -> Vec<u8> {
        let mut out = alloc::vec![0xaa];
        write(protocol, HUB_ID, usage, &mut out);
        assert_eq!(out.remove(0), 0xaa, "it appends");
        out
    }

    #[test]
    fn the_json_record_is_the_contracts_byte_for_byte() {
        let contract = "{\"type\":1,\"target\":\"Invoke\",\"arguments\":[\"ReceiveTelemetry\",[{\"proc_cpu\":1.25,\"total_cpu\":10.5,\
                        \"proc_mem\":85.31,\"total_mem\":null}],{\"HubId\":\"fRr82pUPRESdT1NCLXmSPg\"}]}\u{1e}";
        assert_eq!(String::from_utf8(written(Protocol::Json, &USAGE)).unwrap(), contract);
    }

    #[test]
    fn the_messagepack_record_has_the_same_structure_with_doubles() {
        // 128 bytes follow the length.
        let mut expected = alloc::vec![0x80, 0x01, 0x96, 0x01, 0x80, 0xc0, 0xa6];
        expected.extend_from_slice(b"Invoke\x93\xb0ReceiveTelemetry\x91\x84\xa8proc_cpu\xcb");
        expected.extend_from_slice(&1.25f64.to_be_bytes());
        expected.extend_from_slice(b"\xa9total_cpu\xcb");
        expected.extend_from_slice(&10.5f64.to_be_bytes());
        expected.extend_from_slice(b"\xa8proc_mem\xcb");
        expected.extend_from_slice(&85.31f64.to_be_bytes());
        expected.extend_from_slice(b"\xa9total_mem\xc0\x81\xa5HubId\xb6fRr82pUPRESdT1NCLXmSPg\x90");
        assert_eq!(expected.len(), 2 + 128);
        assert_eq!(written(Protocol::MessagePack, &USAGE), expected);
    }

    #[test]
    fn numbers_are_written_as_dotnet_writes_doubles() {
        for (hundredths, text) in [
            (0, "0"),
            (1, "0.01"),
            (10, "0.1"),
            (99, "0.99"),
            (100, "1"),
            (105, "1.05"),
            (1050, "10.5"),
            (10_000, "100"),
            (163_840_001, "1638400.01"),
        ] {
            let mut out = Vec::new();
            decimal(hundredths, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
            // Rust, .NET and JavaScript all write the shortest text that reads back as the same double.
            assert_eq!(format!("{}", hundredths as f64 / 100.0), text);
        }
    }

    #[test]
    fn nothing_known_is_four_nulls() {
        let text = String::from_utf8(written(Protocol::Json, &Telemetry::default())).unwrap();
        assert!(
            text.contains("[{\"proc_cpu\":null,\"total_cpu\":null,\"proc_mem\":null,\"total_mem\":null}]"),
            "{text}"
        );
    }
}
