//! Asking a service on this machine for its health, for container health
//! checks: the image holds no shell and no curl.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use thiserror::Error;

const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a service does not count as healthy.
#[derive(Debug, Error)]
pub enum Unhealthy {
    /// It says so itself.
    #[error("unhealthy: HTTP status {0}")]
    Status(u16),
    /// It does not answer in time, or what answers is not HTTP.
    #[error("no answer")]
    NoAnswer(#[from] std::io::Error),
}

/// Asks `GET /health` on `port`. Blocks for some seconds at most.
pub fn check(host: IpAddr, port: u16) -> Result<(), Unhealthy> {
    match status(host, port)? {
        200 => Ok(()),
        status => Err(Unhealthy::Status(status)),
    }
}

fn status(host: IpAddr, port: u16) -> std::io::Result<u16> {
    let host = if host.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { host };
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(host, port), TIMEOUT)?;
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
