//! The user of this machine at the other end of a connection on loopback. Every user of a machine
//! can connect there, so that an address alone says nothing about who asks.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// State of a connection that both ends keep open (`TCP_ESTABLISHED` of Linux).
const ESTABLISHED: &str = "01";

/// Both ends of a connection, as an extension of each of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Address of the listener that the connection was made to.
    pub own: SocketAddr,
    /// Address of the client.
    pub peer: SocketAddr,
}

impl Ends {
    /// The client's user id, from the table of sockets (proc(5), `/proc/self/net/tcp`, which is there
    /// also where `subset=pid` hides `/proc/net`). None if the socket
    /// is not there: it is on another machine or in another network namespace, or its owner has closed
    /// it, and the table then says that it is root's. Blocks.
    ///
    /// # Errors
    /// If the system has no such table, or it cannot be read.
    pub fn user(&self) -> io::Result<Option<u32>> {
        // A socket for IPv6 may have an address of IPv4 in its other form.
        for (file, is_missing_well) in
            [("/proc/self/net/tcp", false), ("/proc/self/net/tcp6", true)]
        {
            match fs::read_to_string(file) {
                Ok(table) => {
                    if let Some(user) = self.user_in(&table) {
                        return Ok(Some(user));
                    }
                }
                Err(error) if is_missing_well && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The user in the row of the client's socket: its own address is our peer's.
    fn user_in(&self, table: &str) -> Option<u32> {
        let (own, peer) = (canonical(self.own), canonical(self.peer));
        table.lines().skip(1).find_map(|row| {
            let mut columns = row.split_ascii_whitespace().skip(1);
            let local = address(columns.next()?)?;
            let remote = address(columns.next()?)?;
            let is_open = columns.next()? == ESTABLISHED;
            let user = || columns.nth(3)?.parse().ok();
            (is_open && local == peer && remote == own).then(user).flatten()
        })
    }
}

/// The user id of this process.
pub fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

/// An address of the table: words of 32 bits in the order of the machine, and the port.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let word = |n: usize| u32::from_str_radix(ip.get(8 * n..8 * n + 8)?, 16).ok();
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?.to_ne_bytes()).into(),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?].map(u32::to_ne_bytes);
            let bytes: [u8; 16] = words.as_flattened().try_into().ok()?;
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some((ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_user_of_a_client_is_found_on_either_kind_of_address() {
        for (listens, connects_to) in
            [("127.0.0.1:0", None), ("[::1]:0", None), ("127.0.0.1:0", Some("::ffff:127.0.0.1"))]
        {
            let listener = TcpListener::bind(listens).expect("a listener");
            let address = listener.local_addr().expect("an address");
            let to = connects_to
                .map_or(address.ip(), |ip: &str| ip.parse().expect("an address of IPv6"));
            let client = TcpStream::connect((to, address.port())).expect("a connection");
            let (server, peer) = listener.accept().expect("a connection");
            let ends = Ends { own: server.local_addr().expect("an address"), peer };
            assert_eq!(ends.user().expect("a table"), Some(own_user()), "{ends:?}");
            let other = Ends { peer: SocketAddr::new(peer.ip(), 1), ..ends };
            assert_eq!(other.user().expect("a table"), None);
            drop(client);
            assert_eq!(ends.user().expect("a table"), None, "it is closed");
        }
    }

    #[test]
    fn a_row_is_read_by_both_of_its_ends() {
        let one = u32::from_ne_bytes([127, 0, 0, 1]);
        let row = |local: u16, remote: u16, state: &str, user: u32| {
            let ends = format!("{one:08X}:{local:04X} {one:08X}:{remote:04X}");
            format!("0: {ends} {state} 0:0 0:0 0 {user} 0 1\n")
        };
        let rows =
            [row(8001, 5000, "01", 1), row(5000, 8001, "01", 1000), row(5002, 8001, "05", 0)];
        let table = format!("  sl head\n{}garbage\n", rows.concat());
        let ends = |own: u16, peer: u16| Ends {
            own: (Ipv4Addr::LOCALHOST, own).into(),
            peer: (Ipv4Addr::LOCALHOST, peer).into(),
        };
        assert_eq!(ends(8001, 5000).user_in(&table), Some(1000));
        assert_eq!(ends(8001, 5001).user_in(&table), None);
        assert_eq!(ends(8002, 5000).user_in(&table), None);
        assert_eq!(ends(8001, 5002).user_in(&table), None, "closed by its owner");
    }
}
