//! Log lines to stderr, as the configuration says.
use crate::config::LogFormat;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Installs the process's subscriber; the first call counts. `filter` is a level or directives, already checked by the configuration.
pub fn init(filter: &str, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(BoxMakeWriter::new(std::io::stderr))
        // Colours are for eyes: never into a file or a collector, nor where NO_COLOR asks for none.
        .with_ansi(
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        );
    // An error means that a test harness installed its own: theirs stays.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
