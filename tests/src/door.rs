//! A way to a server that can be shut: then whoever goes through it is cut off.

use std::net::Ipv4Addr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A port that leads to another one, while it is open.
pub struct Door {
    port: u16,
    open: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Door {
    /// An open way to this port.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let own = listener.local_addr().expect("its address").port();
        let (open, watched) = watch::channel(true);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if *watched.borrow() {
                    tokio::spawn(through(stream, port, watched.clone()));
                }
            }
        });
        Self { port: own, open, accepting }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Nobody gets through.
    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    /// Whoever tries gets through again.
    pub fn reopen(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn through(mut stream: TcpStream, port: u16, mut open: watch::Receiver<bool>) {
    let Ok(mut inner) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut stream, &mut inner) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}
