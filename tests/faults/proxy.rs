//! A TCP proxy in front of one server, which can behave like a bad network.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// What the line does to traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Nothing.
    Good,
    /// Delays all traffic by this time.
    Delayed(Duration),
    /// Lets through this many bytes a second, each way of each connection.
    Thin(u32),
    /// Holds all traffic back until the line is good again: a partition that heals.
    Stalled,
    /// Accepts all traffic and discards it. Connections that lost something are
    /// cut at the end.
    HalfOpen,
}

/// A proxy. Dropping it ends its connections.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    line: watch::Sender<Line>,
    cuts: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy of the server at `port`.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (line, lines) = watch::channel(Line::Good);
        let (cuts, cut) = watch::channel(0);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, port, lines.clone(), cut.clone()));
            }
        });
        Self { address, line, cuts, task }
    }

    /// Sets what the line does from now on.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(
    mut client: TcpStream,
    port: u16,
    mut line: watch::Receiver<Line>,
    mut cuts: watch::Receiver<u64>,
) {
    cuts.mark_unchanged();
    if *line.borrow() == Line::HalfOpen {
        let mut lost = [0; 4096];
        loop {
            tokio::select! {
                _ = line.wait_for(|line| *line != Line::HalfOpen) => return,
                read = client.read(&mut lost) => if !matches!(read, Ok(1..)) { return },
            }
        }
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pass(from_client, to_server, line.clone()) => {}
        () = pass(from_server, to_client, line) => {}
        _ = cuts.changed() => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: watch::Receiver<Line>) {
    let mut buffer = vec![0; 16 * 1024];
    let mut lost_some = false;
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = line.wait_for(|line| *line != Line::HalfOpen), if lost_some => return,
        };
        let Ok(count @ 1..) = read else { return };
        let now = *line.borrow_and_update();
        match now {
            Line::Good => {}
            Line::Delayed(by) => tokio::time::sleep(by).await,
            Line::Thin(rate) => {
                let takes = Duration::from_secs_f64(count as f64 / f64::from(rate));
                tokio::select! {
                    () = tokio::time::sleep(takes) => {}
                    _ = line.changed() => {}
                }
            }
            Line::Stalled => {
                let _ = line.wait_for(|line| *line != Line::Stalled).await;
            }
            Line::HalfOpen => {
                lost_some = true;
                continue;
            }
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
