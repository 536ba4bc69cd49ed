//! Which messages go to an upstream: a CEL expression over one message and its client, compiled and checked at start.
//!
//! Pure: facts in, yes or no out; no clock, no socket, no log.
use crate::proto::dotnetify::request::Call;
use core::fmt;
use std::sync::Arc;

/// A compiled filter. Cheap to clone; equal where the text is.
#[derive(Clone)]
pub struct Filter {
    text: Arc<str>,
}

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
        Ok(Filter { text: text.into() })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Does this message pass?
    pub fn matches(&self, _facts: &Facts<'_>) -> Result<bool, Undecided> {
        Ok(true)
    }
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
