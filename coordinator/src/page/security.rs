//! Who is let in, and which requests may change something.
//!
//! A token is asked for where the listener is not on loopback, or where one is set. Whoever has it
//! gets a cookie. Without a token only our own user gets in. A change takes a POST from a page of ours: its origin is the host that was asked,
//! and its form holds a token that no other page can know. The `Host` is checked before all of this
//! (`service::operator::host`).

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::Bytes,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{
            AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HOST, LOCATION, ORIGIN,
            REFERRER_POLICY, RETRY_AFTER, SET_COOKIE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
        uri::Authority,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use hmac::{Hmac, KeyInit, Mac};
use maud::html;
use service::{
    operator::OperatorSettings,
    secret::Secret,
    server::local_user::{Ends, own_user},
};
use sha2::Sha256;
use tokio::sync::Semaphore;

use super::{
    failure::{Answer, Failure},
    fields::Fields,
    layout::{self, FORM_TOKEN},
    state::Shared,
};

/// How long a login lasts.
const LOGIN_SECS: u64 = 12 * 3_600;
/// Tries with a wrong token that wait at once. More are refused without being looked at.
const TRIES_AT_ONCE: usize = 4;
/// How long a wrong token waits for its answer.
const WRONG_TOKEN_WAIT: Duration = Duration::from_secs(1);
/// Name of the cookie.
const COOKIE_NAME: &str = "coordinator_login";
/// Root can read all that is kept anyway.
const ROOT: u32 = 0;
/// Paths that take no login: what a login page needs.
const OPEN: [&str; 4] = ["/login", "/page.css", "/page.js", "/icon.svg"];

/// Nothing but what the page itself brings, and no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Who is let in.
pub(super) struct Security {
    /// The listener is reached from this machine alone.
    on_loopback: bool,
    token: Option<Secret>,
    /// Key of logins. The same in all processes with the same token, so that one login is for all.
    logins: Hmac<Sha256>,
    /// Key of the tokens in forms, of this process alone.
    forms: Hmac<Sha256>,
    tries: Semaphore,
}

/// Somebody who was let in, as an extension of the request.
#[derive(Clone, Debug)]
pub(super) struct Viewer {
    /// The token for forms.
    pub(super) form_token: String,
    /// Whether there is a login to be left.
    pub(super) logged_in: bool,
    /// Whether the request brought the token itself, which no browser does by itself.
    bearer: bool,
}

impl Security {
    pub(super) fn new(settings: &OperatorSettings) -> Self {
        let token = settings.operator_token.clone();
        let key = token.as_ref().map(Secret::expose).unwrap_or_default();
        let mut logins = keyed(key);
        logins.update(b"coordinator page login\0");
        let random = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(uuid::Uuid::into_bytes);
        Self {
            on_loopback: settings.operator_host.is_loopback(),
            token,
            logins,
            forms: keyed(random.as_flattened()),
            tries: Semaphore::new(TRIES_AT_ONCE),
        }
    }

    /// The value of a cookie that is good until `until`, in seconds since 1970.
    fn login(&self, until: u64) -> String {
        let mac = self.logins.clone().chain_update(until.to_string()).finalize();
        format!("{until}.{}", hex::encode(mac.into_bytes()))
    }

    /// Whether the value of a cookie is ours and good at `now`.
    fn is_login(&self, value: &str, now: u64) -> bool {
        let Some((until, mac)) = value.split_once('.') else { return false };
        let Ok(mac) = hex::decode(mac) else { return false };
        let is_ours = self.logins.clone().chain_update(until).verify_slice(&mac).is_ok();
        is_ours && until.parse::<u64>().is_ok_and(|until| until > now)
    }

    /// The token in the forms of whoever has this login.
    fn form_token(&self, login: &str) -> String {
        hex::encode(self.forms.clone().chain_update(login).finalize().into_bytes())
    }

    fn is_form_token(&self, login: &str, token: &str) -> bool {
        let Ok(token) = hex::decode(token) else { return false };
        self.forms.clone().chain_update(login).verify_slice(&token).is_ok()
    }

    /// Whether the token is right. Compares what is derived from both, so that the time tells nothing.
    fn is_token(&self, given: &[u8]) -> bool {
        let Some(token) = &self.token else { return false };
        let expected = self.forms.clone().chain_update(token.expose()).finalize();
        self.forms.clone().chain_update(given).verify(&expected.into_bytes()).is_ok()
    }

    /// Looks at a token. A wrong one waits, and only a few wait at once.
    async fn try_token(&self, given: &[u8]) -> Result<bool, Response> {
        let Ok(_permit) = self.tries.try_acquire() else {
            let failure = Failure::TooMany("Too many logins at once. Wait a moment.".into());
            let mut response = failure.into_response();
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
            return Err(response);
        };
        let right = self.is_token(given);
        if !right {
            tokio::time::sleep(WRONG_TOKEN_WAIT).await;
        }
        Ok(right)
    }

    /// Who asks, or the answer to somebody who is not let in.
    async fn viewer(
        &self,
        headers: &HeaderMap,
        ends: Option<Ends>,
        is_get: bool,
    ) -> Result<Viewer, Response> {
        if self.token.is_none() {
            if self.on_loopback {
                if is_passed_on(headers) {
                    let why = "A proxy passes this on, so nobody knows who asks. Set OPERATOR_TOKEN or \
                               OPERATOR_TOKEN_FILE for those who are to see the page.";
                    return Err(Failure::Forbidden(why.into()).into_response());
                }
                if !is_of_our_user(ends).await {
                    let why = "Another user of this machine asks, or nobody knows who. Set OPERATOR_TOKEN or \
                               OPERATOR_TOKEN_FILE for those who are to see the page.";
                    return Err(Failure::Forbidden(why.into()).into_response());
                }
                let form_token = self.form_token("");
                return Ok(Viewer { form_token, logged_in: false, bearer: false });
            }
            let why = "This listener is not on loopback (OPERATOR_HOST), so the page needs a token. Set \
                       OPERATOR_TOKEN or OPERATOR_TOKEN_FILE and restart; make one with `openssl rand -hex \
                       32`. Health and metrics need none.";
            return Err(Failure::Forbidden(why.into()).into_response());
        }
        if let Some(given) = bearer(headers) {
            return match self.try_token(given.as_bytes()).await? {
                true => Ok(Viewer {
                    form_token: self.form_token(given),
                    logged_in: false,
                    bearer: true,
                }),
                false => Err(login_page(true)),
            };
        }
        match cookies(headers).find(|value| self.is_login(value, now())) {
            Some(login) => {
                let form_token = self.form_token(login);
                Ok(Viewer { form_token, logged_in: true, bearer: false })
            }
            None if is_get => Err(login_page(false)),
            None => Err(login_page(true)),
        }
    }
}

/// Whether a proxy of this machine passes on what somebody else asks, whoever runs the proxy: it says
/// so, or the request is for a name that is not this machine's own.
fn is_passed_on(headers: &HeaderMap) -> bool {
    const SAYS_SO: [&str; 5] =
        ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"];
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.and_then(|host| host.parse::<Authority>().ok());
    let is_own = host.is_some_and(|host| {
        let name = host.host().trim_matches(['[', ']']);
        let address = name.parse::<IpAddr>();
        name.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|ip| ip.to_canonical().is_loopback())
    });
    !is_own || SAYS_SO.iter().any(|name| headers.contains_key(*name))
}

