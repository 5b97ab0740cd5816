//! Sends requests and reads their answers.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, USER_AGENT},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};
use tracing::{Instrument, Span, field, info_span};
use url::Url;

use crate::{
    address::Address,
    answer::Answer,
    budget::Budget,
    connection::{Broken, Connections},
    error::{ApiError, ClientError, Unreadable},
    json_values::{Bounds, Each, Form, Values},
    observer::{Observer, Outcome},
    options::{Options, Token},
    refusal,
};

/// Redirects that are followed for one question.
const MOST_HOPS: usize = 5;

/// How much of an answer is read. Gitea gives the bodies of 50 issues with a page, and the database
/// allows megabytes for each.
const BOUNDS: Bounds = Bounds { answer: 256 << 20, value: 4 << 20, string: 16 << 10 };

/// A client of one Gitea. Clones share the budget and the connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    connections: Connections,
    address: Address,
    token: Option<Token>,
    authorization: Option<HeaderValue>,
    user_agent: HeaderValue,
    budget: Budget,
    deadline: Duration,
    bounds: Bounds,
    observer: Arc<dyn Observer>,
}

/// What is asked.
pub(crate) struct Question<'a> {
    /// Name of the operation, for metrics and spans.
    pub(crate) operation: &'static str,
    pub(crate) method: Method,
    /// Segments of the path below `/api/v1`.
    pub(crate) path: &'a [&'a str],
    pub(crate) query: &'a [(&'a str, String)],
    /// JSON to send along.
    pub(crate) body: Option<Bytes>,
}

impl<'a> Question<'a> {
    /// A question without a query.
    pub(crate) fn get(operation: &'static str, path: &'a [&'a str]) -> Self {
        Self { operation, method: Method::GET, path, query: &[], body: None }
    }

    pub(crate) fn with(mut self, query: &'a [(&'a str, String)]) -> Self {
        self.query = query;
        self
    }
}

/// What is read of an answer.
#[derive(Clone, Copy)]
pub(crate) enum Reading {
    /// Only whether it succeeded.
    Status,
    /// Values of this form, with strings of at most so many bytes.
    Values(Form, usize),
}

/// How one request ended, if not with an error.
enum Step {
    Answered(Answer<()>),
    Moved(Url),
}

impl Client {
    /// Makes a client. Reads the certificates of the system if Gitea's address is `https`.
    ///
    /// # Errors
    ///
    /// If the options cannot be used, or TLS cannot be set up.
    pub fn new(options: Options) -> Result<Self, ClientError> {
        let address = Address::parse(&options.url)?;
        let connections = Connections::new(&address)?;
        Self::with(options, address, connections)
    }

    /// Makes a client that uses `connections`.
    pub(crate) fn with(
        options: Options,
        address: Address,
        connections: Connections,
    ) -> Result<Self, ClientError> {
        let authorization = options.token.as_ref().map(authorization).transpose()?;
        let user_agent = HeaderValue::from_str(&options.user_agent)
            .map_err(|_| ClientError::Header("the user agent"))?;
        Ok(Self(Arc::new(Inner {
            connections,
            address,
            token: options.token,
            authorization,
            user_agent,
            budget: Budget::new(options.per_second, options.at_once)?,
            deadline: options.deadline,
            bounds: BOUNDS,
            observer: options.observer,
        })))
    }

