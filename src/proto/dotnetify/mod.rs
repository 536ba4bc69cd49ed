//! dotNetify's hub methods and its forwarding contract: what clients ask (`request`), how it goes to an app server (`forward`,
//! `context`), and what comes back (`response`). Contract sections 1 to 3.

pub mod context;
pub mod forward;
pub mod request;
pub mod response;
