//! Which messages go to an upstream: a CEL expression over one message and its client, compiled and checked at start.
//!
//! Pure: facts in, yes or no out; no clock, no socket, no log.
//!
//! An expression goes through `scan` (tokens, depth), `parse` (the crate `cel`), `check` (names and types) and becomes a `plan`: a tree whose
//! leaves are `fast` tests of texts, which allocate nothing, or expressions that CEL has to `evaluate`.
//!
//! A user or a header's value that is not there: `user` is empty (the original proxy's `Principal` is null), so that it stays a string to
//! compare; a header that is not there cannot be asked for, but `"name" in headers` can.
//!
//! What cannot be evaluated for a message, e.g. because a member is not there, is [`Undecided`]; CEL lets the other operand of `&&` and `||`
//! decide, if it can.

mod check;
mod evaluate;
mod fast;
mod headers;
mod parse;
mod pattern;
mod plan;
mod scan;

use crate::proto::dotnetify::request::Call;
use core::fmt;
use evaluate::{Evaluation, Program};
pub use headers::HeaderNames;
use plan::Node;
use std::sync::Arc;

/// A compiled filter. Cheap to clone; equal where the text is.
#[derive(Clone)]
pub struct Filter {
    text: Arc<str>,
    plan: Arc<Plan>,
}

struct Plan {
    root: Node,
    needs: Needs,
    headers: HeaderNames,
    program: Program,
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Filter>()
};

/// Why an expression is no filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterFault {
    /// Where in the expression, in bytes from 0.
    pub offset: usize,
    pub reason: String,
    pub remedy: String,
}

/// What a filter looks at; the rest need not be gathered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub connection_id: bool,
    pub user: bool,
    pub headers: bool,
    pub path: bool,
    pub claims: bool,
    pub data: bool,
}

impl Needs {
    pub fn with(self, other: Needs) -> Needs {
        Needs {
            connection_id: self.connection_id || other.connection_id,
            user: self.user || other.user,
            headers: self.headers || other.headers,
            path: self.path || other.path,
            claims: self.claims || other.claims,
            data: self.data || other.data,
        }
    }
}

/// A message and its client, as a filter sees them. What `Needs` does not ask for may be left empty.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub call: Call,
    /// Raw JSON string, quotes included.
    pub vm_id: &'a [u8],
    /// Origin id.
    pub connection_id: &'a str,
    pub user: Option<&'a str>,
    /// Of the request that began the client, without the query.
    pub path: &'a str,
    /// Of that request; names in lower case.
    pub headers: &'a [(Box<str>, Box<str>)],
    pub claims: Option<&'a serde_json::Map<String, serde_json::Value>>,
    /// Raw JSON of vmArg or vmData; None for Dispose_VM.
    pub data: Option<&'a [u8]>,
}

/// The expression could not be evaluated for this message, e.g. a header that is not there was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecided(pub String);

impl Filter {
    /// Compiles and checks an expression.
    pub fn compile(text: &str) -> Result<Filter, FilterFault> {
        let mut parsed = parse::parse(text)?;
        let checked = check::check(&mut parsed)?;
        let plan = Plan {
            root: Node::new(parsed.expression),
            needs: checked.needs,
            headers: checked.headers,
            program: Program::new(checked.patterns, checked.loops),
        };
        Ok(Filter { text: text.into(), plan: Arc::new(plan) })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn needs(&self) -> Needs {
        self.plan.needs
    }

    /// The headers it looks at.
    pub fn headers(&self) -> &HeaderNames {
        &self.plan.headers
    }

    /// Is it made of comparisons of texts only? Then matching allocates nothing and cannot fail.
    pub fn is_fast(&self) -> bool {
        self.plan.root.is_fast()
    }

    /// Does this message pass?
    pub fn matches(&self, facts: &Facts<'_>) -> Result<bool, Undecided> {
        self.plan.root.holds(facts, &Evaluation::new(&self.plan.program, facts))
    }
}

/// Of a raw JSON string.
fn contents(raw: &[u8]) -> &[u8] {
    raw.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(raw)
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.text).finish()
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Filter) -> bool {
        self.text == other.text
    }
}