    /// Asks for one value.
    pub(crate) async fn one<T>(&self, question: Question<'_>) -> Result<Answer<T>, ApiError>
    where
        T: DeserializeOwned + Send,
    {
        self.one_with(question, self.0.bounds.string, decode).await
    }

    /// Asks for one value, which `decode` reads. Keeps `string` bytes of its strings.
    pub(crate) async fn one_with<T: Send>(
        &self,
        question: Question<'_>,
        string: usize,
        decode: fn(&[u8]) -> Result<T, ApiError>,
    ) -> Result<Answer<T>, ApiError> {
        let mut value = None;
        let mut each = |bytes: &[u8]| {
            value = Some(decode(bytes)?);
            Ok(())
        };
        let answer = self.ask(question, Reading::Values(Form::One, string), &mut each).await?;
        let value = value.ok_or(ApiError::Unreadable(Unreadable::Truncated))?;
        Ok(answer.map(|()| value))
    }

    /// Asks for a list, whose elements go to `each` as they come in.
    pub(crate) async fn each<T>(
        &self,
        question: Question<'_>,
        mut each: impl FnMut(T) + Send,
    ) -> Result<Answer<()>, ApiError>
    where
        T: DeserializeOwned,
    {
        let mut decoded = |bytes: &[u8]| {
            each(decode(bytes)?);
            Ok(())
        };
        let reading = Reading::Values(Form::List, self.0.bounds.string);
        self.ask(question, reading, &mut decoded).await
    }

    /// Asks for a list that is small.
    pub(crate) async fn list<T>(&self, question: Question<'_>) -> Result<Answer<Vec<T>>, ApiError>
    where
        T: DeserializeOwned + Send,
    {
        let mut list = Vec::new();
        let answer = self.each(question, |element| list.push(element)).await?;
        Ok(answer.map(|()| list))
    }

    /// Asks, and follows redirects that stay with Gitea.
    pub(crate) async fn ask(
        &self,
        question: Question<'_>,
        reading: Reading,
        each: &mut Each<'_>,
    ) -> Result<Answer<()>, ApiError> {
        let place = self.0.budget.place().await;
        let mut url = self.0.address.endpoint(question.path, question.query);
        for _ in 0..=MOST_HOPS {
            place.turn().await;
            match self.request(&question, url, reading, each).await? {
                Step::Answered(answer) => return Ok(answer),
                Step::Moved(target) => url = target,
            }
        }
        Err(ApiError::TooManyRedirects)
    }

    /// Makes one request, within the deadline, and reports how it ended.
    async fn request(
        &self,
        question: &Question<'_>,
        url: Url,
        reading: Reading,
        each: &mut Each<'_>,
    ) -> Result<Step, ApiError> {
        let inner = &*self.0;
        let span = info_span!(
            "gitea",
            otel.name = question.operation,
            otel.kind = "client",
            otel.status_code = field::Empty,
            http.request.method = question.method.as_str(),
            http.response.status_code = field::Empty,
            url.full = url.as_str(),
            server.address = inner.address.host(),
            server.port = inner.address.port(),
            error.r#type = field::Empty,
        );
        let mut report = Report::new(inner.observer.as_ref(), question.operation);
        let step = timeout(inner.deadline, inner.exchange(question, url, reading, each))
            .instrument(span.clone())
            .await
            .unwrap_or(Err(ApiError::TimedOut(inner.deadline)));
        report.outcome = match &step {
            Ok(Step::Answered(_)) => Outcome::Ok,
            Ok(Step::Moved(_)) => Outcome::Moved,
            Err(error) => error.outcome(),
        };
        if step.is_err() {
            span.record("otel.status_code", "ERROR");
            span.record("error.type", report.outcome.as_str());
        }
        step
    }
}

impl Inner {
    async fn exchange(
        &self,
        question: &Question<'_>,
        url: Url,
        reading: Reading,
        each: &mut Each<'_>,
    ) -> Result<Step, ApiError> {
        let request = self.request(question, &url).map_err(ApiError::Request)?;
        let response = self.connections.send(request).await.map_err(ApiError::Unreachable)?;
        let status = response.status();
        Span::current().record("http.response.status_code", status.as_u16());
        match status {
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => self.moved(&url, response.headers()),
            status if status.is_success() => {
                let answer = answer(response.headers());
                self.read(response, reading, each).await?;
                Ok(Step::Answered(answer))
            }
            status => Err(self.refused(status, response).await),
        }
    }

    fn request(
        &self,
        question: &Question<'_>,
        url: &Url,
    ) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let mut request = Request::builder()
            .method(question.method.clone())
            .uri(url.as_str())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, self.user_agent.clone());
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if question.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request.body(Full::from(question.body.clone().unwrap_or_default()))
    }

    /// Where a redirect leads to.
    fn moved(&self, from: &Url, headers: &HeaderMap) -> Result<Step, ApiError> {
        let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
        match location.map(|location| self.address.follow(from, location)) {
            Some(Ok(target)) => Ok(Step::Moved(target)),
            Some(Err(origin)) => Err(ApiError::MovedElsewhere { origin }),
            None => Err(ApiError::MovedElsewhere { origin: String::new() }),
        }
    }

