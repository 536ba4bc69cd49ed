//! The demo page (under construction).
