//! Oracle for filters: no text breaks the compiler, no message breaks a filter, and what a filter decides by tests of its own is what CEL
//! decides.
use crate::filter::{Facts, Filter, Undecided};
use crate::limits::{FILTER_STEPS_MAX, FILTER_VALUES_MAX};
use crate::proto::dotnetify::request::Call;
use crate::proto::signalr::json::{self, ValueKind};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Far beyond what the bounds allow, even without optimization and on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// A filter, a line end, a vmId, a line end, and the data; the last two JSON, or they are not used.
pub fn filter(input: &[u8]) {
    static HEADERS: LazyLock<[(Box<str>, Box<str>); 3]> =
        LazyLock::new(|| [("host", "app"), ("accept", "a"), ("accept", "b")].map(|(n, v)| (n.into(), v.into())));
    static CLAIMS: LazyLock<serde_json::Map<String, serde_json::Value>> =
        LazyLock::new(|| serde_json::from_str(r#"{"sub":"ada","roles":["a","b"],"age":36,"x":null}"#).expect("JSON"));
    let Ok(input) = core::str::from_utf8(input) else { return };
    let mut parts = input.splitn(3, '\n');
    let text = parts.next().unwrap_or_default();
    let is_json = |part: &&str| serde_json::from_str::<serde::de::IgnoredAny>(part).is_ok();
    let vm_id = parts.next().map(str::trim).filter(is_json).unwrap_or(r#""A""#).as_bytes();
    let vm_id = if json::kind(vm_id) == Some(ValueKind::String) { vm_id } else { br#""A""# };
    let data = parts.next().filter(is_json).map(str::as_bytes);
    for call in Call::ALL {
        decides(
            text,
            &Facts {
                call,
                vm_id,
                connection_id: "0HM6",
                user: (call == Call::RequestVm).then_some("ada"),
                path: "/hub",
                headers: &*HEADERS,
                claims: (call != Call::DisposeVm).then_some(&*CLAIMS),
                data: data.filter(|_| call != Call::DisposeVm),
            },
        );
    }
}

/// Checks the filter or its fault; what it says of the facts, if it is one.
pub fn decides(text: &str, facts: &Facts<'_>) -> Option<Result<bool, Undecided>> {
    let began = Instant::now();
    let filter = match Filter::compile(text) {
        Ok(filter) => filter,
        Err(fault) => {
            assert!(text.is_char_boundary(fault.offset), "{fault:?}");
            assert!(!fault.reason.is_empty() && !fault.remedy.is_empty(), "{fault:?}");
            assert!(!fault.reason.contains('\n') && fault.reason.len() < 200, "{fault:?}");
            return None;
        }
    };
    let decided = filter.matches(facts);
    assert!(!filter.is_fast() || decided.is_ok(), "a test of texts fails");
    if let Err(Undecided(reason)) = &decided {
        assert!(!reason.is_empty() && reason.len() < 300, "{reason:?}");
    }
    // A comparison of the whole leaves all of it to CEL.
    if let Ok(by_cel) = Filter::compile(&format!("({text}\n) == true")) {
        assert!(!by_cel.is_fast());
        match (&decided, by_cel.matches(facts)) {
            (_, Err(Undecided(reason))) if is_bound(&reason) => {}
            (Ok(holds), by_cel) => assert_eq!(Ok(*holds), by_cel, "{text}"),
            (Err(_), _) => {}
        }
    }
    assert!(began.elapsed() < PATIENCE, "{text} took {:?}", began.elapsed());
    Some(decided)
}

/// CEL looks at everything in the order it is written, so it may come to a bound where the filter does not.
fn is_bound(reason: &str) -> bool {
    reason.contains(&FILTER_STEPS_MAX.to_string()) || reason.contains(&FILTER_VALUES_MAX.to_string())
}