    async fn read(
        &self,
        mut response: Response<Incoming>,
        reading: Reading,
        each: &mut Each<'_>,
    ) -> Result<(), ApiError> {
        let Reading::Values(form, string) = reading else { return Ok(()) };
        let mut values = Values::new(form, Bounds { string, ..self.bounds });
        while let Some(piece) = next(response.body_mut()).await.map_err(ApiError::Unreachable)? {
            values.read(&piece, each)?;
        }
        values.finish(each)
    }

    /// The error of a status. Its body is read as far as it may hold a message.
    async fn refused(&self, status: StatusCode, mut response: Response<Incoming>) -> ApiError {
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            && let Some(pause) = refusal::retry_after(response.headers())
        {
            self.budget.pause(pause);
        }
        let mut body = Vec::new();
        // A body that breaks off says nothing less than the status.
        while let Ok(Some(piece)) = next(response.body_mut()).await {
            body.extend_from_slice(&piece);
            if body.len() > refusal::BODY_LIMIT {
                body.truncate(refusal::BODY_LIMIT);
                break;
            }
        }
        refusal::read(status, response.headers(), &body, self.token.as_ref())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.0.address).finish_non_exhaustive()
    }
}

/// Tells the observer of a request when it ends, also when its asker goes away.
struct Report<'a> {
    observer: &'a dyn Observer,
    operation: &'static str,
    began: Instant,
    outcome: Outcome,
}

impl<'a> Report<'a> {
    fn new(observer: &'a dyn Observer, operation: &'static str) -> Self {
        Self { observer, operation, began: Instant::now(), outcome: Outcome::Abandoned }
    }
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        self.observer.asked(self.operation, self.outcome, self.began.elapsed());
    }
}

/// What an answer's headers say.
fn answer(headers: &HeaderMap) -> Answer<()> {
    let total = headers.get("x-total-count").and_then(|total| total.to_str().ok()?.parse().ok());
    Answer { value: (), date: refusal::date(headers), total }
}

/// Decodes a value. The error names the field, and not what stands in it.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = Unreadable::Field { path: error.path().to_string() };
        ApiError::Unreadable(field)
    })
}

/// The next piece of a body.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Broken> {
    while let Some(frame) = body.frame().await {
        // Trailers say nothing here.
        if let Ok(piece) = frame?.into_data() {
            return Ok(Some(piece));
        }
    }
    Ok(None)
}

