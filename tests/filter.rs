//! Filters from outside: what they accept and refuse, and what they say of messages.
#![allow(unsafe_code)] // The trait of an allocator is unsafe to implement; nothing else here is.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::{Map, Value, json};
use signalring::filter::{Facts, Filter, FilterFault, HeaderNames, Needs, Undecided};
use signalring::fuzzing::filter::{self as fuzzing, decides};
use signalring::limits::{FILTER_BYTES_MAX, FILTER_DEPTH_MAX, FILTER_STEPS_MAX, FILTER_VALUES_MAX, JSON_DEPTH_MAX};
use signalring::proto::dotnetify::request::Call;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

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
fn a_filter_names_the_headers_it_looks_at() {
    let only = |names: &[&str]| HeaderNames::Only(names.iter().map(|name| (*name).into()).collect());
    for (text, names) in [
        ("vm_id == 'A'", only(&[])),
        (
            "headers['x-a'] == '1' || 'x-b' in headers || has(headers.c) && headers.d != ''",
            only(&["c", "d", "x-a", "x-b"]),
        ),
        ("['1', '2'].exists(x, x == headers['x-a'])", only(&["x-a"])),
        ("size(headers) > 3 && headers.a == ''", HeaderNames::All),
        ("headers.exists(name, name.startsWith('x-'))", HeaderNames::All),
        ("headers[user] == '1' && 'a' in headers", HeaderNames::All),
        ("user in headers", HeaderNames::All),
        ("headers == headers", HeaderNames::All),
        ("(user == '' ? headers : headers)['x-a'] == '1'", HeaderNames::All),
    ] {
        assert_eq!(*filter(text).headers(), names, "{text}");
    }
}

