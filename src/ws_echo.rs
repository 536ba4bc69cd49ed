//! (under construction)

pub fn serve(_listener: std::net::TcpListener) -> std::io::Result<()> {
    todo!()
}