fn authorization(token: &Token) -> Result<HeaderValue, ClientError> {
    let mut value = HeaderValue::from_str(&format!("token {}", token.expose()))
        .map_err(|_| ClientError::Header("the token"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::{error::Error, sync::Mutex};

    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        IssueQuery, NoObserver,
        responder::{Reply, Responder, Seen, TOKEN, options},
    };

    const VERSION: &str = r#"{"version":"1"}"#;

    /// A client whose answers have at most `bytes`.
    fn bounded(url: &str, bytes: u64) -> Client {
        let mut client = Client::new(options(url)).unwrap();
        Arc::get_mut(&mut client.0).expect("one client").bounds.answer = bytes;
        client
    }

    fn with_deadline(url: &str, deadline: Duration) -> Client {
        Client::new(Options { deadline, ..options(url) }).unwrap()
    }

    /// An error with all of its causes, as text.
    fn told(error: &ApiError) -> String {
        let mut text = format!("{error:?}");
        let mut next: Option<&dyn Error> = Some(error);
        while let Some(cause) = next {
            text += &format!(" | {cause}");
            next = cause.source();
        }
        text
    }

    #[test]
    fn what_is_asked_can_be_spawned() {
        fn is_send<T: Send>(_: &T) {}
        let client = Client::new(options("http://h")).unwrap();
        is_send(&client.search(&IssueQuery::default(), |_| {}));
        is_send(&client.issue("a", "b", 1));
        is_send(&client.timeline("a", "b", 1, None));
        is_send(&client.hooks(&crate::HookScope::User, 1));
    }

    #[test]
    fn a_client_needs_options_that_can_be_used() {
        for options in [
            Options { url: "ftp://h".to_owned(), ..options("http://h") },
            Options { token: Some(Token::new("a\nb")), ..options("http://h") },
            Options { user_agent: "a\0".to_owned(), ..options("http://h") },
            Options { per_second: 0.0, ..options("http://h") },
            Options { at_once: 0, ..options("http://h") },
        ] {
            assert!(Client::new(options.clone()).is_err(), "{options:?}");
        }
    }

    #[tokio::test]
    async fn without_a_token_nothing_is_sent_for_one() {
        let gitea = Responder::of(200, VERSION.as_bytes()).await;
        let options =
            Options { token: None, observer: Arc::new(NoObserver), ..options(&gitea.url) };
        Client::new(options).unwrap().version().await.unwrap();
        assert_eq!(gitea.asked()[0].headers.get("authorization"), None);
    }

    #[tokio::test]
    async fn a_path_of_the_address_is_kept() {
        let gitea = Responder::of(200, VERSION.as_bytes()).await;
        let client = Client::new(options(&format!("{}/git/", gitea.url))).unwrap();
        client.version().await.unwrap();
        let _ = client.repository_by_name("a/b", "c?d").await;
        assert_eq!(gitea.lines(), ["GET /git/api/v1/version", "GET /git/api/v1/repos/a%2Fb/c%3Fd"]);
    }

    #[tokio::test]
    async fn redirects_of_gitea_are_followed_with_the_token() {
        for (status, absolute) in [(301, false), (307, true), (308, false)] {
            let gitea = Responder::start(move |asked| {
                let host = &asked.headers["host"];
                let origin = if absolute { format!("http://{host}") } else { String::new() };
                match asked.line.as_str() {
                    "GET /api/v1/repos/Nord-Werk_7/api.v2-core" => {
                        let body: &[u8] = include_bytes!("../fixtures/renamed-repo-repo.body");
                        Reply::new(status, body)
                            .with("Location", format!("{origin}/api/v1/repos/acme/core"))
                    }
                    _ => {
                        let body: &[u8] = include_bytes!("../fixtures/repo.body");
                        Reply::new(200, body)
                    }
                }
            })
            .await;
            let seen = Arc::new(Seen::default());
            let options = Options { observer: seen.clone(), ..options(&gitea.url) };
            let client = Client::new(options).unwrap();
            let found = client.repository_by_name("Nord-Werk_7", "api.v2-core").await.unwrap();
            assert_eq!(found.value.id, 1);
            let asked = gitea.asked();
            assert_eq!(asked[1].line, "GET /api/v1/repos/acme/core");
            assert!(asked.len() == 2 && asked.iter().all(|asked| asked.has_token()));
            let operation = "repository_by_name";
            assert_eq!(seen.all(), [(operation, Outcome::Moved), (operation, Outcome::Ok)]);
        }
    }

    #[tokio::test]
    async fn a_redirected_change_stays_a_change() {
        let gitea = Responder::start(|asked| match asked.line.as_str() {
            "POST /api/v1/user/hooks" => Reply::new(301, "").with("Location", "/elsewhere"),
            _ => Reply::new(201, include_str!("../fixtures/hook-create-repo.body")),
        })
        .await;
        let hook = crate::NewHook {
            url: "http://h".to_owned(),
            content_type: crate::ContentType::Json,
            secret: None,
            events: vec![],
            active: true,
            authorization: None,
        };
        gitea.client().create_hook(&crate::HookScope::User, &hook).await.unwrap();
        let asked = gitea.asked();
        assert_eq!(asked[1].line, "POST /elsewhere");
        assert_eq!(asked[0].body, asked[1].body);
    }

    #[tokio::test]
    async fn redirects_elsewhere_are_not_followed() {
        let other = Responder::of(200, VERSION.as_bytes()).await;
        // The same server under another name is another origin as well.
        let other_name = other.url.replace("127.0.0.1", "localhost");
        for target in [format!("{}/x", other.url), format!("{other_name}/x")] {
            let location = target.clone();
            let gitea =
                Responder::start(move |_| Reply::new(301, "").with("Location", &*location)).await;
            let error = gitea.client().version().await.unwrap_err();
            let ApiError::MovedElsewhere { origin } = &error else { panic!("{error:?}") };
            assert_eq!(format!("{origin}/x"), target);
        }
        assert!(other.asked().is_empty(), "{:?}", other.asked());
        let gitea = Responder::of(301, b"").await;
        let error = gitea.client().version().await.unwrap_err();
        assert!(matches!(error, ApiError::MovedElsewhere { .. }), "{error:?}");
        // What a proxy sends people to, to sign in.
        let gitea = Responder::start(|_| Reply::new(302, "").with("Location", "/user/login")).await;
        let error = gitea.client().version().await.unwrap_err();
        assert!(matches!(error, ApiError::Unexpected { status: 302, .. }), "{error:?}");
        assert_eq!(gitea.asked().len(), 1);
    }

    #[tokio::test]
    async fn redirects_end() {
        let gitea = Responder::start(|_| Reply::new(301, "").with("Location", "/again")).await;
        let error = gitea.client().version().await.unwrap_err();
        assert!(matches!(error, ApiError::TooManyRedirects), "{error:?}");
        assert_eq!(gitea.asked().len(), 1 + MOST_HOPS);
    }

    #[tokio::test]
    async fn answers_that_are_none_are_told_apart() {
        let list = |body: &'static str| move || Reply::new(200, body);
        for (reply, expected) in [
            (
                Box::new(list("<!DOCTYPE html><html>")) as Box<dyn Fn() -> Reply + Send + Sync>,
                Outcome::Unreadable,
            ),
            (Box::new(list("")), Outcome::Unreadable),
            (Box::new(list(r#"[{"id":1"#)), Outcome::Unreadable),
            (Box::new(list(r#"{"message":"x"}"#)), Outcome::Unreadable),
            (Box::new(list("\u{1f}\u{8b}\u{8}")), Outcome::Unreadable),
            (Box::new(|| Reply::broken("[")), Outcome::Unreachable),
            (
                Box::new(|| Reply::new(401, include_str!("../fixtures/search-bad-token.body"))),
                Outcome::Unauthorized,
            ),
            (
                Box::new(|| Reply::new(403, include_str!("../fixtures/search-no-scope.body"))),
                Outcome::Forbidden,
            ),
            (Box::new(|| Reply::new(404, "<html>")), Outcome::NotFound),
            (Box::new(|| Reply::new(429, "")), Outcome::TooMany),
            (Box::new(|| Reply::new(502, "<html>")), Outcome::ServerError),
            (
                Box::new(|| {
                    Reply::new(422, include_str!("../fixtures/search-since-malformed.body"))
                }),
                Outcome::Unexpected,
            ),
        ] {
            let gitea = Responder::start(move |_| reply()).await;
            let seen = Arc::new(Seen::default());
            let options = Options { observer: seen.clone(), ..options(&gitea.url) };
            let client = Client::new(options).unwrap();
            let error = client.search(&IssueQuery::default(), |_| {}).await.unwrap_err();
            assert_eq!(error.outcome(), expected, "{error:?}");
            assert_eq!(seen.all(), [("search", expected)]);
            assert!(!told(&error).contains(TOKEN), "{}", told(&error));
        }
    }

    #[tokio::test]
    async fn a_message_with_the_token_hides_it() {
        let gitea = Responder::start(|_| {
            let message = format!("access token does not exist [sha: {TOKEN}]");
            Reply::new(401, format!(r#"{{"message":"{message}","url":"http://h"}}"#))
        })
        .await;
        let error = told(&gitea.client().version().await.unwrap_err());
        assert!(error.contains("[sha: (hidden)]") && !error.contains(TOKEN), "{error}");
    }

    #[tokio::test]
    async fn an_answer_without_an_end_has_one() {
        let endless = || {
            Reply::pieces(
                200,
                std::iter::once("[".into()).chain(std::iter::repeat("      ".into())),
            )
        };
        let gitea = Responder::start(move |_| endless()).await;
        let error = bounded(&gitea.url, 100_000).search(&IssueQuery::default(), |_| {}).await;
        assert!(matches!(error, Err(ApiError::TooLarge { limit: 100_000 })), "{error:?}");
        // So has a refusal: its status is known.
        let page = || Bytes::from_static(b"<p>not found</p>");
        let gitea =
            Responder::start(move |_| Reply::pieces(404, std::iter::repeat_with(page))).await;
        let error = gitea.client().version().await.unwrap_err();
        assert!(matches!(error, ApiError::NotFound { is_giteas: false }), "{error:?}");
    }

    #[tokio::test]
    async fn an_answer_that_trickles_or_never_comes_times_out() {
        let gitea = Responder::start(|_| Reply::trickle()).await;
        let client = with_deadline(&gitea.url, Duration::from_millis(200));
        let error = client.search(&IssueQuery::default(), |_| {}).await.unwrap_err();
        assert!(matches!(error, ApiError::TimedOut(_)), "{error:?}");

        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let client = with_deadline(&url, Duration::from_millis(200));
        let error = client.version().await.unwrap_err();
        assert!(matches!(error, ApiError::TimedOut(_)), "{error:?}");
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", gone.local_addr().unwrap());
        drop(gone);
        let error = Client::new(options(&url)).unwrap().version().await.unwrap_err();
        assert!(matches!(error, ApiError::Unreachable(_)), "{error:?}");
        assert!(!told(&error).contains(TOKEN));
    }

    #[tokio::test]
    async fn an_asker_that_goes_away_is_reported_and_gives_its_place_back() {
        let gitea = Responder::start(|asked| match asked.line.as_str() {
            "GET /api/v1/version" => Reply::new(200, VERSION),
            _ => Reply::trickle(),
        })
        .await;
        let seen = Arc::new(Seen::default());
        let options = Options { at_once: 1, observer: seen.clone(), ..options(&gitea.url) };
        let client = Client::new(options).unwrap();
        let asking = tokio::spawn({
            let client = client.clone();
            async move { client.search(&IssueQuery::default(), |_| {}).await }
        });
        while gitea.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        asking.abort();
        client.version().await.unwrap();
        assert_eq!(seen.all(), [("search", Outcome::Abandoned), ("version", Outcome::Ok)]);
    }

    #[tokio::test]
    async fn a_pause_that_is_asked_for_is_kept() {
        let now = "Thu, 26 Nov 2026 12:55:31 GMT";
        for (status, retry_after) in
            [(429, "1"), (503, "1"), (429, "Thu, 26 Nov 2026 12:55:32 GMT")]
        {
            let refused = Arc::new(Mutex::new(None));
            let gitea = Responder::start({
                let refused = refused.clone();
                move |_| {
                    let mut first = refused.lock().unwrap();
                    if first.is_some() {
                        return Reply::new(200, VERSION);
                    }
                    *first = Some(Instant::now());
                    Reply::new(status, "").with("Retry-After", retry_after).with("Date", now)
                }
            })
            .await;
            let client = gitea.client();
            let error = client.version().await.unwrap_err();
            if let ApiError::TooManyRequests { retry_after } = error {
                assert_eq!(retry_after, Some(Duration::from_secs(1)));
            } else {
                assert!(matches!(error, ApiError::Server { status: 503, .. }), "{error:?}");
            }
            client.clone().version().await.unwrap();
            let waited = refused.lock().unwrap().unwrap().elapsed();
            assert!(waited >= Duration::from_secs(1), "{waited:?}");
        }
    }

    #[tokio::test]
    async fn no_more_are_under_way_than_the_budget_has() {
        let under_way = Arc::new(Mutex::new((0_usize, 0_usize)));
        let gitea = Responder::start({
            let under_way = under_way.clone();
            move |_| {
                let mut counts = under_way.lock().unwrap();
                counts.0 += 1;
                counts.1 = counts.1.max(counts.0);
                let under_way = under_way.clone();
                // The last piece is on its way when the next request may come.
                let pieces = std::iter::repeat_n(Bytes::from_static(b" "), 2000);
                let end = std::iter::once_with(move || {
                    under_way.lock().unwrap().0 -= 1;
                    VERSION.into()
                });
                Reply::pieces(200, pieces.chain(end))
            }
        })
        .await;
        let client = Client::new(Options { at_once: 3, ..options(&gitea.url) }).unwrap();
        let asking = (0..30).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.version().await.map(|_| ()) })
        });
        for asked in asking.collect::<Vec<_>>() {
            asked.await.unwrap().unwrap();
        }
        let most = under_way.lock().unwrap().1;
        assert!((2..=3).contains(&most), "{most}");
    }
}
