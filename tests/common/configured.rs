//! A configuration that changes under a running node.

use crate::certificates::Folder;
use crate::common::{App, Node, PATIENCE, wait_for};

/// A node whose configuration is a file that can be written again.
pub struct Configured {
    pub node: Node,
    pub folder: Folder,
}

impl Configured {
    pub fn start(app: &App, lines: &str) -> Configured {
        let folder = Folder::new();
        let file = folder.file("node.toml", lines);
        let node = Node::start(app, &["--config", file.to_str().unwrap()]);
        Configured { node, folder }
    }

    /// Counts of good and bad reloads.
    pub fn reloads(&self) -> (f64, f64) {
        let count = |result| self.node.metric_where("signalring_reloads", &format!("result=\"{result}\""));
        (count("applied"), count("refused"))
    }

    pub fn read_again(&self, lines: &str) {
        self.folder.file("node.toml", lines);
        let before = self.reloads();
        self.node.process.signal("HUP");
        wait_for("the configuration to be read", PATIENCE, || (self.reloads() != before).then_some(()));
    }
}
