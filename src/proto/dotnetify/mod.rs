//! dotNetify's hub methods and its forwarding contract: what clients ask (`request`), how it goes to an app server (`forward`,
//! `context`), and what comes back (`response`). Contract sections 1 to 3. `headers` finds the token inside a request. `telemetry` is
//! what an Observer is told beside.

pub mod context;
pub mod forward;
pub mod headers;
pub mod request;
pub mod response;
pub mod telemetry;