/// Text, offset, reason, remedy.
#[rustfmt::skip]
const FAULTS: &[(&str, usize, &str, &str)] = &[
    ("", 0, "the filter is empty", "leave `filter` out to take every message"),
    ("vmid == \"A\"", 0, "unknown name `vmid`", "did you mean `vm_id`?"),
    ("vm_id", 0, "a filter says yes or no, and this is of type string", "compare it: `== \"...\"`"),
    ("data == ", 7, "something is missing at the end", "complete the expression, and close every parenthesis"),
    ("vm_id = \"A\"", 6, "`=` is no operator", "write `==` to compare"),
    ("vm_id == \"A\" & user == \"b\"", 13, "`&` is no operator", "write `&&`"),
    ("vm_id == \"A\" and user == \"b\"", 13, "`and` is not expected here", "write `&&`"),
    ("not vm_id == \"A\"", 4, "`vm_id` is not expected here", "write `!`"),
    ("context => context.VMId == \"A\"", 8, "a filter is no lambda", "write what stands behind it, about `vm_id`, `call_type` and the others"),
    ("VMId == \"A\"", 0, "unknown name `VMId`", "did you mean `vm_id`?"),
    ("Principal == null", 0, "unknown name `Principal`", "did you mean `user`?"),
    ("vm_id == \"A", 9, "the text has no end", "close it with `\"` on the same line"),
    ("vm_id == \"\\q\"", 10, "not an escape", "write `\\\\` for a backslash, or r\"...\" for a text without escapes"),
    ("vm_id == 1", 6, "string and int are never equal", "put the number in quotes"),
    ("user == null", 5, "string and null are never equal", "a text that is not there is empty: compare it with \"\""),
    ("call_type == \"Request_Vm\"", 13, "`Request_Vm` is no call type", "write one of Request_VM, Update_VM, Dispose_VM"),
    ("call_type in [\"Update_VM\", \"Dispose\"]", 27, "`Dispose` is no call type", "write one of Request_VM, Update_VM, Dispose_VM"),
    ("headers[\"Host\"] == \"x\"", 8, "no header is called `Host`: their names are in lower case", "write `host`"),
    ("headers.Host == \"x\"", 7, "no header is called `Host`: their names are in lower case", "write `host`"),
    ("\"Host\" in headers", 0, "no header is called `Host`: their names are in lower case", "write `host`"),
    ("vm_id.StartsWith(\"A\")", 6, "unknown function `StartsWith`", "did you mean `startsWith`?"),
    ("vm_id.startsWith(1)", 17, "string is needed here, and this is of type int", "put it in quotes, or make it one: `string(...)`"),
    ("vm_id.startsWith(\"A\", \"B\")", 6, "`startsWith` is not called like this, with 2 arguments", "write `text.startsWith(\"...\")`"),
    ("vm_id.matches(\"(\")", 14, "the pattern cannot be read: unclosed group", "see the syntax of the Rust crate `regex`; r\"...\" needs no double backslashes"),
    ("vm_id.matches(user)", 14, "the pattern is not written out", "write it as a text: `matches(\"...\")`"),
    ("vm_id.matches(\"\\\\w{1000}\")", 14, "the pattern is too large", "see the syntax of the Rust crate `regex`; r\"...\" needs no double backslashes"),
    ("startsWith(vm_id, \"A\")", 0, "`startsWith` is not called like this, with 2 arguments", "write `text.startsWith(\"...\")`"),
    ("frobnicate(1)", 0, "unknown function `frobnicate`", "there are `startsWith`, `endsWith`, `contains`, `matches`, `size`, `has`, `int`, `double`, `string`, `all`, `exists`, `exists_one`, `existsOne`, `filter`"),
    ("\"é\" == vmid", 8, "unknown name `vmid`", "did you mean `vm_id`?"),
    ("vm_id == \"é\" é", 14, "`é` is no part of an expression", "put texts in quotes"),
    ("\"é\" == vm_id vm_id", 14, "`vm_id` is not expected here", "something is missing before it, or it is one too many"),
    ("data.map(x, x) == []", 5, "`map` has no use in a filter", "use `exists`, `all` or `filter`"),
    ("data.Rows.all(x, x.exists(y, y > 0))", 19, "`exists` within a loop would look through everything again for each element", "compare with single values there, or use two loops joined by `&&`"),
    ("vm_id.all(x, x > 0)", 0, "a value of type string has no elements", "give a list, or `data` or a member of it"),
    ("data.all(data, true)", 5, "`data` cannot name the elements", "take a name of your own, e.g. `x`"),
    ("data.all(x)", 5, "`all` is not called like this, with one argument", "write `list.exists(x, x == ...)`"),
    ("data.all(1, true)", 9, "argument must be a simple name", "the first argument is a name for each element, e.g. `x`"),
    ("data.all(x, vm_id)", 12, "bool is needed here, and this is of type string", "compare it: `== \"...\"`"),
    ("has(data)", 4, "invalid argument to has() macro", "it asks for a member: `has(data.Name)`"),
    ("vm_id.length == 3", 5, "a value of type string has no members", "leave the member out"),
    ("vm_id.size > 3", 5, "a value of type string has no members", "call the function: `()` is missing"),
    ("vm_id[0] == \"A\"", 5, "a value of type string has no `[int]`", "use a list, or `startsWith`, `endsWith`, `contains` of a text"),
    ("!vm_id", 1, "bool is needed here, and this is of type string", "compare it: `== \"...\"`"),
    ("-vm_id == 1", 0, "a value of type string has no negative", "write `!` for not"),
    ("vm_id + 1 == \"\"", 6, "`+` does not take string and int", "give values of one type"),
    ("1 + 1.0 == 2", 2, "`+` does not take int and double", "make both double: write 1.0 for 1, or `double(...)`"),
    ("data.x == 1u", 10, "unsigned integers are not known to filters", "write it without `u`"),
    ("data.x == b\"a\"", 10, "bytes are not known to filters", "write a text, without `b`"),
    ("{\"a\": 1} == data", 0, "maps cannot be written in a filter", "use lists: `[...]`"),
    ("vm_id in \"ABC\"", 6, "string is never in string", "write `text.contains(...)`"),
    ("1 in [\"a\"]", 2, "int is never in list(string)", "give a list of values of its type, or the name of a member"),
    ("data.x > null", 7, "dyn and null have no order", "compare numbers with numbers, and texts with texts"),
    ("99999999999999999999 == 1", 0, "invalid int literal", "integers have 64 bits"),
    ("for == 1", 0, "reserved identifier: for", "take another name"),
    ("vm_id == \"A\")", 12, "`)` is not expected here", "something is missing before it, or it closes what was not opened"),
    ("(vm_id == \"A\"", 13, "something is missing at the end", "complete the expression, and close every parenthesis"),
    ("size(1) == 1", 5, "a value of type int has no size", "give a text, a list or `data`"),
    ("int(true) == 1", 4, "`int` cannot be made of bool", "give a number or a text"),
    ("vm_id == \"A\" ? 1 : 2", 0, "a filter says yes or no, and this is of type int", "compare it"),
    ("data.?x == 1", 4, "unsupported syntax `.?`", "write it without"),
    (".vm_id == \"A\"", 1, "unknown name `.vm_id`", "did you mean `vm_id`?"),
    ("vm_id == \"\"\"A\"\"\"", 9, "a text in three quotes", "write one quote, and \\n for a new line"),
    ("vm_id == `A`", 9, "``` is no part of an expression", "put texts in quotes"),
    ("true &&\n  vmid == \"A\"", 10, "unknown name `vmid`", "did you mean `vm_id`?"),
    ("data.x == 1e999", 10, "invalid double literal", "numbers with a point have 64 bits, as in IEEE 754"),
    ("contains == 1", 0, "`contains` is a function", "call it: `text.contains(\"...\")`"),
    ("user < 3", 5, "string and int have no order", "compare numbers with numbers, and texts with texts"),
    ("1 < 2 < 3", 6, "bool and int have no order", "compare numbers with numbers, and texts with texts"),
    ("[1][true] == 1", 3, "a list has no element `[bool]`", "give the position, from 0"),
    ("headers[1] == ''", 7, "no member has a name of type int", "put it in quotes"),
    ("x.y.z()", 0, "unknown name `x`", "there are `vm_id`, `call_type`, `connection_id`, `user`, `path`, `headers`, `claims`, `data`"),
    ("timestamp(data.x) > timestamp(\"2020-01-01T00:00:00Z\")", 0, "unknown function `timestamp`", "there are `startsWith`, `endsWith`, `contains`, `matches`, `size`, `has`, `int`, `double`, `string`, `all`, `exists`, `exists_one`, `existsOne`, `filter`"),
    ("type(data) == string", 0, "unknown function `type`", "there are `startsWith`, `endsWith`, `contains`, `matches`, `size`, `has`, `int`, `double`, `string`, `all`, `exists`, `exists_one`, `existsOne`, `filter`"),
];

