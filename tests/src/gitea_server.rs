//! A server that answers as Gitea's API does, for tests where no Gitea can be had.
//! Its world is in memory: users, repositories, issues, timelines, tokens, hooks. A test
//! changes it as Gitea's users would (`changes`), lets requests fail (`faults`), and asks
//! what was requested (`requests`). Changes go out as webhooks where a test wants them.
//!
//! What it answers is compared with the recordings in `fixtures/api-1.27-2026-05`.

mod access;
mod answers;
mod changes;
mod deliveries;
mod faults;
mod hooks;
mod json;
#[cfg(test)]
mod recordings;
mod reply;
mod requests;
mod route;
mod search;
#[cfg(test)]
mod tests;
mod world;

use std::{
    future,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::to_bytes,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{net::TcpListener, task::JoinHandle};

use self::{
    answers::Call, deliveries::Deliveries, faults::Faults, requests::Requests, route::Route,
    world::World,
};
pub use self::{
    changes::{Many, NewIssue},
    deliveries::Order,
    faults::Fault,
    requests::{Kind, Seen},
};

/// Above the largest body that a client of the API sends here.
const LARGEST_REQUEST: usize = 1024 * 1024;

/// A Gitea on a port of its own. When it is dropped, it answers nobody any more.
pub struct GiteaServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

struct Shared {
    world: Mutex<World>,
    faults: Mutex<Faults>,
    requests: Arc<Requests>,
    deliveries: Arc<Deliveries>,
}

impl GiteaServer {
    /// Starts a server with an empty world.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            world: Mutex::new(World::new(format!("http://{address}"))),
            faults: Mutex::default(),
            requests: Arc::default(),
            deliveries: Arc::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let tasks = [
            tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") }),
            tokio::spawn(Arc::clone(&shared.deliveries).run()),
        ];
        Self { address, shared, tasks }
    }

    /// Its base URL, for `GITEA_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets Gitea's `ROOT_URL`, which stands before all addresses in its answers.
    pub fn set_root_url(&self, url: &str) {
        url.trim_end_matches('/').clone_into(&mut lock(&self.shared.world).root_url);
    }

    /// Gitea's clock, in seconds since 1970.
    pub fn now(&self) -> i64 {
        lock(&self.shared.world).now()
    }

    /// Stops Gitea's clock at this time, in seconds since 1970.
    pub fn set_now(&self, seconds: i64) {
        lock(&self.shared.world).clock = Some(seconds);
    }

    /// Stops Gitea's clock, so many seconds from what it showed.
    pub fn advance(&self, seconds: i64) {
        let mut world = lock(&self.shared.world);
        world.clock = Some(world.now() + seconds);
    }

    /// Sets Gitea's clock back to that of this machine, with which it starts.
    pub fn use_real_clock(&self) {
        lock(&self.shared.world).clock = None;
    }

    /// Reads the world.
    fn read<T>(&self, read: impl FnOnce(&World) -> T) -> T {
        read(&lock(&self.shared.world))
    }

    /// Changes the world, and hands over what is to be delivered of it.
    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        self.shared.change(change)
    }
}

impl Drop for GiteaServer {
    fn drop(&mut self) {
        // A connection that a client kept outlives the task that accepted it.
        lock(&self.shared.faults).repair();
        lock(&self.shared.faults).add(Fault::Closed, "", usize::MAX);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let mut world = lock(&self.world);
        let result = change(&mut world);
        // Under the lock, so that deliveries are queued in the order of the changes.
        self.deliveries.queue(world.outbox.drain(..));
        result
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("no panic while it was locked")
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let route = Route::of(&head.method, head.uri.path());
    let authorization = head.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let secret = authorization.and_then(access::secret_in).map(str::to_owned);
    let path = head.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();

    let token = secret.as_deref().map(|secret| lock(&shared.world).token_name(secret));
    let seen = Seen { kind: route.kind(), method: head.method.clone(), path, token };
    let fault = lock(&shared.faults).next(&seen.path);
    let _under_way = shared.requests.begin(seen);

    match fault {
        Some(Fault::Hang) => future::pending().await,
        Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
        _ => {}
    }
    let instead = fault.as_ref().and_then(|fault| fault.reply(&lock(&shared.world).root_url));
    let reply = match instead {
        Some(reply) => reply,
        None => {
            let Ok(body) = to_bytes(body, LARGEST_REQUEST).await else {
                return StatusCode::PAYLOAD_TOO_LARGE.into_response();
            };
            let call = Call { uri: head.uri, route, secret, body };
            shared.change(|world| answers::answer(world, &call))
        }
    };
    let now = lock(&shared.world).now();
    let response = reply.into_response(now);
    match fault {
        Some(fault) => fault.distort(response).await,
        None => response,
    }
}
