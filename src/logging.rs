//! Log lines to stderr, as the configuration says.
use crate::config::LogFormat;
use std::io::IsTerminal;
use std::sync::OnceLock;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::reload::Handle;

/// Installs the process's subscriber; the first call counts. `filter` is a level or directives, already checked by the configuration.
pub fn init(filter: &str, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_writer(BoxMakeWriter::new(std::io::stderr))
        // Colours are for eyes: never into a file or a collector, nor where NO_COLOR asks for none.
        .with_ansi(
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        );
    // An error means that a test harness installed its own: theirs stays.
    let _ = match format {
        LogFormat::Text => {
            let builder = builder.with_env_filter(EnvFilter::new(filter)).with_filter_reloading();
            keep(builder.reload_handle(), builder.try_init())
        }
        LogFormat::Json => {
            let builder = builder.json().with_env_filter(EnvFilter::new(filter)).with_filter_reloading();
            keep(builder.reload_handle(), builder.try_init())
        }
    };
}

/// Sets another filter of the subscriber that `init` installed.
type SetFilter = Box<dyn Fn(EnvFilter) + Send + Sync>;
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Only of a subscriber that was installed.
fn keep<S: 'static, E>(handle: Handle<EnvFilter, S>, installed: Result<(), E>) -> Result<(), E> {
    installed.map(|()| {
        let _ = SET_FILTER.set(Box::new(move |filter| {
            // It fails where the subscriber is gone, which it never is.
            let _ = handle.reload(filter);
        }));
    })
}

/// Log lines from now on: `filter` as in `init`.
pub fn set_filter(filter: &str) {
    if let Some(set) = SET_FILTER.get() {
        set(EnvFilter::new(filter));
    }
}