#[test]
fn a_fault_says_where_it_stands_and_what_to_do() {
    for &(text, offset, reason, remedy) in FAULTS {
        let expected = FilterFault { offset, reason: reason.into(), remedy: remedy.into() };
        assert_eq!(fault(text), expected, "{text}");
    }
}

#[test]
fn an_evaluation_without_an_answer_says_why_and_shows_no_value() {
    for (text, reason) in [
        (r#"headers["x-other"] == "blue""#, "there is no `x-other`"),
        ("data.Other == 1", "there is no `Other`"),
        ("data.Rows[2].Id == 1", "there is no element 2"),
        ("data.Rows[-1].Id == 1", "there is no element -1"),
        ("data.Text > 1", "`>` does not take string and int"),
        ("data.Text + 1 == 2", "`add` does not take string and int"),
        ("data.Count / (data.Count - 3) == 1", "a division by zero"),
        ("data.Count % (data.Count - 3) == 1", "a division by zero"),
        ("data.Count + 9223372036854775807 == 0", "a number beyond 64 bits"),
        ("(0 - 9223372036854775807 - 1) / (data.Count - 4) == 0", "a number beyond 64 bits"),
        ("(0 - 9223372036854775807 - 1) % (data.Count - 4) == 0", "a number beyond 64 bits"),
        ("-(-9223372036854775807 - 1) == data.Count", "a number beyond 64 bits"),
        ("9223372036854775807 * data.Count == 0", "a number beyond 64 bits"),
        ("int(data.Text) == 1", "`int` cannot make it of this value"),
        ("int(data.Price * 1.0e300) == 1", "`int` cannot make it of this value"),
        ("data.Count", "its result is of type int, not bool"),
        ("data.Text.matches('Ada') && data.Count.startsWith('x')", "`startsWith` does not take int and string"),
        ("!data.Text.matches('x') && data.Count.matches('x')", "a value is not of type string"),
    ] {
        let undecided = filter(text).matches(&facts()).expect_err(text);
        assert_eq!(undecided.0, reason, "{text}");
    }
    let broken = Facts { data: Some(br#"{"Text":"\ud800"}"#), ..facts() };
    let undecided = filter("data.Text == 'x'").matches(&broken).expect_err("half a character");
    assert!(undecided.0.starts_with("data cannot be read: "), "{undecided:?}");
}

#[test]
fn the_other_operand_decides_where_one_has_no_answer() {
    for (text, holds) in [
        ("data.Other == 1 || vm_id == 'ChatRoomVM'", Some(true)),
        ("vm_id == 'ChatRoomVM' || data.Other == 1", Some(true)),
        ("data.Other == 1 && vm_id == 'AnotherVM'", Some(false)),
        ("vm_id == 'AnotherVM' && data.Other == 1", Some(false)),
        ("data.Other == 1 || data.Count == 3", Some(true)),
        ("data.Other == 1 || vm_id == 'AnotherVM'", None),
        ("data.Other == 1 && vm_id == 'ChatRoomVM'", None),
        ("!(data.Other == 1)", None),
        ("has(data.Other) && data.Other == 1", Some(false)),
        ("data.Rows.exists(row, row.Name == 'two')", Some(true)),
        ("data.Rows.all(row, row.Name == 'two')", None),
    ] {
        assert_eq!(filter(text).matches(&facts()).ok(), holds, "{text}");
    }
}

#[test]
fn data_is_looked_at_only_where_nothing_else_decides() {
    let broken = Facts { data: Some(b"no JSON"), ..facts() };
    for text in ["data.Count > 3 && vm_id == 'AnotherVM'", "data.Count > 3 || vm_id.startsWith('Chat')"] {
        let vm = filter(text);
        let before = ALLOCATIONS.get();
        assert!(vm.matches(&broken).is_ok(), "{text}");
        assert_eq!(ALLOCATIONS.get() - before, 0, "{text}");
    }
    filter("data.Count > 3 && vm_id == 'ChatRoomVM'").matches(&broken).expect_err("here it has to be read");
}

#[test]
fn tests_of_texts_allocate_nothing() {
    let escaped = Facts { vm_id: br#""Chat\u0052oom\u0056M""#, ..facts() };
    for text in [
        "vm_id == 'ChatRoomVM'",
        "vm_id != 'BroadcastVM' && !vm_id.startsWith('Broadcast')",
        "vm_id in ['A', 'B', 'ChatRoomVM'] || call_type == 'Request_VM'",
        "(vm_id.contains('Room') || vm_id.endsWith('VM')) && call_type in ['Update_VM']",
        "user == 'ada' && path.startsWith('/') && connection_id != ''",
        "true",
    ] {
        let vm = filter(text);
        assert!(vm.is_fast(), "{text}");
        for facts in [facts(), escaped] {
            let before = ALLOCATIONS.get();
            assert_eq!(vm.matches(&facts), Ok(true), "{text}");
            assert_eq!(ALLOCATIONS.get() - before, 0, "{text}");
        }
    }
    // The counter does count.
    let by_cel = filter("size(vm_id) > 3");
    let before = ALLOCATIONS.get();
    assert_eq!(by_cel.matches(&facts()), Ok(true));
    assert!(!by_cel.is_fast() && ALLOCATIONS.get() > before);
}

#[test]
fn length_and_depth_are_bounded() {
    let long = |bytes: usize| format!("vm_id == '{}'", "x".repeat(bytes - "vm_id == ''".len()));
    assert_eq!(filter(&long(FILTER_BYTES_MAX)).matches(&facts()), Ok(false));
    assert_eq!(fault(&long(FILTER_BYTES_MAX + 1)).offset, FILTER_BYTES_MAX);

    let depths = 1..=FILTER_DEPTH_MAX;
    let nested = |(open, inner, close): (&str, &str, &str), depth: usize| {
        format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
    };
    for form in [
        ("(", "true", ")"),
        ("!(", "data.a", ")"),
        ("(data.a || ", "true", ")"),
        ("(true ? ", "true", ": false)"),
        ("[", "1", "]"),
        ("string(", "data", ")"),
        ("data.exists(x, ", "x", ")"),
        ("data.a[", "1", "]"),
    ] {
        let deepest = depths.clone().filter(|&depth| !too_deep(&nested(form, depth))).max().expect("some depth");
        assert!((FILTER_DEPTH_MAX / 5..FILTER_DEPTH_MAX).contains(&deepest), "{form:?}: {deepest}");
        assert!(too_deep(&nested(form, 100)) && too_deep(&nested((form.0, "", ""), 100)), "{form:?}");
    }
    for link in [".a", " + 1", " - data", "[0]", "?1:1"] {
        assert!(too_deep(&format!("data{}", link.repeat(100))), "{link}");
    }
    // Nor do numbers and texts hide what nests.
    for link in ["1.a", "1e+1", "0xe+1", "1e1-1", ".5-.5", "1u+", "r'\\'(", "1ur'\\'("] {
        let hidden = link.repeat(100);
        assert!(too_deep(&hidden) || too_deep(&format!("1{hidden}")), "{link}");
    }
    // Rows of operands are not deep.
    let many = |operator: &str| vec!["data.a.b == 'x'"; 150].join(operator);
    for operator in [" && ", " || "] {
        let rows = many(operator);
        // On a stack as small as a thread's can be.
        let matched = std::thread::Builder::new().stack_size(512 * 1024).spawn(move || filter(&rows).matches(&facts()));
        matched.expect("a thread").join().expect("no overflow").expect_err("there is no `a`");
    }
}

fn too_deep(text: &str) -> bool {
    let reason = format!("the filter is nested more than {FILTER_DEPTH_MAX} deep");
    Filter::compile(text).err().is_some_and(|fault| fault.reason == reason)
}

#[test]
fn the_cost_of_one_message_is_bounded() {
    let list = |count: usize| format!(r#"{{"l":[{}]}}"#, vec!["1"; count].join(","));
    let said = |text: &str, data: &str| filter(text).matches(&Facts { data: Some(data.as_bytes()), ..facts() });
    let undecided = |text: &str, data: &str| said(text, data).expect_err(text).0;

    let largest = list(FILTER_VALUES_MAX - 2);
    assert_eq!(said("size(data.l) > 0", &largest), Ok(true));
    assert_eq!(
        undecided("size(data.l) > 0", &list(FILTER_VALUES_MAX - 1)).split(" at ").next(),
        Some(&*format!("data cannot be read: it has more than {FILTER_VALUES_MAX} values"))
    );

    // A loop is linear; one that goes through a list for each element of a list is not.
    let steps = format!("it would take more than {FILTER_STEPS_MAX} steps for this message");
    assert_eq!(said("data.l.all(x, x == 1)", &list(10_000)), Ok(true));
    assert_eq!(said("data.l.all(x, x in data.l)", &list(100)), Ok(true));
    assert_eq!(undecided("data.l.all(x, x in data.l)", &list(2_000)), steps);
    assert_eq!(undecided("data.l.all(x, 1 < data.l || x == data.l)", &list(2_000)), steps);
    let vm_id = format!("\"{}\"", "a".repeat(16 * 1024));
    let vm_id = Facts { vm_id: vm_id.as_bytes(), ..facts() };
    let data = list(5_000).replace('1', "\"b\"");
    let looked = filter("data.l.exists(x, vm_id.contains(x))").matches(&Facts { data: Some(data.as_bytes()), ..vm_id });
    assert_eq!(looked.expect_err("5,000 times 16 KiB").0, steps);

    // Few elements and a text of a mebibyte that each of them is a reason to read again.
    let texts = |bytes: usize| format!(r#"{{"l":[{}],"big":"{}"}}"#, vec!["1"; 250].join(","), "x".repeat(bytes));
    let begun = Instant::now();
    for (text, steps_are_left) in [
        ("data.l.exists(x, data.big.matches('x+y'))", false),
        ("data.l.exists(x, data.big.contains('y'))", false),
        ("data.exists(x, x.matches('x+y'))", true),
        ("data.l.exists(x, x == 2 || x == 3 && x > 1) || data.big.contains('y')", true),
    ] {
        assert_eq!(said(text, &texts(100)), Ok(false), "{text}");
        let found = said(text, &texts(1_000_000));
        assert_eq!(found, if steps_are_left { Ok(false) } else { Err(Undecided(steps.clone())) }, "{text}");
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

    // What a client's message can nest, an evaluation can.
    let depth = JSON_DEPTH_MAX as usize;
    let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(said("data == data && size(data) == 1 && data[0][0] == data[0][0]", &deep), Ok(true));
}

/// A vmId and how a client may write it.
fn vm_id() -> impl Strategy<Value = (String, String)> {
    let character = prop_oneof![
        8 => prop::sample::select(vec!["A", "B", "C", "AB", "VM"]).prop_map(|text| (text.to_string(), text.to_string())),
        2 => prop::sample::select(vec!['A', 'B', 'é', '😀', '"', '\\', '\n']).prop_map(|character| {
            let units: String = character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
            (character.to_string(), units)
        }),
        1 => prop::sample::select(vec![("\n", "\\n"), ("\\", "\\\\"), ("\"", "\\\""), ("/", "\\/"), ("é", "é")])
            .prop_map(|(text, json)| (text.to_string(), json.to_string())),
        1 => Just(("\u{fffd}".to_string(), "\\ud800".to_string())),
    ];
    prop::collection::vec(character, 0..8).prop_map(|characters| {
        let (text, json): (Vec<_>, Vec<_>) = characters.into_iter().unzip();
        (text.concat(), format!("\"{}\"", json.concat()))
    })
}

/// A filter of tests of texts, with what it should say of a vmId and a call.
#[derive(Clone, Debug)]
enum Rule {
    Constant(bool),
    Test(&'static str, &'static str, String),
    IsOneOf(&'static str, Vec<String>),
    Not(Box<Rule>),
    Both(Box<Rule>, Box<Rule>),
    Either(Box<Rule>, Box<Rule>),
}

fn rule() -> impl Strategy<Value = Rule> {
    let literal = || prop_oneof![3 => "[ABCVM]{0,3}", 1 => prop::sample::select(vec!["é", "😀", "\"A", "\\", "A\n", "\u{fffd}"]).prop_map(String::from)];
    let subject = || prop::sample::select(vec!["vm_id", "vm_id", "vm_id", "user", "path", "connection_id"]);
    let call = || prop::sample::select(Call::ALL.map(Call::name).to_vec()).prop_map(String::from);
    let leaf = prop_oneof![
        1 => any::<bool>().prop_map(Rule::Constant),
        6 => (subject(), prop::sample::select(vec!["==", "!=", "startsWith", "endsWith", "contains"]), literal())
            .prop_map(|(subject, test, literal)| Rule::Test(subject, test, literal)),
        1 => (subject(), prop::collection::vec(literal(), 0..4)).prop_map(|(subject, list)| Rule::IsOneOf(subject, list)),
        1 => (prop::sample::select(vec!["==", "!=", "contains"]), call()).prop_map(|(test, call)| Rule::Test("call_type", test, call)),
        1 => prop::collection::vec(call(), 0..3).prop_map(|calls| Rule::IsOneOf("call_type", calls)),
    ];
    leaf.prop_recursive(4, 16, 2, |inner| {
        let two = (inner.clone(), inner.clone()).prop_map(|(left, right)| (Box::new(left), Box::new(right)));
        prop_oneof![
            inner.prop_map(|rule| Rule::Not(Box::new(rule))),
            two.clone().prop_map(|(left, right)| Rule::Both(left, right)),
            two.prop_map(|(left, right)| Rule::Either(left, right)),
        ]
    })
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n"))
}

impl Rule {
    fn text(&self) -> String {
        match self {
            Rule::Constant(holds) => holds.to_string(),
            Rule::Test(subject, test @ ("==" | "!="), literal) => format!("{subject} {test} {}", quoted(literal)),
            Rule::Test(subject, test, literal) => format!("{subject}.{test}({})", quoted(literal)),
            Rule::IsOneOf(subject, list) => {
                format!("{subject} in [{}]", list.iter().map(|literal| quoted(literal)).collect::<Vec<_>>().join(", "))
            }
            Rule::Not(rule) => format!("!({})", rule.text()),
            Rule::Both(left, right) => format!("({}) && ({})", left.text(), right.text()),
            Rule::Either(left, right) => format!("({}) || ({})", left.text(), right.text()),
        }
    }

    fn holds(&self, text: &impl Fn(&str) -> String) -> bool {
        match self {
            Rule::Constant(holds) => *holds,
            Rule::Test(subject, "==", literal) => text(subject) == *literal,
            Rule::Test(subject, "!=", literal) => text(subject) != *literal,
            Rule::Test(subject, "startsWith", literal) => text(subject).starts_with(literal),
            Rule::Test(subject, "endsWith", literal) => text(subject).ends_with(literal),
            Rule::Test(subject, _, literal) => text(subject).contains(literal),
            Rule::IsOneOf(subject, list) => list.contains(&text(subject)),
            Rule::Not(rule) => !rule.holds(text),
            Rule::Both(left, right) => left.holds(text) && right.holds(text),
            Rule::Either(left, right) => left.holds(text) || right.holds(text),
        }
    }
}

/// Pieces of expressions in any order: mostly no filter, and often nearly one.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "vm_id",
        "call_type",
        "user",
        "headers",
        "claims",
        "data",
        "data.a",
        "x",
        "1",
        "-1",
        "2.5",
        "9223372036854775807",
        "'A'",
        "\"\\u0041\"",
        "r'\\d'",
        "null",
        "true",
        "false",
        "==",
        "!=",
        "<",
        ">=",
        "&&",
        "||",
        "!",
        "+",
        "-",
        "*",
        "/",
        "%",
        "in",
        "?",
        ":",
        "(",
        ")",
        "[",
        "]",
        ",",
        ".a",
        ".size()",
        "size(",
        ".startsWith('A')",
        ".matches('^A')",
        ".exists(x, x == 1)",
        ".all(x, x.a > data)",
        ".filter(x, true)",
        "[0]",
        "['a']",
        ".host",
        "['host']",
        "int(",
        "string(",
        "double(",
        "has(data.a)",
        " ",
        "é",
        "\\",
        "{",
        "'",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.join(" "))
}

fn any_data() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "1",
        "-9223372036854775808",
        "18446744073709551615",
        "1.5",
        "1e300",
        "null",
        "true",
        "\"A\"",
        "\"\\u0041\"",
        "\"\"",
    ]);
    leaf.prop_map(String::from).prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|list| format!("[{}]", list.join(","))),
            (inner.clone(), inner).prop_map(|(a, b)| format!("{{\"a\":{a},\"b\":{b}}}")),
        ]
    })
}

