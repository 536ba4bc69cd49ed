//! Filters from outside: what they accept and refuse, and what they say of messages.
#![allow(unsafe_code)] // The trait of an allocator is unsafe to implement; nothing else here is.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use signalring::filter::{Facts, Filter, FilterFault, Needs};
use signalring::limits::{FILTER_BYTES_MAX, FILTER_STEPS_MAX, FILTER_VALUES_MAX, JSON_DEPTH_MAX};
use signalring::proto::dotnetify::request::Call;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are the system allocator's requirements.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` came from `alloc`, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An update of a chat room by Ada.
fn facts() -> Facts<'static> {
    Facts {
        call: Call::UpdateVm,
        vm_id: br#""ChatRoomVM""#,
        connection_id: "0HM6KABCDEF01",
        user: Some("ada"),
        path: "/dotnetify",
        headers: Box::leak(Box::new([
            ("host".into(), "app.example.com".into()),
            ("x-tenant".into(), "blue".into()),
            ("accept".into(), "text/html".into()),
            ("accept".into(), "*/*".into()),
        ])),
        claims: Some(Box::leak(Box::new(object(
            json!({ "role": ["admin", "reader"], "age": 36, "https://example.com/tenant": "blue" }),
        )))),
        data: Some(
            br#"{"Text":"Hello, \u0041da","Count":3,"Price":12.5,"Rows":[{"Id":1},{"Id":2,"Name":"two"}],"On":true,"None":null}"#,
        ),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => unreachable!("an object"),
    }
}

fn filter(text: &str) -> Filter {
    Filter::compile(text).unwrap_or_else(|fault| panic!("{text}: {fault:?}"))
}

fn matches(text: &str) -> bool {
    filter(text).matches(&facts()).unwrap_or_else(|undecided| panic!("{text}: {undecided:?}"))
}

fn fault(text: &str) -> FilterFault {
    Filter::compile(text).err().unwrap_or_else(|| panic!("{text} is taken for a filter"))
}

