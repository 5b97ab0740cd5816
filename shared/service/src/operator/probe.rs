//! The health check of a container, which asks the role on this machine: the
//! image holds no shell and no curl.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use thiserror::Error;

const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a role does not count as healthy.
#[derive(Debug, Error)]
pub enum Unhealthy {
    /// The answer has another status than 200.
    #[error("unhealthy: HTTP status {0}")]
    Status(u16),
    /// There is no answer in time, or the answer is not HTTP.
    #[error("no answer")]
    NoAnswer(#[from] std::io::Error),
}

/// The address by which this machine reaches a listener on `address`.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

/// Asks `GET /health` of the operator's listener at `address`. Blocks for some seconds at most.
///
/// # Errors
/// If the answer is not 200, or if there is none.
pub fn check(address: SocketAddr) -> Result<(), Unhealthy> {
    match status(address)? {
        200 => Ok(()),
        status => Err(Unhealthy::Status(status)),
    }
}

fn status(address: SocketAddr) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&reachable(address), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut start = [0_u8; 12];
    stream.read_exact(&mut start)?;
    std::str::from_utf8(&start)
        .ok()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| std::io::Error::other("the answer is not HTTP/1.1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_listened_on_is_one_that_can_be_called() {
        for (address, reached) in [
            ("0.0.0.0:8000", "127.0.0.1:8000"),
            ("127.0.0.1:8000", "127.0.0.1:8000"),
            ("10.1.2.3:80", "10.1.2.3:80"),
            ("[::]:8000", "[::1]:8000"),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(reachable(address).to_string(), reached);
        }
    }
}