/// Conditions that are filters more often than not, over data of any type.
fn condition() -> impl Strategy<Value = String> {
    let value = prop::sample::select(vec![
        "data",
        "data.a",
        "data.b",
        "data.a.b",
        "data[0]",
        "data['a']",
        "claims.age",
        "claims['roles']",
        "claims",
        "vm_id",
        "size(data)",
        "size(vm_id)",
        "1",
        "0",
        "-9223372036854775807",
        "2.5",
        "0.0",
        "'A'",
        "null",
        "[1, 2.5]",
        "true",
        "int(data)",
        "double(data.a)",
        "string(data.b)",
        "data.filter(x, x == 1)",
        "headers",
    ]);
    let operator = prop::sample::select(vec!["==", "!=", "==", "!=", "<", ">=", "in"]);
    let sum = (
        value,
        prop::sample::select(vec![" + ", " - ", " * ", " / ", " % ", "", "", "", "", "", "", "", ""]),
        prop::sample::select(vec!["data", "data.a", "1", "-1", "0.0"]),
    )
        .prop_map(
            |(value, sign, other)| if sign.is_empty() { value.to_string() } else { format!("{value}{sign}{other}") },
        );
    let leaf = prop_oneof![
        4 => (sum.clone(), operator, sum).prop_map(|(left, operator, right)| format!("{left} {operator} {right}")),
        1 => prop::sample::select(vec!["has(data.a)", "has(data.a.b)", "data", "data.exists(x, x > 1)", "data.all(x, x == data)", "data.exists_one(x, x.a == x.b)", "claims.roles.exists(x, x == vm_id)", "data.a.matches('A')"]).prop_map(String::from),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|condition| format!("!({condition})")),
            (inner.clone(), prop::sample::select(vec!["&&", "||"]), inner.clone())
                .prop_map(|(left, operator, right)| format!("({left}) {operator} ({right})")),
            (inner.clone(), inner.clone(), inner)
                .prop_map(|(condition, yes, no)| format!("({condition}) ? ({yes}) : ({no})")),
        ]
    })
}