/// Whether the client is a process of our own user, or of root. Every user of a machine can connect to
/// its loopback, and what is kept here is its owner's alone.
async fn is_of_our_user(ends: Option<Ends>) -> bool {
    let Some(ends) = ends else { return false };
    match tokio::task::spawn_blocking(move || ends.user()).await {
        Ok(Ok(user)) => user.is_some_and(|user| user == ROOT || user == own_user()),
        // Another system than Linux has no such table. On Linux it can be hidden, which lets nobody in.
        Ok(Err(error)) => {
            !cfg!(target_os = "linux") && error.kind() == std::io::ErrorKind::NotFound
        }
        Err(_) => false,
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    // HMAC takes a key of any length.
    Hmac::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let pairs = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    pairs.flat_map(|pairs| pairs.split(';')).filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE_NAME).then_some(value)
    })
}

/// Whether a request comes from a page of this host: by its origin, or where a browser sends none, by
/// what the browser says of the request.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    match (headers.get(ORIGIN).is_some(), text(&ORIGIN), text(&HOST)) {
        (true, Some(origin), Some(host)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
        }
        (true, ..) => false,
        (false, ..) => {
            let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
            site == Some("same-origin")
        }
    }
}

/// Whether another page embeds or fetches something from here. A browser counts another port of this
/// machine as the same site, and sends it our cookie.
fn is_of_another_page(headers: &HeaderMap) -> bool {
    let says = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    matches!(says("sec-fetch-site"), Some("cross-site" | "same-site"))
        && says("sec-fetch-mode") != Some("navigate")
}