#[test]
fn every_variable_can_be_asked() {
    for text in [
        r#"vm_id == "ChatRoomVM""#,
        r#"vm_id.startsWith("ChatRoom")"#,
        r#"vm_id.endsWith('VM') && vm_id.contains("Room")"#,
        r#"vm_id in ["A", "ChatRoomVM"]"#,
        r#"vm_id.matches("^Chat(Room|Box)VM$")"#,
        r#"size(vm_id) == 10 && vm_id.size() == 10"#,
        r#"call_type == "Update_VM""#,
        r#"call_type != "Request_VM" && call_type in ["Update_VM", "Dispose_VM"]"#,
        r#"connection_id == "0HM6KABCDEF01""#,
        r#"user != "" && user == "ada""#,
        r#"path.startsWith("/dotnetify")"#,
        r#"headers["x-tenant"] == "blue" && headers.host == "app.example.com""#,
        r#"headers.accept == "text/html, */*""#,
        r#""x-tenant" in headers && !("x-other" in headers) && has(headers.host)"#,
        r#"claims.age >= 18 && "admin" in claims.role"#,
        r#"claims["https://example.com/tenant"] == headers["x-tenant"]"#,
        r#"data.Text == "Hello, Ada" && data.Count == 3 && data.On && data.None == null"#,
        "data.Count < data.Price && data.Price == 12.5 && data.Price * 2.0 == 25.0",
        "data.Count + 1 == 4 && data.Count % 2 == 1 && -data.Count == 0 - 3",
        r#"has(data.Text) && !has(data.Other) && "Text" in data && size(data) == 6"#,
        "data.Rows.exists(row, row.Id == 2) && data.Rows.all(row, row.Id > 0)",
        "data.Rows.exists_one(row, has(row.Name)) && size(data.Rows.filter(row, row.Id > 1)) == 1",
        "data.Rows[1].Name == 'two' && data['Rows'][0].Id == 1",
        r#"data.Count > 2 ? vm_id == "ChatRoomVM" : false"#,
        r#"int("3") == data.Count && double(data.Count) == 3.0 && string(data.Count) == "3""#,
        "claims.exists(name, name == 'age')",
        r#"// whom it is for
           vm_id == "ChatRoomVM" // and no other"#,
        r"vm_id == 'Chat\x52oom\u0056M' && user == r'ada' && path != r'\d'",
    ] {
        assert!(matches(text), "{text}");
    }
    assert!(!matches(r#"vm_id == "chatroomvm""#));
}

#[test]
fn what_is_not_there_is_empty_or_null() {
    let nobody = Facts { user: None, headers: &[], claims: None, data: None, call: Call::DisposeVm, ..facts() };
    for text in
        [r#"user == """#, "size(headers) == 0", "size(claims) == 0", "data == null", "call_type == 'Dispose_VM'"]
    {
        assert_eq!(filter(text).matches(&nobody), Ok(true), "{text}");
    }
}

#[test]
fn a_filter_says_what_it_needs() {
    let nothing = Needs::default();
    for (text, needs) in [
        (r#"vm_id == "A" && call_type != "Request_VM""#, nothing),
        ("connection_id != ''", Needs { connection_id: true, ..nothing }),
        ("user == 'ada'", Needs { user: true, ..nothing }),
        ("path == '/'", Needs { path: true, ..nothing }),
        ("'host' in headers", Needs { headers: true, ..nothing }),
        ("size(claims) > 0", Needs { claims: true, ..nothing }),
        ("[1].exists(x, x == data.y)", Needs { data: true, ..nothing }),
    ] {
        assert_eq!(filter(text).needs(), needs, "{text}");
    }
}

#[test]
fn a_fault_says_where_it_stands_and_what_to_do() {
    for text in FAULTS {
        let f = fault(text);
        println!("        ({text:?}, {}, {:?}, {:?}),", f.offset, f.reason, f.remedy);
    }
}
const FAULTS: &[&str] = &[
    "",
    "  ",
    "vmid == \"A\"",
    "vm_id",
    "data == ",
    "vm_id = \"A\"",
    "vm_id == \"A\" & user == \"b\"",
    "vm_id == \"A\" and user == \"b\"",
    "not vm_id == \"A\"",
    "context => context.VMId == \"A\"",
    "VMId == \"A\"",
    "Principal == null",
    "vm_id == \"A",
    "vm_id == \"\\q\"",
    "vm_id == 1",
    "user == null",
    "call_type == \"Request_Vm\"",
    "call_type in [\"Update_VM\", \"Dispose\"]",
    "headers[\"Host\"] == \"x\"",
    "headers.Host == \"x\"",
    "\"Host\" in headers",
    "vm_id.StartsWith(\"A\")",
    "vm_id.startsWith(1)",
    "vm_id.startsWith(\"A\", \"B\")",
    "vm_id.matches(\"(\")",
    "vm_id.matches(user)",
    "vm_id.matches(\"\\\\w{1000}\")",
    "startsWith(vm_id, \"A\")",
    "frobnicate(1)",
    "\"\u{e9}\" == vmid",
    "vm_id == \"\u{e9}\" \u{e9}",
    "\"\u{e9}\" == vm_id vm_id",
    "data.map(x, x) == []",
    "data.Rows.all(x, x.exists(y, y > 0))",
    "vm_id.all(x, x > 0)",
    "data.all(data, true)",
    "data.all(x)",
    "data.all(1, true)",
    "data.all(x, vm_id)",
    "has(data)",
    "vm_id.length == 3",
    "vm_id.size > 3",
    "vm_id[0] == \"A\"",
    "!vm_id",
    "-vm_id == 1",
    "vm_id + 1 == \"\"",
    "1 + 1.0 == 2",
    "data.x == 1u",
    "data.x == b\"a\"",
    "{\"a\": 1} == data",
    "vm_id in \"ABC\"",
    "1 in [\"a\"]",
    "data.x > null",
    "99999999999999999999 == 1",
    "for == 1",
    "vm_id == \"A\")",
    "(vm_id == \"A\"",
    "size(1) == 1",
    "int(true) == 1",
    "vm_id == \"A\" ? 1 : 2",
    "data.?x == 1",
    ".vm_id == \"A\"",
    "vm_id == \"\"\"A\"\"\"",
    "vm_id == `A`",
    "true &&\n  vmid == \"A\"",
    "data.x == 1e999",
    "contains == 1",
    "user < 3",
    "1 < 2 < 3",
    "[1][true] == 1",
    "headers[1] == ''",
    "x.y.z()",
    "timestamp(data.x) > timestamp(\"2020-01-01T00:00:00Z\")",
    "dyn(1) == 1",
    "type(data) == string",
];
