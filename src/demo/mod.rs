//! (under construction)
pub mod app {
    pub fn run(_listen: std::net::SocketAddr) -> std::io::Result<()> {
        todo!()
    }
}

pub fn run(_listen: std::net::SocketAddr) -> std::io::Result<()> {
    todo!()
}
