//! Somebody else's site, which a browser shows that can also reach the pages.

use axum::{Router, extract::Path, response::Html, routing::get};
use tokio::{net::TcpListener, task::JoinHandle};

/// The site, on a port of its own.
pub struct Attacker {
    port: u16,
    task: JoinHandle<()>,
}

impl Attacker {
    /// Starts the site with this one page.
    pub async fn start(body: String) -> Self {
        let page = format!("<!doctype html><html lang=en><title>Prizes</title>{body}</html>");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let router = Router::new().route("/{*any}", get(|_: Path<String>| async { Html(page) }));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
        Self { port, task }
    }

    /// The page under a host name that leads to this machine.
    pub fn url(&self, host: &str) -> String {
        format!("http://{host}:{}/prizes", self.port)
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.task.abort();
    }
}
