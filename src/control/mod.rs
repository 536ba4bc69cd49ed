//! (under construction)
use crate::config::Config;

pub fn run_node(_config: Config) -> std::io::Result<()> {
    todo!()
}