/// Lets a request through, or answers it. A [`Viewer`] is an extension of what is let through.
pub(super) async fn check(
    State(shared): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Response {
    let security = &shared.security;
    let headers = request.headers();
    if is_of_another_page(headers) {
        return secured(Failure::Forbidden("Asked by another page.".into()).into_response());
    }
    let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
    let has_origin = headers.contains_key(ORIGIN);
    let has_bearer = bearer(headers).is_some();
    // No browser adds a bearer token by itself, so a request with one needs no origin.
    if !is_get && !is_from_here(headers) && (has_origin || !has_bearer) {
        let why = "The request does not come from a page of this host.";
        return secured(Failure::Forbidden(why.into()).into_response());
    }
    if !OPEN.contains(&request.uri().path()) {
        let ends = request.extensions().get::<Ends>().copied();
        match security.viewer(headers, ends, is_get).await {
            Ok(viewer) => {
                request.extensions_mut().insert(viewer);
            }
            Err(response) => return secured(response),
        }
    }
    secured(next.run(request).await)
}

/// Adds what browsers are to mind.
fn secured(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        // Under `no-referrer` a browser sends `Origin: null` with the forms of our own pages.
        (REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The fields of a form of ours.
///
/// # Errors
/// If the form's token is not that of this viewer.
pub(super) fn form(
    shared: &Shared,
    viewer: &Viewer,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Fields, Failure> {
    let fields = Fields::parse(body);
    if viewer.bearer {
        return Ok(fields);
    }
    let login = cookies(headers).find(|value| shared.security.is_login(value, now()));
    let login = if viewer.logged_in { login.unwrap_or_default() } else { "" };
    if shared.security.is_form_token(login, fields.get(FORM_TOKEN)) {
        return Ok(fields);
    }
    let why = "The form is not from this process, or from another login. Open its page again.";
    Err(Failure::Forbidden(why.into()))
}

/// The page that asks for the token.
pub(super) async fn login_form() -> Response {
    login_page(false)
}

fn login_page(refused: bool) -> Response {
    let main = html! {
        @if refused {
            div.note.bad role="alert" { p { "That is not the token, or the login is over." } }
        }
        form method="post" action="/login" {
            div.row {
                label { "Token"
                    input type="password" name="token" autocomplete="current-password" required autofocus;
                }
                button { "Log in" }
            }
        }
        p.quiet { "It is the one of OPERATOR_TOKEN or OPERATOR_TOKEN_FILE of this process." }
    };
    (StatusCode::UNAUTHORIZED, layout::bare("Log in", main)).into_response()
}

/// Takes a token, and answers with a cookie.
pub(super) async fn login(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let token = Fields::parse(&body).get("token").to_owned();
    match shared.security.try_token(token.as_bytes()).await {
        Err(busy) => Ok(busy),
        Ok(false) => Ok(login_page(true)),
        Ok(true) => {
            let value = shared.security.login(now() + LOGIN_SECS);
            Ok(to_start(&cookie(&headers, &value, LOGIN_SECS)))
        }
    }
}

/// Takes the cookie back.
pub(super) async fn logout(headers: HeaderMap) -> Response {
    to_start(&cookie(&headers, "", 0))
}

fn cookie(headers: &HeaderMap, value: &str, secs: u64) -> String {
    // Behind a proxy with TLS the cookie is not to go over a connection without.
    let by_tls = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
    let secure = if by_tls { "; Secure" } else { "" };
    format!("{COOKIE_NAME}={value}; Path=/; Max-Age={secs}; HttpOnly; SameSite=Strict{secure}")
}

fn to_start(cookie: &str) -> Response {
    let mut response = (StatusCode::SEE_OTHER, [(LOCATION, "/")]).into_response();
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}

#[cfg(test)]
mod tests {
    use service::{operator::OperatorArgs, settings::Problems};

    use super::*;

    fn security(token: &str) -> Security {
        let args = OperatorArgs { operator_token: Some(token.into()), ..OperatorArgs::default() };
        Security::new(&args.settings(&mut Problems::default()))
    }

    #[test]
    fn a_login_is_good_for_its_time_and_its_token_alone() {
        let (one, other) = (security("0123456789abcdef"), security("fedcba9876543210"));
        let login = one.login(1_000);
        assert!(one.is_login(&login, 999) && security("0123456789abcdef").is_login(&login, 999));
        assert!(!one.is_login(&login, 1_000), "over");
        assert!(!other.is_login(&login, 999), "another token");
        let later = login.replacen("1000", "9000", 1);
        for bad in ["", ".", "1000.", "1000.00", "x", later.as_str(), &login[..login.len() - 1]] {
            assert!(!one.is_login(bad, 999), "{bad}");
        }
        assert!(one.is_token(b"0123456789abcdef") && !one.is_token(b"0123456789abcdeg"));
        assert!(!one.is_token(b"") && !security("").is_token(b""));
    }

    #[test]
    fn what_a_proxy_passes_on_is_known_by_its_headers_or_its_host() {
        for (host, more, expected) in [
            (Some("localhost:8001"), None, false),
            (Some("LOCALHOST"), None, false),
            (Some("127.0.0.1:8001"), None, false),
            (Some("[::1]:8001"), None, false),
            (Some("[::ffff:127.0.0.1]"), None, false),
            (Some("coordinator.example.com"), None, true),
            (Some("192.168.0.7:8001"), None, true),
            (Some("localhost.example.com"), None, true),
            (None, None, true),
            (Some("localhost:8001"), Some("x-forwarded-for"), true),
            (Some("127.0.0.1:8001"), Some("forwarded"), true),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(host.map(|host| (HOST, HeaderValue::from_static(host))));
            let more = more.map(HeaderName::from_static);
            headers.extend(more.map(|name| (name, HeaderValue::from_static("1.2.3.4"))));
            assert_eq!(is_passed_on(&headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_form_is_of_one_login_and_one_process() {
        let one = security("0123456789abcdef");
        let token = one.form_token("a");
        assert!(one.is_form_token("a", &token) && !one.is_form_token("b", &token));
        assert!(!security("0123456789abcdef").is_form_token("a", &token));
        assert!(!one.is_form_token("a", "") && !one.is_form_token("a", "zz"));
    }

    #[test]
    fn a_request_is_from_here_by_its_origin_or_by_the_browsers_word() {
        for (origin, site, expected) in [
            (Some("http://127.0.0.1:8001"), None, true),
            (Some("https://127.0.0.1:8001"), None, true),
            (Some("http://127.0.0.1:8002"), None, false),
            (Some("http://evil.example"), Some("same-origin"), false),
            (Some("http://127.0.0.1:8001.evil.example"), None, false),
            (Some("null"), Some("same-origin"), false),
            (Some(""), None, false),
            (None, Some("same-origin"), true),
            (None, Some("same-site"), false),
            (None, Some("none"), false),
            (None, None, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("127.0.0.1:8001"));
            if let Some(origin) = origin {
                headers.insert(ORIGIN, HeaderValue::from_static(origin));
            }
            if let Some(site) = site {
                headers.insert("sec-fetch-site", HeaderValue::from_static(site));
            }
            assert_eq!(is_from_here(&headers), expected, "{origin:?} {site:?}");
        }
    }

    #[test]
    fn what_another_page_embeds_is_told_from_what_a_person_opens() {
        for (site, mode, expected) in [
            ("cross-site", "no-cors", true),
            ("same-site", "no-cors", true),
            ("same-site", "cors", true),
            ("cross-site", "navigate", false),
            ("same-site", "navigate", false),
            ("same-origin", "cors", false),
            ("none", "navigate", false),
        ] {
            let mut headers = HeaderMap::new();
            assert!(!is_of_another_page(&headers), "no browser");
            headers.insert("sec-fetch-site", HeaderValue::from_static(site));
            headers.insert("sec-fetch-mode", HeaderValue::from_static(mode));
            assert_eq!(is_of_another_page(&headers), expected, "{site} {mode}");
        }
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=b; coordinator_login=x.y"));
        headers.append(COOKIE, HeaderValue::from_static("coordinator_login=z"));
        assert_eq!(cookies(&headers).collect::<Vec<_>>(), ["x.y", "z"]);
        headers.insert(AUTHORIZATION, HeaderValue::from_static("bearer  t"));
        assert_eq!(bearer(&headers), Some("t"));
    }
}