proptest! {
    #[test]
    fn tests_of_texts_say_what_cel_says((text, raw) in vm_id(), rule in rule(), call in prop::sample::select(Call::ALL.to_vec())) {
        let facts = Facts { vm_id: raw.as_bytes(), call, user: Some("A"), path: "/VM", ..facts() };
        let value = |subject: &str| match subject {
            "vm_id" => text.clone(),
            "call_type" => call.name().to_string(),
            "user" => "A".to_string(),
            "path" => "/VM".to_string(),
            _ => facts.connection_id.to_string(),
        };
        let vm = filter(&rule.text());
        prop_assert!(vm.is_fast());
        prop_assert_eq!(decides(&rule.text(), &facts), Some(Ok(rule.holds(&value))), "{}", rule.text());
    }

    #[test]
    fn no_text_and_no_message_breaks_a_filter(text in prop_oneof![pieces(), condition(), any::<String>()], (_, raw) in vm_id(), data in any_data()) {
        fuzzing::filter(format!("{text}\n{raw}\n{data}").as_bytes());
    }
}

#[test]
fn much_of_what_the_properties_try_is_a_filter() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let compiles = (0..200)
        .filter(|_| {
            let text = condition().new_tree(&mut runner).expect("a condition").current();
            Filter::compile(&text).is_ok()
        })
        .count();
    assert!(compiles > 60, "{compiles} of 200");
}
